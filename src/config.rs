//! What sessions, TURN clients, relays and a supervisor are told: defaults, limits and validation.
//!
//! Every field is public and every one has a default that works; [`SessionConfig::validate`],
//! [`TurnConfig::validate`] and [`RelayConfig::validate`] say in one sentence what is wrong with the rest. The TOML file of `actix-relay run` uses
//! the same names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use relay::RelayConfig;
pub use relay_remote::RelayRemote;
pub use remote::{HostPort, Remote, TurnListen, TurnRemote};
pub use tls::{CertificateFiles, ClientTls, Pin, ServerCertificate, ServerTls};
use turn::MAX_PERMIT;
pub use turn::{AddressFamily, RelayedTransport, TcpListen, TurnConfig, UdpForward};
pub use turn_server::TurnServer;
pub use turn_uri::{TURN_PORT, TURNS_PORT, TurnTransport, TurnUri};

mod checks;
mod duration;
mod error;
mod relay;
mod relay_remote;
mod remote;
mod tls;
mod turn;
mod turn_server;
mod turn_uri;

/// The name of a supervised session, TURN client or relay: 1 to 64 characters, unique below one supervisor.
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

/// One session: the seed's TCPHandler, with its properties as fields.
///
/// Exactly one of `local_udp` and `udp_forward` is set. A session with `local_tcp` listens as soon as it
/// starts, one with `turn_listen` is reached through a TURN server, one with `remote` connects; one with none of
/// them waits for the messages [`Listen`](crate::session::Listen) and [`Connect`](crate::session::Connect).
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
    /// With `local_tcp`: peers must speak TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_tls: Option<ServerTls>,
    /// The seed's `RemoteTCPHost` and `RemoteTCPPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// With a direct `remote`: speaks TLS to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// Peers come through a TURN server too: the session has an allocation of its own there (RFC 6062).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_listen: Option<TurnListen>,
    /// With `local_udp`: the local application's own address, where the far side speaks first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<SocketAddr>,
    /// With `local_tcp` or `turn_listen`: how many peers may be connected at once, 1 to 65,536. Default 1 with `local_udp`
    /// (and there the only value), 1,024 with `udp_forward`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_peers: Option<usize>,
    /// With `remote` and `local_udp`: how many applications may send at once, each over a TCP connection of
    /// its own, or through a relay over a channel of its own; 1 to 65,536, default 64. At a relay it bounds what the
    /// far side opens too: its applications, each with a socket of its own towards `udp_forward`. With 1, and always without `remote`, the newest
    /// application takes the place of the one before, at most once a second. Counts as 1 with [`Remote::Turn`]: a
    /// server makes one connection to a peer (446, RFC 6062 §5.2).
    #[serde(default = "defaults::max_sources")]
    pub max_sources: usize,
    /// An application that neither sent nor received for this long is forgotten, unless it is the only one
    /// there may be; default 300 s.
    #[serde(default = "defaults::source_idle", with = "duration")]
    pub source_idle: Duration,
    /// Peers from elsewhere are refused; empty (the default) lets everybody in. It holds for those who come through a
    /// TURN server too, by the address that the server sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// The local address of outgoing TCP connections, to a TURN server too.
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

    pub(super) fn yes() -> bool {
        true
    }
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
            listen_tls: None,
            remote: None,
            tls: None,
            turn_listen: None,
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

    /// How many applications may send at once: `max_sources` where each can have a connection of its own. Else 1,
    /// as without `remote`: told by messages only, or called, which is the seed's way.
    pub fn source_limit(&self) -> usize {
        match &self.remote {
            Some(Remote::Direct(_) | Remote::Relay(_)) => self.max_sources,
            Some(Remote::Turn(_)) | None => 1,
        }
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
        checks::name(self.name.as_str()).map_err(|why| self.invalid("name", why))?;
        match (self.local_udp, self.udp_forward) {
            (None, None) => return Err(self.invalid("local_udp", "or udp_forward must be set")),
            (Some(_), Some(_)) => {
                return Err(self.invalid("local_udp", "and udp_forward exclude each other"));
            }
            (None, Some(to)) => checks::destination(to).map_err(|why| self.invalid("udp_forward", why))?,
            (Some(_), None) => {}
        }
        if self.local_tcp.len() > MAX_LISTENERS {
            return Err(self.invalid("local_tcp", "may hold at most 16 addresses"));
        }
        self.validate_remote()?;
        self.validate_tls()?;
        self.validate_turn_listen()?;
        self.validate_app()?;
        self.validate_limits()
    }

    fn validate_remote(&self) -> Result<(), ConfigError> {
        let host = match &self.remote {
            None => return Ok(()),
            Some(Remote::Direct(to)) if to.port == 0 => {
                return Err(self.invalid("remote", "must have a port from 1 to 65535"));
            }
            Some(Remote::Direct(to)) => &to.host,
            Some(Remote::Turn(to)) => {
                checks::peer(to.peer).map_err(|why| self.invalid("remote.peer", why))?;
                to.server.check(RelayedTransport::Tcp).map_err(|why| self.invalid("remote.turn", why))?;
                &to.server.uri.host
            }
            Some(Remote::Relay(to)) => {
                to.check().map_err(|(field, why)| self.invalid(field, why))?;
                if !self.local_tcp.is_empty() || self.turn_listen.is_some() {
                    return Err(self.invalid(
                        "remote",
                        "at a relay excludes local_tcp and turn_listen: the peer comes through the relay",
                    ));
                }
                &to.relay.host
            }
        };
        if checks::bind(self.bind, host) {
            Ok(())
        } else {
            Err(self.invalid("bind", "and remote are of different families"))
        }
    }

    fn validate_tls(&self) -> Result<(), ConfigError> {
        if let Some(tls) = &self.tls {
            tls.check().map_err(|why| self.invalid("tls", why))?;
            if matches!(self.remote, Some(Remote::Turn(_))) {
                return Err(
                    self.invalid("tls", "goes with a direct remote; a TURN server's is in its URI, turns:")
                );
            }
            if matches!(self.remote, Some(Remote::Relay(_))) {
                return Err(self.invalid("tls", "goes with a direct remote; a relay's is in remote"));
            }
        }
        if let Some(tls) = &self.listen_tls {
            tls.check().map_err(|why| self.invalid("listen_tls", why))?;
            // Those who come through the server would get in without.
            if self.turn_listen.is_some() {
                return Err(self.invalid("listen_tls", "and turn_listen exclude each other"));
            }
        }
        Ok(())
    }

    fn validate_turn_listen(&self) -> Result<(), ConfigError> {
        let Some(TurnListen { server, permit }) = &self.turn_listen else { return Ok(()) };
        server.check(RelayedTransport::Tcp).map_err(|why| self.invalid("turn_listen.server", why))?;
        let told = |why| self.invalid("turn_listen.permit", why);
        if !(1..=MAX_PERMIT).contains(&permit.len()) {
            return Err(told("must name 1 to 256 peers"));
        }
        permit.iter().try_for_each(|peer| checks::peer_ip(*peer)).map_err(told)?;
        if matches!(&self.remote, Some(Remote::Turn(remote)) if remote.server != *server) {
            return Err(told("and remote must name the same server: a session has one allocation"));
        }
        if matches!(&self.remote, Some(Remote::Turn(remote)) if remote.peer.is_ipv4() != permit[0].is_ipv4())
        {
            return Err(told("and remote must be of one family: a session has one allocation"));
        }
        if permit.iter().any(|peer| peer.is_ipv4() != permit[0].is_ipv4()) {
            return Err(told("must name peers of one family"));
        }
        if checks::bind(self.bind, &server.uri.host) {
            Ok(())
        } else {
            Err(self.invalid("bind", "and the TURN server are of different families"))
        }
    }

    fn validate_app(&self) -> Result<(), ConfigError> {
        let Some(app) = self.app else { return Ok(()) };
        match self.local_udp {
            None => Err(self.invalid("app", "goes with local_udp: a service is named by udp_forward")),
            Some(_) if checks::destination(app).is_err() => {
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
        checks::queue_bytes(self.queue_bytes).map_err(|why| self.invalid("queue_bytes", why))?;
        checks::congestion(self.congestion.as_deref()).map_err(|why| self.invalid("congestion", why))?;
        for (field, value) in [
            ("source_idle", self.source_idle),
            ("max_queue_delay", self.max_queue_delay),
            ("connect_hold", self.connect_hold),
            ("connect_timeout", self.connect_timeout),
        ] {
            checks::duration(value).map_err(|why| self.invalid(field, why))?;
        }
        Ok(())
    }

    /// What TLS is spoken with as a client, each with the name of its field.
    pub(crate) fn client_tls(&self) -> impl Iterator<Item = (&'static str, &ClientTls)> {
        let remote = self.remote.as_ref().and_then(Remote::tls);
        let listen = self.turn_listen.as_ref().and_then(|listen| listen.server.spoken_tls());
        let all = [("tls", self.tls.as_ref()), ("remote.tls", remote), ("turn_listen.tls", listen)];
        all.into_iter().filter_map(|(field, tls)| Some((field, tls?)))
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

#[cfg(test)]
mod tests;
