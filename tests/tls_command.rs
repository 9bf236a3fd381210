//! TLS on the command line and in files.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers are test code too")]

mod support;

use std::net::SocketAddr;

use support::process::{ANY, Relay, addr, application, assert_one_error, carried_again, echo, file};
use support::tls::{Authority, Issued};

fn shown(issued: &Issued) -> String {
    format!("--tls-cert {} --tls-key {}", issued.files.cert.display(), issued.files.key.display())
}

/// A listening process, and where it listens.
fn listen(extra: &str) -> (Relay, SocketAddr) {
    let relay = Relay::start(&format!("--json listen --tcp {ANY} --udp-forward {} {extra}", echo()));
    let local_tcp = addr(&relay.event("listening")["local_tcp"][0]);
    (relay, local_tcp)
}

/// A connecting process, and where applications send to.
fn connect(to: &str, extra: &str) -> (Relay, SocketAddr) {
    let relay = Relay::start(&format!("connect --json --tcp {to} --udp {ANY} {extra}"));
    let local_udp = addr(&relay.event("session_started")["local_udp"]);
    (relay, local_udp)
}

#[test]
fn the_pin_of_a_self_signed_certificate_is_printed_and_believed() {
    let (far, tcp) = listen("--tls-self-signed");
    let pin = far.event("certificate_shown")["pin"].as_str().unwrap().to_owned();
    let (_near, udp) = connect(&tcp.to_string(), &format!("--tls --tls-pin {pin}"));
    carried_again(&application(), udp);
    let (other, _) = connect(&tcp.to_string(), "--tls");
    let failed = other.event("connect_failed");
    assert!(failed["error"].as_str().unwrap().contains("authority that is not believed here"), "{failed}");
}

#[test]
fn the_system_s_authorities_are_believed_by_default() {
    let authority = Authority::new();
    let (_far, tcp) = listen(&shown(&authority.issue("localhost")));
    let args = format!("connect --json --tcp localhost:{} --udp {ANY} --tls", tcp.port());
    let mut command = support::process::program();
    command.args(args.split(' ')).env("SSL_CERT_FILE", &authority.ca).stdout(std::process::Stdio::piped());
    let near = Relay::of(&mut command);
    let udp = addr(&near.event("session_started")["local_udp"]);
    carried_again(&application(), udp);
}

#[test]
fn certificates_are_pinned_both_ways_and_read_again_on_a_hangup() {
    let authority = Authority::new();
    let (server, client) = (authority.issue("127.0.0.1"), authority.issue("client"));
    let (far, tcp) = listen(&format!("{} --tls-client-pin {}", shown(&server), client.pin));
    for _ in 0..2 {
        assert_eq!(far.event("certificate_shown")["pin"], server.pin.to_string());
        far.signal("HUP");
    }
    assert_eq!(far.event("certificate_shown")["pin"], server.pin.to_string());
    let key = &server.files.key;
    let good = std::fs::read(key).unwrap();
    std::fs::write(key, "no key").unwrap();
    far.signal("HUP");
    let kept = far.event("certificate_kept");
    assert!(kept["error"].as_str().unwrap().contains("no private key in it"), "{kept}");
    std::fs::write(key, good).unwrap();
    let CertificateFlags(cert, key) = CertificateFlags::of(&client);
    let ca = authority.ca.display();
    let believes = format!("--tls --tls-ca {ca} --tls-client-cert {cert} --tls-client-key {key}");
    let (_near, udp) = connect(&tcp.to_string(), &believes);
    carried_again(&application(), udp);
    far.signal("TERM");
    let ended = far.end();
    assert_eq!(ended.code, Some(0));
    // Nobody is warned of a port that is not open to anybody.
    assert!(ended.stderr.is_empty(), "{:?}", ended.stderr);
}

struct CertificateFlags(String, String);

impl CertificateFlags {
    fn of(issued: &Issued) -> Self {
        Self(issued.files.cert.display().to_string(), issued.files.key.display().to_string())
    }
}

