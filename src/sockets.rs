//! What outlives the actor of a session, a TURN client or a relay: bound sockets, counters, and whom it was told to call.
//!
//! The supervisor keeps them in its slot for the child, so a local port stays the same whatever happens to
//! any actor, and what arrives meanwhile waits in the kernel. Actors work on duplicates of the descriptors.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use actix::prelude::Recipient;

use crate::config::{RelayConfig, Remote, SessionConfig, TurnConfig, TurnListen};
use crate::counters::Totals;
use crate::sockopt::{self, SocketError, TcpOptions};
use crate::stun;
use crate::tls::{Acceptor, DIRECT_PROTOCOL, RELAY_PROTOCOL};
use crate::tls_files;
use crate::turn::{DatagramsReceived, SetGate};

/// What is wished for, through all allocations and all lives of the actor. At most 1,024 addresses of each kind.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) permissions: BTreeSet<IpAddr>,
    pub(crate) channels: BTreeSet<SocketAddr>,
    /// Who decides on attempts and takes connections: a gate must not fall with an actor that panics.
    pub(crate) gate: Option<SetGate>,
    pub(crate) datagrams: Option<Recipient<DatagramsReceived>>,
    /// There is to be an allocation; `None`: nobody has said anything yet, the configuration counts.
    pub(crate) allocation: Option<bool>,
    /// Attempts that came to nothing: the next takes the next address of the server's name.
    pub(crate) addresses_tried: u64,
}

/// See the file's head. Shared by the supervisor and the child's actor.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    inner: Mutex<Inner>,
    wishes: Mutex<Wishes>,
    /// Peers that connect must speak TLS; a certificate that was made here stays the same.
    acceptor: Option<Acceptor>,
    /// INSTANCE: what a relay tells this session from others by.
    instance: OnceLock<[u8; 8]>,
    pub(crate) totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What local applications send to; a session has one at most.
    udp: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    /// Towards a service, where the peer is known to be the same after a reconnection: the service can go on
    /// sending at once.
    service: Option<UdpSocket>,
    /// At a relay, the peer that it is for.
    service_peer: Option<String>,
    /// Whom the session was last told to call.
    remote: Option<Remote>,
    /// Where peers reach it through a TURN server, unless it was told to disconnect.
    turn_listen: Option<TurnListen>,
}

impl Sockets {
    /// Binds what the session is configured to have, and reads its certificates.
    pub(crate) fn open(config: &SessionConfig) -> Result<Self, SocketError> {
        // What is wrong with their files is better said now than by the first link.
        config.client_tls().try_for_each(|(_, tls)| tls_files::check_client(tls))?;
        let acceptor = config.listen_tls.as_ref().map(|tls| Acceptor::new(tls, DIRECT_PROTOCOL));
        let sockets = Self { acceptor: acceptor.transpose()?, ..Self::default() };
        sockets.set_remote(config.remote.clone());
        sockets.set_turn_listen(config.turn_listen.clone());
        if config.remote.is_some() || config.turn_listen.is_some() {
            TcpOptions::from(config).check()?;
        }
        if let Some(addr) = config.local_udp {
            sockets.lock().udp.push(sockopt::bind_udp(addr)?);
        }
        sockets.listen(&config.local_tcp, &TcpOptions::from(config))?;
        Ok(sockets)
    }

    /// Binds what a TURN client is configured to have: a UDP socket for each forward, a listener for each TCP
    /// port, in this order. Reads the files that its TLS names.
    pub(crate) fn open_turn(config: &TurnConfig) -> Result<Self, SocketError> {
        config.server.spoken_tls().map_or(Ok(()), tls_files::check_client)?;
        TcpOptions::from(config).check()?;
        let sockets = Self::default();
        let bound: Result<_, _> =
            config.udp_forward.iter().map(|forward| sockopt::bind_udp(forward.local_udp)).collect();
        sockets.lock().udp = bound?;
        let tcp: Vec<_> = config.tcp_listen.iter().map(|listen| listen.local_tcp).collect();
        sockets.listen(&tcp, &TcpOptions::default())?;
        Ok(sockets)
    }

