//! The built command as a relay.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "the helpers are test code too")]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::process::{ANY, CLOSING, Relay, addr, assert_one_error, file, program, run};
use support::relay_side::{PASSWORD, REALM, Side, USER};

const WRONG: &str = "hunter3-of-mallory";

/// Where it listens.
fn listening(relay: &Relay) -> SocketAddr {
    addr(&relay.event("relay_started")["local_tcp"][0])
}

#[actix::test]
async fn sides_meet_at_the_command_and_are_told_when_it_stops() {
    let users = file(&format!("# who may\n{USER}:{PASSWORD}\nbob:of bob\n"));
    let users = users.path().display();
    let relay =
        Relay::start(&format!("relay --tcp {ANY} --realm {REALM} --users {users} --json --stats 100ms"));
    let at = listening(&relay);
    let (mut a, mut b) = Side::pair(at, "secret").await;
    a.send_data(0x4000, b"through it").await;
    assert_eq!(b.datagram().await.1, b"through it");
    let mut wrong = Side::connect(at).await;
    wrong.log_in(USER, WRONG).await;
    assert_eq!(wrong.join_as("secret", "c", &[0; 8], None).await, Err(401));
    let joined = relay.event("side_joined");
    assert_eq!((&joined["side"], &joined["user"]), (&"a".into(), &USER.into()));
    while relay.event("relay_stats")["counters"]["forwarded"]["datagrams"] != 1 {}
    let told = Instant::now();
    relay.signal("TERM");
    for side in [&mut a, &mut b] {
        let closing = side.closing().await;
        assert_eq!(closing.number(0x7f04), Some(2));
        assert!((200..=5000).contains(&closing.number(0xff01).unwrap()), "{closing:?}");
    }
    // These never close their end: they are not waited for.
    let ended = relay.end();
    assert!(told.elapsed() < CLOSING, "{:?}", told.elapsed());
    assert_eq!(ended.code, Some(0));
    assert!(ended.printed.contains("\"relay_draining\"") && ended.printed.contains("\"summary\""));
    for secret in [PASSWORD, WRONG, "secret"] {
        assert!(!ended.printed.contains(secret), "{secret} was printed:\n{}", ended.printed);
    }
}

#[actix::test]
async fn a_hangup_reads_again_who_may_join() {
    let users = file(&format!("{USER}:{PASSWORD}\n"));
    let relay =
        Relay::start(&format!("relay --tcp {ANY} --realm {REALM} --users {} --json", users.path().display()));
    let at = listening(&relay);
    let mut alice = Side::joined(at, "hers", "a").await;
    std::fs::write(users.path(), "bob:of bob\n").unwrap();
    relay.signal("HUP");
    assert_eq!(relay.event("accounts_set")["users"], 1);
    // She may not any more: she stays, but gets no more time.
    assert_eq!(alice.refresh(600).await, Err(401));
    alice.ping().await;
    for (lines, why) in [("bob:of bob\nbob", "user 2 has no colon"), ("", "nobody could join")] {
        std::fs::write(users.path(), lines).unwrap();
        relay.signal("HUP");
        let warning = loop {
            let line = relay.stderr.recv_timeout(CLOSING * 5).unwrap();
            if line.contains("stays as it was") {
                break line;
            }
        };
        assert!(warning.contains(why) && !warning.contains("of bob"), "{warning}");
        let mut bob = Side::connect(at).await;
        bob.log_in("bob", "of bob").await;
        assert_eq!(bob.join_as(why, "b", &[0; 8], None).await, Ok(false));
    }
    relay.signal("TERM");
    assert_eq!(relay.end().code, Some(0));
}

#[actix::test]
async fn a_thousand_sides_are_told_within_the_time() {
    let relay =
        Relay::start(&format!("relay --tcp {ANY} --realm {REALM} --user {USER}:{PASSWORD} --json -q"));
    let at = listening(&relay);
    let mut sides = Vec::new();
    for number in 0..1000 {
        sides.push(Side::joined(at, &format!("pair {}", number / 2), &format!("{}", number % 2)).await);
    }
    let told = Instant::now();
    relay.signal("TERM");
    let mut after = Vec::new();
    for side in &mut sides {
        let closing = loop {
            let stun = side.stun().await;
            if stun.method == 0x0f3 {
                break stun;
            }
        };
        after.push(closing.number(0xff01).unwrap());
    }
    assert_eq!(relay.end().code, Some(0));
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
    // They do not all come back at once.
    after.sort_unstable();
    assert!(after[100] < 1500 && after[900] > 3500, "{after:?}");
}

