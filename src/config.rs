//! What a session and a supervisor are told: defaults, limits and validation.
//!
//! Every field is public and every one has a default that works; [`SessionConfig::validate`] says in one
//! sentence what is wrong with the rest. The TOML file of `actix-relay run` uses the same names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod duration;
mod turn;

pub use turn::TurnConfig;

/// The name of a supervised session or TURN client: 1 to 64 characters, unique below one supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChildId(String);

impl ChildId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: Into<String>> From<T> for ChildId {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

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
        let bad = |why| ConfigError::HostPort { text: text.to_owned(), why };
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Remote {
    /// Straight to the twin: the seed's mode 1, "direct P2P".
    Direct(HostPort),
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(to) => to.fmt(f),
        }
    }
}

impl FromStr for Remote {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        text.parse().map(Self::Direct)
    }
}

impl TryFrom<String> for Remote {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
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

/// One session: the seed's TCPHandler, with its properties as fields.
///
/// Exactly one of `local_udp` and `udp_forward` is set. A session with `local_tcp` listens as soon as it
/// starts, one with `remote` connects; one with neither waits for the messages
/// [`Listen`](crate::session::Listen) and [`Connect`](crate::session::Connect).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SessionConfig {
    /// Names the session in events and messages.
    pub name: ChildId,
    /// The seed's `LocalUDPPort`: local applications send here and are answered from here. Port 0 lets the
    /// system choose; [`SessionInfo`](crate::session::SessionInfo) tells the real one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_udp: Option<SocketAddr>,
    /// Instead of `local_udp`: datagrams go to this UDP service, from a socket of its own for each peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_forward: Option<SocketAddr>,
    /// The seed's `LocalTCPPort`: where to listen for peers; at most 16 addresses, port 0 is chosen by the system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_tcp: Vec<SocketAddr>,
    /// The seed's `RemoteTCPHost` and `RemoteTCPPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// With `local_udp`: the local application's own address, where the far side speaks first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<SocketAddr>,
    /// With `local_tcp`: how many peers may be connected at once, 1 to 65,536. Default 1 with `local_udp`
    /// (and there the only value), 1,024 with `udp_forward`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_peers: Option<usize>,
    /// With `remote` and `local_udp`: how many applications may send at once, each over a TCP connection of
    /// its own; 1 to 65,536, default 64. With 1, and always without `remote`, the newest
    /// application takes the place of the one before, at most once a second.
    #[serde(default = "defaults::max_sources")]
    pub max_sources: usize,
    /// An application that neither sent nor received for this long is forgotten, unless it is the only one
    /// there may be; default 300 s.
    #[serde(default = "defaults::source_idle", with = "duration")]
    pub source_idle: Duration,
    /// Peers from elsewhere are refused; empty (the default) lets everybody in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// The local address of outgoing TCP connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// `SO_MARK` of every TCP socket (Linux, needs `CAP_NET_ADMIN`): a VPN's own tunnel must not be routed
    /// into the VPN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// `TCP_CONGESTION` of every TCP socket (Linux), such as `bbr`: at most 15 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// A datagram older than this is dropped instead of sent late; default 50 ms, `wire.md` "Queues".
    #[serde(default = "defaults::max_queue_delay", with = "duration")]
    pub max_queue_delay: Duration,
    /// The same limit while the first connection is being made; default 5 s. In back-off it is at most 1 s.
    #[serde(default = "defaults::connect_hold", with = "duration")]
    pub connect_hold: Duration,
    /// What one connection's queue may hold, each datagram counting 64 bytes more than its payload; 64 KiB
    /// to 1 GiB, default 2 MiB.
    #[serde(default = "defaults::queue_bytes")]
    pub queue_bytes: usize,
    /// One attempt to connect, over all addresses of the name, may take this long; default 4 s.
    #[serde(default = "defaults::connect_timeout", with = "duration")]
    pub connect_timeout: Duration,
}

mod defaults {
    use std::time::Duration;

    pub(super) fn max_sources() -> usize {
        64
    }
    pub(super) fn source_idle() -> Duration {
        Duration::from_secs(300)
    }
    pub(super) fn max_queue_delay() -> Duration {
        Duration::from_millis(50)
    }
    pub(super) fn connect_hold() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn queue_bytes() -> usize {
        2 << 20
    }
    pub(super) fn connect_timeout() -> Duration {
        Duration::from_secs(4)
    }
}

/// A session listens at this many addresses at most.
pub(crate) const MAX_LISTENERS: usize = 16;
/// The name under which a supervisor's own events come.
pub(crate) const SUPERVISOR_NAME: &str = "supervisor";

