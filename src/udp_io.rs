//! The UDP socket: batched receive (recvmmsg and GRO), runs of equal datagrams in one send (GSO).
//!
//! Three ways to send, for three ways in which datagrams stand in memory: [`UdpIo::send_frames`],
//! [`UdpIo::send_channel_data`], [`UdpIo::send_datagrams`].

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::clock::{self, Moment};
use crate::datagrams::{self, BUFFER_LEN, Received};
use crate::lane::UdpParty;
use crate::tcp::channel_data;
use crate::tcp::framing::{self, Run};

/// System calls in one [`UdpIo::send_frames`] or [`UdpIo::send_channel_data`].
const MAX_CALLS: usize = 64;

/// Buffers offered to a socket that had few datagrams the last time: each costs some work even if unused.
const FEW_BUFFERS: usize = 4;

thread_local! {
    // 2 MiB an arbiter, not a socket: only one receive is under way on a thread at a time.
    static RECEIVE: RefCell<Receive> = RefCell::new(Receive::new());
    static GATHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Receive {
    buffers: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
}

impl Receive {
    fn new() -> Self {
        Self { buffers: vec![0; BATCH_SIZE * BUFFER_LEN], metas: [RecvMeta::default(); BATCH_SIZE] }
    }
}

/// What became of the datagrams that [`UdpIo`] was given to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes of whole frames or messages that are done with.
    pub(crate) used: usize,
    /// Sent, and their payload bytes.
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    /// Dropped for EMSGSIZE, or for anything else.
    pub(crate) too_long: u64,
    pub(crate) failed: u64,
    /// Sent at an earlier time, and since then refused by ICMP.
    pub(crate) refused: u64,
    /// The socket takes no more for now.
    pub(crate) blocked: bool,
    /// System calls made.
    pub(crate) calls: usize,
}

/// A UDP socket on this thread's reactor.
#[derive(Debug)]
pub(crate) struct UdpIo {
    /// Registered for reading only: registered for writing, each datagram sent would wake this thread once
    /// more, at the moment its receiver takes it.
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// How many buffers the next receive offers: few while datagrams come one at a time.
    offered: AtomicUsize,
    last_sent: Moment,
    local: SocketAddr,
    peer: Option<SocketAddr>,
}

