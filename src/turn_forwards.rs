//! The datagrams of a TURN client: where those that come from a peer go, and where a peer's come from.
//!
//! Each peer with a channel has a [`PeerPath`]. A forward's path has a local UDP socket with an endpoint of its own;
//! what other peers send goes to the application's recipient, a batch a message.

use std::collections::HashMap;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{fmt, io};

use actix::prelude::*;
use bytes::Bytes;

use crate::clock::now;
use crate::config::{RelayedTransport, TurnConfig};
use crate::counters::{DropReason, LiveCounters, Totals};
use crate::datagrams::{BatchBuilder, Framing, Received};
use crate::event::{Cause, EventKind, TurnEvent};
use crate::lane::LinkId;
use crate::link::{Ending, Mortal, Obituary, Part};
use crate::stream::{FrameSink, Taken, TurnSink, take_turn};
use crate::stun::data::{self, DataIndication};
use crate::tcp::channel_data;
use crate::turn::allocation::Allocation;
use crate::turn::{DatagramsReceived, Phase, SendDatagrams, TurnClientActor, TurnError};
use crate::turn_path::{Activity, PeerPath};
use crate::udp::{Forward, Intake as LocalIntake, StopEndpoint, UdpEndpointActor};
use crate::udp_io::UdpIo;

pub(crate) use crate::turn_path::Route;

/// In back-off, and while there is no allocation, datagrams are held for this long at most.
const IDLE_HOLD: Duration = Duration::from_secs(1);
/// Of one TURN client.
#[derive(Debug)]
pub(crate) struct Forwards {
    /// One for each `udp_forward`, in its order.
    endpoints: Vec<(Arc<UdpIo>, Addr<UdpEndpointActor>)>,
    paths: HashMap<SocketAddr, Arc<PeerPath>>,
    /// By channel number; those of this allocation.
    channels: HashMap<u16, (SocketAddr, Arc<PeerPath>)>,
    /// Those without an endpoint that the control socket has not taken all of yet.
    kept: Vec<Arc<PeerPath>>,
    recipient: Option<Recipient<DatagramsReceived>>,
    /// Of the control stream, and of what has no path.
    pub(crate) counters: Arc<LiveCounters>,
    queue_bytes: usize,
    connect_hold: Duration,
    activity: Arc<Activity>,
    heard: Option<Instant>,
    sent: Option<Instant>,
    refused: Option<Instant>,
    /// ICMP errors that the server passed on, to be reported.
    icmp: Vec<(SocketAddr, u8, u8)>,
}

/// ICMP errors kept until they are reported, in one turn of the task.
const MAX_ICMP: usize = 16;

impl Forwards {
    pub(crate) fn new(config: &TurnConfig, totals: &Arc<Totals>) -> Self {
        Self {
            endpoints: Vec::new(),
            paths: HashMap::new(),
            channels: HashMap::new(),
            kept: Vec::new(),
            recipient: None,
            counters: totals.counters(),
            queue_bytes: config.queue_bytes,
            connect_hold: config.connect_hold,
            activity: Arc::default(),
            heard: None,
            sent: None,
            refused: None,
            icmp: Vec::new(),
        }
    }