/// Default of [`SessionConfig::max_peers`] with `udp_forward`.
pub const DEFAULT_MAX_PEERS: usize = 1024;

impl SessionConfig {
    /// A session that does nothing yet: set one of `local_udp` and `udp_forward`, then `local_tcp` or `remote`.
    pub fn new(name: impl Into<ChildId>) -> Self {
        Self {
            name: name.into(),
            local_udp: None,
            udp_forward: None,
            local_tcp: Vec::new(),
            remote: None,
            app: None,
            max_peers: None,
            max_sources: defaults::max_sources(),
            source_idle: defaults::source_idle(),
            allow: Vec::new(),
            bind: None,
            fwmark: None,
            congestion: None,
            max_queue_delay: defaults::max_queue_delay(),
            connect_hold: defaults::connect_hold(),
            queue_bytes: defaults::queue_bytes(),
            connect_timeout: defaults::connect_timeout(),
        }
    }

    /// A session that calls `remote`.
    pub fn connect(name: impl Into<ChildId>, remote: impl Into<Remote>) -> Self {
        Self { remote: Some(remote.into()), ..Self::new(name) }
    }

    /// A session that waits for peers at `local_tcp`.
    pub fn listen(name: impl Into<ChildId>, local_tcp: SocketAddr) -> Self {
        Self { local_tcp: vec![local_tcp], ..Self::new(name) }
    }

    /// Local applications send to `addr`.
    pub fn local_udp(mut self, addr: SocketAddr) -> Self {
        self.local_udp = Some(addr);
        self
    }

    /// Datagrams go to the service at `addr`.
    pub fn udp_forward(mut self, addr: SocketAddr) -> Self {
        self.udp_forward = Some(addr);
        self
    }

    /// How many peers may be connected at once, with the default worked out.
    pub fn peer_limit(&self) -> usize {
        self.max_peers.unwrap_or(if self.local_udp.is_some() { 1 } else { DEFAULT_MAX_PEERS })
    }

    /// `app` as the local socket sees it: on one for both families, IPv4 addresses are mapped.
    pub(crate) fn application(&self) -> Option<SocketAddr> {
        match (self.app?, self.local_udp?) {
            (SocketAddr::V4(app), SocketAddr::V6(_)) => {
                Some(SocketAddr::new(app.ip().to_ipv6_mapped().into(), app.port()))
            }
            (app, _) => Some(app),
        }
    }

    /// Whether all values make sense together.
    ///
    /// # Errors
    /// One sentence that names the field and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let name = self.name.as_str();
        if name.is_empty() || name.chars().count() > 64 || name.contains(char::is_control) {
            return Err(
                self.invalid("name", "must have 1 to 64 characters, none of them a control character")
            );
        }
        match (self.local_udp, self.udp_forward) {
            (None, None) => return Err(self.invalid("local_udp", "or udp_forward must be set")),
            (Some(_), Some(_)) => {
                return Err(self.invalid("local_udp", "and udp_forward exclude each other"));
            }
            (None, Some(to)) if to.port() == 0 || to.ip().is_unspecified() => {
                return Err(self.invalid("udp_forward", "must name an address and a port to send to"));
            }
            _ => {}
        }
        if name == SUPERVISOR_NAME {
            return Err(self.invalid("name", "must not be 'supervisor': so it calls itself in events"));
        }
        if self.local_tcp.len() > MAX_LISTENERS {
            return Err(self.invalid("local_tcp", "may hold at most 16 addresses"));
        }
        self.validate_remote()?;
        self.validate_app()?;
        self.validate_limits()
    }

    fn validate_remote(&self) -> Result<(), ConfigError> {
        let Some(Remote::Direct(to)) = &self.remote else { return Ok(()) };
        if to.port == 0 {
            return Err(self.invalid("remote", "must have a port from 1 to 65535"));
        }
        match (self.bind, to.host.parse::<IpAddr>()) {
            (Some(bind), Ok(to)) if bind.is_ipv4() != to.is_ipv4() => {
                Err(self.invalid("bind", "and remote are of different families"))
            }
            _ => Ok(()),
        }
    }

    fn validate_app(&self) -> Result<(), ConfigError> {
        let Some(app) = self.app else { return Ok(()) };
        match self.local_udp {
            None => Err(self.invalid("app", "goes with local_udp: a service is named by udp_forward")),
            Some(_) if app.port() == 0 || app.ip().is_unspecified() => {
                Err(self.invalid("app", "must name an address and a port to send to"))
            }
            Some(local)
                if local.is_ipv4() != app.is_ipv4() && !local.ip().to_canonical().is_unspecified() =>
            {
                Err(self.invalid("app", "and local_udp are of different families"))
            }
            Some(local) if local.is_ipv4() && app.is_ipv6() => {
                Err(self.invalid("app", "is IPv6, local_udp is IPv4"))
            }
            Some(_) => Ok(()),
        }
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        if self.local_udp.is_some() && self.max_peers.is_some_and(|n| n != 1) {
            return Err(self.invalid("max_peers", "is 1 with local_udp: more peers need udp_forward"));
        }
        if !(1..=65_536).contains(&self.peer_limit()) {
            return Err(self.invalid("max_peers", "must be 1 to 65536"));
        }
        if !(1..=65_536).contains(&self.max_sources) {
            return Err(self.invalid("max_sources", "must be 1 to 65536"));
        }
        if !(64 << 10..=1 << 30).contains(&self.queue_bytes) {
            return Err(self.invalid("queue_bytes", "must be 65536 (64 KiB) to 1073741824 (1 GiB)"));
        }
        if self.congestion.as_ref().is_some_and(|name| name.is_empty() || name.len() > 15) {
            return Err(self.invalid("congestion", "must have 1 to 15 characters"));
        }
        let day = Duration::from_secs(86_400);
        for (field, value) in [
            ("source_idle", self.source_idle),
            ("max_queue_delay", self.max_queue_delay),
            ("connect_hold", self.connect_hold),
            ("connect_timeout", self.connect_timeout),
        ] {
            if value < Duration::from_millis(1) || value > day {
                return Err(self.invalid(field, "must be 1ms to 1day"));
            }
        }
        Ok(())
    }

    fn invalid(&self, field: &'static str, why: &'static str) -> ConfigError {
        ConfigError::Invalid { session: self.name.clone(), field, why }
    }
}

