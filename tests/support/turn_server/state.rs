//! What a server knows of its clients, and the sockets it has for them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use turn_server_proto::api::{
    DelayedMessageOrChannelSend, SocketAllocateError, Transmit, TurnServerApi, TurnServerPollRet,
};
use turn_server_proto::server::TurnServer as Protocol;
use turn_server_proto::types::attribute::ConnectionId;
use turn_server_proto::types::stun::message::Message;
use turn_server_proto::types::transmit::TransmitBuild;
use turn_server_proto::types::{AddressFamily, TransportType};

use super::Side;

pub(super) struct State {
    pub(super) protocol: Protocol,
    udp: HashMap<SocketAddr, Arc<UdpSocket>>,
    /// By relayed address.
    relays: HashMap<SocketAddr, Relay>,
    connections: HashMap<Path, Connection>,
    /// Connections with peers that no client has bound yet.
    unbound: HashMap<u32, Path>,
    /// While a peer is dialed the protocol must not be asked what to do: it would take it for expired.
    pub(super) is_dialing: bool,
    pub(super) tasks: JoinSet<()>,
}

/// Two ends of a stream: ours and theirs.
pub(super) type Path = (SocketAddr, SocketAddr);

struct Relay {
    client: SocketAddr,
    task: AbortHandle,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream to a client or a peer. Dropped, it is written to its end and then closed.
struct Connection {
    kind: Kind,
    /// What a client asked to be bound to.
    asked_for: Option<u32>,
    /// It will bring nothing more.
    has_ended: bool,
    queue: mpsc::UnboundedSender<Vec<u8>>,
    backlog: Arc<watch::Sender<usize>>,
    reader: Option<AbortHandle>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Messages in a stream.
    Control,
    /// Bytes of a peer, towards it or its client.
    Data,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

impl State {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            udp: HashMap::new(),
            relays: HashMap::new(),
            connections: HashMap::new(),
            unbound: HashMap::new(),
            is_dialing: false,
            tasks: JoinSet::new(),
        }
    }

    pub(super) fn relayed(&self) -> Vec<SocketAddr> {
        self.relays.keys().copied().collect()
    }

    /// Closes everything; the tasks end when what is given back is dropped.
    pub(super) fn forget(&mut self) -> JoinSet<()> {
        self.udp.clear();
        self.relays.clear();
        self.connections.clear();
        std::mem::take(&mut self.tasks)
    }

    pub(super) fn add_udp(&mut self, side: &Arc<Side>, local: SocketAddr, socket: UdpSocket) -> AbortHandle {
        let socket = Arc::new(socket);
        self.udp.insert(local, socket.clone());
        self.tasks.spawn(side.clone().read_udp(local, socket))
    }

    pub(super) fn add_tcp(&mut self, side: &Arc<Side>, path: Path, kind: Kind, stream: TcpStream) {
        // A stream works without it, only slower.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        let (queue, queued) = mpsc::unbounded_channel();
        let backlog = Arc::new(watch::Sender::new(0));
        self.tasks.spawn(write_tcp(writer, queued, backlog.clone()));
        let reader = Some(self.tasks.spawn(side.clone().read_tcp(path, reader)));
        self.connections
            .insert(path, Connection { kind, asked_for: None, has_ended: false, queue, backlog, reader });
    }

    /// Gives the protocol what came, and gets back what goes out.
    pub(super) fn receive(
        &mut self,
        side: &Side,
        transport: TransportType,
        (local, remote): Path,
        bytes: &[u8],
    ) -> Option<Transmit<Vec<u8>>> {
        let answer = self.protocol.recv(Transmit::new(bytes, transport, remote, local), side.now());
        answer.map(TransmitBuild::<DelayedMessageOrChannelSend<&[u8]>>::build)
    }

    /// Takes a connection with a peer that the client was told by this id.
    pub(super) fn add_peer(&mut self, side: &Arc<Side>, path: Path, stream: TcpStream, id: u32) {
        self.unbound.insert(id, path);
        self.add_tcp(side, path, Kind::Data, stream);
    }