#[actix::test]
async fn short_lived_credentials_are_taken_until_they_expire() {
    use hmac::{Hmac, Mac};

    let key = file("north star\n");
    let key = key.path().display();
    let relay = Relay::start(&format!("relay --tcp {ANY} --realm {REALM} --shared-key-file {key} --json"));
    let at = listening(&relay);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (expiry, expected) in [(now + 60, Ok(false)), (now - 60, Err(401))] {
        let user = format!("{expiry}:carol");
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(b"north star").unwrap();
        mac.update(user.as_bytes());
        let mut side = Side::connect(at).await;
        side.log_in(&user, &base64(&mac.finalize().into_bytes())).await;
        assert_eq!(side.join_as("secret", "a", &[0; 8], None).await, expected);
    }
    assert_eq!(relay.event("side_joined")["user"], "carol");
}

/// RFC 4648, for 20 bytes.
fn base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let digit = |six: &[u8]| {
        let six = format!("{:0<6}", std::str::from_utf8(six).unwrap());
        char::from(digits[usize::from_str_radix(&six, 2).unwrap()])
    };
    let text: String = bits.as_bytes().chunks(6).map(digit).collect();
    text + "="
}

#[actix::test]
async fn a_relay_of_a_file_is_checked_and_run() {
    let users = file(&format!("{USER}:{PASSWORD}\n"));
    let text = format!(
        "[[relay]]\nname = \"hub\"\nlocal_tcp = [\"{ANY}\"]\nrealm = \"{REALM}\"\nusers_file = \"{}\"\n",
        users.path().display()
    );
    let toml = file(&text);
    let path = toml.path().display();
    let checked = run(&format!("check {path}"));
    assert_eq!((checked.code, checked.stdout.len()), (Some(0), 1));
    assert!(checked.stdout[0].ends_with("fine, 1 relay"), "{:?}", checked.stdout);
    let relay = Relay::start(&format!("run {path} --json"));
    let started = relay.event("relay_started");
    assert_eq!(started["child"], "hub");
    Side::pair(addr(&started["local_tcp"][0]), "secret").await;
}

#[test]
fn what_cannot_work_is_said_in_one_line() {
    let relay = format!("relay --tcp {ANY} --realm {REALM}");
    assert_one_error(&format!("{relay} --users /nowhere"), 2, &["--users: /nowhere: No such file"]);
    assert_one_error(&format!("{relay} --users /dev/null"), 2, &["--users names nobody"]);
    for place in ["--users", "--users-env", "--shared-key-file"] {
        let args = format!("{relay} {place} alice:hunter2");
        assert_one_error(&args, 2, &[place, "is not repeated"]);
        assert!(!run(&args).printed.contains("hunter2"));
    }
    assert_one_error(&relay, 2, &["required"]);
    assert_one_error(&format!("{relay} --user {USER}"), 2, &["--user: user 1 has no colon"]);
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let at = taken.local_addr().unwrap();
    let line = format!("relay --tcp {at} --realm {REALM} --user {USER}:{PASSWORD}");
    assert_one_error(&line, 1, &["relay 'relay'", &at.to_string()]);
}

#[test]
fn who_lets_others_read_the_passwords_is_warned() {
    let users = file(&format!("{USER}:{PASSWORD}\n"));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(users.path(), mode).unwrap();
    let users = users.path().display();
    let relay = Relay::start(&format!("relay --tcp {ANY} --realm {REALM} --users {users} --tls-self-signed"));
    relay.line("sides connect to");
    relay.signal("TERM");
    let ended = relay.end();
    assert_eq!(ended.code, Some(0));
    let warning = format!("warning: {users} can be read by everybody on this machine: chmod o-r");
    assert_eq!(ended.stderr, [warning]);
}

#[test]
fn a_relay_without_tls_says_once_what_that_means() {
    let mut command = program();
    command.args(["relay", "--tcp", ANY, "--realm", REALM, "--users-env", "USERS"]);
    command.env("USERS", format!("{USER}:{PASSWORD}")).stdout(std::process::Stdio::piped());
    let relay = Relay::of(&mut command);
    relay.line("sides connect to");
    relay.signal("TERM");
    let ended = relay.end();
    assert_eq!(ended.code, Some(0));
    let warnings: Vec<_> = ended.stderr.iter().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 1, "{:?}", ended.stderr);
    assert!(warnings[0].contains("without TLS"), "{warnings:?}");
    assert!(!ended.printed.contains(PASSWORD));
}
