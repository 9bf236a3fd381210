//! Whom a session calls, and through which TURN server it is reached.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::turn_uri::without_user;
use super::{ClientTls, ConfigError, RelayRemote, TurnServer, TurnUri};
use crate::credentials::{Secret, UserPassword};

/// A host name or address, and a port: `vpn.example.org:443`, `192.0.2.1:443`, `[2001:db8::1]:443`.
///
/// The seed's `RemoteTCPHost` and `RemoteTCPPort`. A name is resolved again on every attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name, or an address without brackets.
    pub host: String,
    /// 1 to 65,535.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        let host = match addr {
            SocketAddr::V6(addr) if addr.scope_id() != 0 => format!("{}%{}", addr.ip(), addr.scope_id()),
            addr => addr.ip().to_string(),
        };
        Self { host, port: addr.port() }
    }
}

impl FromStr for HostPort {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = |why| ConfigError::HostPort { text: without_user(text), why };
        let starts = |with: &str| text.get(..with.len()).is_some_and(|it| it.eq_ignore_ascii_case(with));
        if starts("turn:") || starts("turns:") {
            return Err(bad("a TURN server is named apart, beside its peer's address"));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("expected HOST:PORT"))?;
        let port = match port.parse::<u16>() {
            Ok(0) | Err(_) => return Err(bad("the port must be 1 to 65535")),
            Ok(port) => port,
        };
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => {
                let without_zone = inner.split('%').next().unwrap_or(inner);
                without_zone
                    .parse::<std::net::Ipv6Addr>()
                    .map_err(|_| bad("no IPv6 address between the brackets"))?;
                inner
            }
            None if host.contains(':') => return Err(bad("write an IPv6 address in brackets")),
            None => host,
        };
        if host.is_empty() || host.len() > 253 || host.contains(char::is_whitespace) {
            return Err(bad("the host must have 1 to 253 characters and no spaces"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// Where the TCP connection goes.
///
/// In a file: `"HOST:PORT"`, or `{ turn = "turn:…", user = "…", password = "…", peer = "IP:PORT" }`, or
/// `{ relay = "HOST:PORT", user = "…", password = "…", pair = "…", side = "…" }`. It is written back as a line to be
/// read: a server's credentials are not in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
#[non_exhaustive]
pub enum Remote {
    /// Straight to the twin: the seed's mode 1, "direct P2P".
    Direct(HostPort),
    /// Through a TURN server, over an RFC 6062 connection of an allocation of the session's own.
    Turn(Box<TurnRemote>),
    /// Met at a TCP relay that both sides call: the seed's mode 2.
    Relay(Box<RelayRemote>),
}

/// A peer that is reached through a TURN server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TurnRemote {
    /// The server; it is spoken to over TCP.
    pub server: TurnServer,
    /// The twin as the server sees it: where it listens, or the relayed address of its allocation.
    pub peer: SocketAddr,
}

impl TurnRemote {
    /// The peer, and the server it is reached through.
    pub fn new(server: TurnServer, peer: SocketAddr) -> Self {
        Self { server, peer }
    }
}

impl Remote {
    /// Whom to believe on the way, where TLS is spoken and the remote itself says so.
    pub(crate) fn tls(&self) -> Option<&ClientTls> {
        match self {
            Self::Direct(_) => None,
            Self::Turn(turn) => turn.server.spoken_tls(),
            Self::Relay(relay) => relay.tls.as_ref(),
        }
    }
}

impl From<TurnRemote> for Remote {
    fn from(remote: TurnRemote) -> Self {
        Self::Turn(Box::new(remote))
    }
}

impl fmt::Display for TurnRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} through {}", self.peer, self.server.uri)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(to) => to.fmt(f),
            Self::Turn(to) => to.fmt(f),
            Self::Relay(to) => to.fmt(f),
        }
    }
}

impl FromStr for Remote {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        text.parse().map(Self::Direct)
    }
}

impl From<Remote> for String {
    fn from(remote: Remote) -> Self {
        remote.to_string()
    }
}

impl From<SocketAddr> for Remote {
    fn from(addr: SocketAddr) -> Self {
        Self::Direct(addr.into())
    }
}

impl<'de> Deserialize<'de> for Remote {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextOrTable)
    }
}

struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = Remote;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "\"HOST:PORT\" or { turn = \"turn:…\", peer = \"IP:PORT\" } or { relay = \"HOST:PORT\", … }",
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Remote, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Remote, M::Error> {
        Table::deserialize(MapAccessDeserializer::new(map))?.remote()
    }
}

