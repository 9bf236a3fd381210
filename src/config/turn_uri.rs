//! The URI of a TURN server (RFC 7065): `turn:HOST[:PORT][?transport=udp|tcp]`, or `turns:HOST[:PORT]` with TLS.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, HostPort, RelayedTransport};

/// TURN's port over UDP and TCP (RFC 8656 §3).
pub const TURN_PORT: u16 = 3478;
/// The same with TLS.
pub const TURNS_PORT: u16 = 5349;

/// Where a TURN server is, and what it is spoken to over.
///
/// The host's addresses are looked up as any other's (A and AAAA), at each attempt; the SRV and NAPTR records of
/// RFC 5928 are not asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TurnUri {
    /// A name, or an address without brackets.
    pub host: String,
    /// 1 to 65,535; where the URI names none 3478, with TLS 5349.
    pub port: u16,
    /// `turns:`, TLS over TCP.
    pub tls: bool,
    /// What `?transport=` says; without it see [`TurnUri::transport_for`].
    pub transport: Option<TurnTransport>,
}

/// What stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnTransport {
    /// Each message is a datagram.
    Udp,
    /// One connection.
    Tcp,
}

impl fmt::Display for TurnTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

impl TurnUri {
    /// The server at a host and port, over what the allocation needs.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port, tls: false, transport: None }
    }

    /// What the server is spoken to over: as the URI says, TCP with TLS, else UDP for a UDP allocation and TCP for a
    /// TCP one.
    ///
    /// # Errors
    /// A TCP allocation needs TCP (RFC 6062 §4.1), and the URI says `?transport=udp`.
    pub fn transport_for(&self, relayed: RelayedTransport) -> Result<TurnTransport, ConfigError> {
        if self.tls {
            return Ok(TurnTransport::Tcp);
        }
        match (self.transport, relayed) {
            (Some(TurnTransport::Udp), RelayedTransport::Tcp) => Err(ConfigError::TurnUri {
                text: self.to_string(),
                why: "a TCP allocation needs ?transport=tcp (RFC 6062)",
            }),
            (Some(transport), _) => Ok(transport),
            (None, RelayedTransport::Udp) => Ok(TurnTransport::Udp),
            (None, RelayedTransport::Tcp) => Ok(TurnTransport::Tcp),
        }
    }

    /// Host and port, for who dials.
    pub fn host_port(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port }
    }
}

/// In full, the port always named.
impl fmt::Display for TurnUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", if self.tls { "turns" } else { "turn" }, self.host_port())?;
        self.transport.map_or(Ok(()), |transport| write!(f, "?transport={transport}"))
    }
}

impl FromStr for TurnUri {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        parse(text).map_err(|why| ConfigError::TurnUri { text: without_user(text), why })
    }
}

fn parse(text: &str) -> Result<TurnUri, &'static str> {
    let (scheme, rest) = text.split_once(':').ok_or("expected turn:HOST[:PORT][?transport=udp|tcp]")?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "turn" => false,
        "turns" => true,
        "stun" | "stuns" => return Err("a STUN server relays nothing: expected turn:"),
        _ => return Err("it must begin with turn: or turns:"),
    };
    if rest.contains('@') {
        return Err("user and password are given apart from it");
    }
    if rest.starts_with("//") {
        return Err("no // stands behind turn: or turns: (RFC 7065)");
    }
    let (authority, transport) = match rest.split_once('?') {
        Some((authority, query)) => (authority, Some(transport(query)?)),
        None => (rest, None),
    };
    if tls && transport == Some(TurnTransport::Udp) {
        return Err("turns: is TLS over TCP; over UDP (DTLS) it is not in this version");
    }
    let (host, port) = host_and_port(authority)?;
    let port = port.unwrap_or(if tls { TURNS_PORT } else { TURN_PORT });
    Ok(TurnUri { host, port, tls, transport })
}

fn transport(query: &str) -> Result<TurnTransport, &'static str> {
    match query.to_ascii_lowercase().as_str() {
        "transport=udp" => Ok(TurnTransport::Udp),
        "transport=tcp" => Ok(TurnTransport::Tcp),
        _ => Err("only ?transport=udp or ?transport=tcp may follow the host"),
    }
}

/// A host, and the port if there is one.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest.split_once(']').ok_or("the bracket is not closed")?;
            let port = match port.strip_prefix(':') {
                None if port.is_empty() => None,
                None => return Err("only a port may follow the bracket"),
                port => port,
            };
            (ipv6(inner)?, port)
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err("write an IPv6 address in brackets"),
            Some((host, port)) => (name(host)?, Some(port)),
            None => (name(text)?, None),
        },
    };
    let Some(port) = port else { return Ok((host, None)) };
    match port.parse::<u16>() {
        Ok(number) if number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok((host, Some(number)))
        }
        _ => Err("the port must be 1 to 65535"),
    }
}

