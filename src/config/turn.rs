//! What a TURN client is told: its server, what it allocates there, and what is forwarded through it.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ChildId, ConfigError, TurnServer, checks, defaults, duration};

/// What the relayed address speaks towards peers: REQUESTED-TRANSPORT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayedTransport {
    /// Datagrams (RFC 8656).
    #[default]
    Udp,
    /// Connections (RFC 6062).
    Tcp,
}

impl fmt::Display for RelayedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// The family of the relayed address: REQUESTED-ADDRESS-FAMILY (RFC 8656 §18.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressFamily {
    /// What a server gives unasked.
    Ipv4,
    /// Has to be asked for.
    Ipv6,
}

impl AddressFamily {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }
}

/// Local applications send to `local_udp` and reach `peer` from the relayed address, over a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UdpForward {
    /// Where applications send, and are answered from. Port 0 is chosen by the system.
    pub local_udp: SocketAddr,
    /// Where their datagrams go.
    pub peer: SocketAddr,
}

/// Each connection to `local_tcp` becomes one from the relayed address to `peer`. One at a time: a server refuses
/// a second one to the same peer (446, RFC 6062 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpListen {
    /// Where local applications connect. Port 0 is chosen by the system.
    pub local_tcp: SocketAddr,
    /// Where their connections go.
    pub peer: SocketAddr,
}

/// One TURN client: one allocation on one server, made again when it is lost.
///
/// In a file a table `[[turn]]`, the server's fields ([`TurnServer`]) among the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TurnConfig {
    /// Names the client in events and messages.
    pub name: ChildId,
    /// The server, and who we are to it.
    #[serde(flatten)]
    pub server: TurnServer,
    /// What is allocated; default UDP.
    #[serde(default)]
    pub relayed: RelayedTransport,
    /// The relayed address's family. Default: that of the peers named here, else IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<AddressFamily>,
    /// The lifetime to ask for, in whole seconds, 1 s to 1 day. Default: the server's. Servers have limits of their
    /// own, and what they grant is what counts.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "duration::option")]
    pub lifetime: Option<Duration>,
    /// Allocate as soon as started; the default. Otherwise wait for the message `Allocate`.
    #[serde(default = "defaults::yes")]
    pub allocate: bool,
    /// A lost allocation is made again; the default.
    #[serde(default = "defaults::yes")]
    pub again: bool,
    /// Peers that may send to the relayed address, or connect to it: at most 256. Those named in `udp_forward` and
    /// `tcp_listen` need not be repeated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permit: Vec<IpAddr>,
    /// At most 64, each with a peer of its own; needs a UDP allocation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp_forward: Vec<UdpForward>,
    /// At most 16, each with a peer of its own; needs a TCP allocation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp_listen: Vec<TcpListen>,
    /// Peers' connections to the relayed address are accepted and joined with one to this service; needs a TCP
    /// allocation, and peers in `permit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_forward: Option<SocketAddr>,
    /// The local address towards the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// `SO_MARK` of every socket towards the server (Linux, needs `CAP_NET_ADMIN`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// `TCP_CONGESTION` of every TCP socket (Linux), such as `bbr`: at most 15 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// A datagram older than this is dropped instead of sent late; default 50 ms.
    #[serde(default = "defaults::max_queue_delay", with = "duration")]
    pub max_queue_delay: Duration,
    /// The same limit while the first channel is being bound; default 5 s.
    #[serde(default = "defaults::connect_hold", with = "duration")]
    pub connect_hold: Duration,
    /// What one queue may hold, each datagram counting 64 bytes more than its payload; 64 KiB to 1 GiB, default
    /// 2 MiB.
    #[serde(default = "defaults::queue_bytes")]
    pub queue_bytes: usize,
    /// One attempt to connect to the server, over all addresses of its name, may take this long; default 4 s.
    #[serde(default = "defaults::connect_timeout", with = "duration")]
    pub connect_timeout: Duration,
}

/// [`TurnConfig::permit`] holds this many addresses at most, and [`TurnListen::permit`](super::TurnListen) too.
pub(crate) const MAX_PERMIT: usize = 256;
const MAX_UDP_FORWARD: usize = 64;
const MAX_TCP_LISTEN: usize = 16;

impl TurnConfig {
    /// A UDP allocation through which nothing is forwarded yet.
    pub fn new(name: impl Into<ChildId>, server: TurnServer) -> Self {
        Self {
            name: name.into(),
            server,
            relayed: RelayedTransport::Udp,
            family: None,
            lifetime: None,
            allocate: true,
            again: true,
            permit: Vec::new(),
            udp_forward: Vec::new(),
            tcp_listen: Vec::new(),
            tcp_forward: None,
            bind: None,
            fwmark: None,
            congestion: None,
            max_queue_delay: defaults::max_queue_delay(),
            connect_hold: defaults::connect_hold(),
            queue_bytes: defaults::queue_bytes(),
            connect_timeout: defaults::connect_timeout(),
        }
    }

    /// A TCP allocation through which nothing is forwarded yet.
    pub fn tcp(name: impl Into<ChildId>, server: TurnServer) -> Self {
        Self { relayed: RelayedTransport::Tcp, ..Self::new(name, server) }
    }