/// How a [`TurnRemote`] or a [`RelayRemote`] stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    turn: Option<TurnUri>,
    relay: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    trust_unsealed_bind: Option<bool>,
    peer: Option<SocketAddr>,
    pair: Option<Secret>,
    side: Option<String>,
    tls: Option<ClientTls>,
}

impl Table {
    fn remote<E: Error>(self) -> Result<Remote, E> {
        match (&self.turn, &self.relay) {
            (Some(_), Some(_)) => Err(E::custom("relay and turn exclude each other")),
            (None, None) => Err(E::missing_field("turn` or `relay")),
            (Some(_), None) => self.turn(),
            (None, Some(_)) => self.relay(),
        }
    }

    fn turn<E: Error>(self) -> Result<Remote, E> {
        let strays = [("pair", self.pair.is_some()), ("side", self.side.is_some())];
        if let Some((stray, _)) = strays.iter().find(|(_, is_given)| *is_given) {
            return Err(E::custom(format_args!("{stray} goes with relay")));
        }
        let turn = self.turn.ok_or_else(|| E::missing_field("turn"))?;
        let trust = self.trust_unsealed_bind.unwrap_or(false);
        let tls = self.tls.unwrap_or_default();
        let server = TurnServer::from_fields(turn, self.user, self.password, trust, tls);
        let server = server.map_err(E::custom)?;
        Ok(TurnRemote::new(server, self.peer.ok_or_else(|| E::missing_field("peer"))?).into())
    }

    fn relay<E: Error>(self) -> Result<Remote, E> {
        let strays =
            [("peer", self.peer.is_some()), ("trust_unsealed_bind", self.trust_unsealed_bind.is_some())];
        if let Some((stray, _)) = strays.iter().find(|(_, is_given)| *is_given) {
            return Err(E::custom(format_args!("{stray} goes with turn")));
        }
        let relay = self.relay.ok_or_else(|| E::missing_field("relay"))?.parse().map_err(E::custom)?;
        let credentials = match (self.user, self.password) {
            (Some(user), Some(password)) => UserPassword { user, password },
            (Some(_), None) => return Err(E::custom(ConfigError::Halved { missing: "password" })),
            (None, Some(_)) => return Err(E::custom(ConfigError::Halved { missing: "user" })),
            (None, None) => return Err(E::missing_field("user")),
        };
        let pair = self.pair.ok_or_else(|| E::missing_field("pair"))?;
        let side = self.side.ok_or_else(|| E::missing_field("side"))?;
        Ok(RelayRemote { tls: self.tls, ..RelayRemote::new(relay, credentials, pair, side) }.into())
    }
}

/// A session's own allocation on a TURN server (RFC 6062), at whose relayed address peers reach it.
///
/// In a file: `{ server = "turn:…", user = "…", password = "…", permit = ["IP", …] }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TurnListen {
    /// The server; it is spoken to over TCP.
    #[serde(flatten)]
    pub server: TurnServer,
    /// The peers that the server lets through: 1 to 256 addresses of one family.
    pub permit: Vec<IpAddr>,
}