impl UdpIo {
    /// Takes a bound, perhaps connected, non-blocking socket.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        undo_quic_options(&socket)?;
        let (local, peer) = (socket.local_addr()?, socket.peer_addr().ok());
        let socket = register(socket, Interest::READABLE)?;
        Ok(Self {
            socket,
            state,
            offered: AtomicUsize::new(FEW_BUFFERS),
            last_sent: Moment::default(),
            local,
            peer,
        })
    }

    /// The bound address.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// The address the socket is connected to.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Receives what has arrived, at most 32 buffers, and hands over the datagrams, those of one sender that
    /// stand side by side together. The sender comes with the local address it wrote to, if the socket is
    /// bound to all of them: an answer must come from there.
    ///
    /// # Errors
    /// What the socket reports, `ECONNREFUSED` above all; the next call goes on.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        mut each: impl FnMut(UdpParty, Received<'_>),
    ) -> Poll<io::Result<()>> {
        loop {
            let mut readable = ready!(self.socket.poll_read_ready(cx))?;
            let received = RECEIVE.with_borrow_mut(|receive| {
                let count = self.recv_batch(receive, &mut readable)?;
                let mut metas = &receive.metas[..count];
                let mut buffers = &receive.buffers[..];
                while let Some(first) = metas.first() {
                    let party = self.party(first);
                    let same = metas.iter().take_while(|meta| self.party(meta) == party).count();
                    each(party, Received::new(&metas[..same], buffers));
                    metas = &metas[same..];
                    buffers = &buffers[same * BUFFER_LEN..];
                }
                Ok(())
            });
            match received {
                Err(error) if would_block(&error) => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn party(&self, meta: &RecvMeta) -> UdpParty {
        let is_broadcast = |ip: &IpAddr| ip.is_multicast() || *ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        let named = self.local.ip().is_unspecified();
        UdpParty { to: meta.addr, from: meta.dst_ip.filter(|ip| named && !is_broadcast(ip)) }
    }

    fn recv_batch(
        &self,
        receive: &mut Receive,
        readable: &mut AsyncFdReadyGuard<'_, UdpSocket>,
    ) -> io::Result<usize> {
        let Receive { buffers, metas } = receive;
        let offered = self.offered.load(Relaxed);
        let mut count = 0;
        let received = readable.try_io(|socket| {
            let mut slices = buffers.chunks_mut(BUFFER_LEN).map(IoSliceMut::new);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            count = self.state.recv(socket.get_ref().into(), &mut slices[..offered], metas)?;
            // Fewer than asked for: the socket is empty. Saying so saves the call that would find out.
            if count < offered { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        self.offered.store(
            if count == offered { BATCH_SIZE } else { FEW_BUFFERS.max(2 * count).min(BATCH_SIZE) },
            Relaxed,
        );
        match received {
            _ if count > 0 => Ok(count),
            Ok(received) => received.map(|()| 0),
            Err(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// Sends the datagrams of the whole RFC 4571 frames at the beginning of `frames` to `to`, from the local
    /// address `from` if that is given, until all are sent, the socket takes no more, or many calls have been
    /// made: a frame without payload is two bytes to the far side and a call to us.
    pub(crate) fn send_frames(&self, frames: &[u8], to: SocketAddr, from: Option<IpAddr>) -> Sent {
        let mut sent = Sent::default();
        while !sent.blocked && sent.calls < MAX_CALLS {
            let rest = &frames[sent.used..];
            let Some(run) = framing::first_run(rest, self.state.max_gso_segments()) else { break };
            let mut datagrams = run.datagrams(rest);
            let (count, bytes) = if run.count == 1 {
                self.send_train(datagrams.next().unwrap_or_default(), run.segment, to, from, &mut sent)
            } else {
                GATHER.with_borrow_mut(|gathered| {
                    gathered.clear();
                    gathered.reserve(run.bytes);
                    datagrams.for_each(|datagram| gathered.extend_from_slice(datagram));
                    self.send_train(gathered, run.segment, to, from, &mut sent)
                })
            };
            sent.used += bytes + count * framing::HEADER_LEN;
        }
        self.note(sent)
    }

    /// Sends unpadded ChannelData messages as they stand, headers included, to the server that the socket is
    /// connected to; like [`send_frames`](Self::send_frames), but without a copy.
    ///
    /// # Panics
    /// If the socket is not connected.
    pub(crate) fn send_channel_data(&self, messages: &[u8]) -> Sent {
        let server = self.peer.expect("the socket of a TURN client is connected to its server");
        let mut sent = Sent::default();
        while !sent.blocked && sent.calls < MAX_CALLS {
            let rest = &messages[sent.used..];
            let Some(run) = channel_data::first_run(rest, self.state.max_gso_segments()) else { break };
            let (_, bytes) = self.send_train(&rest[..run.bytes], run.segment, server, None, &mut sent);
            sent.used += bytes;
        }
        sent.bytes -= sent.datagrams * channel_data::HEADER_LEN as u64;
        self.note(sent)
    }

    /// Sends datagrams, neighbours of equal size with one call. What the socket does not take now has failed:
    /// for those whose source must not wait for this socket. `used` stays 0.
    pub(crate) fn send_datagrams<'d>(
        &self,
        datagrams: impl Iterator<Item = &'d [u8]>,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> Sent {
        let mut sent = Sent::default();
        GATHER.with_borrow_mut(|gathered| {
            let mut open: Option<(Run, &[u8])> = None;
            for datagram in datagrams {
                if let Some((run, first)) = &mut open
                    && run.join(datagram.len(), self.state.max_gso_segments())
                {
                    // A datagram that stays alone is not copied.
                    if run.count == 2 {
                        gathered.clear();
                        gathered.extend_from_slice(first);
                    }
                    gathered.extend_from_slice(datagram);
                } else if let Some((run, first)) = open.replace((Run::new(datagram.len()), datagram)) {
                    self.send_gathered(run, first, gathered, to, from, &mut sent);
                }
            }
            if let Some((run, first)) = open {
                self.send_gathered(run, first, gathered, to, from, &mut sent);
            }
        });
        self.note(sent)
    }

    fn send_gathered(
        &self,
        run: Run,
        first: &[u8],
        gathered: &[u8],
        to: SocketAddr,
        from: Option<IpAddr>,
        sent: &mut Sent,
    ) {
        let train = if run.count == 1 { first } else { gathered };
        let done = if sent.blocked { 0 } else { self.send_train(train, run.segment, to, from, sent).0 };
        sent.failed += (run.count - done) as u64;
    }

    fn note(&self, sent: Sent) -> Sent {
        if sent.datagrams > 0 {
            self.last_sent.set(clock::now());
        }
        sent
    }

    /// Sends one message to whom the socket is connected to.
    ///
    /// # Errors
    /// What the system says: `WouldBlock` where the socket is full, `ConnectionRefused` for the ICMP error of an
    /// earlier datagram; this one was not sent.
    pub(crate) fn send_message(&self, message: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(message).map(|_| ())
    }

    /// When a datagram last left the socket, whoever sent it.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.last_sent.get()
    }

    /// Sends datagrams that stand side by side, each of `segment` bytes but the last, with one call if possible.
    /// Says how many are done with, and their bytes: all of them unless the socket takes no more.
    fn send_train(
        &self,
        train: &[u8],
        segment: usize,
        to: SocketAddr,
        from: Option<IpAddr>,
        sent: &mut Sent,
    ) -> (usize, usize) {
        let count = datagrams::count(train.len(), segment);
        if count > 1 {
            match past_icmp(sent, || self.try_send(train, Some(segment), to, from)) {
                Ok(()) => {
                    sent.datagrams += count as u64;
                    sent.bytes += train.len() as u64;
                    return (count, train.len());
                }
                Err(error) if would_block(&error) => {
                    sent.blocked = true;
                    return (0, 0);
                }
                // A path with a smaller MTU, an interface without GSO: each datagram has a fate of its own.
                Err(_) => {}
            }
        }
        let mut done = (0, 0);
        for datagram in datagrams::split(train, segment) {
            match past_icmp(sent, || self.send_single(datagram, to, from)) {
                Ok(()) => {
                    sent.datagrams += 1;
                    sent.bytes += datagram.len() as u64;
                }
                Err(error) if would_block(&error) => {
                    sent.blocked = true;
                    return done;
                }
                Err(error) if quinn_udp::is_msg_size_err(&error) => sent.too_long += 1,
                Err(_) => sent.failed += 1,
            }
            done = (done.0 + 1, done.1 + datagram.len());
        }
        done
    }

    /// A lone datagram needs no control message, unless its source address must be named.
    fn send_single(&self, datagram: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
        match (from, self.peer) {
            (Some(_), _) => match self.try_send(datagram, None, to, from) {
                // The address it was sent to is no address to send from: a subnet's broadcast address.
                Err(error) if is_no_source(&error) => self.send_single(datagram, to, None),
                done => done,
            },
            (None, Some(_)) => self.socket.get_ref().send(datagram).map(|_| ()),
            (None, None) => self.socket.get_ref().send_to(datagram, to).map(|_| ()),
        }
    }

    fn try_send(
        &self,
        contents: &[u8],
        segment_size: Option<usize>,
        destination: SocketAddr,
        src_ip: Option<IpAddr>,
    ) -> io::Result<()> {
        let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip };
        self.state.try_send(self.socket.get_ref().into(), &transmit)
    }

    /// Waits until the socket takes datagrams again. `full` is the caller's own: many links may wait for one
    /// socket, and a registration wakes only one.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>, full: &mut Full) -> Poll<io::Result<()>> {
        let socket = match &mut full.0 {
            Some(socket) => socket,
            none => none.insert(register(self.socket.as_fd().try_clone_to_owned()?, Interest::WRITABLE)?),
        };
        ready!(socket.poll_write_ready(cx))?.retain_ready();
        full.0 = None;
        Poll::Ready(Ok(()))
    }
}

/// A registration for writing, for as long as the socket is full.
#[derive(Debug, Default)]
pub(crate) struct Full(Option<AsyncFd<OwnedFd>>);

/// The ICMP error of an earlier datagram is reported in place of sending this one: it is noted, and this one
/// sent.
fn past_icmp(sent: &mut Sent, mut send: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    sent.calls += 1;
    match send() {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            sent.refused += 1;
            send()
        }
        done => done,
    }
}

/// tokio deprecates this for a function that is unsafe because some other descriptor might be closed while it
/// is registered; an owned one cannot be, and this crate has no unsafe code.
#[allow(deprecated, reason = "see above")]
fn register<T: Into<OwnedFd> + AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

fn is_no_source(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidInput | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable
    )
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// quinn-udp sets a socket up for QUIC. A tunnel carries what applications send, so it may be fragmented: 1473
/// and 65,507 bytes too. And what nobody reads need not be delivered with each datagram: its time, its ECN bits,
/// the address it was sent to where that is the bound one.
#[cfg(target_os = "linux")]
fn undo_quic_options(socket: &UdpSocket) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt as nix_sockopt};
    use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

    let local = socket.local_addr()?;
    sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::WANT)?;
    setsockopt(socket, nix_sockopt::ReceiveTimestampns, &false)?;
    sockopt::set_ip_recvtos(socket, false)?;
    if local.is_ipv6() {
        sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::WANT)?;
        setsockopt(socket, nix_sockopt::Ipv6DontFrag, &false)?;
        sockopt::set_ipv6_recvtclass(socket, false)?;
    }
    if !local.ip().is_unspecified() {
        if local.is_ipv4() {
            setsockopt(socket, nix_sockopt::Ipv4PacketInfo, &false)?;
        } else {
            setsockopt(socket, nix_sockopt::Ipv6RecvPacketInfo, &false)?;
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn undo_quic_options(_: &UdpSocket) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
#[path = "udp_io_tests.rs"]
mod tests;