    /// Where local applications send to.
    pub(crate) fn local_udp(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|(io, _)| io.local()).collect()
    }

    #[cfg(feature = "test-panic")]
    pub(crate) fn endpoint(&self, index: usize) -> &Addr<UdpEndpointActor> {
        &self.endpoints[index].1
    }

    pub(crate) fn deliver_to(&mut self, recipient: Option<Recipient<DatagramsReceived>>) {
        self.recipient = recipient;
    }

    /// The path of a peer, made when it is first asked for; as many as there are channels wished for (1,024).
    fn path(&mut self, peer: SocketAddr) -> &Arc<PeerPath> {
        self.paths.entry(peer).or_insert_with(|| {
            // Over a stream the flow's counters must be the path's.
            let (counters, activity) = (self.counters.clone(), self.activity.clone());
            Arc::new(PeerPath::new(self.queue_bytes, self.connect_hold, counters, activity))
        })
    }

    /// The peer's channel is bound: what was held goes out.
    fn open_path(&mut self, now: Instant, peer: SocketAddr, channel: u16, route: Route) {
        let path = self.path(peer).clone();
        path.open(now, route);
        self.channels.insert(channel, (peer, path));
    }

    /// The peer's channel is gone, and so is its path, unless a local socket belongs to it.
    pub(crate) fn close_path(&mut self, peer: SocketAddr) {
        let hold = self.connect_hold.min(IDLE_HOLD);
        self.channels.retain(|_, (other, path)| {
            if *other == peer {
                path.close(hold);
            }
            *other != peer
        });
        if let Some(path) = self.paths.get(&peer).filter(|path| !path.has_local()) {
            path.end();
            self.paths.remove(&peer);
        }
    }

    /// Forgets the paths to these addresses, unless a local socket belongs to them.
    pub(crate) fn forget(&mut self, ips: &[IpAddr]) {
        let peers: Vec<_> = self.paths.keys().filter(|peer| ips.contains(&peer.ip())).copied().collect();
        peers.into_iter().for_each(|peer| self.close_path(peer));
    }

    /// The allocation is gone, and all channels with it.
    pub(crate) fn close_paths(&mut self) {
        let hold = self.connect_hold.min(IDLE_HOLD);
        self.channels.drain().for_each(|(_, (_, path))| path.close(hold));
    }

    /// A channel is being worked on: what comes meanwhile is worth keeping.
    pub(crate) fn hold(&self) {
        self.paths.values().for_each(|path| path.set_hold(self.connect_hold));
    }

    /// Counts what has become too old since it was looked at, so that statistics are up to date.
    pub(crate) fn expire(&self, now: Instant) {
        self.paths.values().for_each(|path| path.expire(now));
    }

    pub(crate) fn close(&self) {
        self.paths.values().for_each(|path| path.end());
        self.endpoints.iter().for_each(|(_, endpoint)| endpoint.do_send(StopEndpoint));
    }

    /// Goes on with what the control socket did not take at once. Where there is an endpoint it does that.
    pub(crate) fn poll_kept(&mut self, cx: &mut Context<'_>) {
        self.kept.retain(|path| path.poll_ready(cx).is_pending());
    }

    /// When data was last sent and received.
    pub(crate) fn take_activity(&mut self) -> (Option<Instant>, Option<Instant>) {
        (self.activity.sent.get().max(self.sent), self.heard)
    }

    /// Whether the server's host has answered "port unreachable" to data since this was last asked.
    pub(crate) fn take_refused(&mut self) -> bool {
        let last = self.activity.refused.get();
        let is_new = last > self.refused;
        self.refused = last.max(self.refused);
        is_new
    }

    /// What the server has passed on of ICMP.
    pub(crate) fn take_icmp(&mut self) -> Vec<(SocketAddr, u8, u8)> {
        std::mem::take(&mut self.icmp)
    }

    /// Datagrams of a peer. Says how many system calls, or messages, that took.
    fn deliver<'d>(&self, peer: SocketAddr, datagrams: impl Iterator<Item = &'d [u8]>) -> usize {
        match (self.paths.get(&peer), &self.recipient) {
            (Some(path), _) if path.has_local() => return path.deliver(datagrams),
            (_, Some(recipient)) => {
                let datagrams: Vec<_> = datagrams.map(Bytes::copy_from_slice).collect();
                let (count, bytes) =
                    (datagrams.len() as u64, datagrams.iter().map(|it| it.len() as u64).sum());
                if recipient.try_send(DatagramsReceived { peer, datagrams }).is_ok() {
                    self.counters.sent_to_udp(count, bytes);
                } else {
                    self.counters.dropped(DropReason::QueueFull, count);
                }
            }
            (_, None) => self.counters.dropped(DropReason::NoApplication, datagrams.count() as u64),
        }
        1
    }
}

/// Takes what comes on the control connection: datagrams to their applications, the rest to the core.
pub(crate) struct Intake<'r> {
    pub(crate) core: &'r mut Allocation,
    pub(crate) forwards: &'r mut Forwards,
    pub(crate) now: Instant,
}

