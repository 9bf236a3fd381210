//! The built command, as a process: what it prints, what it carries, how it ends.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers are test code too")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::PATIENCE;
use support::process::{
    ANY, CLOSING, Relay, addr, application, assert_carried, assert_one_error, carried_again, echo, file,
    free_port, run,
};

/// A listening process on a port of the system's choice, and where it listens.
fn listen(extra: &str) -> (Relay, SocketAddr) {
    let relay = Relay::start(&format!("--json listen --tcp {ANY} --udp-forward {} {extra}", echo()));
    let local_tcp = addr(&relay.event("listening")["local_tcp"][0]);
    (relay, local_tcp)
}

/// A connecting process, and where applications send to.
fn connect(far: SocketAddr, extra: &str) -> (Relay, SocketAddr) {
    let relay = Relay::start(&format!("connect --json --tcp {far} --udp {ANY} {extra}"));
    let local_udp = addr(&relay.event("session_started")["local_udp"]);
    (relay, local_udp)
}

#[test]
fn two_processes_carry_datagrams_and_say_so() {
    let (far, far_tcp) = listen("");
    let (near, near_udp) = connect(far_tcp, "");
    let app = application();
    for datagram in [&b"first"[..], b"", &[7; 9000]] {
        assert_carried(&app, near_udp, datagram);
    }
    assert_eq!(addr(&near.event("source_appeared")["source"]), app.local_addr().unwrap());
    assert_eq!(far.event("peer_connected")["child"], "listen");
    for relay in [near, far] {
        relay.signal("INT");
        let ended = relay.end();
        assert_eq!(ended.code, Some(0));
        assert!(ended.stderr.is_empty(), "{:?}", ended.stderr);
        let summary: Value = serde_json::from_str(ended.stdout.last().unwrap()).unwrap();
        assert_eq!(summary["event"], "summary");
        assert_eq!(summary["counters"]["to_tcp"], serde_json::json!({ "datagrams": 3, "bytes": 9005 }));
        assert_eq!(summary["counters"]["to_udp"], summary["counters"]["to_tcp"]);
    }
}

#[test]
fn the_far_process_is_killed_and_comes_back_on_its_port() {
    let (mut far, far_tcp) = listen("");
    let (near, near_udp) = connect(far_tcp, "");
    let app = application();
    assert_carried(&app, near_udp, b"before");
    far.child.kill().unwrap();
    assert_eq!(near.event("peer_disconnected")["child"], "connect");
    far.child.wait().unwrap();
    let again = Relay::start(&format!("listen --tcp {far_tcp} --udp-forward {} --json", echo()));
    again.event("listening");

    carried_again(&app, near_udp);
    assert_eq!(near.event("peer_connected")["peer"], far_tcp.to_string());
}

#[test]
fn the_signals_close_in_order_with_a_summary() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Children inherit what `nohup` has done to this process: SIGHUP, number 1, is ignored.
    let nohup = status
        .lines()
        .any(|line| line.starts_with("SigIgn:") && line.ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f']));
    for name in if nohup { &["TERM", "INT"][..] } else { &["TERM", "INT", "HUP"] } {
        let relay = Relay::start(&format!("listen --tcp {ANY} --udp {ANY}"));
        let lines: Vec<_> = (0..2).map(|_| relay.stdout.recv_timeout(PATIENCE).unwrap()).collect();
        assert!(lines[0].contains(" listen: started, send UDP to 127.0.0.1:"), "{lines:?}");
        assert!(lines[1].contains(" listen: listening on TCP 127.0.0.1:"), "{lines:?}");
        let told = Instant::now();
        relay.signal(name);
        let ended = relay.end();
        assert!(told.elapsed() < CLOSING, "{name}: {:?}", told.elapsed());
        assert_eq!(ended.code, Some(0), "{name}");
        assert_eq!(ended.stdout.len(), 2, "{:?}", ended.stdout);
        assert!(ended.stdout[0].ends_with(" listen: stopped"), "{:?}", ended.stdout);
        assert!(ended.stdout[1].contains(" listen: summary: 0 connected, to TCP 0 "), "{:?}", ended.stdout);
    }
}

