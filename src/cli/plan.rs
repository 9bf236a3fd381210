//! What is to be run, and how it is read from a TOML file.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use actix_relay::config::{
    ChildId, ConfigError, RelayConfig, Remote, ServerCertificate, ServerTls, SessionConfig, SupervisorConfig,
    TurnConfig,
};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, Deserializer};

use super::passwords::fetch;
use super::values::{MAX_WORKERS, WORKERS_EXPECTED, interval};
use crate::passwords::Passwords;

/// The sessions, the TURN clients, the relays and their supervisor.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) sessions: Vec<SessionConfig>,
    pub(super) turns: Vec<TurnConfig>,
    pub(super) relays: Vec<RelayConfig>,
    pub(super) supervisor: SupervisorConfig,
    /// Who may join relays stands in a file.
    pub(super) accounts_in_file: bool,
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
    #[serde(default)]
    turn: Vec<Spanned<TurnConfig>>,
    #[serde(default)]
    relay: Vec<Spanned<RelayConfig>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Supervisor {
    workers: Option<Spanned<usize>>,
    stats_interval: Option<Spanned<String>>,
}

impl Plan {
    /// Reads a file; the passwords it does not hold itself are fetched.
    pub(super) fn from_toml(text: &str, passwords: &dyn Passwords) -> Result<Self, Mistake> {
        Self::read(text, passwords, false)
    }

    /// The same, and reads the certificates and keys that the file names too, as their start would.
    pub(super) fn checked(text: &str, passwords: &dyn Passwords) -> Result<Self, Mistake> {
        Self::read(text, passwords, true)
    }

    fn read(text: &str, passwords: &dyn Passwords, with_files: bool) -> Result<Self, Mistake> {
        let wrong = |error: toml::de::Error| Mistake {
            line: error.span().map(|span| line_at(text, span.start)),
            message: one_line(error.message()),
        };
        let mut root = DeTable::parse(text).map_err(wrong)?;
        fetch(root.get_mut(), passwords)
            .map_err(|(at, message)| Mistake { line: Some(line_at(text, at.start)), message })?;
        let file = File::deserialize(Deserializer::from(root)).map_err(wrong)?;
        if file.session.is_empty() && file.turn.is_empty() && file.relay.is_empty() {
            let message = "no [[session]], no [[turn]] and no [[relay]] in it".to_owned();
            return Err(Mistake { line: None, message });
        }
        let mut names = Names { text, taken: HashMap::new() };
        for session in &file.session {
            let config = session.get_ref();
            names.check(session.span(), "session", &config.name, config.validate())?;
        }
        for turn in &file.turn {
            let config = turn.get_ref();
            names.check(turn.span(), "turn", &config.name, config.validate())?;
        }
        for relay in &file.relay {
            let config = relay.get_ref();
            names.check(relay.span(), "relay", &config.name, config.validate())?;
        }
        check_sides(text, &file.session)?;
        if with_files {
            check_files(text, &file)?;
        }
        Ok(Self {
            supervisor: supervisor(text, file.supervisor)?,
            accounts_in_file: !file.relay.is_empty(),
            sessions: file.session.into_iter().map(Spanned::into_inner).collect(),
            turns: file.turn.into_iter().map(Spanned::into_inner).collect(),
            relays: file.relay.into_iter().map(Spanned::into_inner).collect(),
        })
    }

    /// Whether there are files that are read again on SIGHUP: certificates that peers are shown, and who may join.
    pub(super) fn reads_again(&self) -> bool {
        let of_sessions = self.sessions.iter().filter_map(|session| session.listen_tls.as_ref());
        let of_relays = self.relays.iter().filter_map(|relay| relay.tls.as_ref());
        let shows_files = |tls: &ServerTls| matches!(tls.certificate, ServerCertificate::Files(_));
        self.accounts_in_file || of_sessions.chain(of_relays).any(shows_files)
    }

    /// The first relay that listens without TLS.
    pub(super) fn plain_relay(&self) -> Option<&RelayConfig> {
        self.relays.iter().find(|relay| relay.tls.is_none())
    }

