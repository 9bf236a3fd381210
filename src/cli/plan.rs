//! What is to be run, and how it is read from a TOML file.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::Range;

use actix_relay::config::{ConfigError, SessionConfig, SupervisorConfig};
use serde::Deserialize;
use toml::Spanned;

use super::values::{MAX_WORKERS, WORKERS_EXPECTED, interval};

/// The sessions and their supervisor.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) sessions: Vec<SessionConfig>,
    pub(super) supervisor: SupervisorConfig,
}

/// Where a file is wrong, and how.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Counted from 1; `None` where it is the file as a whole.
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    supervisor: Option<Supervisor>,
    #[serde(default)]
    session: Vec<Spanned<SessionConfig>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Supervisor {
    workers: Option<Spanned<usize>>,
    stats_interval: Option<Spanned<String>>,
}

impl Plan {
    pub(super) fn from_toml(text: &str) -> Result<Self, Mistake> {
        let file: File = toml::from_str(text).map_err(|error| Mistake {
            line: error.span().map(|span| line_at(text, span.start)),
            message: one_line(error.message()),
        })?;
        if file.session.is_empty() {
            return Err(Mistake { line: None, message: "no [[session]] in it".to_owned() });
        }
        let mut names = HashSet::new();
        for session in &file.session {
            let config = session.get_ref();
            config.validate().map_err(|error| Mistake {
                line: Some(line_of_field(text, session.span(), &error)),
                message: error.to_string(),
            })?;
            if !names.insert(&config.name) {
                let line = Some(line_of(text, session.span(), "name"));
                return Err(Mistake {
                    line,
                    message: format!("there is a session '{}' already", config.name),
                });
            }
        }
        Ok(Self {
            supervisor: supervisor(text, file.supervisor)?,
            sessions: file.session.into_iter().map(Spanned::into_inner).collect(),
        })
    }

    /// The first address on which anybody who reaches it is let in, and its session.
    pub(super) fn open_to_anybody(&self) -> Option<(&SessionConfig, SocketAddr)> {
        let unlimited = self.sessions.iter().filter(|session| session.allow.is_empty());
        unlimited
            .flat_map(|session| session.local_tcp.iter().map(move |addr| (session, *addr)))
            .find(|(_, addr)| !addr.ip().to_canonical().is_loopback())
    }
}

fn supervisor(text: &str, given: Option<Supervisor>) -> Result<SupervisorConfig, Mistake> {
    let mut config = SupervisorConfig::default();
    let Some(given) = given else { return Ok(config) };
    let wrong = |span: Range<usize>, field: &str, why: &str| Mistake {
        line: Some(line_at(text, span.start)),
        message: format!("supervisor: {field}: {why}"),
    };
    if let Some(workers) = given.workers {
        if *workers.get_ref() > MAX_WORKERS {
            return Err(wrong(workers.span(), "workers", WORKERS_EXPECTED));
        }
        config.workers = workers.into_inner();
    }
    if let Some(every) = given.stats_interval {
        config.stats_interval =
            interval(every.get_ref()).map_err(|why| wrong(every.span(), "stats_interval", &why))?;
    }
    Ok(config)
}

/// The line, counted from 1, of a byte.
fn line_at(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

fn line_of_field(text: &str, table: Range<usize>, error: &ConfigError) -> usize {
    match error {
        ConfigError::Invalid { field, .. } => line_of(text, table, field),
        _ => line_at(text, table.start),
    }
}

/// The line of a table's field, or of the table where it has no such field.
fn line_of(text: &str, table: Range<usize>, field: &str) -> usize {
    let first = line_at(text, table.start);
    let end = text[table.start..].find("\n[").map_or(text.len(), |offset| table.start + offset);
    let mut lines = text[table.start..end.max(table.end)].lines();
    let found = lines.position(|line| {
        line.trim_start().strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with('='))
    });
    first + found.unwrap_or(0)
}

/// Some messages have several lines.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[supervisor]
workers = 0
stats_interval = "2s"

[[session]]
name = "far"
local_tcp = ["0.0.0.0:1"]
udp_forward = "127.0.0.1:9"

[[session]]
name = "near"
remote = "example.org:1"
local_udp = "127.0.0.1:0"
max_queue_delay = "20ms"
"#;

    fn mistake(text: &str) -> (Option<usize>, String) {
        let Mistake { line, message } = Plan::from_toml(text).unwrap_err();
        (line, message)
    }

    #[test]
    fn a_good_file_is_read() {
        let plan = Plan::from_toml(GOOD).unwrap();
        assert_eq!(plan.supervisor.workers, 0);
        assert_eq!(plan.supervisor.stats_interval.as_secs(), 2);
        assert_eq!(plan.sessions.len(), 2);
        assert_eq!(plan.sessions[1].max_queue_delay.as_millis(), 20);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (good, bad, line, expected) in [
            ("name = \"far\"", "nam = \"far\"", 7, "unknown field `nam`"),
            ("workers = 0", "workers = 257", 3, "workers: must be 0 to 256"),
            ("\"2s\"", "\"2\"\nx = 1", 5, "unknown field `x`"),
            ("\"2s\"", "\"2d2\"", 4, "stats_interval: expected a duration"),
            ("\"near\"", "\"far\"", 12, "there is a session 'far' already"),
            ("\"20ms\"", "\"0s\"", 15, "session 'near': max_queue_delay must be 1ms to 1day"),
            ("\"20ms\"", "20", 15, "invalid type"),
            ("local_udp = \"127.0.0.1:0\"", "", 11, "session 'near': local_udp or udp_forward must be set"),
            ("name = \"near\"", "", 11, "missing field `name`"),
            ("\"example.org:1\"", "\"example.org:1", 13, "invalid"),
            ("example.org:1", "example.org", 13, "'example.org' is not a host and port"),
        ] {
            let (at, message) = mistake(&GOOD.replace(good, bad));
            assert!(message.contains(expected), "{bad}: {message}");
            assert_eq!(at, Some(line), "{bad}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_file_without_sessions_is_refused() {
        assert_eq!(mistake("").1, "no [[session]] in it");
        assert_eq!(mistake("[supervisor]\nworkers = 1\n").0, None);
    }

    #[test]
    fn only_what_leaves_the_machine_without_a_limit_is_open_to_anybody() {
        let mut plan = Plan::from_toml(GOOD).unwrap();
        assert_eq!(plan.open_to_anybody().map(|(session, _)| session.name.as_str()), Some("far"));
        plan.sessions[0].allow = vec!["10.0.0.0/8".parse().unwrap()];
        assert!(plan.open_to_anybody().is_none());
        plan.sessions[0].allow.clear();
        for addr in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            plan.sessions[0].local_tcp = vec![addr.parse().unwrap()];
            assert!(plan.open_to_anybody().is_none(), "{addr}");
        }
    }
}