#[test]
fn sighup_is_left_alone_where_nohup_asked_for_it() {
    let session = format!("listen --json --stats 100ms --tcp {ANY} --udp {ANY}");
    let script = format!("trap '' HUP; exec {} {session}", env!("CARGO_BIN_EXE_actix-relay"));
    let relay =
        Relay::of(Command::new("sh").args(["-c", &script]).env_remove("RUST_LOG").stdout(Stdio::piped()));
    relay.event("stats");
    relay.signal("HUP");
    for _ in 0..4 {
        relay.event("stats");
    }
    relay.signal("TERM");
    assert_eq!(relay.end().code, Some(0));
}

/// A process whose stdout takes nothing, ready to be told to stop; the other end of its stdout.
fn with_stuck_stdout() -> (Relay, UnixStream) {
    let (unread, mut full) = UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.write(&[b'\n'; 4096]).is_ok() {}
    full.set_nonblocking(false).unwrap();
    let args = format!("listen --tcp 0.0.0.0:0 --udp {ANY}");
    let relay = Relay::start_with(args.split(' '), OwnedFd::from(full));
    // The warning is the sign that it has started.
    assert!(relay.stderr.recv_timeout(PATIENCE).unwrap().starts_with("warning: "));
    (relay, unread)
}

#[test]
fn a_stdout_that_nobody_reads_does_not_hold_up_the_end() {
    let (relay, _unread) = with_stuck_stdout();
    let told = Instant::now();
    relay.signal("TERM");
    assert_eq!(relay.end().code, Some(0));
    assert!(told.elapsed() < CLOSING, "{:?}", told.elapsed());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (relay, _unread) = with_stuck_stdout();
    let told = Instant::now();
    relay.signal("TERM");
    relay.signal("INT");
    assert_eq!(relay.end().code, Some(0));
    // Closing in order takes 1.7 s here, because the last lines cannot be written.
    assert!(told.elapsed() < Duration::from_millis(1500), "{:?}", told.elapsed());
}

#[test]
fn a_closed_stdout_ends_it_in_order() {
    let (reading, writing) = std::io::pipe().unwrap();
    let args = format!("listen --json --stats 100ms --tcp {ANY} --udp {ANY}");
    let relay = Relay::start_with(args.split(' '), writing);
    let mut line = String::new();
    BufReader::new(reading).read_line(&mut line).unwrap();
    assert!(line.contains("session_started"), "{line}");
    let ended = relay.end();
    assert_eq!(ended.code, Some(0));
    assert!(ended.stderr.is_empty(), "{:?}", ended.stderr);
}

#[test]
fn a_port_in_use_is_named_in_one_line() {
    let tcp = TcpListener::bind(ANY).unwrap();
    let taken = tcp.local_addr().unwrap().to_string();
    let named = [taken.as_str(), "session 'listen'", "in use"];
    assert_one_error(&format!("listen --tcp {taken} --udp {ANY}"), 1, &named);
    let udp = UdpSocket::bind(ANY).unwrap();
    let taken = udp.local_addr().unwrap().to_string();
    let named = [taken.as_str(), "session 'connect'", "in use"];
    assert_one_error(&format!("connect --tcp {ANY}1 --udp {taken}"), 1, &named);
}