impl TurnSink for Intake<'_> {
    fn message_len(&mut self, bytes: &[u8]) -> Result<Option<usize>, ()> {
        channel_data::message_len(bytes).map_err(|_| ())
    }

    fn channel<'d>(&mut self, channel: u16, datagrams: impl Iterator<Item = &'d [u8]>) -> usize {
        self.take_channel(channel, datagrams)
    }

    fn message(&mut self, message: &[u8]) {
        self.take_message(message);
    }
}

impl Intake<'_> {
    /// What a UDP control socket received.
    pub(crate) fn datagrams(&mut self, received: Received<'_>) {
        let mut datagrams = received.datagrams().peekable();
        while let Some(first) = datagrams.peek() {
            if let Some((channel, _)) = channel_data::parse(first) {
                self.take_channel(channel, channel_data::payloads_of(&mut datagrams, channel));
            } else if let Some(message) = datagrams.next() {
                self.take_message(message);
            }
        }
    }

    fn take_channel<'d>(&mut self, channel: u16, datagrams: impl Iterator<Item = &'d [u8]>) -> usize {
        let Self { core, forwards, now } = self;
        let known = forwards.channels.get(&channel).cloned();
        match known {
            Some((peer, path)) => {
                forwards.heard = Some(*now);
                if path.has_local() { path.deliver(datagrams) } else { forwards.deliver(peer, datagrams) }
            }
            // Right behind the answer that bound it; or its peer is forbidden.
            None => match core.channels().all_bound(*now).into_iter().find(|(bound, _)| *bound == channel) {
                Some((_, peer)) => forwards.deliver(peer, datagrams),
                None => {
                    forwards.counters.dropped(DropReason::NoApplication, datagrams.count() as u64);
                    0
                }
            },
        }
    }

    /// A whole STUN message, or something else.
    fn take_message(&mut self, message: &[u8]) {
        let Self { core, forwards, now } = self;
        match data::data_indication(message) {
            Some(DataIndication { peer, datagram: Some(datagram), .. }) => {
                if core.permissions().is_granted(*now, peer.ip()) {
                    forwards.heard = Some(*now);
                    forwards.deliver(peer, iter::once(datagram));
                } else {
                    // Forbidden: the server has not forgotten the permission yet.
                    forwards.counters.dropped(DropReason::NoApplication, 1);
                }
            }
            Some(DataIndication { peer, icmp: Some((kind, code)), .. }) => {
                if forwards.icmp.len() < MAX_ICMP {
                    forwards.icmp.push((peer, kind, code));
                }
            }
            Some(_) => {}
            None => {
                if !core.handle_message(*now, message) {
                    tracing::trace!(len = message.len(), "a message from the TURN server has no effect");
                }
            }
        }
    }
}

/// What a control stream brings.
impl FrameSink for Intake<'_> {
    fn take(&mut self, bytes: &[u8]) -> (usize, Taken) {
        take_turn(self, bytes)
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn last_sent(&self) -> Option<Instant> {
        None
    }

    fn datagrams(&self, _: &[u8]) -> u64 {
        0
    }
}

impl TurnClientActor {
    /// The local sockets of all forwards, with an endpoint each.
    pub(crate) fn open_forwards(&mut self, ctx: &mut actix::Context<Self>) -> Result<(), Ending> {
        let failed =
            |what: &str, error: &dyn fmt::Display| Ending::new(Cause::Broken, format!("{what}: {error}"));
        for (index, forward) in self.config.udp_forward.iter().enumerate() {
            let socket =
                self.sockets.udp(index).map_err(|error| failed("duplicating a UDP socket", &error))?;
            let socket = socket.expect("the supervisor has bound one for each forward");
            let io = UdpIo::new(socket).map_err(|error| failed("setting up a UDP socket", &error))?;
            let io = Arc::new(io);
            let path = self.forwards.path(forward.peer).clone();
            path.set_local(io.clone(), None);
            let endpoint = self.start_endpoint(io.clone(), path, LinkId(index as u64));
            self.forwards.endpoints.push((io, endpoint));
        }
        self.listen_for_tcp(ctx).map_err(|error| failed("listening", &error))
    }

