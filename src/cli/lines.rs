//! How events and summaries are said on stdout.

use std::time::SystemTime;

use actix_relay::config::ChildId;
use actix_relay::event::{Cause, Event, EventKind, RelayEvent, TurnEvent};
use actix_relay::turn::TurnError;
use serde::Serialize;

/// Which events are printed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// All, one JSON object a line.
    Json,
    /// `-v`: all, for people.
    Verbose,
    /// All but changes of state, which the other events imply.
    Normal,
    /// `-q`: only what somebody has to do something about.
    Quiet,
}

/// The last word on a child: its statistics, under another name.
#[derive(Serialize)]
struct Summary<'a> {
    time: String,
    child: &'a ChildId,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected: Option<usize>,
    counters: serde_json::Value,
}

impl Voice {
    /// The line for an event, if it is to be printed.
    pub(crate) fn line(self, event: &Event) -> Option<String> {
        let printed = match self {
            Self::Json => return Some(json(event)),
            Self::Verbose => true,
            Self::Normal => !matches!(
                event.kind,
                EventKind::StateChanged { .. } | EventKind::Turn(TurnEvent::TurnStateChanged { .. })
            ),
            Self::Quiet => matches!(
                event.kind,
                EventKind::GaveUp { .. }
                    | EventKind::ActorPanicked { .. }
                    | EventKind::AcceptPaused { .. }
                    | EventKind::PeerDisconnected { cause: Cause::Superseded, .. }
                    | EventKind::Turn(TurnEvent::AllocationFailed { retry_in: None, .. })
                    // Asked again and again, but the answer will be the same.
                    | EventKind::Turn(TurnEvent::AllocationFailed {
                        error: TurnError::Unauthorized { .. }
                            | TurnError::NoCredentials
                            | TurnError::UnusableCredentials(_)
                            | TurnError::Untrusted { .. },
                        ..
                    })
            ),
        };
        printed.then(|| event.to_string())
    }

    /// The closing line for a child with these statistics, as it was at `time`.
    pub(super) fn summary(self, time: SystemTime, child: &ChildId, sums: &EventKind) -> Option<String> {
        let time = humantime::format_rfc3339_millis(time);
        match self {
            Self::Quiet => None,
            Self::Json => {
                let (connected, counters) = match sums {
                    EventKind::Stats { connected, counters } => (Some(*connected), value(counters)),
                    EventKind::Turn(TurnEvent::TurnStats { counters }) => (None, value(counters)),
                    EventKind::Relay(RelayEvent::RelayStats { sides, counters, .. }) => {
                        (Some(*sides), value(counters))
                    }
                    _ => return None,
                };
                let time = time.to_string();
                Some(json(&Summary { time, child, event: "summary", connected, counters }))
            }
            Self::Normal | Self::Verbose => Some(format!("{time} {child}: summary: {sums}")),
        }
    }
}

fn value(counters: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(counters).expect("counters hold nothing that JSON lacks")
}

/// What `check` says of a file it has nothing against.
pub(super) fn fine(file: &str, sessions: usize, turns: usize, relays: usize, json: bool) -> String {
    if json {
        let counts =
            serde_json::json!({ "file": file, "sessions": sessions, "turns": turns, "relays": relays });
        return counts.to_string();
    }
    let all = [(sessions, "session"), (turns, "TURN client"), (relays, "relay")];
    let counted = all.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> =
        counted.map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" })).collect();
    format!("{file}: fine, {}", counts.join(" and "))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("events hold nothing that JSON lacks")
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_relay::session::SessionState;
    use std::time::Duration;

    fn event(kind: EventKind) -> Event {
        Event { time: SystemTime::UNIX_EPOCH, child: "a".into(), kind }
    }

    #[test]
    fn each_voice_says_its_part() {
        let changed = event(EventKind::StateChanged { state: SessionState::Idle });
        let stopped = event(EventKind::SessionStopped);
        let gave_up = event(EventKind::GaveUp { reason: "why".into() });
        let failed = |error| {
            event(EventKind::Turn(TurnEvent::AllocationFailed { error, retry_in: Some(Duration::ZERO) }))
        };
        let unreachable = failed(TurnError::Unreachable { why: "why".into() });
        let wrong_password = failed(TurnError::Unauthorized { request: "Allocate", user: "alice".into() });
        for (voice, said) in [
            (Voice::Json, [true, true, true, true, true]),
            (Voice::Verbose, [true, true, true, true, true]),
            (Voice::Normal, [false, true, true, true, true]),
            (Voice::Quiet, [false, false, true, false, true]),
        ] {
            let events = [&changed, &stopped, &gave_up, &unreachable, &wrong_password];
            let lines = events.map(|event| voice.line(event).is_some());
            assert_eq!(lines, said, "{voice:?}");
        }
        assert_eq!(Voice::Normal.line(&stopped).unwrap(), stopped.to_string());
        let parsed: serde_json::Value = serde_json::from_str(&Voice::Json.line(&changed).unwrap()).unwrap();
        assert_eq!(parsed["event"], "state_changed");
    }

    #[test]
    fn what_a_fine_file_holds_is_counted() {
        for (sessions, turns, relays, counted) in [
            (1, 0, 0, "1 session"),
            (0, 2, 0, "2 TURN clients"),
            (2, 1, 0, "2 sessions and 1 TURN client"),
            (0, 0, 1, "1 relay"),
        ] {
            assert_eq!(fine("a", sessions, turns, relays, false), format!("a: fine, {counted}"));
        }
        assert_eq!(fine("a", 2, 1, 0, true), r#"{"file":"a","relays":0,"sessions":2,"turns":1}"#);
    }
}