impl TurnListen {
    /// Reached through `server` by these peers.
    pub fn new(server: TurnServer, permit: Vec<IpAddr>) -> Self {
        Self { server, permit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SessionConfig;
    use crate::credentials::UserPassword;

    const TURN: &str = r#"{"turn": "turn:h", "user": "alice", "password": "hunter2", "peer": "192.0.2.1:5"}"#;

    fn remote() -> TurnRemote {
        let server = TurnServer::new("turn:h".parse().unwrap());
        TurnRemote::new(server.credentials(UserPassword::new("alice", "hunter2")), ([192, 0, 2, 1], 5).into())
    }

    fn session(remote: impl Into<Remote>) -> SessionConfig {
        SessionConfig::connect("a", remote).local_udp(([127, 0, 0, 1], 0).into())
    }

    fn complaint(config: &SessionConfig) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_remote_is_a_text_or_a_table_and_written_as_a_line() {
        for (text, expected, line) in [
            (r#""example.org:1""#, "example.org:1".parse().unwrap(), "example.org:1"),
            (TURN, remote().into(), "192.0.2.1:5 through turn:h:3478"),
        ] {
            let read: Remote = serde_json::from_str(text).unwrap();
            assert_eq!(read, expected);
            assert_eq!(read.to_string(), line);
            assert_eq!(serde_json::to_string(&read).unwrap(), format!("\"{line}\""));
            assert!(!format!("{read:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_remote_with_a_mistake_is_refused_without_repeating_a_password() {
        for (good, bad, expected) in [
            (r#""peer""#, r#""per""#, "unknown field `per`"),
            (r#", "peer": "192.0.2.1:5""#, "", "missing field `peer`"),
            (r#""user": "alice", "#, "", "user is missing"),
            (r#", "password": "hunter2""#, "", "password is missing"),
            (r#""turn:h""#, r#""turn:alice:hunter2@h""#, "user and password are given apart"),
            (TURN, r#""turn:alice:hunter2@h:1""#, "a TURN server is named apart"),
            (TURN, r#""alice:hunter2@h""#, "not a host and port"),
            (TURN, "1", "expected \"HOST:PORT\" or { turn"),
        ] {
            let error = serde_json::from_str::<Remote>(&TURN.replace(good, bad)).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
            assert!(!error.contains("hunter2"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_peer_behind_a_turn_server_is_called_over_one_connection() {
        let mut config = session(remote());
        assert_eq!(config.validate(), Ok(()));
        assert_eq!((config.max_sources, config.source_limit()), (64, 1));
        config.bind = Some("::1".parse().unwrap());
        assert_eq!(config.validate(), Ok(()));
        let mut here = remote();
        here.server.uri.host = "127.0.0.1".into();
        config.remote = Some(here.into());
        assert!(complaint(&config).contains("bind and remote are of different families"));
        assert_eq!(session(SocketAddr::from(([127, 0, 0, 1], 9))).source_limit(), 64);
    }

    #[test]
    fn a_peer_that_no_turn_server_can_reach_is_refused() {
        for (peer, expected) in [
            ("192.0.2.1:0", "remote.peer must name an address and a port"),
            ("0.0.0.0:1", "remote.peer must name an address and a port"),
            ("[::ffff:192.0.2.1]:1", "remote.peer must not have an IPv4 address written as IPv6"),
            ("[fe80::1%1]:1", "remote.peer must not have a zone"),
        ] {
            let remote = TurnRemote::new(remote().server, peer.parse().unwrap());
            let error = complaint(&session(remote));
            assert!(error.contains(expected), "{peer}: {error}");
        }
        let mut over_udp = remote();
        over_udp.server.uri = "turn:h?transport=udp".parse().unwrap();
        assert!(complaint(&session(over_udp)).contains("remote.turn must be spoken to over TCP"));
        let nameless = remote().server.credentials(UserPassword::new("", "hunter2"));
        assert!(complaint(&session(TurnRemote::new(nameless, remote().peer))).contains("user name"));
    }

    #[test]
    fn a_session_behind_a_turn_server_says_who_may_come() {
        let text = r#"{"server": "turn:h", "user": "alice", "password": "hunter2", "permit": ["192.0.2.7"]}"#;
        let listen: TurnListen = serde_json::from_str(text).unwrap();
        assert_eq!(listen, TurnListen::new(remote().server, vec!["192.0.2.7".parse().unwrap()]));
        let mut config = SessionConfig::new("a").udp_forward(([127, 0, 0, 1], 9).into());
        config.turn_listen = Some(listen.clone());
        assert_eq!(config.validate(), Ok(()));
        let written = serde_json::to_string(&config).unwrap();
        assert!(written.contains("alice") && !written.contains("hunter2"), "{written}");
        for (permit, expected) in [
            (vec![], "turn_listen.permit must name 1 to 256 peers"),
            (vec!["192.0.2.7"; 257], "turn_listen.permit must name 1 to 256 peers"),
            (vec!["::"], "turn_listen.permit must name an address"),
            (vec!["192.0.2.7", "2001:db8::1"], "turn_listen.permit must name peers of one family"),
        ] {
            let permit = permit.into_iter().map(|peer| peer.parse().unwrap()).collect();
            config.turn_listen = Some(TurnListen::new(listen.server.clone(), permit));
            assert!(complaint(&config).contains(expected), "{expected}: {}", complaint(&config));
        }
        config.turn_listen = Some(TurnListen::new(
            TurnServer::new("turn:h?transport=udp".parse().unwrap()),
            vec!["192.0.2.7".parse().unwrap()],
        ));
        assert!(complaint(&config).contains("turn_listen.server must be spoken to over TCP"));
    }
}