#[test]
fn a_bad_argument_is_named_in_one_line() {
    let udp = format!("--udp {ANY}");
    for (args, named) in [
        (String::new(), "subcommand"),
        ("lisen".into(), "lisen"),
        ("listen".into(), "--tcp"),
        (format!("listen --tcp nowhere {udp}"), "nowhere"),
        (format!("listen --tcp {ANY} {udp} --allow 10.0.0.0/40"), "10.0.0.0/40"),
        (format!("listen --tcp {ANY} {udp} --max-peers 2"), "--max-peers"),
        (format!("listen --tcp {ANY} {udp} --bind ::1"), "--bind"),
        (format!("connect --tcp host {udp}"), "'host'"),
        (format!("connect --tcp a:1 {udp} --source-idle 5"), "--source-idle"),
        (format!("--fwmark 0xyz connect --tcp a:1 {udp}"), "0xyz"),
        (format!("connect --tcp a:1 {udp} --max-queue-delay 0s"), "--max-queue-delay"),
        (format!("connect --tcp a:1 {udp} --udp-forward 127.0.0.1:1"), "--udp-forward"),
        (format!("connect --tcp a:1 {udp} -v -q"), "--quiet"),
        ("run a.toml --app 127.0.0.1:1".into(), "--app"),
        ("--congestion bbr check a.toml".into(), "--congestion"),
        (format!("turn --server turns:h?transport=udp {udp} --peer 192.0.2.1:2"), "turns: is TLS over TCP"),
        (format!("connect --turn turn:h --tcp host:1 {udp}"), "--tcp must be IP:PORT"),
        (format!("turn --server turn:h --user a {udp} --peer 192.0.2.1:2"), "ACTIX_RELAY_TURN_PASSWORD"),
    ] {
        assert_one_error(&args, 2, &[named]);
    }
}

const TWO_SESSIONS: &str = r#"
[supervisor]
workers = 2

[[session]]
name = "far"
local_tcp = ["TCP"]
udp_forward = "ECHO"

[[session]]
name = "near"
remote = "TCP"
local_udp = "127.0.0.1:0"
"#;

#[test]
fn a_file_that_cannot_be_used_is_named_in_one_line() {
    for command in ["run", "check"] {
        assert_one_error(&format!("{command} /nowhere/a.toml"), 2, &["/nowhere/a.toml", "No such file"]);
        for (text, line, what) in [
            (TWO_SESSIONS.replace("workers", "wrokers"), "3:", "wrokers"),
            (TWO_SESSIONS.replace("\"far\"", "\"far"), "6:", ""),
            (TWO_SESSIONS.replace("near", "far"), "11:", "session 'far' already"),
            ("[supervisor]".to_owned(), "", "no [[session]]"),
        ] {
            let file = file(&text.replace("TCP", "127.0.0.1:1").replace("ECHO", "127.0.0.1:2"));
            let path = file.path().to_str().unwrap();
            assert_one_error(&format!("{command} {path}"), 2, &[&format!("{path}:{line}"), what]);
        }
    }
}

#[test]
fn a_turn_client_s_password_file_is_looked_for() {
    let password = file("hunter2\n");
    let at = password.path().display();
    let turn = format!("[[turn]]\nname = 'a'\nserver = 'turn:h'\nuser = 'alice'\npassword_file = '{at}'\n");
    let (good, lost) = (file(&turn), file(&turn.replace(" '/", " '/nowhere/")));
    let path = good.path().to_str().unwrap();
    assert_eq!(run(&format!("check {path}")).stdout, [format!("{path}: fine, 1 TURN client")]);
    assert_one_error(
        &format!("check {}", lost.path().display()),
        2,
        &[":5: password_file: /nowhere", "No such"],
    );
}

