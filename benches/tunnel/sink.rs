//! The service behind the far end that only counts what arrives.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::runtime;
use tokio::sync::oneshot;

use crate::Outcome;
use crate::tunnel::{LARGE_BUFFER, LOOPBACK};

/// Receives on a thread of its own, in batches, with GRO: the measured processes shall be the slow part.
pub(crate) struct Sink {
    addr: SocketAddr,
    buffer: usize,
    received: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Counts datagrams of `size` bytes; others have been damaged and so are lost.
    pub(crate) fn start(size: usize) -> Outcome<Self> {
        Self::on(UdpSocket::bind(LOOPBACK)?, size)
    }

    /// Receives at a given address.
    pub(crate) fn on(socket: UdpSocket, size: usize) -> Outcome<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        state.set_recv_buffer_size((&socket).into(), LARGE_BUFFER)?;
        let buffer = state.recv_buffer_size((&socket).into())?;
        let addr = socket.local_addr()?;
        let received = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel::<()>();
        let counter = received.clone();
        let thread = thread::spawn(move || {
            if let Err(error) = run(socket, &state, size, &counter, stopped) {
                eprintln!("the receiver of the bench failed: {error}");
            }
        });
        Ok(Self { addr, buffer, received, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What the system granted, in its own reckoning.
    pub(crate) fn buffer(&self) -> usize {
        self.buffer
    }

    /// Datagrams so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

fn run(
    socket: UdpSocket,
    state: &UdpSocketState,
    size: usize,
    received: &AtomicU64,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        tokio::select! {
            ended = count(&socket, state, size, received) => ended,
            _ = stopped => Ok(()),
        }
    })
}

async fn count(
    socket: &tokio::net::UdpSocket,
    state: &UdpSocketState,
    size: usize,
    received: &AtomicU64,
) -> io::Result<()> {
    // Smaller buffers would truncate what GRO has put together.
    let mut storage = vec![0; BATCH_SIZE << 16];
    let mut buffers: Vec<IoSliceMut<'_>> = storage.chunks_mut(1 << 16).map(IoSliceMut::new).collect();
    let mut meta = [RecvMeta::default(); BATCH_SIZE];
    loop {
        socket.readable().await?;
        let batch = socket.try_io(Interest::READABLE, || state.recv(socket.into(), &mut buffers, &mut meta));
        match batch {
            Ok(len) => {
                let datagrams: u64 = meta[..len].iter().map(|meta| datagrams_of(size, meta)).sum();
                received.fetch_add(datagrams, Ordering::Release);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// How many whole datagrams of `size` bytes one GRO batch holds.
fn datagrams_of(size: usize, meta: &RecvMeta) -> u64 {
    if meta.stride == size || (meta.len == size && meta.stride >= size) {
        (meta.len / size) as u64
    } else {
        0
    }
}
