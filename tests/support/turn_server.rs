//! A TURN server inside this process: `turn-server-proto` on sockets, over UDP and TCP at one address. It offers
//! SHA-256 and USERHASH, which coturn lacks. The examples use it too.
//!
//! What the crate lacks is done here: ChannelData over TCP is padded, the end of a control connection ends its
//! allocation, the early end of a peer is told once its connection is bound. What stays: Connect to a peer without
//! permission breaks the control connection; attempts come as requests; a nonce lives 30 s at least; a 438 brings
//! no PASSWORD-ALGORITHMS; a nonce with algorithms that a server before it gave is 400; a connection that was never
//! bound counts for ever, so that its peer gets 446. Its Connect waits for an unreachable peer for 2 s, all else too.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each user takes its part")]

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use turn_server_proto::api::{TcpConnectError, TurnServerApi};
use turn_server_proto::server::TurnServer as Protocol;
use turn_server_proto::types::{Instant, TransportType};

use state::{Kind, Path, State, connection_id, reusable};

// By its path, so that an example can take this file by a path of its own.
#[path = "turn_server/state.rs"]
mod state;

/// How often the protocol is asked what has expired.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A peer that does not answer a SYN; nothing else is begun or expires meanwhile.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Beyond this many bytes unwritten on a connection, whoever they come from is not read.
const BACKLOG_MAX: usize = 256 << 10;

/// How often an address is tried that its former user has not yet left, and for how long each waits.
const BIND_ATTEMPTS: usize = 200;
const BIND_INTERVAL: Duration = Duration::from_millis(5);

/// What a server shall be like.
#[derive(Clone)]
pub struct Config {
    pub realm: String,
    /// Names and passwords.
    pub users: Vec<(String, String)>,
    /// How long a nonce is good for; the crate wants 30 s or more.
    pub nonce_lifetime: Duration,
}

impl Config {
    pub fn new(user: &str, password: &str) -> Self {
        let users = vec![(user.into(), password.into())];
        Self { realm: "example.org".into(), users, nonce_lifetime: Duration::from_secs(3600) }
    }
}

/// A running server; it ends when this is dropped.
pub struct TurnServer {
    addr: SocketAddr,
    sides: [Arc<Side>; 2],
    silent: watch::Sender<bool>,
    ahead: watch::Sender<Duration>,
}

impl TurnServer {
    /// Listens at `addr` for UDP and TCP; of port 0, at one that the system chooses.
    pub async fn start(addr: SocketAddr, config: &Config) -> io::Result<Self> {
        let mut attempts = 0;
        let (udp, tcp) = loop {
            match bind(addr).await {
                Ok(bound) => break bound,
                Err(error) if attempts == BIND_ATTEMPTS => return Err(error),
                Err(_) => tokio::time::sleep(BIND_INTERVAL).await,
            }
            attempts += 1;
        };
        let addr = udp.local_addr()?;
        let (silent, ahead) = (watch::Sender::new(false), watch::Sender::new(Duration::ZERO));
        let side = |transport| {
            let mut protocol = Protocol::new(transport, addr, config.realm.clone());
            protocol.set_nonce_expiry_duration(config.nonce_lifetime.max(Duration::from_secs(30)));
            for (name, password) in &config.users {
                protocol.add_user(name.clone(), password.clone());
            }
            Side::start(addr, protocol, silent.subscribe(), ahead.subscribe())
        };
        let sides = [side(TransportType::Udp), side(TransportType::Tcp)];
        sides[0].lock().add_udp(&sides[0], addr, udp);
        let accepting = sides[1].clone();
        sides[1].lock().tasks.spawn(accepting.accept(addr, tcp));
        Ok(Self { addr, sides, silent, ahead })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URI (RFC 7065), for `transport` "udp" or "tcp".
    pub fn uri(&self, transport: &str) -> String {
        format!("turn:{}?transport={transport}", self.addr)
    }

    /// The relayed addresses of all allocations.
    pub fn relayed(&self) -> Vec<SocketAddr> {
        self.sides.iter().flat_map(|side| side.lock().relayed()).collect()
    }

    /// Drops every datagram and stops reading streams, or goes on; the sockets stay open.
    pub fn set_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    /// Sets its clock forward, so that nonces, permissions and allocations expire.
    pub fn advance(&self, by: Duration) {
        self.ahead.send_modify(|ahead| *ahead += by);
    }

    /// Closes all sockets and forgets everything; the address is free then.
    pub async fn stop(self) {
        for side in &self.sides {
            side.stop().shutdown().await;
        }
    }
}

impl Drop for TurnServer {
    fn drop(&mut self) {
        for side in &self.sides {
            drop(side.stop());
        }
    }
}

/// The same port for both.
async fn bind(addr: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::bind(addr).await?;
    let tcp = TcpListener::bind(udp.local_addr()?).await?;
    Ok((udp, tcp))
}

/// All clients of one transport, with their allocations.
struct Side {
    addr: SocketAddr,
    began: std::time::Instant,
    silent: watch::Receiver<bool>,
    ahead: watch::Receiver<Duration>,
    state: Mutex<State>,
}

impl Side {
    fn start(
        addr: SocketAddr,
        protocol: Protocol,
        silent: watch::Receiver<bool>,
        ahead: watch::Receiver<Duration>,
    ) -> Arc<Self> {
        let (began, state) = (std::time::Instant::now(), Mutex::new(State::new(protocol)));
        let side = Arc::new(Self { addr, began, silent, ahead, state });
        let ticking = side.clone();
        side.lock().tasks.spawn(async move {
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                let mut state = ticking.lock();
                while state.tasks.try_join_next().is_some() {}
                state.turn(&ticking);
            }
        });
        side
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.began.elapsed() + *self.ahead.borrow()
    }

