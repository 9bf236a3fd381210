//! The built command with coturn: what its tests need of both.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;
use super::coturn::{Coturn, CoturnBuilder};
use super::process::{CLOSING, Ended, Relay};

pub const USER: &str = "alice";
pub const PASSWORD: &str = "hunter2-of-alice";
pub const WRONG: &str = "hunter3-of-mallory";
/// Nothing gets too old, however busy the machine is.
pub const PATIENT: &str = "--max-queue-delay 10s";

pub fn server() -> CoturnBuilder {
    Coturn::builder().user(USER, PASSWORD).arg("--verbose")
}

/// The server and who we are to it, after the flag that names it.
pub fn at(coturn: &Coturn) -> String {
    format!("{} --user {USER}:{PASSWORD}", coturn.uri("tcp"))
}

/// Told to stop it does so in order and in time; no password was ever printed.
pub fn stop(relay: Relay) -> Ended {
    let told = Instant::now();
    relay.signal("TERM");
    let ended = relay.end();
    assert!(told.elapsed() < CLOSING, "{:?}", told.elapsed());
    assert_eq!(ended.code, Some(0));
    for secret in [PASSWORD, WRONG] {
        assert!(!ended.printed.contains(secret), "a password was printed:\n{}", ended.printed);
    }
    ended
}

/// The same of one that prints JSON and logs nothing; every line is an event.
pub fn stop_json(relay: Relay) -> Vec<Value> {
    let ended = stop(relay);
    assert!(ended.stderr.is_empty(), "{:?}", ended.stderr);
    let events: Vec<Value> = ended.printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in &events {
        for field in ["time", "child", "event"] {
            assert!(event[field].is_string(), "no {field} in {event}");
        }
    }
    events
}

/// Waits until the server has logged this so often.
pub fn logged(coturn: &Coturn, what: &str, times: usize) {
    let began = Instant::now();
    while coturn.log().matches(what).count() < times {
        assert!(began.elapsed() < PATIENCE, "'{what}' is not {times} times in its log:\n{}", coturn.log());
        thread::sleep(Duration::from_millis(5));
    }
}
