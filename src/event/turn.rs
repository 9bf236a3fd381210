//! What an observer may learn of a TURN client: the second seed's callbacks, and what it does not tell.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{Retry, as_seconds};
use crate::config::TurnUri;
use crate::counters::TurnCounters;
use crate::turn::{ChannelNumber, ConnectionId, TurnError};

/// What a TURN client is doing (the seed's `onClientStateChange`). The seeds name no values; these are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TurnState {
    /// There is no allocation, and none is wanted.
    Idle,
    /// The server is being resolved and connected to.
    Connecting,
    /// Allocate has been sent.
    Allocating,
    /// The allocation is there.
    Allocated,
    /// The allocation is being deleted.
    Deallocating,
    /// It failed, or was lost, and is about to be made again.
    Backoff {
        /// When, by this machine's clock.
        #[serde(serialize_with = "super::as_rfc3339")]
        until: SystemTime,
    },
}

impl fmt::Display for TurnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting to the server",
            Self::Allocating => "allocating",
            Self::Allocated => "allocated",
            Self::Deallocating => "deallocating",
            Self::Backoff { .. } => "waiting to try again",
        })
    }
}

/// The kinds of [`Event`](super::Event) that TURN clients have. New ones may come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TurnEvent {
    /// The client's actor is running and its local sockets are open. Seen again after a restart.
    TurnStarted {
        /// The server.
        server: TurnUri,
        /// Where local applications send UDP to, in the order of `udp_forward`.
        local_udp: Vec<SocketAddr>,
        /// Where local TCP connections are taken, in the order of `tcp_listen`.
        local_tcp: Vec<SocketAddr>,
    },
    /// The client's state is another one now (`onClientStateChange`).
    TurnStateChanged {
        /// The new one.
        #[serde(flatten)]
        state: TurnState,
    },
    /// The server has made an allocation, the first or a new one.
    AllocationCreated {
        /// The server's address, after redirections.
        server: SocketAddr,
        /// The address that peers send or connect to (XOR-RELAYED-ADDRESS).
        relayed: SocketAddr,
        /// Our address as the server sees it (XOR-MAPPED-ADDRESS).
        mapped: SocketAddr,
        /// The lifetime that the server grants; it is refreshed in time.
        #[serde(serialize_with = "seconds")]
        lifetime: Duration,
        /// The relayed address of the allocation before, where it was another one: peers must be told.
        replaces: Option<SocketAddr>,
    },
    /// No allocation could be made (`onAllocationFailed`).
    AllocationFailed {
        /// Why.
        error: TurnError,
        /// When it is tried again.
        #[serde(serialize_with = "as_seconds")]
        retry_in: Option<Duration>,
    },
    /// The allocation is gone (`onAllocationDeleted`).
    AllocationDeleted {
        /// The relayed address that was.
        relayed: SocketAddr,
        /// Why.
        cause: TurnError,
        /// When a new one is asked for.
        #[serde(serialize_with = "as_seconds")]
        retry_in: Option<Duration>,
    },
    /// The server did not prolong the allocation; it goes on until its lifetime is over, and is asked again.
    RefreshFailed {
        /// What the server said.
        error: TurnError,
    },
    /// These addresses may send to us now (`onAllocationPermissionsCreated`).
    PermissionsCreated {
        /// The peers' addresses.
        peers: Vec<IpAddr>,
    },
    /// The server does not permit these addresses. It is asked again every 30 s.
    PermissionsFailed {
        /// The peers' addresses.
        peers: Vec<IpAddr>,
        /// Why.
        error: TurnError,
    },
    /// Datagrams to and from this peer go through a channel now.
    ChannelBound {
        /// The peer.
        peer: SocketAddr,
        /// The channel's number.
        channel: ChannelNumber,
    },
    /// The server does not bind a channel to this peer. It is asked again every 30 s.
    ChannelFailed {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        error: TurnError,
    },
    /// The server was told by ICMP that datagrams do not reach this peer (RFC 8656 §11.5). At most one such event a
    /// second; the others are in `more`.
    PeerUnreachable {
        /// The peer.
        peer: SocketAddr,
        /// The ICMP type.
        icmp_type: u8,
        /// The ICMP code.
        icmp_code: u8,
        /// How many others came since the last such event.
        more: u64,
    },
    /// A relay connection carries bytes (`onRelayConnectionCreated`). The stream goes to whoever asked for it.
    RelayConnectionCreated {
        /// The server's number for it.
        connection: ConnectionId,
        /// The peer.
        peer: SocketAddr,
    },
    /// A relay connection broke (`onRelayConnectionError`). `RelayConnectionClosed` follows.
    RelayConnectionError {
        /// The server's number for it.
        connection: ConnectionId,
        /// The peer.
        peer: SocketAddr,
        /// What the system said.
        error: String,
    },
    /// A relay connection has ended (`onRelayConnectionClosed`).
    RelayConnectionClosed {
        /// The server's number for it.
        connection: ConnectionId,
        /// The peer.
        peer: SocketAddr,
    },
    /// A Connect or a ConnectionBind came to nothing (`onRelayConnectionBindingFailed`).
    RelayConnectionBindingFailed {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        error: TurnError,
    },
    /// A peer's attempt to connect was rejected: by the gate, by its silence, because nobody takes connections, or
    /// (told once a second) for want of room: there are 256 connections, or 64 attempts are undecided.
    PeerConnectionRejected {
        /// The peer.
        peer: SocketAddr,
    },
    /// A peer's connection was closed, for the service that `tcp_forward` names could not be reached.
    TcpForwardFailed {
        /// The peer.
        peer: SocketAddr,
        /// The service.
        service: SocketAddr,
        /// Which step failed, with what the system said.
        error: String,
    },
    /// What was carried so far, every `stats_interval`.
    TurnStats {
        /// Since the client was first started, restarts included.
        counters: TurnCounters,
    },
}