/// How a supervisor restarts, and where its sessions run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SupervisorConfig {
    /// Threads (actix arbiters) the sessions are spread over, 0 to 256; 0 runs them on the supervisor's own.
    /// Default: the number of cores. A thread is started only when a session needs it.
    pub workers: usize,
    /// How often each session reports [`Stats`](crate::event::EventKind::Stats); zero (the default): never.
    pub stats_interval: Duration,
    /// The first wait after a failure, doubled by each further one; default 100 ms.
    pub backoff_min: Duration,
    /// The longest wait after a failure; default 4 s, so that traffic flows again within 5 s of the cause's end.
    pub backoff_max: Duration,
    /// A child that panics more often than this within `panic_window` is given up; default 10.
    pub max_panics: usize,
    /// See `max_panics`; default 60 s.
    pub panic_window: Duration,
}

impl Default for SupervisorConfig {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, |n| n.get().min(256)),
            stats_interval: Duration::ZERO,
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(4),
            max_panics: 10,
            panic_window: Duration::from_secs(60),
        }
    }
}

impl SupervisorConfig {
    /// Whether all values are within their limits; asked by
    /// [`StartSession`](crate::supervisor::StartSession).
    ///
    /// # Errors
    /// One sentence that names the field and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (least, day) = (Duration::from_millis(10), Duration::from_secs(86_400));
        let invalid = |field, why| Err(ConfigError::InvalidSupervisor { field, why });
        if self.workers > 256 {
            return invalid("workers", "must be 0 to 256");
        }
        if !self.stats_interval.is_zero() && !(least..=day).contains(&self.stats_interval) {
            return invalid("stats_interval", "must be 0 or 10ms to 1day");
        }
        if !(least..=day).contains(&self.backoff_min) || !(self.backoff_min..=day).contains(&self.backoff_max)
        {
            return invalid("backoff_min", "must be 10ms to backoff_max, and that at most 1day");
        }
        if self.max_panics > 1000 {
            return invalid("max_panics", "must be 0 to 1000");
        }
        Ok(())
    }
}

/// What is wrong with a configuration, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not `HOST:PORT`.
    #[error("'{text}' is not a host and port: {why}")]
    HostPort {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A field of the supervisor has a value it may not have.
    #[error("supervisor: {field} {why}")]
    InvalidSupervisor {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        why: &'static str,
    },
    /// A field of a session has a value it may not have.
    #[error("session '{}': {field} {why}", session.as_str().escape_debug())]
    Invalid {
        /// The session's name.
        session: ChildId,
        /// The field's name.
        field: &'static str,
        /// What it must be.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests;
