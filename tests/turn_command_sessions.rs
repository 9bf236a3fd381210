//! The built command with sessions that go through a TURN server, coturn: `listen` and `connect` with `--turn`, and files.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers are test code too")]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use serde_json::Value;
use support::coturn::Coturn;
use support::process::{
    ANY, Relay, addr, application, assert_carried, carried_again, echo, file, program, run,
};
use support::turn_process::{PASSWORD, PATIENT, at, logged, server, stop, stop_json};

/// A session that is reached at a relayed address, and that address.
fn listen(coturn: &Coturn, extra: &str) -> (Relay, SocketAddr) {
    let flags = format!("--permit 127.0.0.1 --udp-forward {} {PATIENT} {extra}", echo());
    let relay = Relay::start(&format!("listen --turn {} {flags} --json", at(coturn)));
    let relayed = addr(&relay.event("allocation_created")["relayed"]);
    relay.event("permissions_created");
    (relay, relayed)
}

/// A session that calls this address, and where local programs send to.
fn connect(far: SocketAddr, extra: &str) -> (Relay, SocketAddr) {
    let relay = Relay::start(&format!("connect --tcp {far} --udp {ANY} {PATIENT} {extra} --json"));
    let local = addr(&relay.event("session_started")["local_udp"]);
    (relay, local)
}

fn assert_all_carried(local: SocketAddr) {
    let app = application();
    for len in [0, 1, 1200, 9000] {
        assert_carried(&app, local, &vec![7; len]);
    }
}

#[test]
fn a_session_prints_its_relayed_address_and_is_reached_there() {
    let coturn = server().start();
    let far = format!("listen --turn {} --permit 127.0.0.1 --udp-forward {}", at(&coturn), echo());
    let far = Relay::start(&far);
    let line = far.line("relayed address ");
    let (_, relayed) = line.split_once("relayed address ").unwrap();
    let relayed: SocketAddr = relayed.split(' ').next().unwrap().parse().unwrap();
    far.line("permitted: 127.0.0.1");
    let (near, local) = connect(relayed, "");
    assert_all_carried(local);
    stop_json(near);
    let summary = stop(far).stdout.pop().unwrap();
    assert!(summary.contains("summary: 0 connected, ") || summary.contains("summary: 1 connected, "));
    assert!(summary.contains("to UDP 4 datagrams 10201 bytes"), "{summary}");
    logged(&coturn, "lifetime=0", 1);
}

#[test]
fn two_sessions_meet_directly_or_each_from_an_allocation_of_its_own() {
    let coturn = server().start();
    let (far, relayed) = listen(&coturn, "");
    let (direct, direct_local) = connect(relayed, "");
    let (through, through_local) = connect(relayed, &format!("--turn {}", at(&coturn)));
    for local in [direct_local, through_local] {
        assert_all_carried(local);
    }
    let links = [far.event("peer_connected"), far.event("peer_connected")];
    assert_ne!(links[0]["link"], links[1]["link"]);
    for relay in [through, direct, far] {
        stop_json(relay);
    }
    logged(&coturn, "lifetime=0", 2);
}

#[test]
fn traffic_flows_again_when_the_server_of_either_side_was_restarted() {
    // With a single relayed address the listening side gets the same again.
    let (mut far_server, mut near_server) = (server().relay_ports(1).start(), server().start());
    let (far, relayed) = listen(&far_server, "");
    let (direct, direct_local) = connect(relayed, "");
    let (through, through_local) = connect(relayed, &format!("--turn {}", at(&near_server)));
    let (one, other) = (application(), application());
    assert_carried(&one, direct_local, b"before");
    assert_carried(&other, through_local, b"before");
    near_server.restart();
    carried_again(&other, through_local);
    assert_carried(&one, direct_local, b"not concerned");
    far_server.restart();
    assert_eq!(addr(&far.event("allocation_created")["relayed"]), relayed);
    carried_again(&one, direct_local);
    carried_again(&other, through_local);
    for relay in [through, direct, far] {
        stop_json(relay);
    }
}

const FILE: &str = r#"
[[turn]]
name = "game"
server = "NEAR?transport=udp"
user = "alice"
password_file = "PASSWORD_FILE"
udp_forward = [{ local_udp = "127.0.0.1:0", peer = "ECHO" }]
max_queue_delay = "10s"

[[session]]
name = "near"
remote = { turn = "NEAR", user = "alice", password_env = "PW", peer = "RELAYED" }
local_udp = "127.0.0.1:0"
max_queue_delay = "10s"

[[session]]
name = "far"
turn_listen = { server = "FAR", user = "alice", password_file = "PASSWORD_FILE", permit = ["127.0.0.1"] }
udp_forward = "ECHO"
max_queue_delay = "10s"
"#;

#[test]
fn a_file_with_turn_clients_is_checked_and_run() {
    let (near, far) = (server().start(), server().relay_ports(1).start());
    let password = file(PASSWORD);
    let relayed = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), *far.relay_ports().start());
    let text = FILE
        .replace("PASSWORD_FILE", password.path().to_str().unwrap())
        .replace("NEAR", &format!("turn:{}", near.addr()))
        .replace("FAR", &format!("turn:{}", far.addr()))
        .replace("RELAYED", &relayed.to_string())
        .replace("ECHO", &echo().to_string());
    let file = file(&text);
    let path = file.path().to_str().unwrap();
    let with = |args: &[&str]| {
        Relay::of(program().args(args).args([path, "--json"]).env("PW", PASSWORD).stdout(Stdio::piped()))
    };
    let checked = with(&["check"]).end();
    let fine = serde_json::json!({ "file": path, "sessions": 2, "turns": 1, "relays": 0 }).to_string();
    assert_eq!((checked.code, checked.stdout), (Some(0), vec![fine]));
    let unset = run(&format!("check {path}"));
    assert_eq!(unset.code, Some(2));
    let complaint = format!("error: {path}:12: password_env: the environment variable PW is not set");
    assert_eq!(unset.stderr, [complaint]);

    let relay = with(&["run", "-vvv"]);
    let (mut game, mut session) = (None, None);
    while game.is_none() || session.is_none() {
        let line = relay.line("_started");
        let started: Value = serde_json::from_str(&line).unwrap();
        match started["child"].as_str().unwrap() {
            "game" => game = Some(addr(&started["local_udp"][0])),
            "near" if started["event"] == "session_started" => session = Some(addr(&started["local_udp"])),
            _ => {}
        }
    }
    // The peer may be called before it is there.
    for local in [game.unwrap(), session.unwrap()] {
        carried_again(&application(), local);
        assert_all_carried(local);
    }
    let summaries = stop(relay).stdout;
    let summaries = summaries.iter().filter(|line| line.contains(r#""event":"summary""#));
    assert_eq!(summaries.count(), 3);
    logged(&near, "lifetime=0", 2);
    logged(&far, "lifetime=0", 1);
}