    /// The family to allocate, with the default worked out.
    pub fn address_family(&self) -> AddressFamily {
        let first = || self.peers().next().map(|(_, peer)| AddressFamily::of(peer));
        self.family.or_else(first).unwrap_or(AddressFamily::Ipv4)
    }

    /// The family to name in Allocate: one that a server gives unasked needs no naming.
    pub(crate) fn requested_family(&self) -> Option<AddressFamily> {
        self.family.or(Some(self.address_family()).filter(|family| *family == AddressFamily::Ipv6))
    }

    /// Every peer that is named, and the field that does.
    fn peers(&self) -> impl Iterator<Item = (&'static str, IpAddr)> + '_ {
        let forwarded = self.udp_forward.iter().map(|forward| ("udp_forward", forward.peer.ip()));
        let listened = self.tcp_listen.iter().map(|listen| ("tcp_listen", listen.peer.ip()));
        let permitted = self.permit.iter().map(|peer| ("permit", *peer));
        forwarded.chain(listened).chain(permitted)
    }

    /// Whether all values make sense together.
    ///
    /// # Errors
    /// One sentence that names the field and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let told = |field| move |why| self.invalid(field, why);
        checks::name(self.name.as_str()).map_err(told("name"))?;
        self.server.check(self.relayed).map_err(told("server"))?;
        if !checks::bind(self.bind, &self.server.uri.host) {
            return Err(self.invalid("bind", "and the TURN server are of different families"));
        }
        let day = Duration::from_secs(86_400);
        if self.lifetime.is_some_and(|t| t.subsec_nanos() != 0 || t.is_zero() || t > day) {
            return Err(self.invalid("lifetime", "must be 1s to 1day, in whole seconds"));
        }
        self.validate_forwards()?;
        self.validate_peers()?;
        checks::congestion(self.congestion.as_deref()).map_err(told("congestion"))?;
        checks::queue_bytes(self.queue_bytes).map_err(told("queue_bytes"))?;
        checks::duration(self.max_queue_delay).map_err(told("max_queue_delay"))?;
        checks::duration(self.connect_hold).map_err(told("connect_hold"))?;
        checks::duration(self.connect_timeout).map_err(told("connect_timeout"))
    }

    fn validate_forwards(&self) -> Result<(), ConfigError> {
        let is_tcp = self.relayed == RelayedTransport::Tcp;
        if is_tcp && !self.udp_forward.is_empty() {
            return Err(self.invalid("udp_forward", "needs a UDP allocation: relayed = \"udp\""));
        }
        if !is_tcp && !self.tcp_listen.is_empty() {
            return Err(self.invalid("tcp_listen", "needs a TCP allocation: relayed = \"tcp\""));
        }
        if self.udp_forward.len() > MAX_UDP_FORWARD {
            return Err(self.invalid("udp_forward", "may hold at most 64 entries"));
        }
        if self.tcp_listen.len() > MAX_TCP_LISTEN {
            return Err(self.invalid("tcp_listen", "may hold at most 16 entries"));
        }
        let pairs: Vec<_> =
            self.udp_forward.iter().map(|forward| (forward.local_udp, forward.peer)).collect();
        self.validate_pairs("udp_forward", &pairs)?;
        let pairs: Vec<_> = self.tcp_listen.iter().map(|listen| (listen.local_tcp, listen.peer)).collect();
        self.validate_pairs("tcp_listen", &pairs)?;
        match self.tcp_forward {
            None => Ok(()),
            Some(_) if !is_tcp => {
                Err(self.invalid("tcp_forward", "needs a TCP allocation: relayed = \"tcp\""))
            }
            Some(to) => checks::destination(to).map_err(|why| self.invalid("tcp_forward", why)),
        }
    }

    /// A channel is one peer's, and so is a connection: what came back could not be told apart.
    fn validate_pairs(
        &self,
        field: &'static str,
        pairs: &[(SocketAddr, SocketAddr)],
    ) -> Result<(), ConfigError> {
        let (mut locals, mut peers) = (HashSet::new(), HashSet::new());
        for (local, peer) in pairs {
            checks::peer(*peer).map_err(|_| {
                self.invalid(field, "must name peers by address and port, as the server knows them")
            })?;
            if !peers.insert(peer) {
                return Err(self.invalid(field, "names a peer twice"));
            }
            if local.port() != 0 && !locals.insert(local) {
                return Err(self.invalid(field, "names a local address twice"));
            }
        }
        Ok(())
    }

    fn validate_peers(&self) -> Result<(), ConfigError> {
        if self.permit.len() > MAX_PERMIT {
            return Err(self.invalid("permit", "may hold at most 256 addresses"));
        }
        for peer in &self.permit {
            checks::peer_ip(*peer).map_err(|why| self.invalid("permit", why))?;
        }
        let family = self.address_family();
        match self.peers().find(|(_, peer)| AddressFamily::of(*peer) != family) {
            Some((field, _)) if self.family.is_some() => {
                Err(self.invalid(field, "and family differ: one is IPv4, the other IPv6"))
            }
            Some((field, _)) => Err(self.invalid(field, "has a peer of another family than the first one")),
            None => Ok(()),
        }
    }

    fn invalid(&self, field: &'static str, why: &'static str) -> ConfigError {
        ConfigError::InvalidTurn { turn: self.name.clone(), field, why }
    }
}

#[cfg(test)]
mod tests;