#[test]
fn a_file_is_checked_and_run() {
    let text = TWO_SESSIONS.replace("TCP", &free_port().to_string()).replace("ECHO", &echo().to_string());
    let file = file(&text);
    let path = file.path().to_str().unwrap();
    let checked = run(&format!("check {path}"));
    assert_eq!((checked.code, checked.stdout), (Some(0), vec![format!("{path}: fine, 2 sessions")]));

    let relay = Relay::start(&format!("--stats 1 run {path} --json"));
    let near = loop {
        let started = relay.event("session_started");
        if started["child"] == "near" {
            break addr(&started["local_udp"]);
        }
    };
    assert_carried(&application(), near, b"by file");
    relay.event("stats");
    relay.signal("TERM");
    let ended = relay.end();
    assert_eq!(ended.code, Some(0));
    let summaries = ended.stdout.iter().filter(|line| line.contains(r#""event":"summary""#));
    assert_eq!(summaries.count(), 2, "{:?}", ended.stdout);
}

#[test]
fn common_flags_are_taken_before_and_after_the_subcommand() {
    let flags = "--json -v --stats 100ms --max-queue-delay 20ms --workers 1";
    let session = format!("listen --tcp {ANY} --udp {ANY}");
    for args in [format!("{flags} {session}"), format!("{session} {flags}")] {
        let relay = Relay::start(&args);
        relay.event("state_changed");
        assert_eq!(relay.event("stats")["connected"], 0);
    }
}

#[test]
fn changes_of_state_are_said_when_asked_for_and_nothing_when_quiet() {
    let said = |flag: &str| {
        let relay = Relay::start(&format!("listen --tcp 0.0.0.0:0 --udp {ANY} {flag}"));
        // The warning is the sign that it has started.
        assert!(relay.stderr.recv_timeout(PATIENCE).unwrap().starts_with("warning: "));
        relay.signal("TERM");
        relay.end().stdout
    };
    let (normal, verbose) = (said(""), said("-v"));
    assert_eq!(normal.len(), 4, "{normal:?}");
    assert!(verbose.iter().any(|line| line.ends_with(" listen: listening")), "{verbose:?}");
    assert!(verbose.len() > normal.len(), "{verbose:?}");
    assert_eq!(said("-q"), Vec::<String>::new());
}

#[test]
fn who_lets_everybody_in_is_warned_once() {
    let warned = |extra: &str| {
        let relay = Relay::start(&format!("listen --json --udp-forward 127.0.0.1:9 {extra}"));
        relay.event("listening");
        relay.signal("TERM");
        relay.end().stderr
    };
    let warnings = warned("--tcp 0.0.0.0:0 0.0.0.0:0");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("warning: ") && warnings[0].contains("--allow"), "{warnings:?}");
    assert!(warnings[0].contains("whoever reaches the port reaches the service"), "{warnings:?}");
    for quiet in ["--tcp 0.0.0.0:0 --allow 10.0.0.0/8 192.0.2.7", "--tcp 127.0.0.1:0"] {
        assert_eq!(warned(quiet), Vec::<String>::new());
    }
}

#[test]
fn help_names_every_flag_and_gives_examples() {
    let common = "--json, --verbose, -v, --quiet, -q, --stats, --max-queue-delay, --bind, --fwmark, --congestion, \
                  --app, --workers";
    for (command, own) in [
        ("", "listen, connect, turn, turn-tcp, run, check, Exit codes, RUST_LOG, --version, Examples:"),
        (
            "listen",
            "--tcp, --udp-forward, --udp <, --allow, --max-peers, --turn, --user, --permit, Examples:",
        ),
        ("connect", "--tcp, --udp-forward, --udp <, --max-sources, --source-idle, --turn, --user, Examples:"),
        ("turn", "--server, --user, --password-file, --password-env, --udp, --peer, --family, Examples:"),
        ("turn-tcp", "--server, --user, --connect, --tcp <, --accept, --permit, --tcp-forward, Examples:"),
        ("run", "<FILE>, [[session]], [[turn]]"),
        ("check", "<FILE>, [[session]], [[turn]]"),
    ] {
        let help = run(&format!("{command} --help"));
        assert_eq!(help.code, Some(0), "{command}");
        assert!(help.stderr.is_empty(), "{:?}", help.stderr);
        let text = help.stdout.join("\n");
        for name in common.split(", ").chain(own.split(", ")) {
            assert!(text.contains(name), "{command} --help does not name {name}:\n{text}");
        }
    }
    let version = run("--version");
    assert_eq!(
        (version.code, version.stdout),
        (Some(0), vec![format!("actix-relay {}", env!("CARGO_PKG_VERSION"))])
    );
}
