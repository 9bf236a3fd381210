//! `turn-server-proto` in memory, without sockets: another author's server, with SHA-256 and USERHASH.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::server::BOTH_ALGORITHMS;
use turn_server_proto::api::{
    DelayedMessageOrChannelSend, TcpConnectError, Transmit, TurnServerApi, TurnServerPollRet,
};
use turn_server_proto::server::TurnServer;
use turn_server_proto::types::transmit::TransmitBuild;
use turn_server_proto::types::{Instant as TheirInstant, TransportType};

pub(super) fn listening() -> SocketAddr {
    ([198, 51, 100, 1], 3478).into()
}

/// Bytes on their way between two addresses.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Oracle {
    protocol: TurnServer,
    transport: TransportType,
    start: Instant,
    nonce_lifetime: Duration,
    next_port: u16,
    /// Relayed addresses that are open.
    pub(super) relayed: BTreeSet<SocketAddr>,
    /// Peers that cannot be connected to.
    pub(super) unreachable: BTreeSet<SocketAddr>,
    /// Connections that were made to peers, from relayed addresses.
    pub(super) connected: Vec<(SocketAddr, SocketAddr)>,
    /// How often it was replaced.
    pub(super) generation: u32,
}

impl Oracle {
    pub(super) fn new(start: Instant, transport: TransportType, nonce_lifetime: Duration) -> Self {
        let mut oracle = Self {
            protocol: TurnServer::new(transport, listening(), "example.org".into()),
            transport,
            start,
            nonce_lifetime,
            next_port: 50_000,
            relayed: BTreeSet::new(),
            unreachable: BTreeSet::new(),
            connected: Vec::new(),
            generation: 0,
        };
        oracle.replace();
        oracle
    }

    /// Another server takes its place, which knows nothing.
    pub(super) fn replace(&mut self) {
        self.protocol = TurnServer::new(self.transport, listening(), "example.org".into());
        self.protocol.add_user("alice".into(), "secret".into());
        self.protocol.set_nonce_expiry_duration(self.nonce_lifetime);
        self.relayed.clear();
        self.generation += 1;
    }

    fn now(&self, now: Instant) -> TheirInstant {
        TheirInstant::ZERO + (now - self.start)
    }

    /// What it sends when this comes, to clients and to peers.
    pub(super) fn receive(&mut self, now: Instant, sent: &Sent) -> Vec<Sent> {
        // UDP clients ask for UDP here, TCP clients for TCP.
        let transmit = Transmit::new(&sent.bytes[..], self.transport, sent.from, sent.to);
        let answer = self.protocol.recv(transmit, self.now(now));
        let answer = answer.map(TransmitBuild::<DelayedMessageOrChannelSend<&[u8]>>::build);
        let mut all: Vec<Sent> = answer.into_iter().map(as_sent).collect();
        all.extend(self.poll(now));
        all
    }

    /// Does what is due.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<Sent> {
        let their_now = self.now(now);
        let mut all = Vec::new();
        loop {
            match self.protocol.poll(their_now) {
                TurnServerPollRet::WaitUntil(_) => break,
                TurnServerPollRet::AllocateSocket {
                    transport,
                    listen_addr,
                    client_addr,
                    allocation_transport,
                    family,
                } => {
                    let relayed = ([198, 51, 100, 1], self.next_port).into();
                    self.next_port += 1;
                    self.relayed.insert(relayed);
                    self.protocol.allocated_socket(
                        transport,
                        listen_addr,
                        client_addr,
                        allocation_transport,
                        family,
                        Ok(relayed),
                        their_now,
                    );
                }
                TurnServerPollRet::TcpConnect { relayed_addr, peer_addr, listen_addr, client_addr } => {
                    let refused = self.unreachable.contains(&peer_addr);
                    let result = if refused { Err(TcpConnectError::Failure) } else { Ok(relayed_addr) };
                    self.connected.extend((!refused).then_some((relayed_addr, peer_addr)));
                    self.protocol.tcp_connected(
                        relayed_addr,
                        peer_addr,
                        listen_addr,
                        client_addr,
                        result,
                        their_now,
                    );
                }
                TurnServerPollRet::TcpClose { .. } => {}
                TurnServerPollRet::SocketClose { listen_addr, .. } => _ = self.relayed.remove(&listen_addr),
            }
            // Answers first: it would take a Connect that has just been made for expired.
            while let Some(transmit) = self.protocol.poll_transmit(their_now) {
                all.push(as_sent(transmit));
            }
        }
        while let Some(transmit) = self.protocol.poll_transmit(their_now) {
            all.push(as_sent(transmit));
        }
        all
    }
}

/// A 438 of this server lacks PASSWORD-ALGORITHMS, which its nonce announces and RFC 8489 §9.2.4 demands.
fn as_sent(transmit: Transmit<Vec<u8>>) -> Sent {
    let Transmit { data: mut bytes, from, to, .. } = transmit;
    let is_error = bytes.len() > 28 && bytes[0] == 1 && bytes[1] & 0xf0 == 0x10;
    if is_error && bytes[20..28] == [0, 9, 0, bytes[23], 0, 0, 4, 38] {
        bytes.extend([0x80, 0x02, 0, 8]);
        bytes.extend(BOTH_ALGORITHMS);
        let len = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
    }
    Sent { from, to, bytes }
}