    /// The first address on which anybody who reaches it is let in, and its session.
    pub(super) fn open_to_anybody(&self) -> Option<(&SessionConfig, SocketAddr)> {
        let pins = |session: &SessionConfig| {
            session.listen_tls.as_ref().is_some_and(|tls| !tls.client_pins.is_empty())
        };
        let unlimited = self.sessions.iter().filter(|session| session.allow.is_empty() && !pins(session));
        unlimited
            .flat_map(|session| session.local_tcp.iter().map(move |addr| (session, *addr)))
            .find(|(_, addr)| !addr.ip().to_canonical().is_loopback())
    }
}

/// The names of the tables checked so far, with what has them.
struct Names<'a> {
    text: &'a str,
    taken: HashMap<&'a ChildId, &'static str>,
}

impl<'a> Names<'a> {
    fn check(
        &mut self,
        table: Range<usize>,
        kind: &'static str,
        name: &'a ChildId,
        validated: Result<(), ConfigError>,
    ) -> Result<(), Mistake> {
        validated.map_err(|error| Mistake {
            line: Some(line_of_field(self.text, table.clone(), &error)),
            message: error.to_string(),
        })?;
        let Some(before) = self.taken.insert(name, kind) else { return Ok(()) };
        let line = Some(line_of(self.text, table, "name"));
        Err(Mistake { line, message: format!("there is a {before} '{name}' already") })
    }
}

/// No session may take the place of another one at a relay.
fn check_sides(text: &str, sessions: &[Spanned<SessionConfig>]) -> Result<(), Mistake> {
    let sides = sessions.iter().filter_map(|session| match session.get_ref() {
        SessionConfig { name, remote: Some(Remote::Relay(relay)), .. } => Some((session.span(), name, relay)),
        _ => None,
    });
    let sides: Vec<_> = sides.collect();
    for (index, (table, name, side)) in sides.iter().enumerate() {
        let before = sides[..index].iter().find(|(_, _, before)| before.is_same_side(side));
        let Some((_, other, _)) = before else { continue };
        let same = "has the same relay, user, pair and side: they would take each other's place";
        let message = format!("session '{name}': remote: session '{other}' {same}");
        return Err(Mistake { line: Some(line_of(text, table.clone(), "remote")), message });
    }
    Ok(())
}

