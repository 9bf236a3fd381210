//! A TCP relay that a session goes through, and whom it is to meet there.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{ClientTls, HostPort, Remote};
use crate::credentials::{Secret, UserPassword};

/// The longest text that names a pair, in bytes. Ours: the relay is told a hash.
const MAX_PAIR_LEN: usize = 1024;
/// The longest SIDE-ID, in bytes.
const MAX_SIDE_LEN: usize = 64;

/// The twin is met at a TCP relay, which both sides call. Each takes the other's datagrams, a channel for each UDP
/// source, over one connection.
///
/// In a file: `{ relay = "HOST:PORT", user = "…", password = "…", pair = "…", side = "…" }`, with `tls = {}` or
/// [`ClientTls`]'s fields in it for TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RelayRemote {
    /// The relay.
    pub relay: HostPort,
    /// Speaks TLS to it. Without, whoever is on the way can read, change and end what goes through.
    pub tls: Option<ClientTls>,
    /// Who we are to it. A time-limited name `EXPIRY:NAME` is the user NAME, whatever its expiry.
    pub credentials: UserPassword,
    /// What both sides of the pair, and no others, have in common: 1 to 1,024 bytes. The relay is told a hash of it,
    /// the realm and the user: two users never meet by chance.
    pub pair: Secret,
    /// Names this side, differently from the other one: 1 to 64 bytes, no control characters. Whoever comes with the
    /// same name takes the place of the session before.
    pub side: String,
}

impl RelayRemote {
    /// To be met at `relay`, without TLS.
    pub fn new(
        relay: HostPort,
        credentials: UserPassword,
        pair: impl Into<Secret>,
        side: impl Into<String>,
    ) -> Self {
        Self { relay, tls: None, credentials, pair: pair.into(), side: side.into() }
    }

    /// The same with TLS.
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether both would be the same side of the same pair: whoever comes later takes the other's place.
    pub fn is_same_side(&self, other: &Self) -> bool {
        let is_same_relay =
            self.relay.port == other.relay.port && self.relay.host.eq_ignore_ascii_case(&other.relay.host);
        let users = [self, other].map(|remote| user(&remote.credentials.user));
        is_same_relay && users[0] == users[1] && self.pair == other.pair && self.side == other.side
    }

    /// PAIR-ID: SHA-256 of realm, user and the pair's text, with colons between them.
    pub(crate) fn pair_id(&self, realm: &str) -> [u8; 32] {
        let user = user(&self.credentials.user);
        Sha256::digest([realm, user, self.pair.expose()].join(":")).into()
    }

    /// The field that is wrong, and how.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.relay.port == 0 || self.relay.host.is_empty() {
            return Err(("remote.relay", "must have a host, and a port from 1 to 65535"));
        }
        if !(1..=MAX_PAIR_LEN).contains(&self.pair.expose().len()) {
            return Err(("remote.pair", "must have 1 to 1024 bytes"));
        }
        if !(1..=MAX_SIDE_LEN).contains(&self.side.len()) || self.side.contains(char::is_control) {
            return Err(("remote.side", "must have 1 to 64 bytes, none of them a control character"));
        }
        self.credentials.check().map_err(|why| ("remote.user", why))?;
        self.tls.as_ref().map_or(Ok(()), ClientTls::check).map_err(|why| ("remote.tls", why))
    }
}

/// Who somebody with this USERNAME is: NAME of a time-limited `EXPIRY:NAME`.
fn user(name: &str) -> &str {
    match name.split_once(':') {
        Some((expiry, user)) if expiry.bytes().all(|digit| digit.is_ascii_digit()) => user,
        _ => name,
    }
}

impl From<RelayRemote> for Remote {
    fn from(remote: RelayRemote) -> Self {
        Self::Relay(Box::new(remote))
    }
}