    /// Binds what a relay is configured to have, and reads its certificates.
    pub(crate) fn open_relay(config: &RelayConfig) -> Result<Self, SocketError> {
        let acceptor = config.tls.as_ref().map(|tls| Acceptor::new(tls, RELAY_PROTOCOL));
        let sockets = Self { acceptor: acceptor.transpose()?, ..Self::default() };
        sockets.listen(&config.local_tcp, &TcpOptions::from(config))?;
        Ok(sockets)
    }

    /// Listens at these addresses and no others; says which ports the system chose. When one cannot be had,
    /// everything stays as it was.
    pub(crate) fn listen(&self, addrs: &[SocketAddr], options: &TcpOptions) -> Result<(), SocketError> {
        let mut inner = self.lock();
        // Those that stay keep their descriptor: an address can be bound only once.
        let mut kept: Vec<TcpListener> = Vec::new();
        for addr in addrs {
            let same = inner.listeners.iter().find(|listener| listener.local_addr().ok() == Some(*addr));
            let listener = match same.map(TcpListener::try_clone) {
                Some(Ok(listener)) => listener,
                _ => sockopt::listen_tcp(*addr, has_v4_twin(addr, addrs), options)?,
            };
            kept.push(listener);
        }
        inner.listeners = kept;
        Ok(())
    }

    /// Where the child listens.
    pub(crate) fn local_tcp(&self) -> Vec<SocketAddr> {
        self.lock().listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Random, and the same for all lives of the session.
    pub(crate) fn instance(&self) -> [u8; 8] {
        let random = || *stun::random_id().0.first_chunk().expect("it has 12 bytes");
        *self.instance.get_or_init(random)
    }

    pub(crate) fn acceptor(&self) -> Option<Acceptor> {
        self.acceptor.clone()
    }

    pub(crate) fn listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.lock().listeners.iter().map(TcpListener::try_clone).collect()
    }

    /// The listener of this number, counted from 0.
    pub(crate) fn listener(&self, index: usize) -> io::Result<Option<TcpListener>> {
        self.lock().listeners.get(index).map(TcpListener::try_clone).transpose()
    }

    /// The socket of this number that local applications send to, counted from 0.
    pub(crate) fn udp(&self, index: usize) -> io::Result<Option<UdpSocket>> {
        self.lock().udp.get(index).map(UdpSocket::try_clone).transpose()
    }

    pub(crate) fn remote(&self) -> Option<Remote> {
        self.lock().remote.clone()
    }

    pub(crate) fn turn_listen(&self) -> Option<TurnListen> {
        self.lock().turn_listen.clone()
    }

    pub(crate) fn set_turn_listen(&self, turn_listen: Option<TurnListen>) {
        self.lock().turn_listen = turn_listen;
    }

    /// Whether the session calls its peer through a TURN server.
    pub(crate) fn calls_through_turn(&self) -> bool {
        matches!(self.lock().remote, Some(Remote::Turn(_)))
    }

    /// What a TURN client is to have on its server.
    pub(crate) fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_remote(&self, remote: Option<Remote>) {
        self.lock().remote = remote;
    }

    /// The lasting socket towards the service.
    pub(crate) fn service(&self, to: SocketAddr) -> Result<UdpSocket, SocketError> {
        let mut inner = self.lock();
        let service = match &inner.service {
            Some(service) => service,
            None => inner.service.insert(sockopt::connect_udp(to)?),
        };
        service.try_clone().map_err(|source| SocketError::ConnectUdp { to, source })
    }