/// Reads the certificates and keys that the tables name.
fn check_files(text: &str, file: &File) -> Result<(), Mistake> {
    let sessions = file.session.iter().map(|table| (table.span(), table.get_ref().check_files()));
    let turns = file.turn.iter().map(|table| (table.span(), table.get_ref().check_files()));
    let relays = file.relay.iter().map(|table| (table.span(), table.get_ref().check_files()));
    sessions.chain(turns).chain(relays).try_for_each(|(table, checked)| {
        checked.map_err(|error| Mistake {
            line: Some(line_of_field(text, table, &error)),
            message: one_line(&error.to_string()),
        })
    })
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
        ConfigError::Invalid { field, .. }
        | ConfigError::InvalidTurn { field, .. }
        | ConfigError::InvalidRelay { field, .. }
        | ConfigError::Files { field, .. } => {
            // `remote.peer` stands in the value of `remote`.
            line_of(text, table, field.split('.').next().unwrap_or(field))
        }
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
    use crate::passwords::Kept;
    use actix_relay::credentials::{Credentials, UserPassword};

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

[[turn]]
name = "game"
server = "turn:example.org"
user = "alice"
password = "hunter2"
udp_forward = [{ local_udp = "127.0.0.1:1", peer = "192.0.2.1:2" }]

[[session]]
name = "through"
remote = { turn = "turn:example.org", user = "alice", password_file = "pw", peer = "192.0.2.1:5" }
udp_forward = "127.0.0.1:9"

[[session]]
name = "reached"
udp_forward = "127.0.0.1:9"
[session.turn_listen]
server = "turn:example.org"
user = "alice"
password_env = "PW"
permit = ["192.0.2.1"]

[[relay]]
name = "relay"
local_tcp = ["127.0.0.1:0"]
realm = "r"
users = [{ user = "carol", password_file = "pw" }]
users_file = "users"
shared_key_env = "PW"
proxy_protocol = ["192.0.2.0/24"]
"#;

    fn mistake(text: &str) -> (Option<usize>, String) {
        let Mistake { line, message } = Plan::from_toml(text, &Kept).unwrap_err();
        (line, message)
    }

    #[test]
    fn a_good_file_is_read() {
        let plan = Plan::from_toml(GOOD, &Kept).unwrap();
        assert_eq!(plan.supervisor.workers, 0);
        assert_eq!(plan.supervisor.stats_interval.as_secs(), 2);
        assert_eq!((plan.sessions.len(), plan.turns.len()), (4, 1));
        assert_eq!(plan.sessions[1].max_queue_delay.as_millis(), 20);
        let Some(Remote::Turn(through)) = &plan.sessions[2].remote else { panic!("{plan:?}") };
        let reached = plan.sessions[3].turn_listen.as_ref().unwrap();
        for (server, password) in [
            (&plan.turns[0].server, "hunter2"),
            (&through.server, "of the file"),
            (&reached.server, "of the environment"),
        ] {
            assert_eq!(server.credentials, Some(Credentials::Fixed(UserPassword::new("alice", password))));
        }
        let relay = &plan.relays[0];
        let users = relay.users.iter().map(|both| (both.user.as_str(), both.password.expose()));
        assert_eq!(
            users.collect::<Vec<_>>(),
            [("carol", "of the file"), ("alice", "of the lines"), ("bob", "too")]
        );
        assert_eq!(relay.shared_key, Some("of the environment".into()));
        assert_eq!(relay.proxy_protocol, ["192.0.2.0/24".parse().unwrap()]);
        assert!(!format!("{plan:?}").contains("hunter2"));
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
            ("\"game\"", "\"far\"", 18, "there is a session 'far' already"),
            ("turn:example.org\"\nuser", "stun:example.org\"\nuser", 19, "a STUN server relays nothing"),
            ("turn:example.org\"\nuser", "turn:a:hunter2@h\"\nuser", 19, "user and password are given apart"),
            ("= \"hunter2\"", "= hunter2", 21, "must be quoted"),
            ("= \"hunter2\"", "= \"hunter2", 21, "invalid basic string"),
            ("= \"hunter2\"", "= \"\"", 19, "turn 'game': server needs a password"),
            ("password = \"hunter2\"", "passwort = \"hunter2\"", 20, "user needs one of password"),
            (
                "password = \"hunter2\"",
                "password = \"hunter2\"\npasswort = 1",
                17,
                "unknown field `passwort`",
            ),
            ("= \"hunter2\"", "= 4711", 21, "password must be a text in quotes"),
            ("192.0.2.1:2", "192.0.2.1:0", 22, "turn 'game': udp_forward must name peers"),
            ("peer = \"192.0.2.1:2\"", "per = 1", 22, "unknown field `per`"),
            ("\"pw\"", "\"nowhere\"", 26, "password_file: no such file"),
            ("192.0.2.1:5", "0.0.0.0:5", 26, "session 'through': remote.peer must name"),
            ("user = \"carol\"", "user = \"bob\"", 42, "relay 'relay': users must not name a user twice"),
            (
                "user = \"carol\", password_file = \"pw\"",
                "user = \"carol\"",
                42,
                "user needs one of password",
            ),
            (
                "[{ user = \"carol\", password_file = \"pw\" }]",
                "[\"carol:hunter2\"]",
                42,
                "expected a table { user = …, password = … }",
            ),
            (
                "[{ user = \"carol\", password_file = \"pw\" }]",
                "\"carol:hunter2\"",
                42,
                "users must be tables in a list",
            ),
            ("\"users\"", "\"nowhere\"", 43, "users_file: no such file"),
            ("users_file = \"users\"", "users_env = 1", 43, "users_env must be a text"),
            ("shared_key_env = \"PW\"", "shared_key_env = \"X\"", 44, "shared_key_env: X is not set"),
            ("shared_key_env = \"PW\"", "shared_key = 4711", 44, "shared_key must be a text"),
            ("realm = \"r\"", "realm = \"\"", 41, "relay 'relay': realm must have"),
            ("permit = [\"192.0.2.1\"]", "permit = []", 29, "turn_listen.permit must name 1 to 256"),
        ] {
            let (at, message) = mistake(&GOOD.replace(good, bad));
            assert!(message.contains(expected), "{bad}: {message}");
            assert_eq!(at, Some(line), "{bad}: {message}");
            assert!(!["\n", "hunter2", "4711"].iter().any(|text| message.contains(text)), "{message}");
        }
    }

    #[test]
    fn certificates_and_keys_are_read_when_a_file_is_checked() {
        let (session, ca) =
            ("[[session]]\nname = 'a'\nlocal_udp = '127.0.0.1:0'\n", "tls = { ca = '/no/ca' }");
        let (user, remote) = ("user = 'u', password_file = 'pw'", "pair = 'p', side = 's'");
        for (text, line, expected) in [
            (format!("{session}remote = 'h:1'\n{ca}"), 5, "session 'a': tls: /no/ca: No such file"),
            (
                format!(
                    "{session}local_tcp = ['[::1]:0']\nlisten_tls = {{ cert = '/no/cert', key = '/no/key' }}"
                ),
                5,
                "session 'a': listen_tls: /no/cert: No such file",
            ),
            (
                format!("{session}remote = {{ relay = 'h:1', {user}, {remote}, {ca} }}"),
                4,
                "session 'a': remote.tls: /no/ca: No such file",
            ),
            (
                format!("{session}remote = {{ turn = 'turns:h', peer = '192.0.2.1:1', {ca} }}"),
                4,
                "session 'a': remote.tls: /no/ca: No such file",
            ),
            (
                format!("{session}turn_listen = {{ server = 'turns:h', permit = ['192.0.2.1'], {ca} }}"),
                4,
                "session 'a': turn_listen.tls: /no/ca: No such file",
            ),
            (
                format!("[[turn]]\nname = 't'\nserver = 'turns:h'\n{ca}"),
                4,
                "turn 't': tls: /no/ca: No such file",
            ),
            (
                "[[relay]]\nname = 'r'\nlocal_tcp = ['[::1]:0']\nrealm = 'r'\nshared_key = 'k'\n\
                 tls = { cert = '/no/cert', key = '/no/key' }"
                    .to_owned(),
                6,
                "relay 'r': tls: /no/cert: No such file",
            ),
        ] {
            Plan::from_toml(&text, &Kept).unwrap();
            let Mistake { line: at, message } = Plan::checked(&text, &Kept).unwrap_err();
            assert!(message.starts_with(expected), "{text}: {message}");
            assert_eq!(at, Some(line), "{text}: {message}");
        }
        Plan::checked(GOOD, &Kept).unwrap();
    }

    #[test]
    fn two_sessions_that_would_take_each_other_s_place_are_refused() {
        let session = |name: &str, side: &str| {
            format!(
                "[[session]]\nname = '{name}'\nlocal_udp = '127.0.0.1:0'\nremote = {{ relay = 'h:1', \
                 user = 'u', password_file = 'pw', pair = 's3cret', side = '{side}' }}\n"
            )
        };
        Plan::from_toml(&(session("a", "left") + &session("b", "right")), &Kept).unwrap();
        let (line, message) = mistake(&(session("a", "left") + &session("b", "left")));
        assert!(message.contains("session 'b': remote: session 'a' has the same relay"), "{message}");
        assert!(!message.contains("s3cret"), "{message}");
        assert_eq!(line, Some(8));
    }

    #[test]
    fn a_file_without_sessions_is_refused() {
        assert_eq!(mistake("").1, "no [[session]], no [[turn]] and no [[relay]] in it");
        assert_eq!(mistake("[supervisor]\nworkers = 1\n").0, None);
    }

    #[test]
    fn only_what_leaves_the_machine_without_a_limit_is_open_to_anybody() {
        let mut plan = Plan::from_toml(GOOD, &Kept).unwrap();
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