    /// Returns until it is not to be silent.
    async fn awake(&self) {
        // The server is gone: so is soon this task.
        let _ = self.silent.clone().wait_for(|silent| !silent).await;
    }

    /// Forgets everything; the tasks are whose this is dropped by.
    fn stop(&self) -> JoinSet<()> {
        self.lock().forget()
    }

    /// Takes the connections of clients, or those of peers to a relayed address.
    async fn accept(self: Arc<Self>, local: SocketAddr, listener: TcpListener) {
        loop {
            let Ok((stream, remote)) = listener.accept().await else { continue };
            self.awake().await;
            let mut state = self.lock();
            if local == self.addr {
                state.add_tcp(&self, (local, remote), Kind::Control, stream);
            } else if let Some(attempt) = state.receive(&self, TransportType::Tcp, (local, remote), &[])
                && let Some(id) = connection_id(&attempt.data)
            {
                state.send(&self, attempt);
                state.add_peer(&self, (local, remote), stream, id);
            } else {
                // Not permitted: it hears so at once.
                let _ = stream.set_zero_linger();
            }
        }
    }

    async fn dial(self: Arc<Self>, relayed: SocketAddr, peer: SocketAddr, client: SocketAddr) {
        let dialed =
            tokio::time::timeout(CONNECT_TIMEOUT, async { reusable(relayed)?.connect(peer).await }).await;
        let mut state = self.lock();
        let (mut stream, told) = match dialed {
            Ok(Ok(stream)) => (Some(stream), Ok(relayed)),
            Ok(Err(_)) => (None, Err(TcpConnectError::Failure)),
            Err(_) => (None, Err(TcpConnectError::TimedOut)),
        };
        state.protocol.tcp_connected(relayed, peer, self.addr, client, told, self.now());
        while let Some(answer) = state.protocol.poll_transmit(self.now()) {
            if let (Some(stream), Some(id)) = (stream.take(), connection_id(&answer.data)) {
                state.add_peer(&self, (relayed, peer), stream, id);
            }
            state.send(&self, answer);
        }
        state.is_dialing = false;
        state.turn(&self);
    }

    async fn read_udp(self: Arc<Self>, local: SocketAddr, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // An ICMP error of a datagram sent before says nothing about the socket.
            let Ok((len, remote)) = socket.recv_from(&mut buffer).await else { continue };
            if !*self.silent.borrow() {
                let mut state = self.lock();
                if let Some(answer) =
                    state.receive(&self, TransportType::Udp, (local, remote), &buffer[..len])
                {
                    state.send(&self, answer);
                }
                state.turn(&self);
            }
        }
    }

    async fn read_tcp(self: Arc<Self>, path: Path, mut stream: OwnedReadHalf) {
        let mut read = vec![0; 64 << 10];
        let mut unused = Vec::new();
        loop {
            let len = stream.read(&mut read).await.unwrap_or(0);
            self.awake().await;
            unused.extend_from_slice(&read[..len]);
            let fed = self.lock().feed(&self, path, &mut unused);
            for backlog in fed {
                // Gone with its connection.
                let _ = backlog.subscribe().wait_for(|waiting| *waiting <= BACKLOG_MAX).await;
            }
            if len == 0 {
                return self.lock().end(&self, path);
            }
        }
    }
}
