//! The application before the near end that sends as fast as the tunnel takes it, and no faster.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

use crate::Outcome;
use crate::sink::Sink;
use crate::tunnel::{LARGE_BUFFER, LOOPBACK};

/// Without any progress for so long, what is outstanding counts as lost.
const LOST_TIMEOUT: Duration = Duration::from_millis(100);

/// How often a waiting sender looks; it must not compete with the tunnel for the CPU.
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

/// The most that may be under way between sender and service.
pub(crate) const WINDOW_MAX: u64 = 512;

/// What is sent: datagrams of `size` bytes, `batch` of them per system call.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    pub(crate) size: usize,
    pub(crate) batch: usize,
}

impl Pattern {
    /// Half of what a socket buffer of `buffer` bytes takes (the kernel counts about twice the payload and 512
    /// bytes per datagram), so that nothing is lost for want of a buffer.
    pub(crate) fn window(self, buffer: usize) -> u64 {
        let fitting = buffer / (2 * (2 * self.size + 512));
        (fitting as u64).clamp(self.batch as u64, WINDOW_MAX)
    }
}

/// One round.
pub(crate) struct Sent {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// From the first datagram sent to the last received.
    pub(crate) elapsed: Duration,
}

pub(crate) struct Sender {
    socket: UdpSocket,
    state: UdpSocketState,
    to: SocketAddr,
    pattern: Pattern,
    payload: Vec<u8>,
    window_max: u64,
}

impl Sender {
    pub(crate) fn new(to: SocketAddr, pattern: Pattern) -> Outcome<Self> {
        Self::on(UdpSocket::bind(LOOPBACK)?, to, pattern, WINDOW_MAX)
    }

    /// Sends from a given address, with at most `window_max` under way.
    pub(crate) fn on(socket: UdpSocket, to: SocketAddr, pattern: Pattern, window_max: u64) -> Outcome<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        state.set_send_buffer_size((&socket).into(), LARGE_BUFFER)?;
        if state.max_gso_segments() < pattern.batch {
            return Err("this system has no GSO for UDP".into());
        }
        let payload = vec![0x5a; pattern.size * pattern.batch];
        Ok(Self { socket, state, to, pattern, payload, window_max })
    }

    /// Sends for `length`, then waits for what is under way.
    pub(crate) fn run(&self, sink: &Sink, length: Duration) -> Outcome<Sent> {
        let mut window = Window::new(sink, self.pattern.window(sink.buffer()).min(self.window_max));
        let start = Instant::now();
        while start.elapsed() < length {
            window.wait_for_room(self.pattern.batch as u64);
            self.send()?;
            window.sent += self.pattern.batch as u64;
        }
        window.drain();
        Ok(Sent {
            sent: window.sent,
            received: window.received(),
            elapsed: window.last_progress.duration_since(start),
        })
    }

    fn send(&self) -> Outcome<()> {
        let segment_size = (self.pattern.batch > 1).then_some(self.pattern.size);
        let transmit =
            Transmit { destination: self.to, ecn: None, contents: &self.payload, segment_size, src_ip: None };
        loop {
            match self.state.try_send((&self.socket).into(), &transmit) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(LOOK_INTERVAL),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Bounds what is under way: a sender that overran the socket buffers would measure them, not the tunnel.
struct Window<'a> {
    sink: &'a Sink,
    size: u64,
    received_before: u64,
    sent: u64,
    written_off: u64,
    seen: u64,
    last_progress: Instant,
}

impl<'a> Window<'a> {
    fn new(sink: &'a Sink, size: u64) -> Self {
        let received_before = sink.received();
        Self { sink, size, received_before, sent: 0, written_off: 0, seen: 0, last_progress: Instant::now() }
    }

    fn received(&self) -> u64 {
        self.sink.received() - self.received_before
    }

    /// Written off or not, a datagram that arrives after all leaves no room below zero.
    fn outstanding(&mut self) -> u64 {
        let received = self.received();
        if received != self.seen {
            self.seen = received;
            self.last_progress = Instant::now();
        }
        self.sent.saturating_sub(self.written_off + received)
    }

    fn wait_for_room(&mut self, wanted: u64) {
        let waiting_since = Instant::now();
        while self.outstanding() + wanted > self.size {
            if self.last_progress.max(waiting_since).elapsed() > LOST_TIMEOUT {
                self.written_off = self.sent - self.seen;
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    fn drain(&mut self) {
        let waiting_since = Instant::now();
        while self.seen < self.sent && self.last_progress.max(waiting_since).elapsed() <= LOST_TIMEOUT {
            self.outstanding();
            thread::sleep(LOOK_INTERVAL);
        }
    }
}