    fn start_endpoint(&self, io: Arc<UdpIo>, path: Arc<PeerPath>, link: LinkId) -> Addr<UdpEndpointActor> {
        let who = Mortal { part: Part::Endpoint(Some(link)), round: 0, again: true, ..self.who.clone() };
        let obituary = Obituary::new(who, self.supervisor.clone());
        let intake = LocalIntake::Forward(Forward::new(path, link));
        UdpEndpointActor::new(io, intake, self.reporter.clone(), obituary).start()
    }

    /// The endpoint has panicked, or its socket was broken.
    pub(crate) fn restart_forward(&mut self, link: LinkId) {
        let index = usize::try_from(link.0).unwrap_or(usize::MAX);
        let Some(forward) = self.config.udp_forward.get(index) else { return };
        let Some((io, _)) = self.forwards.endpoints.get(index) else { return };
        let io = io.clone();
        let path = self.forwards.path(forward.peer).clone();
        let endpoint = self.start_endpoint(io.clone(), path, link);
        self.forwards.endpoints[index] = (io, endpoint);
    }

    pub(crate) fn open_path(&mut self, peer: SocketAddr, channel: u16) {
        if let Phase::Running(running) = &self.phase {
            let route = running.route(channel);
            self.forwards.open_path(now(), peer, channel, route);
        }
    }

    /// Of what the server tells by ICMP one event a second.
    pub(crate) fn report_icmp(&mut self) {
        for (peer, icmp_type, icmp_code) in self.forwards.take_icmp() {
            if let Some(more) = self.icmp.pass(now()) {
                let event = TurnEvent::PeerUnreachable { peer, icmp_type, icmp_code, more };
                self.reporter.report(EventKind::Turn(event));
            }
        }
    }

    pub(crate) fn send_datagrams(&mut self, message: SendDatagrams) -> Result<(), TurnError> {
        let SendDatagrams { peer, datagrams } = message;
        let error = self.no_allocation();
        let Phase::Running(running) = &mut self.phase else { return Err(error) };
        if running.core.granted().is_none() {
            return Err(error);
        }
        if self.config.relayed == RelayedTransport::Tcp {
            return Err(TurnError::WrongTransport { request: "Send", needed: "a UDP" });
        }
        let now = now();
        let is_bound = self.forwards.channels.values().find(|(other, _)| *other == peer);
        let counters = &self.forwards.counters;
        let (mut fitting, too_long): (Vec<_>, Vec<_>) =
            datagrams.into_iter().partition(|datagram| datagram.len() <= data::MAX_SEND_LEN);
        let mut room = self.config.queue_bytes;
        let within = fitting.iter().take_while(|datagram| {
            room = room.saturating_sub(datagram.len() + 1);
            room > 0
        });
        let within = within.count();
        counters.dropped(DropReason::QueueFull, (fitting.len() - within) as u64);
        fitting.truncate(within);
        counters.dropped(DropReason::TooLong, too_long.len() as u64);
        if let Some((_, path)) = is_bound {
            let mut batch = BatchBuilder::with_capacity(Framing::Rfc4571, 0);
            fitting.iter().for_each(|datagram| batch.push(datagram, datagram.len()));
            path.send_batch(now, batch.finish());
            if !path.has_local() && !self.forwards.kept.iter().any(|kept| Arc::ptr_eq(kept, path)) {
                self.forwards.kept.push(path.clone());
            }
            return Ok(());
        }
        if !running.core.permissions().is_granted(now, peer.ip()) {
            return Err(TurnError::NotPermitted { peer });
        }
        let mut indication = Vec::new();
        for datagram in fitting {
            indication.clear();
            data::put_send_indication(&mut indication, crate::stun::random_id(), peer, &datagram);
            running.send_indication(now, &indication, datagram.len() as u64, counters);
        }
        self.forwards.sent = Some(now);
        Ok(())
    }
}