    /// The same for a peer that is met at a relay: another one gets another socket.
    pub(crate) fn service_for(&self, peer: &str, to: SocketAddr) -> Result<UdpSocket, SocketError> {
        let mut inner = self.lock();
        if inner.service_peer.as_deref() != Some(peer) {
            (inner.service, inner.service_peer) = (None, Some(peer.to_owned()));
        }
        drop(inner);
        self.service(to)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the same port is asked for on all IPv4 addresses too: `[::]` is then for IPv6 only.
fn has_v4_twin(addr: &SocketAddr, addrs: &[SocketAddr]) -> bool {
    let is_twin =
        |other: &SocketAddr| other.is_ipv4() && other.ip().is_unspecified() && other.port() == addr.port();
    addr.port() != 0 && addrs.iter().any(is_twin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{TcpListen, TurnServer, UdpForward};

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn a_port_stays_the_same_for_every_actor() {
        let config = SessionConfig::listen("a", any()).local_udp(any());
        let sockets = Sockets::open(&config).unwrap();
        let ports: Vec<_> = (0..2).map(|_| sockets.udp(0).unwrap().unwrap().local_addr().unwrap()).collect();
        assert_eq!(ports[0], ports[1]);
        let service = ports[0];
        let first = sockets.service(service).unwrap().local_addr().unwrap();
        assert_eq!(sockets.service(service).unwrap().local_addr().unwrap(), first);
        let of = |peer| sockets.service_for(peer, service).unwrap().local_addr().unwrap();
        let (b, c) = (of("b"), of("c"));
        assert_ne!(b, c);
        assert_eq!(of("c"), c);
    }

    /// A TURN client with these sockets.
    fn open_turn(udp: &[SocketAddr], tcp: &[SocketAddr]) -> Result<Sockets, SocketError> {
        let peer = ([192, 0, 2, 1], 1).into();
        let mut config = TurnConfig::new("turn", TurnServer::new("turn:h".parse().unwrap()));
        config.udp_forward = udp.iter().map(|addr| UdpForward { local_udp: *addr, peer }).collect();
        config.tcp_listen = tcp.iter().map(|addr| TcpListen { local_tcp: *addr, peer }).collect();
        Sockets::open_turn(&config)
    }

    #[test]
    fn a_turn_client_finds_each_of_its_sockets_by_number() {
        let sockets = open_turn(&[any(), any()], &[any(), any()]).unwrap();
        let udp = |index| sockets.udp(index).unwrap().map(|udp| udp.local_addr().unwrap());
        let tcp = |index| sockets.listener(index).unwrap().map(|tcp| tcp.local_addr().unwrap());
        assert!(udp(0).is_some() && udp(0) == udp(0) && udp(1).is_some() && udp(0) != udp(1));
        assert_eq!([tcp(0).unwrap(), tcp(1).unwrap()], sockets.local_tcp()[..]);
        assert_eq!((udp(2), tcp(2)), (None, None));
    }

    #[test]
    fn a_turn_client_does_not_get_ports_in_use() {
        let udp = UdpSocket::bind(any()).unwrap().local_addr().unwrap();
        let taken = UdpSocket::bind(any()).unwrap();
        let error = open_turn(&[udp, taken.local_addr().unwrap()], &[]).unwrap_err();
        assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
        let taken = TcpListener::bind(any()).unwrap();
        let error = open_turn(&[udp], &[taken.local_addr().unwrap()]).unwrap_err();
        assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
        // What was bound in vain is free again.
        open_turn(&[udp], &[]).unwrap();
    }

    #[test]
    fn listening_elsewhere_fails_as_a_whole_and_names_the_address() {
        let taken = TcpListener::bind(any()).unwrap();
        let sockets = Sockets::default();
        let options = TcpOptions::default();
        sockets.listen(&[any()], &options).unwrap();
        let before = sockets.local_tcp();
        let error = sockets.listen(&[any(), taken.local_addr().unwrap()], &options).unwrap_err();
        assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
        assert_eq!(sockets.local_tcp(), before);
        sockets.listen(&[before[0], any()], &options).unwrap();
        assert_eq!(sockets.local_tcp()[0], before[0]);
        sockets.listen(&[], &options).unwrap();
        assert!(sockets.local_tcp().is_empty());
    }
}
