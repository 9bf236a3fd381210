//! A peer that sends everything back to where it came from, in batches.

use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::Outcome;
use crate::tunnel::LARGE_BUFFER;

/// How often a full socket is tried again.
const RETRY_INTERVAL: Duration = Duration::from_micros(50);

/// Ends when dropped.
pub(crate) struct Echo {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn on(socket: UdpSocket) -> Outcome<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        state.set_recv_buffer_size((&socket).into(), LARGE_BUFFER)?;
        state.set_send_buffer_size((&socket).into(), LARGE_BUFFER)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            if let Err(error) = run(socket, &state, stopped) {
                eprintln!("the echo of the bench failed: {error}");
            }
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

fn run(socket: UdpSocket, state: &UdpSocketState, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        tokio::select! {
            ended = echo(&socket, state) => ended,
            _ = stopped => Ok(()),
        }
    })
}

async fn echo(socket: &tokio::net::UdpSocket, state: &UdpSocketState) -> io::Result<()> {
    // Smaller buffers would truncate what GRO has put together.
    let mut storage = vec![0; BATCH_SIZE << 16];
    let mut meta = [RecvMeta::default(); BATCH_SIZE];
    loop {
        socket.readable().await?;
        let mut buffers: Vec<IoSliceMut<'_>> = storage.chunks_mut(1 << 16).map(IoSliceMut::new).collect();
        match socket.try_io(Interest::READABLE, || state.recv(socket.into(), &mut buffers, &mut meta)) {
            Ok(len) => {
                for (buffer, meta) in buffers.iter().zip(&meta[..len]) {
                    send_back(socket, state, &buffer[..meta.len], meta)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn send_back(
    socket: &tokio::net::UdpSocket,
    state: &UdpSocketState,
    bytes: &[u8],
    meta: &RecvMeta,
) -> io::Result<()> {
    let segment_size = (meta.stride < meta.len).then_some(meta.stride);
    let transmit =
        Transmit { destination: meta.addr, ecn: None, contents: bytes, segment_size, src_ip: None };
    loop {
        match state.try_send(socket.into(), &transmit) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            Err(error) => return Err(error),
        }
    }
}