    /// Uses as much of `unused` as is complete; says whose backlogs have grown.
    pub(super) fn feed(
        &mut self,
        side: &Arc<Side>,
        path: Path,
        unused: &mut Vec<u8>,
    ) -> Vec<Arc<watch::Sender<usize>>> {
        let mut grown = Vec::new();
        while let Some(connection) = self.connections.get_mut(&path) {
            let (whole, used) = match connection.kind {
                Kind::Data => (unused.len(), unused.len()),
                Kind::Control => match first_message(unused) {
                    Some(lengths) => lengths,
                    None => break,
                },
            };
            if used == 0 {
                break;
            }
            let rest = unused.split_off(used);
            if connection.kind == Kind::Control {
                connection.asked_for = connection_id(unused);
            }
            if let Some(answer) = self.receive(side, TransportType::Tcp, path, &unused[..whole]) {
                grown.extend(self.send(side, answer));
            }
            *unused = rest;
            self.turn(side);
        }
        grown
    }

    /// The stream at `path` brings nothing more.
    pub(super) fn end(&mut self, side: &Arc<Side>, path: Path) {
        let Some(connection) = self.connections.get_mut(&path) else { return };
        connection.has_ended = true;
        if path.0 != side.addr && self.unbound.values().any(|unbound| *unbound == path) {
            // The protocol would forget it: told when it is bound.
            return;
        }
        let is_control = connection.kind == Kind::Control;
        self.close(side, path);
        if is_control {
            self.relays.retain(|_, relay| relay.client != path.1);
            let is_orphan = |local: &SocketAddr| *local != side.addr && !self.relays.contains_key(local);
            let orphans = self.connections.keys().filter(|(local, _)| is_orphan(local));
            for orphan in orphans.copied().collect::<Vec<_>>() {
                self.close(side, orphan);
            }
        }
        self.turn(side);
    }

    /// Closes a connection, and what the protocol knows to belong to it.
    fn close(&mut self, side: &Arc<Side>, path: Path) {
        self.connections.remove(&path);
        self.unbound.retain(|_, unbound| *unbound != path);
        // The end of a client's connection is sent to its peer as nothing, which closes that one.
        if let Some(answer) = self.receive(side, TransportType::Tcp, path, &[]) {
            self.send(side, answer);
        }
    }

    /// The client at `path` has been bound to the peer that it asked for.
    fn bind(&mut self, side: &Arc<Side>, path: Path) {
        let Some(connection) = self.connections.get_mut(&path) else { return };
        connection.kind = Kind::Data;
        let Some(peer) = connection.asked_for.and_then(|id| self.unbound.remove(&id)) else { return };
        while let Some(early) = self.protocol.poll_transmit(side.now()) {
            self.send(side, early);
        }
        if self.connections.get(&peer).is_some_and(|peer| peer.has_ended) {
            self.close(side, peer);
        }
    }

    /// Asks the protocol for everything that it wants to be done by now.
    pub(super) fn turn(&mut self, side: &Arc<Side>) {
        loop {
            while let Some(transmit) = self.protocol.poll_transmit(side.now()) {
                self.send(side, transmit);
            }
            if self.is_dialing {
                return;
            }
            match self.protocol.poll(side.now()) {
                TurnServerPollRet::WaitUntil(_) => return,
                TurnServerPollRet::AllocateSocket {
                    transport,
                    listen_addr,
                    client_addr,
                    allocation_transport,
                    family,
                } => {
                    let kind = allocation_transport;
                    let relayed = self
                        .allocate(side, client_addr, kind, family)
                        .map_err(|_| SocketAllocateError::InsufficientCapacity);
                    let now = side.now();
                    self.protocol.allocated_socket(
                        transport,
                        listen_addr,
                        client_addr,
                        kind,
                        family,
                        relayed,
                        now,
                    );
                }
                TurnServerPollRet::TcpConnect { relayed_addr, peer_addr, client_addr, .. } => {
                    self.is_dialing = true;
                    self.tasks.spawn(side.clone().dial(relayed_addr, peer_addr, client_addr));
                }
                TurnServerPollRet::TcpClose { local_addr, remote_addr } => {
                    self.connections.remove(&(local_addr, remote_addr));
                    self.unbound.retain(|_, unbound| *unbound != (local_addr, remote_addr));
                }
                TurnServerPollRet::SocketClose { listen_addr, .. } => {
                    self.udp.remove(&listen_addr);
                    self.relays.remove(&listen_addr);
                }
            }
        }
    }