impl fmt::Display for RelayRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = if self.tls.is_some() { " over TLS" } else { "" };
        write!(f, "relay {}{over} as side '{}'", self.relay, self.side.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SessionConfig;

    fn remote() -> RelayRemote {
        let credentials = UserPassword::new("alice", "hunter2");
        RelayRemote::new("relay.example.org:443".parse().unwrap(), credentials, "s3cret", "office")
    }

    fn complaint(remote: RelayRemote) -> String {
        let config = SessionConfig::connect("a", remote).local_udp(([127, 0, 0, 1], 0).into());
        config.validate().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn it_is_read_from_a_table_and_written_as_a_line_without_secrets() {
        let table = r#"{"relay": "relay.example.org:443", "user": "alice", "password": "hunter2",
                        "pair": "s3cret", "side": "office"}"#;
        let read: Remote = serde_json::from_str(table).unwrap();
        assert_eq!(read, remote().into());
        let over_tls = table.replace("\"side\"", r#""tls": {}, "side""#);
        let read_over_tls: Remote = serde_json::from_str(&over_tls).unwrap();
        assert_eq!(read_over_tls, remote().tls(ClientTls::default()).into());
        assert_eq!(read.to_string(), "relay relay.example.org:443 as side 'office'");
        assert_eq!(
            serde_json::to_string(&read_over_tls).unwrap(),
            "\"relay relay.example.org:443 over TLS as side 'office'\""
        );
        let shown = format!("{read:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn a_table_with_a_mistake_is_refused_without_repeating_a_secret() {
        let good =
            r#"{"relay": "h:1", "user": "alice", "password": "hunter2", "pair": "s3cret", "side": "a"}"#;
        for (part, bad, expected) in [
            (r#""pair": "s3cret", "#, "", "missing field `pair`"),
            (r#", "side": "a""#, "", "missing field `side`"),
            (r#""user": "alice", "#, "", "user is missing"),
            (r#""password": "hunter2", "#, "", "password is missing"),
            (r#""user": "alice", "password": "hunter2", "#, "", "missing field `user`"),
            (r#""side""#, r#""sied""#, "unknown field `sied`"),
            (r#""s3cret""#, "4711", "must be a text in quotes"),
            (r#""side": "a""#, r#""side": "a", "peer": "192.0.2.1:5""#, "peer goes with turn"),
            (r#""side": "a""#, r#""side": "a", "turn": "turn:h""#, "relay and turn exclude each other"),
            (r#""relay": "h:1", "#, "", "missing field `turn` or `relay`"),
            (r#""h:1""#, r#""h""#, "'h' is not a host and port"),
        ] {
            let error = serde_json::from_str::<Remote>(&good.replace(part, bad)).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
            assert!(!["hunter2", "s3cret", "4711"].iter().any(|secret| error.contains(secret)), "{error}");
        }
    }

    #[test]
    fn values_have_limits() {
        assert_eq!(complaint(remote()), "");
        for (side, is_good) in
            [("", false), ("a\n", false), (&"s".repeat(64), true), (&"s".repeat(65), false)]
        {
            let remote = RelayRemote { side: side.into(), ..remote() };
            assert_eq!(complaint(remote).contains("remote.side must have"), !is_good, "{side:?}");
        }
        for (len, is_good) in [(0, false), (1, true), (1024, true), (1025, false)] {
            let remote = RelayRemote { pair: "p".repeat(len).into(), ..remote() };
            assert_eq!(complaint(remote).contains("remote.pair must have"), !is_good, "{len}");
        }
        let nameless = RelayRemote { credentials: UserPassword::new("", "hunter2"), ..remote() };
        assert!(complaint(nameless).contains("remote.user needs a user name"));
        let nowhere = RelayRemote { relay: HostPort { host: "h".into(), port: 0 }, ..remote() };
        assert!(complaint(nowhere).contains("remote.relay must have"));
    }

    #[test]
    fn a_pair_is_its_users_and_a_renewed_name_is_the_same_user() {
        let id = remote().pair_id("example.org");
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        // printf %s example.org:alice:s3cret | sha256sum
        assert_eq!(hex, "8a4fc2d1281ff1060a48010b725eb742d75ef19577f599a2cdfb590d8fdb4480");
        let named = |user: &str| {
            RelayRemote { credentials: UserPassword::new(user, "x"), ..remote() }.pair_id("example.org")
        };
        assert_eq!([named("1735689600:alice"), named("1835689600:alice")], [id, id]);
        assert_ne!(named("bob"), id);
        assert_ne!(named("a:alice"), id);
        assert_ne!(remote().pair_id("example.com"), id);
    }

    #[test]
    fn a_side_is_the_same_when_relay_user_pair_and_name_are() {
        let same = RelayRemote {
            relay: "Relay.example.org:443".parse().unwrap(),
            credentials: UserPassword::new("1735689600:alice", "another"),
            ..remote().tls(ClientTls::default())
        };
        assert!(remote().is_same_side(&same));
        for other in [
            RelayRemote { relay: "relay.example.org:444".parse().unwrap(), ..remote() },
            RelayRemote { credentials: UserPassword::new("bob", "hunter2"), ..remote() },
            RelayRemote { pair: "another".into(), ..remote() },
            RelayRemote { side: "laptop".into(), ..remote() },
        ] {
            assert!(!remote().is_same_side(&other), "{other}");
        }
    }
}
