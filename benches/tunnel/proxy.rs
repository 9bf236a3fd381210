//! A slow path for TCP: a token bucket and a delay line, with small buffers, so that it is no warehouse itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{self, Instant};

use crate::Outcome;
use crate::tunnel::LOOPBACK;

/// Bytes per second, each way: 10 Mbit/s.
pub(crate) const RATE: u32 = 10_000_000 / 8;

/// One way.
const DELAY: Duration = Duration::from_millis(20);

/// Unused time of the path that is kept: it must bridge the lateness of timers, no more.
const CREDIT_BYTES: f64 = RATE as f64 * 0.010;

/// Read no sooner than for so much, about one full packet.
const QUANTUM_BYTES: f64 = 1_250.0;

/// What the delay line holds when the path is full, and the lateness of timers.
const LINE_BYTES: usize = (RATE as usize * 20 + RATE as usize * 10) / 1000;

/// `SO_RCVBUF` and `SO_SNDBUF` of both sockets.
const SOCKET_BUFFER: u32 = 32 << 10;

/// Runs on a thread of its own until dropped.
pub(crate) struct Proxy {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Takes connections and calls `to` for each.
    pub(crate) fn start(to: SocketAddr) -> Outcome<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(async {
            let socket = small_socket()?;
            socket.bind(LOOPBACK)?;
            socket.listen(16)
        })?;
        let addr = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    ended = accept(listener, to) => eprintln!("the proxy of the bench ended: {ended:?}"),
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { addr, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// The buffers must be set before `listen` and `connect`: the window is agreed upon in the handshake.
fn small_socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, to: SocketAddr) -> io::Result<()> {
    loop {
        let (near, _) = listener.accept().await?;
        let far = small_socket()?.connect(to).await?;
        join(near, far)?;
    }
}

/// A connection that ends takes its two directions with it, each when it has carried what it had.
fn join(near: TcpStream, far: TcpStream) -> io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_reader, near_writer) = near.into_split();
    let (far_reader, far_writer) = far.into_split();
    tokio::spawn(carry(near_reader, far_writer));
    tokio::spawn(carry(far_reader, near_writer));
    Ok(())
}

/// Bytes on their way, and when they are due at the other end.
type Line = mpsc::UnboundedSender<(Instant, Vec<u8>)>;

async fn carry(reader: OwnedReadHalf, mut writer: OwnedWriteHalf) {
    // The semaphore bounds the line in bytes.
    let room = Arc::new(Semaphore::new(LINE_BYTES));
    let (line, mut arriving) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(enter(reader, room.clone(), line));
    while let Some((due, bytes)) = arriving.recv().await {
        time::sleep_until(due).await;
        // A reset is passed on by dropping the socket.
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
        room.add_permits(bytes.len());
    }
}

async fn enter(mut reader: OwnedReadHalf, room: Arc<Semaphore>, line: Line) {
    let mut bucket = Bucket { tokens: 0.0, filled: Instant::now() };
    let mut buffer = vec![0; CREDIT_BYTES as usize];
    loop {
        let allowed = tokio::select! {
            allowed = bucket.wait() => allowed,
            () = line.closed() => return,
        };
        let Ok(permit) = room.acquire_many(allowed).await else { return };
        let len = match reader.read(&mut buffer[..allowed as usize]).await {
            Ok(len @ 1..) => len,
            _ => return,
        };
        permit.forget();
        room.add_permits(allowed as usize - len);
        bucket.tokens -= len as f64;
        if line.send((Instant::now() + DELAY, buffer[..len].to_vec())).is_err() {
            return;
        }
    }
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// Waits for a quantum and says how many bytes may pass. Cancel safe: tokens are taken by the caller.
    async fn wait(&mut self) -> u32 {
        loop {
            let now = Instant::now();
            let new = now.duration_since(self.filled).as_secs_f64() * f64::from(RATE);
            self.tokens = (self.tokens + new).min(CREDIT_BYTES);
            self.filled = now;
            if self.tokens >= QUANTUM_BYTES {
                return self.tokens as u32;
            }
            time::sleep(Duration::from_secs_f64((QUANTUM_BYTES - self.tokens) / f64::from(RATE))).await;
        }
    }
}
