//! `UdpEndpointActor`: the local UDP socket.
//!
//! It reads batches, finds out whose they are and pushes them into that lane's flow, or sends them to a TURN peer.
//! The way back does not pass here: each TCP connection, and each TURN client, sends its datagrams itself.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::prelude::*;
use tokio::time::Sleep;

use crate::clock::{OncePerSecond, now};
use crate::counters::{DropReason, LiveCounters};
use crate::datagrams::{Framing, Received};
use crate::event::{Cause, EventKind};
use crate::lane::{Lane, LaneMaker, LinkId, UdpParty};
use crate::link::{Ending, Obituary};
use crate::relay_paths::ChannelPath;
use crate::supervisor::Reporter;
use crate::tcp::report_unreachable;
use crate::turn_path::PeerPath;
use crate::udp_io::UdpIo;
use crate::udp_relayed::RelayedApplications;
use sources::Sources;

pub(crate) mod sources;

/// Receives of up to 32 buffers in one turn of the task.
const MAX_TURNS: usize = 2;
/// The socket is broken when it reports this many errors and nothing else.
const MAX_ERRORS_IN_A_ROW: u32 = 1000;

/// To the session: a local application sent its first datagram. The lane that serves it comes with it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct SourceAppeared {
    pub(crate) source: SocketAddr,
    pub(crate) lane: Arc<Lane>,
}

/// To the session: an application is served no more, because it was idle or another took its lane.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct SourceForgotten {
    pub(crate) source: SocketAddr,
    pub(crate) lane: Arc<Lane>,
    /// Whether another application has the lane already.
    pub(crate) replaced: bool,
}

/// To the session: a datagram waits for a link that is down because nobody used it.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct LinkWanted(pub(crate) LinkId);

/// To the endpoint: the next new application gets this lane, whose connection is up already.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct OfferLane(pub(crate) Arc<Lane>);

/// A UDP socket: either the one that local applications send to, each application with a lane of its own, or
/// one that is connected to a service and belongs to one lane, or one whose applications send to one TURN peer.
/// Started by a [`RelaySessionActor`](crate::session::RelaySessionActor) or a TURN client; lives until that stops.
#[derive(Debug)]
pub struct UdpEndpointActor {
    io: Arc<UdpIo>,
    intake: Intake,
    reporter: Reporter,
    obituary: Obituary,
    errors: u32,
}

#[derive(Debug)]
pub(crate) enum Intake {
    Applications(Box<Applications>),
    Service(Arc<Lane>),
    Forward(Forward),
    /// Local applications whose datagrams go through a relay.
    Relayed(Box<RelayedApplications>),
    /// A service that a peer reaches through a relay.
    RelayedService(Arc<ChannelPath>),
}

impl Intake {
    /// Forgets who has been idle for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Applications(applications) => applications.poll_idle(cx),
            Self::Relayed(applications) => applications.poll_idle(cx),
            Self::Service(_) | Self::Forward(_) | Self::RelayedService(_) => {}
        }
    }

    /// What remembers that the service answers "port unreachable".
    fn unreachable(&self) -> Option<&AtomicBool> {
        match self {
            Self::Service(lane) => Some(&lane.unreachable),
            Self::RelayedService(path) => Some(&path.unreachable),
            Self::Applications(_) | Self::Forward(_) | Self::Relayed(_) => None,
        }
    }
}

/// A local socket whose application sends to one TURN peer: the server has one way to it, so one is served at a time.
#[derive(Debug)]
pub(crate) struct Forward {
    path: Arc<PeerPath>,
    /// What events call it.
    link: LinkId,
    taken_over: OncePerSecond,
    refused: OncePerSecond,
}

impl Forward {
    pub(crate) fn new(path: Arc<PeerPath>, link: LinkId) -> Self {
        let (taken_over, refused) = Default::default();
        Self { path, link, taken_over, refused }
    }

    fn take(&mut self, now: Instant, party: UdpParty, received: Received<'_>, reporter: &Reporter) {
        let (is_served, news) = self.hear(now, party);
        news.into_iter().for_each(|event| reporter.report(event));
        if is_served {
            self.path.send(now, received);
        } else {
            self.path.refuse(received.count());
        }
    }

    /// An application has sent; says whether it is served, and what is new about that. One that takes the place of
    /// another does so at most once a second: two that both send must not flood everybody with news.
    fn hear(&mut self, now: Instant, party: UdpParty) -> (bool, Vec<EventKind>) {
        let (link, source) = (self.link, party.to);
        let appeared = EventKind::SourceAppeared { link, source };
        let news = match self.path.application() {
            Some(known) if known == party => return (true, Vec::new()),
            // The same, which writes to another of our addresses.
            Some(known) if known.to == source => Vec::new(),
            None => vec![appeared],
            Some(known) if self.taken_over.pass(now).is_some() => {
                vec![EventKind::SourceForgotten { link, source: known.to }, appeared]
            }
            Some(_) => {
                let refused = |more| EventKind::SourceRefused { source, places: 1, more };
                return (false, self.refused.pass(now).map(refused).into_iter().collect());
            }
        };
        self.path.set_application(Some(party));
        (true, news)
    }
}

