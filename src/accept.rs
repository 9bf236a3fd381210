//! Who comes in: the session's side of its listeners and its lobby.
//!
//! With `max_peers = 1` a newcomer gets the one place at once if that is free, or held by a connection that
//! never sent anything or has been silent for 5 s; else it waits that long in the lobby. With more places a
//! newcomer waits in the lobby until it has sent something, so that those who only knock cost no UDP socket.
//! Those who come through a relay are treated alike. With TLS all of that begins when the handshake is over.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use actix::fut::ActorFuture;
use actix::prelude::*;
use tokio::time::Sleep;

use crate::clock::now;
use crate::event::{Cause, EventKind, Refusal};
use crate::link_stream::Stream;
use crate::links::Link;
use crate::listen::{Incoming, Listener, Waiting};
use crate::session::admission::{Admission, SILENT_TIMEOUT, admit};
use crate::session::{LinkId, PeerArrived, RelaySessionActor};
use crate::sockopt;
use crate::transport::Transport;

/// Connections accepted in one turn of the task.
const MAX_TURNS: usize = 32;
/// With one place and somebody waiting for it, the incumbent is looked at this often.
const CHECK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

impl RelaySessionActor {
    /// Accepts at the addresses that the session's sockets listen at now, and no others.
    pub(crate) fn start_accepting(&mut self) -> io::Result<()> {
        let listeners = self.sockets.listeners()?;
        self.listeners = listeners.into_iter().map(Listener::new).collect::<Result<_, _>>()?;
        if self.listeners.is_empty() {
            return Ok(());
        }
        if self.config.peer_limit() == 1 {
            self.ensure_primary();
        }
        self.reporter.report(EventKind::Listening { local_tcp: self.sockets.local_tcp() });
        self.report_certificate();
        Ok(())
    }

    pub(crate) fn stop_accepting(&mut self) {
        self.listeners.clear();
        self.handshakes.clear();
        self.lobby.clear();
        // Nothing is bound anew, so nothing can fail.
        let _ = self.sockets.listen(&[], &self.options);
    }