#[test]
fn a_file_says_the_same() {
    let authority = Authority::new();
    let (server, client) = (authority.issue("127.0.0.1"), authority.issue("client"));
    let CertificateFlags(cert, key) = CertificateFlags::of(&server);
    let far = file(&format!(
        "[[session]]\nname = \"far\"\nlocal_tcp = [\"{ANY}\"]\nudp_forward = \"{}\"\n\
         listen_tls = {{ cert = \"{cert}\", key = \"{key}\", client_pins = [\"{}\"] }}\n",
        echo(),
        client.pin
    ));
    let far = Relay::start(&format!("run {} --json", far.path().display()));
    let tcp = addr(&far.event("listening")["local_tcp"][0]);
    assert_eq!(far.event("certificate_shown")["pin"], server.pin.to_string());
    let CertificateFlags(cert, key) = CertificateFlags::of(&client);
    let near = file(&format!(
        "[[session]]\nname = \"near\"\nremote = \"{tcp}\"\nlocal_udp = \"{ANY}\"\n\
         tls = {{ pin = \"{}\", cert = \"{cert}\", key = \"{key}\" }}\n",
        server.pin
    ));
    let near = Relay::start(&format!("run {} --json", near.path().display()));
    let udp = addr(&near.event("session_started")["local_udp"]);
    carried_again(&application(), udp);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let authority = Authority::new();
    let a = authority.issue("a");
    let b = authority.issue("b");
    let listen = format!("listen --tcp {ANY} --udp-forward 127.0.0.1:9");
    let connect = format!("connect --tcp 127.0.0.1:9 --udp {ANY}");
    let CertificateFlags(cert, _) = CertificateFlags::of(&a);
    let CertificateFlags(_, key) = CertificateFlags::of(&b);
    assert_one_error(&format!("{listen} --tls-cert /nowhere"), 2, &["--tls-key"]);
    assert_one_error(&format!("{listen} --tls-cert /nowhere --tls-key /nowhere"), 1, &["/nowhere: No such"]);
    assert_one_error(
        &format!("{listen} --tls-cert {cert} --tls-key {key}"),
        1,
        &[&key, "not the key of the certificate"],
    );
    let session = format!("[[session]]\nname = 'a'\nlocal_udp = '{ANY}'\nremote = '127.0.0.1:9'\n");
    let session = file(&format!("{session}tls = {{ cert = '{cert}', key = '{key}' }}"));
    let session = session.path().display();
    let expected = [&format!("{session}:5: session 'a': tls: {key}: this is not the key"), ""];
    assert_one_error(&format!("check {session}"), 2, &expected.map(|text| text as &str));
    assert_one_error(&format!("{connect} --tls-ca {cert}"), 2, &["go with --tls"]);
    assert_one_error(&format!("{connect} --tls --tls-ca {key}"), 1, &["no certificate in it"]);
    assert_one_error(&format!("{connect} --tls --tls-pin 12"), 2, &["64 hex digits"]);
    let through = "--turn turn:127.0.0.1 --user a:b";
    assert_one_error(
        &format!("{connect} {through} --tls"),
        2,
        &["--tls goes with a direct remote", "turns:"],
    );
    let through = "--user a:b --tls-ca /nowhere";
    for refused in [
        format!("{connect} --turn turns:127.0.0.1 {through}"),
        format!("listen --turn turns:127.0.0.1 --permit 192.0.2.1 --udp-forward 127.0.0.1:9 {through}"),
        format!("turn --server turns:127.0.0.1 --udp {ANY} --peer 192.0.2.1:9 {through}"),
        format!("turn-tcp --server turns:127.0.0.1 --tcp {ANY} --connect 192.0.2.1:9 {through}"),
    ] {
        assert_one_error(&refused, 1, &["/nowhere: No such"]);
    }
    let through = "--turn turn:127.0.0.1 --user a:b";
    let listen = format!("listen {through} --permit 192.0.2.1 --udp-forward 127.0.0.1:9");
    assert_one_error(&format!("{listen} --tls-self-signed"), 2, &["one or the other"]);
}