    /// Opens a relayed address.
    fn allocate(
        &mut self,
        side: &Arc<Side>,
        client: SocketAddr,
        transport: TransportType,
        family: AddressFamily,
    ) -> io::Result<SocketAddr> {
        let ip = match family {
            AddressFamily::IPV4 if side.addr.is_ipv4() => side.addr.ip(),
            AddressFamily::IPV4 => IpAddr::from([127, 0, 0, 1]),
            AddressFamily::IPV6 => Ipv6Addr::LOCALHOST.into(),
        };
        let wanted = SocketAddr::new(ip, 0);
        let (relayed, task) = match transport {
            TransportType::Udp => {
                let socket = std::net::UdpSocket::bind(wanted)?;
                socket.set_nonblocking(true)?;
                let relayed = socket.local_addr()?;
                (relayed, self.add_udp(side, relayed, UdpSocket::from_std(socket)?))
            }
            TransportType::Tcp => {
                let listener = reusable(wanted)?.listen(64)?;
                let relayed = listener.local_addr()?;
                (relayed, self.tasks.spawn(side.clone().accept(relayed, listener)))
            }
        };
        self.relays.insert(relayed, Relay { client, task });
        Ok(relayed)
    }

    /// Sends, or queues for a connection, whose backlog is given back.
    pub(super) fn send(
        &mut self,
        side: &Arc<Side>,
        transmit: Transmit<Vec<u8>>,
    ) -> Option<Arc<watch::Sender<usize>>> {
        let path = (transmit.from, transmit.to);
        if transmit.transport == TransportType::Udp {
            if let Some(socket) = self.udp.get(&path.0)
                && !*side.silent.borrow()
            {
                // Datagrams may be lost.
                let _ = socket.try_send_to(&transmit.data, path.1);
            }
            return None;
        }
        if transmit.data.is_empty() {
            self.close(side, path);
            return None;
        }
        let connection = self.connections.get_mut(&path)?;
        let (mut bytes, is_control) = (transmit.data, connection.kind == Kind::Control);
        let is_bind = is_control && is_bind_success(&bytes);
        if is_control && bytes[0] >> 6 == 0b01 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        connection.backlog.send_modify(|waiting| *waiting += bytes.len());
        let backlog = connection.backlog.clone();
        // A writer that failed is noticed by the reader of the same stream.
        let _ = connection.queue.send(bytes);
        if is_bind {
            self.bind(side, path);
        }
        Some(backlog)
    }
}

/// The first message of a control connection: its length, and with its padding.
fn first_message(bytes: &[u8]) -> Option<(usize, usize)> {
    let &[first, _, high, low, ..] = bytes else { return None };
    let len = usize::from(u16::from_be_bytes([high, low]));
    let (whole, used) = match first >> 6 {
        0b00 => (20 + len, 20 + len),
        0b01 => (4 + len, 4 + len.next_multiple_of(4)),
        // Nothing of TURN's: the protocol shall see it, and drop it.
        _ => (bytes.len(), bytes.len()),
    };
    (used <= bytes.len()).then_some((whole, used))
}

/// CONNECTION-ID, if this is a message with one.
pub(super) fn connection_id(message: &[u8]) -> Option<u32> {
    Message::from_bytes(message).ok()?.attribute::<ConnectionId>().ok().map(|id| id.id())
}

fn is_bind_success(message: &[u8]) -> bool {
    message.starts_with(&[0x01, 0x0b]) && message.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42])
}

/// Bound to a relayed address, where connections come in and go out.
pub(super) fn reusable(relayed: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if relayed.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    #[cfg(unix)]
    socket.set_reuseport(true)?;
    socket.bind(relayed)?;
    Ok(socket)
}

async fn write_tcp(
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    backlog: Arc<watch::Sender<usize>>,
) {
    while let Some(bytes) = queue.recv().await {
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
        backlog.send_modify(|waiting| *waiting -= bytes.len());
    }
}