/// An address in its usual form; a zone is this machine's own affair and stays as it is.
fn ipv6(text: &str) -> Result<String, &'static str> {
    let (addr, zone) = text.find('%').map_or((text, ""), |at| text.split_at(at));
    let addr: Ipv6Addr = addr.parse().map_err(|_| "no IPv6 address between the brackets")?;
    let is_zone = |zone: &str| zone.len() > 1 && zone[1..].bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !zone.is_empty() && !is_zone(zone) {
        return Err("the zone must have letters and digits only");
    }
    Ok(format!("{addr}{zone}"))
}

fn name(text: &str) -> Result<String, &'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=253).contains(&text.len()) && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("the host must have 1 to 253 letters, digits, '-', '.' and '_'")
    }
}

/// Other programs write `turn:USER:PASSWORD@HOST`, and an error is no place for that.
pub(super) fn without_user(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => text.to_owned(),
    }
}

impl TryFrom<String> for TurnUri {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<TurnUri> for String {
    fn from(uri: TurnUri) -> Self {
        uri.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_read_and_written_in_full() {
        for (text, full) in [
            ("turn:example.org", "turn:example.org:3478"),
            ("turn:example.org:5349?transport=udp", "turn:example.org:5349?transport=udp"),
            ("TURN:192.0.2.1?Transport=TCP", "turn:192.0.2.1:3478?transport=tcp"),
            ("turn:[2001:DB8::0:1]", "turn:[2001:db8::1]:3478"),
            ("turn:[::1]:1", "turn:[::1]:1"),
            ("turn:[fe80::1%eth0]:7", "turn:[fe80::1%eth0]:7"),
            ("turns:example.org", "turns:example.org:5349"),
            ("TURNS:[::1]:443?transport=tcp", "turns:[::1]:443?transport=tcp"),
        ] {
            let uri: TurnUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), full);
            assert_eq!(full.parse::<TurnUri>().unwrap(), uri);
        }
        assert_eq!("turn:[::1]".parse::<TurnUri>().unwrap().host_port().to_string(), "[::1]:3478");
    }

    #[test]
    fn each_mistake_is_named() {
        for (text, expected) in [
            ("example.org", "expected turn:HOST"),
            ("", "expected turn:HOST"),
            ("example.org:3478", "it must begin with turn:"),
            ("turns:example.org?transport=udp", "turns: is TLS over TCP"),
            ("turns://example.org", "no // stands behind"),
            ("stun:example.org", "a STUN server relays nothing"),
            ("turn://example.org", "no // stands behind turn:"),
            ("turn:", "the host must have"),
            ("turn:a b", "the host must have"),
            ("turn:example.org/x", "the host must have"),
            ("turn::3478", "the host must have"),
            ("turn:::1", "in brackets"),
            ("turn:[::1", "not closed"),
            ("turn:[x]", "no IPv6 address"),
            ("turn:[fe80::1%]", "the zone"),
            ("turn:[::1]1", "only a port may follow"),
            ("turn:a:", "the port must be"),
            ("turn:a:0", "the port must be"),
            ("turn:a:+1", "the port must be"),
            ("turn:a:65536", "the port must be"),
            ("turn:a?transport=tls", "only ?transport=udp"),
            ("turn:a?", "only ?transport=udp"),
            ("turn:a?transport=udp&x=y", "only ?transport=udp"),
        ] {
            let error = text.parse::<TurnUri>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_in_it_is_refused_without_repeating_it() {
        for text in ["turn:alice:hunter2@example.org", "turn://alice:hunt@er2@example.org", "alice:hunter2@h"]
        {
            let error = text.parse::<TurnUri>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunt"), "{error}");
        }
    }

    #[test]
    fn a_tcp_allocation_needs_tcp() {
        let over = |text: &str, relayed| text.parse::<TurnUri>().unwrap().transport_for(relayed);
        assert_eq!(over("turn:a", RelayedTransport::Udp), Ok(TurnTransport::Udp));
        assert_eq!(over("turn:a", RelayedTransport::Tcp), Ok(TurnTransport::Tcp));
        assert_eq!(over("turn:a?transport=tcp", RelayedTransport::Udp), Ok(TurnTransport::Tcp));
        for relayed in [RelayedTransport::Udp, RelayedTransport::Tcp] {
            assert_eq!(over("turns:a", relayed), Ok(TurnTransport::Tcp));
        }
        let error = over("turn:a?transport=udp", RelayedTransport::Tcp).unwrap_err();
        assert!(error.to_string().contains("RFC 6062"), "{error}");
    }
}
