//! The built command as a TURN client, against coturn: `turn` and `turn-tcp`.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers are test code too")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::thread;

use serde_json::Value;
use support::PATIENCE;
use support::coturn::Coturn;
use support::process::{
    ANY, Relay, addr, application, assert_carried, assert_one_error, carried_again, echo, file, free_port,
    program,
};
use support::turn_process::{PASSWORD, PATIENT, USER, WRONG, at, logged, server, stop, stop_json};

const PIECE: usize = 32 << 10;
const PIECES: usize = 32;

/// The `turn` command towards this peer, and where local programs send to.
fn turn(coturn: &Coturn, transport: &str, peer: SocketAddr) -> (Relay, SocketAddr) {
    let server = format!("--server {} --user {USER}:{PASSWORD}", coturn.uri(transport));
    let relay =
        Relay::start(&format!("turn {server} --udp {ANY} --peer {peer} {PATIENT} --stats 100ms --json"));
    let local = addr(&relay.event("turn_started")["local_udp"][0]);
    (relay, local)
}

fn a_program_reaches_its_peer(transport: &str) {
    let coturn = server().start();
    let (app, peer) = (application(), application());
    let (turn, local) = turn(&coturn, transport, peer.local_addr().unwrap());
    let created = turn.event("allocation_created");
    let relayed = addr(&created["relayed"]);
    assert_eq!(addr(&created["server"]), coturn.addr());
    assert!(coturn.relay_ports().contains(&relayed.port()), "{created}");
    assert!(created["lifetime"].as_f64().unwrap() >= 600.0, "{created}");

    let lens = [0, 1, 3, 1200, 1471, 8000];
    let mut buffer = vec![0; 1 << 16];
    for len in lens {
        let datagram = vec![7; len];
        app.send_to(&datagram, local).unwrap();
        let (got, from) = peer.recv_from(&mut buffer).expect("nothing came to the peer");
        assert_eq!((&buffer[..got], from), (&datagram[..], relayed));
        peer.send_to(&datagram, relayed).unwrap();
        let (got, from) = app.recv_from(&mut buffer).expect("no answer");
        assert_eq!((&buffer[..got], from), (&datagram[..], local));
    }
    let carried = serde_json::json!({ "datagrams": lens.len(), "bytes": lens.iter().sum::<usize>() });
    while turn.event("turn_stats")["counters"]["from_peers"] != carried {}

    let events = stop_json(turn);
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    for name in ["permissions_created", "channel_bound", "session_stopped", "summary"] {
        assert_eq!(named(name).len(), 1, "{name}: {events:#?}");
    }
    assert_eq!(named("channel_bound")[0]["peer"], peer.local_addr().unwrap().to_string());
    let deleted = named("allocation_deleted")[0];
    assert_eq!((addr(&deleted["relayed"]), &deleted["retry_in"]), (relayed, &Value::Null));
    let summary = &named("summary")[0]["counters"];
    assert_eq!((&summary["to_peers"], &summary["from_peers"]), (&carried, &carried));
    logged(&coturn, "lifetime=0", 1);
}

#[test]
fn a_program_reaches_its_peer_over_udp() {
    a_program_reaches_its_peer("udp");
}

#[test]
fn a_program_reaches_its_peer_over_tcp() {
    a_program_reaches_its_peer("tcp");
}

