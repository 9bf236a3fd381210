//! The UDP socket: batched receive (recvmmsg and GRO), runs of equal datagrams in one send (GSO).

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
use crate::datagrams::{Batch, BatchBuilder, framed_len};
use crate::lane::UdpParty;
use crate::tcp::framing::{self, Run};

/// One received buffer holds at most this: a GRO train or one datagram. Smaller ones truncate silently.
const BUFFER_LEN: usize = 1 << 16;

/// System calls in one [`UdpIo::send_frames`].
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

/// What became of the datagrams given to [`UdpIo::send_frames`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes of whole frames that are done with.
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
    calls: usize,
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
    /// stand side by side in one batch. The sender comes with the local address it wrote to, if the socket is
    /// bound to all of them: an answer must come from there.
    ///
    /// # Errors
    /// What the socket reports, `ECONNREFUSED` above all; the next call goes on.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        mut each: impl FnMut(UdpParty, Batch),
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
                    each(party, frame(&metas[..same], buffers));
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

    /// Sends the datagrams of the whole frames at the beginning of `frames` to `to`, from the local address
    /// `from` if that is given, until all are sent, the socket takes no more, or many calls have been made: a
    /// frame without payload is two bytes to the far side and a call to us.
    pub(crate) fn send_frames(&self, frames: &[u8], to: SocketAddr, from: Option<IpAddr>) -> Sent {
        let mut sent = Sent::default();
        while !sent.blocked && sent.calls < MAX_CALLS {
            let rest = &frames[sent.used..];
            let Some(run) = framing::first_run(rest, self.state.max_gso_segments()) else { break };
            self.send_run(rest, run, to, from, &mut sent);
        }
        if sent.datagrams > 0 {
            self.last_sent.set(clock::now());
        }
        sent
    }

    /// When a datagram last left the socket, whoever sent it.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.last_sent.get()
    }

    fn send_run(&self, frames: &[u8], run: Run, to: SocketAddr, from: Option<IpAddr>, sent: &mut Sent) {
        if run.count > 1 {
            let whole = GATHER.with_borrow_mut(|payload| {
                payload.clear();
                payload.reserve(run.bytes);
                run.datagrams(frames).for_each(|datagram| payload.extend_from_slice(datagram));
                past_icmp(sent, || self.try_send(payload, Some(run.segment), to, from))
            });
            match whole {
                Ok(()) => {
                    sent.used += run.frames_len();
                    sent.datagrams += run.count as u64;
                    sent.bytes += run.bytes as u64;
                    return;
                }
                Err(error) if would_block(&error) => {
                    sent.blocked = true;
                    return;
                }
                // A path with a smaller MTU, an interface without GSO: each datagram has a fate of its own.
                Err(_) => {}
            }
        }
        for datagram in run.datagrams(frames) {
            match past_icmp(sent, || self.send_single(datagram, to, from)) {
                Ok(()) => {
                    sent.datagrams += 1;
                    sent.bytes += datagram.len() as u64;
                }
                Err(error) if would_block(&error) => {
                    sent.blocked = true;
                    return;
                }
                Err(error) if quinn_udp::is_msg_size_err(&error) => sent.too_long += 1,
                Err(_) => sent.failed += 1,
            }
            sent.used += framing::HEADER_LEN + datagram.len();
        }
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

fn frame(metas: &[RecvMeta], buffers: &[u8]) -> Batch {
    let mut builder =
        BatchBuilder::with_capacity(metas.iter().map(|meta| framed_len(meta.len, meta.stride)).sum());
    for (meta, buffer) in metas.iter().zip(buffers.chunks(BUFFER_LEN)) {
        builder.push(&buffer[..meta.len.min(BUFFER_LEN)], meta.stride);
    }
    builder.finish()
}

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
mod tests {
    use super::*;
    use crate::datagrams::BatchBuilder;
    use std::future::poll_fn;

    fn io(socket: UdpSocket) -> UdpIo {
        socket.set_nonblocking(true).unwrap();
        UdpIo::new(socket).unwrap()
    }

    fn bound(addr: &str) -> UdpIo {
        io(UdpSocket::bind(addr).unwrap())
    }

    async fn receive(io: &UdpIo, count: usize) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        while got.len() < count {
            poll_fn(|cx| {
                io.poll_recv(cx, |_, batch| {
                    let mut frames = &batch.frames[..];
                    while let Some(run) = framing::first_run(frames, 64) {
                        got.extend(run.datagrams(frames).map(<[u8]>::to_vec));
                        frames = &frames[run.frames_len()..];
                    }
                })
            })
            .await
            .unwrap();
        }
        got
    }

    async fn all_sizes_arrive(addr: &str, sizes: &[usize]) {
        let (from, to) = (bound(addr), bound(addr));
        let mut builder = BatchBuilder::default();
        let sent: Vec<Vec<u8>> = sizes.iter().map(|size| vec![*size as u8; *size]).collect();
        sent.iter().for_each(|datagram| builder.push(datagram, datagram.len()));
        let frames = builder.finish().frames;
        let result = from.send_frames(&frames, to.local(), None);
        assert_eq!(result.used, frames.len(), "{result:?}");
        assert_eq!(result.datagrams, sizes.len() as u64, "{result:?}");
        assert_eq!(receive(&to, sizes.len()).await, sent);
    }

    const SIZES: [usize; 12] = [0, 1, 148, 148, 148, 100, 0, 1472, 1473, 9000, 65_507, 7];

    #[tokio::test]
    async fn datagrams_of_every_size_arrive_over_ipv4() {
        all_sizes_arrive("127.0.0.1:0", &SIZES).await;
    }

    #[tokio::test]
    async fn datagrams_of_every_size_arrive_over_ipv6() {
        all_sizes_arrive("[::1]:0", &SIZES).await;
    }

    #[tokio::test]
    async fn what_udp_cannot_take_is_counted_and_the_rest_sent() {
        let (from, to) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
        let mut builder = BatchBuilder::default();
        for size in [65_535, 65_508, 3] {
            builder.push(&vec![1; size], size);
        }
        let result = from.send_frames(&builder.finish().frames, to.local(), None);
        assert_eq!((result.too_long, result.datagrams, result.blocked), (2, 1, false));
        assert_eq!(receive(&to, 1).await, [vec![1; 3]]);
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_is_counted_and_one_that_came_is_reached_at_once() {
        let service = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = service.local_addr().unwrap();
        drop(service);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(to).unwrap();
        let io = io(socket);
        let mut builder = BatchBuilder::default();
        builder.push(b"anybody?", 8);
        let frames = builder.finish().frames;
        assert_eq!(io.send_frames(&frames, to, None).datagrams, 1);
        let came = bound(&to.to_string());
        assert_eq!(io.send_frames(&frames, to, None).datagrams, 1);
        assert_eq!(receive(&came, 1).await, [b"anybody?".to_vec()]);
    }
}