    /// Counts a peer that is turned away; tells of one a second.
    pub(crate) fn refuse(&mut self, peer: SocketAddr, reason: Refusal) {
        if let Some(more) = self.refusals.pass(now()) {
            self.reporter.report(EventKind::PeerRefused { peer, reason, more });
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, listener: SocketAddr, ctx: &mut Context<Self>) {
        match incoming {
            Incoming::Paused(error) => {
                let error = error.to_string();
                self.reporter.report(EventKind::AcceptPaused { local_tcp: listener, error });
            }
            Incoming::Resumed => self.reporter.report(EventKind::AcceptResumed { local_tcp: listener }),
            Incoming::Peer(tcp, peer) => self.on_peer(tcp.into(), peer, ctx),
        }
    }

    fn on_peer(&mut self, stream: Stream, peer: SocketAddr, ctx: &mut Context<Self>) {
        if !self.is_allowed(peer.ip()) {
            return self.refuse(peer, Refusal::NotAllowed);
        }
        if let Stream::Direct(direct) = &stream
            && let Err(error) = sockopt::tune_tcp(direct.tcp())
        {
            // The peer has gone already; whoever reads will find out.
            tracing::debug!(%peer, %error, "tuning an accepted connection");
        }
        match (stream, self.sockets.acceptor()) {
            (Stream::Direct(Transport::Tcp(tcp)), Some(acceptor)) => {
                self.begin_handshake(acceptor, tcp, peer)
            }
            (stream, _) => self.enter_lobby(stream, peer, ctx),
        }
    }

    pub(crate) fn enter_lobby(&mut self, stream: Stream, peer: SocketAddr, ctx: &mut Context<Self>) {
        let newcomer = Waiting { stream, peer, since: now(), spoken: false };
        if let Some(evicted) = self.lobby.push(newcomer) {
            let reason = if self.primary.is_some() { Refusal::Full } else { Refusal::Silent };
            self.refuse(evicted.peer, reason);
        }
        self.check_lobby(ctx);
    }

    /// With one place: lets in whom it can, turns away who waited in vain, and looks again when that changes.
    fn check_lobby(&mut self, ctx: &mut Context<Self>) {
        if self.config.peer_limit() > 1 {
            return;
        }
        self.admit_waiting(ctx);
        let now = now();
        while let Some(waiting) = now.checked_sub(SILENT_TIMEOUT).and_then(|then| self.lobby.pop_older(then))
        {
            self.refuse(waiting.peer, Refusal::Full);
        }
        if let Some(timer) = self.lobby_timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(newest) = self.lobby.newest() {
            let incumbent = self.primary.and_then(|id| self.links.get(&id)).and_then(Link::incumbent);
            let wait = match admit(now, newest, incumbent) {
                Admission::Wait(until) => until.saturating_duration_since(now).min(CHECK_INTERVAL),
                Admission::Admit | Admission::Replace => CHECK_INTERVAL,
            };
            self.lobby_timer = Some(ctx.run_later(wait, |act, ctx| {
                act.lobby_timer = None;
                act.check_lobby(ctx);
            }));
        }
    }

    fn admit_to(&mut self, primary: LinkId, newcomer: Waiting, ctx: &mut Context<Self>) {
        let Waiting { stream, peer, since, .. } = newcomer;
        self.stop_dialing(primary, ctx);
        if let Err(error) = self.attach(primary, stream, peer, since, false) {
            tracing::warn!(%peer, %error, "cannot serve a peer");
            self.refuse(peer, Refusal::NoSocket);
            self.dial_if_idle(primary, ctx);
        }
    }

    /// With many places: a connection in the lobby has sent something.
    fn on_spoken(&mut self, waiting: Waiting) {
        let Waiting { stream, peer, .. } = waiting;
        if self.make_room() {
            self.adopt(stream, peer);
        } else {
            self.refuse(peer, Refusal::Full);
        }
    }

    /// With one place: gives it to the newest in the lobby, if it is free or can be freed.
    pub(crate) fn admit_waiting(&mut self, ctx: &mut Context<Self>) {
        let Some(primary) = self.primary.filter(|_| self.config.peer_limit() == 1) else { return };
        if self.stopping {
            return;
        }
        let Some(link) = self.links.get(&primary) else { return };
        let Some(newest) = self.lobby.newest() else { return };
        match admit(now(), newest, link.incumbent()) {
            Admission::Admit => {
                if let Some(newest) = self.lobby.pop_newest() {
                    self.admit_to(primary, newest, ctx);
                }
            }
            // It comes in when the incumbent has ended.
            Admission::Replace => link.close(Cause::Replaced),
            Admission::Wait(_) => {}
        }
    }
}

impl Handler<PeerArrived> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, message: PeerArrived, ctx: &mut Self::Context) {
        let PeerArrived { stream, peer } = message;
        if self.stopping {
            return;
        }
        if self.config.peer_limit() == 1 {
            self.ensure_primary();
        }
        // Those that a listener would leave in the kernel's queue have none to wait in.
        if self.lobby.closed_until(now()).is_some() {
            return self.refuse(peer, Refusal::Full);
        }
        self.on_peer(stream, peer, ctx);
    }
}

/// Looks at the lobby and accepts at all addresses of the session, each time that is woken.
#[derive(Default)]
pub(crate) struct Accept {
    /// When the lobby opens again.
    opens: Option<Pin<Box<Sleep>>>,
}

impl Accept {
    /// Whether there is room for another; if not, it will be looked at again when there is.
    fn is_open(&mut self, act: &RelaySessionActor, cx: &mut TaskContext<'_>) -> bool {
        let until = act.lobby.closed_until(now()).max(act.handshakes.closed_until(now()));
        let Some(until) = until else { return true };
        let until = until.into();
        let opens = self.opens.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        opens.as_mut().reset(until);
        opens.as_mut().poll(cx).is_ready()
    }
}

