//! The built command: a relay and two that join it, as processes.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers are test code too")]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::process::{
    ANY, Relay, addr, application, assert_carried, assert_one_error, carried_again, echo,
};
use support::process::{file, free_port, program};

const PASSWORD: &str = "hunter2-of-alice";
/// Nothing gets too old on a busy machine.
const PATIENT: &str = "--max-queue-delay 30s";

/// With a certificate made for it, and its pin.
fn tls_relay(at: SocketAddr) -> (Relay, String) {
    let who = format!("--realm example.org --user alice:{PASSWORD}");
    let relay = Relay::start(&format!("relay --tcp {at} {who} --tls-self-signed {PATIENT} --json"));
    let pin = relay.event("certificate_shown")["pin"].as_str().unwrap().to_owned();
    (relay, pin)
}

fn relay(at: SocketAddr) -> Relay {
    let relay = Relay::start(&format!(
        "relay --tcp {at} --realm example.org --user alice:{PASSWORD} {PATIENT} --json"
    ));
    relay.event("relay_started");
    relay
}

fn join(relay: SocketAddr, side: &str, udp: &str) -> Relay {
    let who = format!("--user alice --pair vpn --side {side}");
    let args = format!("join --relay {relay} {who} {udp} {PATIENT} --json");
    Relay::of(
        program()
            .env("ACTIX_RELAY_PASSWORD", PASSWORD)
            .args(args.split_whitespace())
            .stdout(std::process::Stdio::piped()),
    )
}

#[test]
fn two_that_only_call_out_are_joined_and_again_when_the_relay_was_killed() {
    let at = free_port();
    let first = relay(at);
    let near = join(at, "near", &format!("--udp {ANY}"));
    let entry = addr(&near.event("session_started")["local_udp"]);
    assert_eq!(addr(&near.event("relay_joined")["relay"]), at);
    let far = join(at, "far", &format!("--udp-forward {}", echo()));
    assert_eq!(near.event("relay_peer_present")["side"], "far");
    let app = application();
    for len in [0, 1, 1200, 9000] {
        assert_carried(&app, entry, &vec![7; len]);
    }
    drop(first);
    let lost = near.event("peer_disconnected");
    assert!(["closed", "broken"].contains(&lost["cause"].as_str().unwrap()), "{lost}");
    let restarted = relay(at);
    let began = Instant::now();
    carried_again(&app, entry);
    assert!(began.elapsed() < Duration::from_secs(10));
    // Killed without a word; its successor takes the place.
    drop(far);
    near.event("relay_peer_gone");
    let half_open = join(at, "far", &format!("--udp-forward {}", echo()));
    carried_again(&app, entry);
    // Its connection stands while its process does nothing; its successor takes the place all the same.
    half_open.signal("STOP");
    let far = join(at, "far", &format!("--udp-forward {}", echo()));
    near.event("relay_peer_gone");
    carried_again(&app, entry);
    drop(half_open);
    restarted.signal("TERM");
    let lost = near.event("peer_disconnected");
    assert_eq!(lost["cause"], "restarting", "{lost}");
    assert!((0.2..=5.1).contains(&lost["retry_in"].as_f64().unwrap()), "{lost}");
    for process in [near, far] {
        process.signal("TERM");
        let ended = process.end();
        assert_eq!(ended.code, Some(0));
        assert!(!ended.printed.contains("hunter2"), "{}", ended.printed);
    }
}

#[test]
fn with_tls_only_the_relay_that_is_pinned_is_believed() {
    let at = free_port();
    let (_relay, pin) = tls_relay(at);
    let near = join(at, "near", &format!("--udp {ANY} --tls --tls-pin {pin}"));
    let entry = addr(&near.event("session_started")["local_udp"]);
    let far = join(at, "far", &format!("--udp-forward {} --tls --tls-pin {pin}", echo()));
    near.event("relay_peer_present");
    let app = application();
    for len in [0, 1, 1200, 9000] {
        assert_carried(&app, entry, &vec![7; len]);
    }
    let other = join(at, "other", &format!("--udp {ANY} --tls --tls-pin {}", "0".repeat(64)));
    let failed = other.event("connect_failed");
    assert!(failed["error"].as_str().unwrap().contains("pin"), "{failed}");
    let unknown = join(at, "other", &format!("--udp {ANY} --tls"));
    let failed = unknown.event("connect_failed");
    assert!(!failed["error"].as_str().unwrap().is_empty(), "{failed}");
    let plain = join(at, "other", &format!("--udp {ANY}"));
    let failed = plain.event("connect_failed");
    assert!(failed["error"].as_str().unwrap().ends_with("; does it speak TLS?"), "{failed}");
    // Another one of the same name takes the place, and the first one stays away.
    let newer = join(at, "near", &format!("--udp {ANY} --tls --tls-pin {pin}"));
    newer.event("relay_peer_present");
    let lost = near.event("peer_disconnected");
    assert_eq!((lost["cause"].as_str(), &lost["retry_in"]), (Some("superseded"), &serde_json::Value::Null));
    assert!(lost["detail"].as_str().unwrap().contains("stays away"), "{lost}");
    // It has nothing else to do.
    let ended = near.end();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.iter().any(|line| line.contains("given up")), "{:?}", ended.stderr);
    drop(far);
    newer.event("relay_peer_gone");
}

#[test]
fn a_file_describes_the_same() {
    let at = free_port();
    let relay = relay(at);
    let password = file(PASSWORD);
    let remote = |side: &str| {
        format!(
            "remote = {{ relay = \"{at}\", user = \"alice\", password_file = \"{}\", pair = \"vpn\", side = \"{side}\" }}",
            password.path().display()
        )
    };
    let text = format!(
        "[[session]]\nname = \"near\"\n{}\nlocal_udp = \"{ANY}\"\nmax_queue_delay = \"30s\"\n\
         [[session]]\nname = \"far\"\n{}\nudp_forward = \"{}\"\nmax_queue_delay = \"30s\"\n",
        remote("near"),
        remote("far"),
        echo()
    );
    let sessions = file(&text);
    let process = Relay::start(&format!("run {} --json", sessions.path().display()));
    // They start side by side.
    let entry = std::iter::repeat_with(|| process.event("session_started")["local_udp"].clone());
    let entry = addr(&{ entry }.find(|local_udp| !local_udp.is_null()).unwrap());
    carried_again(&application(), entry);
    process.signal("TERM");
    assert_eq!(process.end().code, Some(0));
    drop(relay);
}

#[test]
fn what_is_wrong_is_said_in_a_line() {
    let good = "join --relay 127.0.0.1:1 --user alice:hunter2 --pair p --side a";
    assert_one_error(good, 2, &["--udp-forward"]);
    assert_one_error(&format!("{good} --udp {ANY} --tls-ca nowhere.pem"), 2, &["go with --tls"]);
    assert_one_error(&format!("{good} --udp {ANY} --tls --tls-ca nowhere.pem"), 1, &["nowhere.pem"]);
    assert_one_error(
        "join --relay 127.0.0.1:1 --user alice --pair p --side a --udp 127.0.0.1:0",
        2,
        &["ACTIX_RELAY_PASSWORD"],
    );
}