/// The applications that send to the local socket.
#[derive(Debug)]
pub(crate) struct Applications {
    sources: Sources<UdpParty, Arc<Lane>>,
    /// A lane without an application: the next new one gets it.
    spare: Option<Arc<Lane>>,
    /// The application that the spare lane is kept for.
    app: Option<SocketAddr>,
    /// With one lane only, the newest application has it: it may have been restarted on another port.
    single: bool,
    maker: Arc<LaneMaker>,
    counters: Arc<LiveCounters>,
    tell: Addr<crate::session::RelaySessionActor>,
    reporter: Reporter,
    refused: OncePerSecond,
    taken_over: OncePerSecond,
    alarm: Option<Pin<Box<Sleep>>>,
}

/// What [`Applications`] are told.
#[derive(Debug)]
pub(crate) struct ApplicationRules {
    pub(crate) max_sources: usize,
    pub(crate) source_idle: Duration,
    pub(crate) app: Option<SocketAddr>,
}

impl Applications {
    /// `known` are the lanes that have an application already, from an earlier life of this actor.
    pub(crate) fn new(
        rules: ApplicationRules,
        known: Vec<Arc<Lane>>,
        maker: Arc<LaneMaker>,
        counters: Arc<LiveCounters>,
        tell: Addr<crate::session::RelaySessionActor>,
        reporter: Reporter,
    ) -> Self {
        let ApplicationRules { max_sources, source_idle, app } = rules;
        let mut sources = Sources::new(max_sources, source_idle);
        let mut spare = None;
        for lane in known {
            match lane.party() {
                Some(party) if Some(party.to) != app && !sources.is_full() => {
                    sources.insert(now(), party, lane);
                }
                _ => spare = Some(lane),
            }
        }
        let mut applications = Self {
            sources,
            spare,
            app,
            single: max_sources == 1,
            maker,
            counters,
            tell,
            reporter,
            refused: OncePerSecond::default(),
            taken_over: OncePerSecond::default(),
            alarm: None,
        };
        applications.set_alarm();
        applications
    }

    /// For the first source that will have been idle for too long. A single application is not forgotten: the
    /// next one takes its place.
    fn set_alarm(&mut self) {
        let due = self.sources.next_due(|lane| lane.last_activity()).filter(|_| !self.single);
        self.alarm = due.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
    }

    fn take(&mut self, now: Instant, source: UdpParty, received: Received<'_>) {
        let known = self.sources.get(&source).cloned();
        if let Some(lane) = known.or_else(|| self.admit(now, source)) {
            lane.heard_from_udp(now);
            lane.flow.push(now, received.batch(Framing::Rfc4571));
            if lane.dormant.load(Relaxed) && lane.dormant.swap(false, Relaxed) {
                self.tell.do_send(LinkWanted(lane.link));
            }
        } else {
            self.counters.dropped(DropReason::TooManySources, received.count());
            if let Some(more) = self.refused.pass(now) {
                let places = self.sources.limit();
                self.reporter.report(EventKind::SourceRefused { source: source.to, places, more });
            }
        }
    }

    fn admit(&mut self, now: Instant, source: UdpParty) -> Option<Arc<Lane>> {
        let lane = if self.single {
            self.take_over(now, source)?
        } else if self.spare.is_some() && self.app.is_none_or(|app| app == source.to) {
            self.spare.take()?
        } else if self.sources.is_full() {
            return None;
        } else {
            self.maker.make(None)
        };
        lane.set_party(Some(source));
        self.sources.insert(now, source, lane.clone());
        if self.alarm.is_none() {
            self.set_alarm();
        }
        // Bounded: one for each place there is, or one a second where there is one.
        self.tell.do_send(SourceAppeared { source: source.to, lane: lane.clone() });
        Some(lane)
    }

    /// The one lane goes to the application it is kept for, else to the newest: it may be the same as before,
    /// restarted on another port. But at most once a second: two that both send must not flood everybody with news.
    fn take_over(&mut self, now: Instant, source: UdpParty) -> Option<Arc<Lane>> {
        if self.app.is_some_and(|app| app != source.to) {
            return None;
        }
        let Some(old) = self.sources.any() else { return self.spare.take() };
        self.taken_over.pass(now)?;
        let lane = self.sources.remove(&old)?;
        self.tell.do_send(SourceForgotten { source: old.to, lane: lane.clone(), replaced: true });
        Some(lane)
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) {
        while let Some(alarm) = &mut self.alarm {
            if alarm.as_mut().poll(cx).is_pending() {
                return;
            }
            for (source, lane) in self.sources.expire(now(), |lane| lane.last_activity()) {
                self.tell.do_send(SourceForgotten { source: source.to, lane, replaced: false });
            }
            self.set_alarm();
        }
    }
}