#[test]
fn a_peer_of_the_other_family_is_reached_from_a_relayed_address_of_that_family() {
    let coturn = server().relay_ip(Ipv6Addr::LOCALHOST).start();
    let peer = UdpSocket::bind("[::1]:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let (turn, local) = turn(&coturn, "udp", peer.local_addr().unwrap());
    let relayed = addr(&turn.event("allocation_created")["relayed"]);
    assert!(relayed.is_ipv6(), "{relayed}");
    application().send_to(b"hello", local).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(peer.recv_from(&mut buffer).unwrap(), (5, relayed));
    stop_json(turn);
}

#[test]
fn people_are_told_the_relayed_address_and_what_was_carried() {
    let coturn = server().start();
    let turn =
        Relay::start(&format!("turn --server {} --udp {ANY} --peer {} --stats 100ms", at(&coturn), echo()));
    let started = turn.line("TURN client of turn:127.0.0.1:");
    let local: SocketAddr = started.rsplit_once("send UDP to ").unwrap().1.parse().unwrap();
    let relayed = turn.line(" turn: relayed address 127.0.0.1:");
    assert!(relayed.ends_with(&format!(" at {}", coturn.addr())), "{relayed}");
    turn.line("bound to 127.0.0.1:");
    assert_carried(&application(), local, b"1234567");
    turn.line("to peers 1 datagrams 7 bytes, from peers 1 datagrams 7 bytes, dropped 0");
    let ended = stop(turn);
    assert!(ended.stderr.is_empty(), "{:?}", ended.stderr);
    let last = ended.stdout.last().unwrap();
    assert!(last.contains(" turn: summary: to peers 1 datagrams 7 bytes, "), "{last}");
    let gone = ended.stdout.iter().filter(|line| line.contains(" is gone: told to deallocate"));
    assert_eq!(gone.count(), 1, "{:?}", ended.stdout);
}

/// A `turn` command whose user and password are given so, and whatever else.
fn turn_as(coturn: &Coturn, args: &str, environment: &[(&str, &str)]) -> Relay {
    let uri = coturn.uri("udp");
    let all = format!("turn --server {uri} --udp {ANY} --peer 127.0.0.1:9 {args}");
    let environment = environment.iter().copied();
    Relay::of(program().args(all.split_whitespace()).envs(environment).stdout(Stdio::piped()))
}

#[test]
fn the_password_comes_from_a_flag_a_file_or_the_environment() {
    let coturn = server().start();
    let password = file(&format!("{PASSWORD}\n"));
    let in_file = format!("--user {USER} --password-file {}", password.path().display());
    for (args, environment) in [
        (format!("--user {USER}:{PASSWORD}"), vec![("RUST_LOG", "trace")]),
        (in_file, vec![("ACTIX_RELAY_TURN_PASSWORD", WRONG)]),
        (format!("--user {USER} --password-env MINE"), vec![("MINE", PASSWORD)]),
        (format!("--user {USER}"), vec![("ACTIX_RELAY_TURN_PASSWORD", PASSWORD)]),
    ] {
        let turn = turn_as(&coturn, &format!("{args} -vvv --json"), &environment);
        turn.event("allocation_created");
        stop(turn);
    }
}

#[test]
fn a_wrong_password_is_said_in_one_line_and_tried_again_slowly() {
    let coturn = server().start();
    for (flags, environment) in
        [("", vec![]), ("-q", vec![]), ("-vvv", vec![]), ("", vec![("RUST_LOG", "trace")])]
    {
        let turn = turn_as(&coturn, &format!("--user {USER}:{WRONG} {flags}"), &environment);
        let line = turn.line("no allocation: ");
        assert!(line.contains("the server does not accept user 'alice' with this password"), "{line}");
        let wait = line.rsplit_once("next attempt in ").unwrap().1;
        let wait: f64 = wait.strip_suffix(" s").unwrap().parse().unwrap();
        assert!((5.0..=10.0).contains(&wait), "{line}");
        let ended = stop(turn);
        // -vvv logs each event too.
        let said = ended.printed.lines().filter(|line| !line.contains(" DEBUG "));
        assert_eq!(said.filter(|line| line.contains("does not accept")).count(), 1, "{}", ended.printed);
        if flags == "-q" {
            assert_eq!(ended.printed.lines().count(), 1, "{}", ended.printed);
        }
    }
    let turn = turn_as(&coturn, &format!("--user {USER}:{WRONG} --json"), &[]);
    let failed = turn.event("allocation_failed");
    assert!(failed["error"].as_str().unwrap().contains("does not accept user 'alice'"), "{failed}");
    assert!(failed["retry_in"].as_f64().unwrap() >= 5.0, "{failed}");
    stop_json(turn);
}

#[test]
fn every_command_says_that_a_password_is_wrong_also_where_quiet_is_wanted() {
    let coturn = server().start();
    let uri = coturn.uri("tcp");
    for command in [
        format!("turn-tcp --server {uri} --connect 127.0.0.1:9 --tcp {ANY}"),
        format!("listen --turn {uri} --permit 127.0.0.1 --udp-forward 127.0.0.1:9"),
        format!("connect --turn {uri} --tcp 127.0.0.1:9 --udp {ANY}"),
    ] {
        let relay = Relay::start(&format!("{command} --user {USER}:{WRONG} -q"));
        relay.line("the server does not accept user 'alice' with this password");
        let ended = stop(relay);
        assert_eq!(ended.printed.lines().count(), 1, "{}", ended.printed);
    }
}

#[test]
fn nothing_is_said_where_all_is_well_and_quiet_is_wanted() {
    let coturn = server().start();
    let turn = turn_as(&coturn, &format!("--user {USER}:{PASSWORD} -q --stats 100ms"), &[]);
    logged(&coturn, "CHANNEL_BIND processed, success", 1);
    assert_eq!(stop(turn).printed, "");
    logged(&coturn, "lifetime=0", 1);
}

#[test]
fn a_server_that_has_fallen_silent_does_not_hold_up_the_end() {
    let coturn = server().start();
    for transport in ["udp", "tcp"] {
        let (turn, _) = turn(&coturn, transport, echo());
        turn.event("channel_bound");
        coturn.pause();
        stop_json(turn);
        coturn.resume();
    }
}

#[test]
fn a_server_that_is_not_there_is_named_and_does_not_hold_up_the_end() {
    let nobody = free_port();
    let turn = |uri: String| Relay::start(&format!("turn --server {uri} --udp {ANY} --peer 127.0.0.1:9"));
    let over_tcp = turn(format!("turn:{nobody}?transport=tcp"));
    let line = over_tcp.line("no allocation: the server cannot be reached");
    assert!(line.contains(&nobody.to_string()) && line.contains("next attempt in "), "{line}");
    stop(over_tcp);
    let over_udp = turn(format!("turn:{nobody}"));
    over_udp.line("started");
    stop(over_udp);
}

#[test]
fn after_a_restart_of_the_server_a_program_is_served_at_the_same_port() {
    let mut coturn = server().start();
    let (turn, local) = turn(&coturn, "udp", echo());
    let before = addr(&turn.event("allocation_created")["relayed"]);
    let app = application();
    assert_carried(&app, local, b"before");
    coturn.restart();
    carried_again(&app, local);
    assert!(turn.event("allocation_deleted")["retry_in"].is_number());
    let created = turn.event("allocation_created");
    // It may be the same by chance.
    let replaced = if addr(&created["relayed"]) == before { Value::Null } else { before.to_string().into() };
    assert_eq!(created["replaces"], replaced);
    assert_carried(&app, local, b"after");
    stop_json(turn);
}

/// A TCP service that answers each connection with itself.
fn echo_tcp() -> SocketAddr {
    let listener = TcpListener::bind(ANY).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut from, _)) = listener.accept() {
            from.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut to = from.try_clone().unwrap();
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    addr
}