impl ActorFuture<RelaySessionActor> for Accept {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        act: &mut RelaySessionActor,
        ctx: &mut Context<RelaySessionActor>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        act.poll_handshakes(cx, ctx);
        look_at_lobby(act, cx);
        let mut turns = 0;
        for index in 0..act.listeners.len() {
            while turns < MAX_TURNS
                && self.is_open(act, cx)
                && let Some(listener) = act.listeners.get_mut(index)
                && let Poll::Ready(incoming) = listener.poll_accept(cx)
            {
                let local = listener.local();
                act.on_incoming(incoming, local, ctx);
                turns += 1;
            }
        }
        if turns == MAX_TURNS {
            cx.waker().wake_by_ref();
        }
        if turns > 0 {
            act.poll_handshakes(cx, ctx);
            look_at_lobby(act, cx);
        }
        Poll::Pending
    }
}

fn look_at_lobby(act: &mut RelaySessionActor, cx: &mut TaskContext<'_>) {
    if act.config.peer_limit() == 1 {
        act.lobby.drop_closed(cx);
    } else {
        while let Poll::Ready(waiting) = act.lobby.poll_spoken(cx) {
            act.on_spoken(waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UdpSocket;
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::{SessionConfig, SupervisorConfig};
    use crate::event::Event;
    use crate::listen::Lobby;
    use crate::session::{GetSession, SessionInfo};
    use crate::slots::tests::{Observer, observe};
    use crate::supervisor::{StartSession, SupervisorActor};
    use crate::turn_stream::tests::{Relayed, relayed, reset};

    /// A session that listens nowhere, its service, and what is reported.
    struct House {
        session: Addr<RelaySessionActor>,
        service: UdpSocket,
        events: mpsc::UnboundedReceiver<Event>,
        _observer: Addr<Observer>,
        _supervisor: Addr<SupervisorActor>,
    }

    impl House {
        async fn new(configure: impl FnOnce(&mut SessionConfig)) -> Self {
            // A stream is used on the thread it was made on.
            let supervisor =
                SupervisorActor::new(SupervisorConfig { workers: 0, ..Default::default() }).start();
            let (_observer, events) = observe(&supervisor).await;
            let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut config = SessionConfig::new("far").udp_forward(service.local_addr().unwrap());
            configure(&mut config);
            let session = supervisor.send(StartSession { config }).await.unwrap().unwrap();
            Self { session, service, events, _observer, _supervisor: supervisor }
        }

        async fn arrives(&self, stream: Stream, peer: &str) -> SessionInfo {
            self.session.send(PeerArrived { stream, peer: peer.parse().unwrap() }).await.unwrap();
            self.session.send(GetSession).await.unwrap()
        }

        async fn event<T>(&mut self, find: impl Fn(&EventKind) -> Option<T>) -> T {
            loop {
                let event = self.events.recv().await.expect("the supervisor is here");
                if let Some(found) = find(&event.kind) {
                    return found;
                }
            }
        }

        async fn connected(&mut self) -> SocketAddr {
            self.event(|kind| match kind {
                EventKind::PeerConnected { peer, .. } => Some(*peer),
                _ => None,
            })
            .await
        }

        async fn refused(&mut self) -> (SocketAddr, Refusal) {
            self.event(|kind| match kind {
                EventKind::PeerRefused { peer, reason, .. } => Some((*peer, *reason)),
                _ => None,
            })
            .await
        }

        async fn echo(&self) {
            let mut buffer = [0; 64];
            let (len, from) = self.service.recv_from(&mut buffer).await.unwrap();
            self.service.send_to(&buffer[..len], from).await.unwrap();
        }
    }

    #[actix::test]
    async fn a_relayed_peer_is_served_with_what_it_sent_early() {
        let mut house = House::new(|_| ()).await;
        let Relayed { stream, mut server, .. } = relayed(b"\x00\x05hel", "192.0.2.1:9", 1).await;
        house.arrives(stream.into(), "192.0.2.1:9").await;
        assert_eq!(house.connected().await, "192.0.2.1:9".parse().unwrap());
        server.write_all(b"lo").await.unwrap();
        house.echo().await;
        let mut answer = [0; 7];
        server.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"\x00\x05hello");
    }

    #[actix::test]
    async fn a_relayed_peer_costs_nothing_before_it_has_spoken_and_is_told_of_when_it_goes() {
        let mut house = House::new(|_| ()).await;
        let Relayed { stream, mut server, mut ended } = relayed(b"", "192.0.2.1:9", 2).await;
        let info = house.arrives(stream.into(), "192.0.2.1:9").await;
        assert_eq!((info.waiting, info.links.len()), (1, 0));
        server.write_all(b"\x00\x01x").await.unwrap();
        house.connected().await;
        drop(server);
        let cause = |kind: &EventKind| match kind {
            EventKind::PeerDisconnected { cause, .. } => Some(*cause),
            _ => None,
        };
        assert_eq!(house.event(cause).await, Cause::Closed);
        let ended = ended.recv().await.unwrap();
        assert_eq!((ended.key, ended.error), (2, None));
        // One that goes before it has spoken leaves nothing behind either.
        let Relayed { stream, server, mut ended } = relayed(b"", "192.0.2.1:9", 3).await;
        house.arrives(stream.into(), "192.0.2.1:9").await;
        drop(server);
        assert_eq!(ended.recv().await.unwrap().key, 3);
        assert_eq!(house.session.send(GetSession).await.unwrap().waiting, 0);
    }

    #[actix::test]
    async fn a_relayed_peer_gets_the_only_place_if_it_is_free_and_waits_if_not() {
        let mut house = House::new(|config| config.max_peers = Some(1)).await;
        let Relayed { stream, mut server, .. } = relayed(b"", "192.0.2.1:9", 1).await;
        let info = house.arrives(stream.into(), "192.0.2.1:9").await;
        assert_eq!((info.waiting, info.links[0].peer), (0, "192.0.2.1:9".parse().ok()));
        house.connected().await;
        server.write_all(b"\x00\x01x").await.unwrap();
        house.echo().await;
        let second = relayed(b"", "192.0.2.2:9", 2).await;
        let info = house.arrives(second.stream.into(), "192.0.2.2:9").await;
        assert_eq!((info.waiting, info.links.len()), (1, 1));
        drop(server);
        assert_eq!(house.connected().await, "192.0.2.2:9".parse().unwrap());
    }

    #[actix::test]
    async fn a_relayed_peer_that_is_not_allowed_is_turned_away() {
        let mut house = House::new(|config| config.allow = vec!["192.0.2.1/32".parse().unwrap()]).await;
        let Relayed { stream, mut ended, .. } = relayed(b"x", "192.0.2.2:9", 4).await;
        house.arrives(stream.into(), "192.0.2.2:9").await;
        assert_eq!(house.refused().await, ("192.0.2.2:9".parse().unwrap(), Refusal::NotAllowed));
        assert_eq!(ended.recv().await.unwrap().key, 4);
    }

    #[actix::test]
    async fn relayed_peers_do_not_push_each_other_out_of_the_lobby_at_once() {
        let mut house = House::new(|_| ()).await;
        let mut held = Vec::new();
        let mut arrivals = Vec::new();
        for key in 0..=Lobby::LIMIT as u64 {
            let Relayed { stream, server, ended } = relayed(b"", "192.0.2.1:9", key).await;
            arrivals.push(PeerArrived { stream: stream.into(), peer: "192.0.2.1:9".parse().unwrap() });
            held.push((server, ended));
        }
        // All in one turn of the task.
        arrivals.into_iter().for_each(|arrival| house.session.do_send(arrival));
        assert_eq!(house.refused().await.1, Refusal::Full);
        assert_eq!(held[Lobby::LIMIT].1.recv().await.unwrap().key, Lobby::LIMIT as u64);
        assert_eq!(house.session.send(GetSession).await.unwrap().waiting, Lobby::LIMIT);
        // So many ports are not to linger in TIME_WAIT.
        held.into_iter().for_each(|(server, _)| reset(server));
    }
}