impl UdpEndpointActor {
    pub(crate) fn new(io: Arc<UdpIo>, intake: Intake, reporter: Reporter, obituary: Obituary) -> Self {
        Self { io, intake, reporter, obituary, errors: 0 }
    }

    /// Reads what there is; ready only with the end.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        for _ in 0..MAX_TURNS {
            let now = now();
            let Self { io, intake, reporter, .. } = self;
            if let Intake::Forward(forward) = intake {
                ready!(forward.path.poll_ready(cx));
            }
            let done = io.poll_recv(cx, |source, received| match intake {
                Intake::Applications(applications) => applications.take(now, source, received),
                Intake::Service(lane) => {
                    lane.heard_from_udp(now);
                    lane.flow.push(now, received.batch(Framing::Rfc4571));
                    if lane.unreachable.swap(false, Relaxed) {
                        reporter.report(EventKind::ServiceReachable { service: source.to });
                    }
                }
                Intake::Forward(forward) => forward.take(now, source, received, reporter),
                Intake::Relayed(applications) => applications.take(now, source, received),
                Intake::RelayedService(path) => {
                    path.send(now, received);
                    if path.unreachable.swap(false, Relaxed) {
                        reporter.report(EventKind::ServiceReachable { service: source.to });
                    }
                }
            });
            match done {
                Poll::Pending => {
                    // After the receive: that may have admitted the first source, and set the alarm.
                    intake.poll_idle(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => self.errors = 0,
                Poll::Ready(Err(error)) => {
                    if let Some(ending) = self.on_error(&error) {
                        return Poll::Ready(ending);
                    }
                }
            }
        }
        self.intake.poll_idle(cx);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// An error is about one datagram sent before, not about the socket, unless there is nothing else.
    fn on_error(&mut self, error: &io::Error) -> Option<Ending> {
        self.errors += 1;
        if let (ErrorKind::ConnectionRefused, Some(known), Some(service)) =
            (error.kind(), self.intake.unreachable(), self.io.peer())
        {
            report_unreachable(known, &self.reporter, service);
        } else {
            tracing::debug!(%error, local = %self.io.local(), "receiving UDP failed");
        }
        (self.errors > MAX_ERRORS_IN_A_ROW)
            .then(|| Ending::new(Cause::Broken, format!("receiving UDP at {}: {error}", self.io.local())))
    }
}

impl Actor for UdpEndpointActor {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Drive);
    }
}

/// The one future of the actor: polls its socket each time anything wakes it.
struct Drive;

impl ActorFuture<UdpEndpointActor> for Drive {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        act: &mut UdpEndpointActor,
        ctx: &mut actix::Context<UdpEndpointActor>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let ending = ready!(act.poll_io(cx));
        act.obituary.end(ending);
        ctx.stop();
        Poll::Ready(())
    }
}

impl Handler<OfferLane> for UdpEndpointActor {
    type Result = ();

    fn handle(&mut self, OfferLane(lane): OfferLane, _: &mut Self::Context) {
        if let Intake::Applications(applications) = &mut self.intake {
            applications.spare = Some(lane);
        }
    }
}

/// To the endpoint: stop, its link or its session is gone.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopEndpoint;

impl Handler<StopEndpoint> for UdpEndpointActor {
    type Result = ();

    fn handle(&mut self, _: StopEndpoint, ctx: &mut Self::Context) {
        self.obituary.end(Ending::new(Cause::Told, "told to stop"));
        ctx.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_application_gets_the_answers_but_not_more_than_one_a_second() {
        let counters = Arc::new(LiveCounters::default());
        let path = Arc::new(PeerPath::new(1 << 16, Duration::from_secs(1), counters, Arc::default()));
        let (link, start) = (LinkId(3), now());
        let mut forward = Forward::new(path.clone(), link);
        let party = |port: u16| UdpParty { to: SocketAddr::from(([127, 0, 0, 1], port)), from: None };
        let appeared = |port| EventKind::SourceAppeared { link, source: party(port).to };
        let forgotten = |port| EventKind::SourceForgotten { link, source: party(port).to };
        let refused = |more| EventKind::SourceRefused { source: party(1).to, places: 1, more };
        assert_eq!(forward.hear(start, party(1)), (true, vec![appeared(1)]));
        assert_eq!(forward.hear(start, party(1)), (true, vec![]));
        assert_eq!(forward.hear(start, party(2)), (true, vec![forgotten(1), appeared(2)]));
        assert_eq!(forward.hear(start, party(1)), (false, vec![refused(0)]));
        assert_eq!(forward.hear(start + Duration::from_millis(999), party(1)), (false, vec![]));
        assert_eq!(path.application(), Some(party(2)));
        let later = start + Duration::from_secs(1);
        assert_eq!(forward.hear(later, party(1)), (true, vec![forgotten(2), appeared(1)]));
        let to_another_address = UdpParty { from: Some([127, 0, 0, 2].into()), ..party(1) };
        assert_eq!(forward.hear(later, to_another_address), (true, vec![]));
        assert_eq!(path.application(), Some(to_another_address));
    }
}
