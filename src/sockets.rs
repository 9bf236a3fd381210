//! What outlives a session's actor: its bound sockets, its counters, and whom it was told to call.
//!
//! The supervisor keeps them in its slot for the session, so a local port stays the same whatever happens to
//! any actor, and what arrives meanwhile waits in the kernel. Actors work on duplicates of the descriptors.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{Remote, SessionConfig};
use crate::counters::Totals;
use crate::sockopt::{self, SocketError, TcpOptions};

/// See the file's head. Shared by the supervisor and the session's actor.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    inner: Mutex<Inner>,
    pub(crate) totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What local applications send to.
    udp: Option<UdpSocket>,
    listeners: Vec<TcpListener>,
    /// Towards a service, where the peer is known to be the same after a reconnection: the service can go on
    /// sending at once.
    service: Option<UdpSocket>,
    /// Whom the session was last told to call.
    remote: Option<Remote>,
}

impl Sockets {
    /// Binds what the session is configured to have.
    pub(crate) fn open(config: &SessionConfig) -> Result<Self, SocketError> {
        let sockets = Self::default();
        sockets.set_remote(config.remote.clone());
        if config.remote.is_some() || config.turn_listen.is_some() {
            TcpOptions::from(config).check()?;
        }
        if let Some(addr) = config.local_udp {
            sockets.lock().udp = Some(sockopt::bind_udp(addr)?);
        }
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

    /// Where the session listens.
    pub(crate) fn local_tcp(&self) -> Vec<SocketAddr> {
        self.lock().listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    pub(crate) fn listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.lock().listeners.iter().map(TcpListener::try_clone).collect()
    }

    pub(crate) fn udp(&self) -> io::Result<Option<UdpSocket>> {
        self.lock().udp.as_ref().map(UdpSocket::try_clone).transpose()
    }

    pub(crate) fn remote(&self) -> Option<Remote> {
        self.lock().remote.clone()
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

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn a_port_stays_the_same_for_every_actor() {
        let config = SessionConfig::listen("a", any()).local_udp(any());
        let sockets = Sockets::open(&config).unwrap();
        let ports: Vec<_> = (0..2).map(|_| sockets.udp().unwrap().unwrap().local_addr().unwrap()).collect();
        assert_eq!(ports[0], ports[1]);
        let service = ports[0];
        let first = sockets.service(service).unwrap().local_addr().unwrap();
        assert_eq!(sockets.service(service).unwrap().local_addr().unwrap(), first);
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