/// 1 MiB there and back; with `half_close` the client ends its half before the last answer.
///
/// Piece by piece, for coturn keeps 16 reads of what a peer sends before it is bound, and a connection whose both
/// ways are full at once never gets going again.
fn exchange(entry: SocketAddr, half_close: bool) {
    let mut stream = TcpStream::connect(entry).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = vec![0; PIECE];
    for number in 0..=PIECES {
        let len = if number == 0 { 1 } else { PIECE };
        let sent: Vec<u8> = (number..number + len).map(|index| (index * 31 + index / 257) as u8).collect();
        stream.write_all(&sent).unwrap();
        if half_close && number == PIECES {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        stream.read_exact(&mut got[..len]).unwrap();
        assert!(got[..len] == sent);
    }
}

/// One that takes the connections of peers at 127.0.0.1, and its relayed address.
fn accepting(coturn: &Coturn, service: SocketAddr) -> (Relay, SocketAddr) {
    let flags = format!("--accept --permit 127.0.0.1 --tcp-forward {service}");
    let relay = Relay::start(&format!("turn-tcp --server {} {flags} --json", at(coturn)));
    let relayed = addr(&relay.event("allocation_created")["relayed"]);
    relay.event("permissions_created");
    (relay, relayed)
}

/// One whose local port leads to the peer, and that port.
fn calling(coturn: &Coturn, peer: SocketAddr) -> (Relay, SocketAddr) {
    let flags = format!("--connect {peer} --tcp {ANY}");
    let relay = Relay::start(&format!("turn-tcp --server {} {flags} --json", at(coturn)));
    let local = addr(&relay.event("turn_started")["local_tcp"][0]);
    (relay, local)
}

#[test]
fn a_local_port_leads_to_a_peer() {
    let coturn = server().start();
    let (relay, local) = calling(&coturn, echo_tcp());
    for half_close in [false, true] {
        exchange(local, half_close);
        relay.event("relay_connection_created");
    }
    stop_json(relay);
    logged(&coturn, "lifetime=0", 1);
}

#[test]
fn peers_come_to_a_local_service() {
    let coturn = server().start();
    let (relay, relayed) = accepting(&coturn, echo_tcp());
    for _ in 0..2 {
        // Not half-closed: coturn resets both ends then.
        exchange(relayed, false);
        relay.event("relay_connection_created");
    }
    stop_json(relay);
    logged(&coturn, "lifetime=0", 1);
}

#[test]
fn two_that_can_only_call_out_carry_connections_between_them() {
    let coturn = server().start();
    let (far, relayed) = accepting(&coturn, echo_tcp());
    let (near, local) = calling(&coturn, relayed);
    for half_close in [false, true] {
        exchange(local, half_close);
    }
    stop_json(near);
    stop_json(far);
    logged(&coturn, "lifetime=0", 2);
}

#[test]
fn bad_usage_is_named_in_one_sentence() {
    let server = "--server turn:h --user a:b";
    let udp = format!("--udp {ANY}");
    let through = format!("--turn turn:h --user a:b {udp}");
    for (args, named) in [
        (format!("turn --server h:1 {udp} --peer 192.0.2.1:2"), "it must begin with turn:"),
        (format!("turn {server} {udp}"), "--peer"),
        (format!("turn {server} {udp} --peer h:1"), "expected IP:PORT"),
        (format!("turn {server} {udp} --peer 192.0.2.1:2 --family ipv6"), "--peer and --family differ"),
        (
            format!("turn --server turn:h --user a --password-file /nowhere/pw {udp} --peer 192.0.2.1:2"),
            "/nowhere/pw",
        ),
        (
            format!("turn --server turn:h --user a --password-env NO_SUCH {udp} --peer 192.0.2.1:2"),
            "NO_SUCH is not set",
        ),
        (format!("turn-tcp {server}"), "--connect <PEER>|--accept"),
        (format!("turn-tcp {server} --connect 192.0.2.1:2"), "--tcp"),
        (format!("turn-tcp {server} --accept --tcp-forward 127.0.0.1:1"), "--permit"),
        (format!("turn-tcp {server} --accept --permit ::1 --tcp-forward 127.0.0.1:0"), "--tcp-forward"),
        (format!("turn-tcp --server turn:h?transport=udp --connect 192.0.2.1:2 --tcp {ANY}"), "over TCP"),
        (format!("listen {through}"), "--permit must name 1 to 256 peers"),
        (format!("connect {through} --tcp example.org:1"), "--tcp must be IP:PORT with --turn"),
        (format!("connect {through} --tcp 192.0.2.1:1 --max-sources 2"), "--max-sources"),
        (format!("connect {udp} --tcp 192.0.2.1:1 --user a:b"), "--user goes with --turn"),
    ] {
        assert_one_error(&args, 2, &[named]);
    }
}