impl fmt::Display for TurnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TurnStarted { server, local_udp, local_tcp } => {
                write!(f, "TURN client of {server} started")?;
                local_udp.iter().try_for_each(|addr| write!(f, ", send UDP to {addr}"))?;
                local_tcp.iter().try_for_each(|addr| write!(f, ", connect TCP to {addr}"))
            }
            Self::TurnStateChanged { state } => write!(f, "{state}"),
            Self::AllocationCreated { server, relayed, replaces, .. } => {
                write!(f, "relayed address {relayed} at {server}")?;
                replaces.map_or(Ok(()), |old| write!(f, " (it was {old}: peers must be told)"))
            }
            Self::AllocationFailed { error, retry_in } => {
                write!(f, "no allocation: {error}{}", Retry(*retry_in))
            }
            Self::AllocationDeleted { relayed, cause, retry_in } => {
                write!(f, "relayed address {relayed} is gone: {cause}{}", Retry(*retry_in))
            }
            Self::RefreshFailed { error } => write!(f, "the allocation was not prolonged: {error}"),
            Self::PermissionsCreated { peers } => write!(f, "permitted: {}", List(peers)),
            Self::PermissionsFailed { peers, error } => {
                write!(f, "not permitted: {}: {error}", List(peers))
            }
            Self::ChannelBound { peer, channel } => write!(f, "channel {channel} bound to {peer}"),
            Self::ChannelFailed { peer, error } => write!(f, "no channel to {peer}: {error}"),
            Self::PeerUnreachable { peer, icmp_type, icmp_code, .. } => {
                write!(f, "the server cannot reach {peer} (ICMP type {icmp_type}, code {icmp_code})")
            }
            Self::RelayConnectionCreated { connection, peer } => {
                write!(f, "connection {connection} with {peer}")
            }
            Self::RelayConnectionError { connection, peer, error } => {
                write!(f, "connection {connection} with {peer} broke: {error}")
            }
            Self::RelayConnectionClosed { connection, peer } => {
                write!(f, "connection {connection} with {peer} closed")
            }
            Self::RelayConnectionBindingFailed { peer, error } => {
                write!(f, "no connection with {peer}: {error}")
            }
            Self::PeerConnectionRejected { peer } => write!(f, "connection from {peer} rejected"),
            Self::TcpForwardFailed { peer, error, .. } => {
                write!(f, "connection with {peer} closed, the service cannot be reached: {error}")
            }
            Self::TurnStats { counters } => write_stats(f, counters),
        }
    }
}

fn write_stats(f: &mut fmt::Formatter<'_>, counters: &TurnCounters) -> fmt::Result {
    let TurnCounters { to_peers, from_peers, drops, .. } = counters;
    write!(f, "to peers {} datagrams {} bytes, ", to_peers.datagrams, to_peers.bytes)?;
    write!(f, "from peers {} datagrams {} bytes, ", from_peers.datagrams, from_peers.bytes)?;
    super::write_drops(f, drops)
}

struct List<'l>(&'l [IpAddr]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, peer) in self.0.iter().enumerate() {
            write!(f, "{}{peer}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    time.as_secs_f64().serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_relayed_address_is_told_with_the_one_it_replaces() {
        let event = TurnEvent::AllocationCreated {
            server: "192.0.2.1:3478".parse().unwrap(),
            relayed: "192.0.2.1:50000".parse().unwrap(),
            mapped: "198.51.100.1:40000".parse().unwrap(),
            lifetime: Duration::from_secs(600),
            replaces: Some("192.0.2.1:49999".parse().unwrap()),
        };
        let text = event.to_string();
        assert_eq!(
            text,
            "relayed address 192.0.2.1:50000 at 192.0.2.1:3478 (it was 192.0.2.1:49999: peers must be told)"
        );
        let event = super::super::EventKind::Turn(event);
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], "allocation_created");
        assert_eq!(json["lifetime"], 600.0);
        assert_eq!(json["relayed"], "192.0.2.1:50000");
    }
}
