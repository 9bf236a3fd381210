//! A TCP forwarder that treats its connections badly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// How the proxy carries bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Open,
    /// Nothing is read, written, accepted or closed.
    Silent,
    /// This many bytes a second, each way.
    Slow(u32),
}

/// How connections are ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    Reset,
    Fin,
}

/// Stands between the two ends of a tunnel, with small buffers.
pub struct Proxy {
    pub addr: SocketAddr,
    mode: watch::Sender<Mode>,
    cut: broadcast::Sender<Cut>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(32 << 10).unwrap();
        socket.bind(super::any()).unwrap();
        let listener = socket.listen(64).unwrap();
        let addr = listener.local_addr().unwrap();
        let (mode, changes) = watch::channel(Mode::Open);
        let (cut, _) = broadcast::channel(4);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (cuts, count) = (cut.clone(), accepted.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let mut mode = changes.clone();
                // One connection may slip in after the silence began; nothing is done with it.
                mode.wait_for(|mode| *mode != Mode::Silent).await.unwrap();
                count.fetch_add(1, SeqCst);
                connections.spawn(serve(near, target, mode, cuts.subscribe()));
            }
        });
        Self { addr, mode, cut, accepted, task }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Ends all connections, both ways.
    pub fn cut(&self, how: Cut) {
        let _ = self.cut.send(how);
    }

    /// Connections that were taken so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut near: TcpStream,
    target: SocketAddr,
    mode: watch::Receiver<Mode>,
    mut cut: broadcast::Receiver<Cut>,
) {
    let Ok(mut far) = TcpStream::connect(target).await else {
        near.set_zero_linger().unwrap();
        return;
    };
    far.set_nodelay(true).unwrap();
    near.set_nodelay(true).unwrap();
    let how = {
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        let there = pump(from_near, to_far, mode.clone());
        let back = pump(from_far, to_near, mode);
        tokio::select! {
            how = cut.recv() => how.unwrap_or(Cut::Fin),
            _ = async { tokio::join!(there, back) } => return,
        }
    };
    match how {
        Cut::Reset => {
            near.set_zero_linger().unwrap();
            far.set_zero_linger().unwrap();
        }
        Cut::Fin => {
            let _ = tokio::join!(near.shutdown(), far.shutdown());
            // Whoever closes with unread bytes resets: their end is awaited first.
            for stream in [&mut near, &mut far] {
                let mut rest = vec![0; 1 << 16];
                let end = async {
                    while matches!(tokio::io::AsyncReadExt::read(stream, &mut rest).await, Ok(1..)) {}
                };
                let _ = tokio::time::timeout(Duration::from_secs(1), end).await;
            }
        }
    }
}

async fn pump(from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(now) = mode.wait_for(|mode| *mode != Mode::Silent).await.map(|mode| *mode) else { return };
        tokio::select! {
            _ = mode.changed() => continue,
            ready = from.readable() => if ready.is_err() { return },
        }
        let len = match from.try_read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Ok(0) => {
                let _ = to.shutdown().await;
                return;
            }
            Err(_) => return,
            Ok(len) => len,
        };
        if mode.wait_for(|mode| *mode != Mode::Silent).await.is_err()
            || to.write_all(&buffer[..len]).await.is_err()
        {
            return;
        }
        if let Mode::Slow(rate) = now {
            tokio::time::sleep(Duration::from_secs_f64(len as f64 / f64::from(rate))).await;
        }
    }
}
