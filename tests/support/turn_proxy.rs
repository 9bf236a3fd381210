//! What may stand between a TURN client and its server: for UDP a forwarder that counts, loses and changes sides; for
//! TCP one that treats each connection in its own way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::broadcast;
use tokio::task::{JoinHandle, JoinSet};

/// The way of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

type Filter = Box<dyn FnMut(Way, &[u8]) -> bool + Send>;

struct State {
    target: SocketAddr,
    passes: Filter,
    /// STUN requests of clients: their message types, and when they came.
    requests: Vec<(Instant, u16)>,
    clients: HashMap<SocketAddr, (Arc<UdpSocket>, JoinHandle<()>)>,
}

/// Each client has a socket of its own towards the server.
pub struct UdpProxy {
    pub addr: SocketAddr,
    socket: Arc<UdpSocket>,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl UdpProxy {
    pub async fn to(target: SocketAddr) -> Self {
        let socket = Arc::new(UdpSocket::bind(super::any()).await.unwrap());
        let addr = socket.local_addr().unwrap();
        let passes: Filter = Box::new(|_, _| true);
        let state = State { target, passes, requests: Vec::new(), clients: HashMap::new() };
        let state = Arc::new(Mutex::new(state));
        let task = tokio::spawn(carry_up(socket.clone(), state.clone()));
        Self { addr, socket, state, task }
    }

    /// Only what this lets through is carried from now on.
    pub fn filter(&self, passes: impl FnMut(Way, &[u8]) -> bool + Send + 'static) {
        self.state.lock().unwrap().passes = Box::new(passes);
    }

    /// From now on there is another server at this address: it knows nobody, and no ICMP comes back.
    pub fn replace_server(&self, target: SocketAddr) {
        let mut state = self.state.lock().unwrap();
        state.target = target;
        state.clients.drain().for_each(|(_, (_, task))| task.abort());
    }

    /// The types of all STUN requests of clients so far, repeated ones each time, and when they came.
    pub fn requests(&self) -> Vec<(Instant, u16)> {
        self.state.lock().unwrap().requests.clone()
    }

    /// To all clients, as if it were the server's.
    pub async fn inject(&self, datagram: &[u8]) {
        let clients: Vec<_> = self.state.lock().unwrap().clients.keys().copied().collect();
        for client in clients {
            self.socket.send_to(datagram, client).await.unwrap();
        }
    }
}

impl Drop for UdpProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.state.lock().unwrap().clients.drain().for_each(|(_, (_, task))| task.abort());
    }
}

async fn carry_up(socket: Arc<UdpSocket>, state: Arc<Mutex<State>>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        let datagram = &buffer[..len];
        let known = {
            let mut state = state.lock().unwrap();
            if len >= 20 && datagram[0] >> 6 == 0 && datagram[0] & 1 == 0 && datagram[1] & 0x10 == 0 {
                state.requests.push((Instant::now(), u16::from_be_bytes([datagram[0], datagram[1]])));
            }
            if !(state.passes)(Way::Up, datagram) {
                continue;
            }
            state.clients.get(&client).map(|(server, _)| server.clone()).ok_or(state.target)
        };
        let server = match known {
            Ok(server) => server,
            Err(target) => {
                let server = Arc::new(UdpSocket::bind(super::any()).await.unwrap());
                server.connect(target).await.unwrap();
                let task = tokio::spawn(carry_down(socket.clone(), server.clone(), client, state.clone()));
                state.lock().unwrap().clients.insert(client, (server.clone(), task));
                server
            }
        };
        let _ = server.send(datagram).await;
    }
}

async fn carry_down(
    socket: Arc<UdpSocket>,
    server: Arc<UdpSocket>,
    client: SocketAddr,
    state: Arc<Mutex<State>>,
) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An ICMP error is kept from the client.
        let Ok(len) = server.recv(&mut buffer).await else { continue };
        if (state.lock().unwrap().passes)(Way::Down, &buffer[..len]) {
            let _ = socket.send_to(&buffer[..len], client).await;
        }
    }
}

/// How a connection is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    Pass,
    /// Towards the client one byte a segment.
    ByteByByte,
    /// Reset at once.
    Refuse,
    /// Read, and nothing else.
    Swallow,
    /// Reset when the server answers for the first time.
    CutAtAnswer,
    /// This is written to the client, and nothing carried.
    Say(&'static [u8]),
    /// What the server sends waits until it has come to so many bytes; then it goes in one write.
    Gather(usize),
}

/// Takes connections at `addr` and makes one to the server for each.
pub struct StreamProxy {
    pub addr: SocketAddr,
    cut: broadcast::Sender<()>,
    task: JoinHandle<()>,
}

impl StreamProxy {
    /// `how` is asked with the number of each connection, from 0.
    pub async fn to(target: SocketAddr, how: impl Fn(usize) -> Treatment + Send + 'static) -> Self {
        let listener = TcpListener::bind(super::any()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (cut, _) = broadcast::channel(4);
        let cuts = cut.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (near, _) = listener.accept().await.unwrap();
                connections.spawn(serve(near, target, how(number), cuts.subscribe()));
            }
        });
        Self { addr, cut, task }
    }

    /// Resets all connections.
    pub fn cut(&self) {
        let _ = self.cut.send(());
    }
}

impl Drop for StreamProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut near: TcpStream, target: SocketAddr, how: Treatment, mut cut: broadcast::Receiver<()>) {
    near.set_nodelay(true).unwrap();
    let mut far = match how {
        Treatment::Refuse => return near.set_zero_linger().unwrap(),
        Treatment::Say(what) => {
            let _ = near.write_all(what).await;
            return swallow(near).await;
        }
        Treatment::Swallow => return swallow(near).await,
        _ => TcpStream::connect(target).await.unwrap(),
    };
    far.set_nodelay(true).unwrap();
    let is_cut = {
        let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.split(), far.split());
        let up = async {
            let _ = tokio::io::copy(&mut from_near, &mut to_far).await;
            let _ = to_far.shutdown().await;
            Ok(())
        };
        let down = async {
            let mut buffer = vec![0; 16 << 10];
            let mut filled = 0;
            while let Ok(more @ 1..) = from_far.read(&mut buffer[filled..]).await {
                filled += more;
                if matches!(how, Treatment::Gather(wanted) if filled < wanted) {
                    continue;
                }
                let len = std::mem::take(&mut filled);
                if how == Treatment::CutAtAnswer {
                    return Err(());
                }
                let how_much = if how == Treatment::ByteByByte { 1 } else { len };
                for piece in buffer[..len].chunks(how_much) {
                    let _ = to_near.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
            }
            let _ = to_near.shutdown().await;
            Ok(())
        };
        tokio::select! {
            _ = cut.recv() => true,
            done = async { tokio::try_join!(up, down) } => done.is_err(),
        }
    };
    if is_cut {
        near.set_zero_linger().unwrap();
        far.set_zero_linger().unwrap();
    }
}

async fn swallow(mut near: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; 16 << 10];
    while matches!(near.read(&mut buffer).await, Ok(1..)) {}
}
