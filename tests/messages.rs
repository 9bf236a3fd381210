//! What a program tells a session and a supervisor while they run, and what it is told.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix::prelude::*;
use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::event::{Cause, Event, EventKind};
use actix_relay::session::{Connect, Disconnect, Listen, SessionState};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{
    GetSessions, InSession, NoSession, Shutdown, StartError, StartSession, StopSession, Subscribe,
    Unsubscribe,
};
use support::{
    Echo, House, any, echoed_once, patient, receive, soon, udp, until_echoed, vacant_tcp, vacant_udp,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;

impl House {
    async fn tell<M>(&self, session: &str, message: M) -> M::Result
    where
        M: Message + Send + 'static,
        M::Result: Send,
        actix_relay::session::RelaySessionActor: Handler<M>,
    {
        let told = self.supervisor.send(InSession { session: session.into(), message });
        soon("an answer", told).await.unwrap().unwrap()
    }

    async fn stop(&self, session: &str) -> Result<(), NoSession> {
        soon("stopping", self.supervisor.send(StopSession { session: session.into() })).await.unwrap()
    }

    async fn refusal(&self, config: SessionConfig) -> StartError {
        self.supervisor.send(StartSession { config }).await.unwrap().unwrap_err()
    }
}

/// Two far sides, `a` and `b`, whose services say their name.
async fn two_far_sides(house: &House) -> [(SocketAddr, UdpSocket); 2] {
    let mut sides = Vec::new();
    for name in ["a", "b"] {
        let service = udp().await;
        let config = SessionConfig::listen(name, any()).udp_forward(service.local_addr().unwrap());
        sides.push((house.listen(patient(config)).await, service));
    }
    sides.try_into().unwrap()
}

/// Sends until the datagram is seen at the service.
async fn reaches(app: &UdpSocket, entry: SocketAddr, service: &UdpSocket, word: &[u8]) {
    soon("the datagram reaches the service", async {
        let mut buffer = [0; 64];
        loop {
            app.send_to(word, entry).await.unwrap();
            let wait = Duration::from_millis(100);
            if let Ok(Ok((len, _))) = tokio::time::timeout(wait, service.recv_from(&mut buffer)).await
                && &buffer[..len] == word
            {
                return;
            }
        }
    })
    .await;
}

#[actix::test]
async fn a_session_waits_until_it_is_told_to_connect() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let entry = house.local(SessionConfig::new("near").local_udp(any())).await;
    let info = house.info("near").await;
    assert_eq!((info.state, info.remote), (SessionState::Idle, None));
    house.tell("near", Connect { remote: far.into() }).await;
    house.connected("near").await;
    until_echoed(&app, entry, "after Connect").await;
    assert_eq!(house.info("near").await.remote, Some(far.into()));
    house.shutdown().await;
}

#[actix::test]
async fn a_session_waits_until_it_is_told_to_listen() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    house.start(SessionConfig::new("far").udp_forward(echo.addr)).await;
    let listening = house.tell("far", Listen { local_tcp: vec![any(), any()] }).await.unwrap();
    assert_eq!(listening, house.info("far").await.local_tcp);
    for (number, far) in listening.into_iter().enumerate() {
        let name = format!("near {number}");
        let entry = house.local(SessionConfig::connect(name.as_str(), far).local_udp(any())).await;
        house.connected(&name).await;
        until_echoed(&app, entry, "after Listen").await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn connect_to_another_remote_moves_the_traffic() {
    let mut house = House::new().await;
    let [(a, at_a), (b, at_b)] = two_far_sides(&house).await;
    let (entry, app) = (house.local(SessionConfig::connect("near", a).local_udp(any())).await, udp().await);
    reaches(&app, entry, &at_a, b"to a").await;
    house.tell("near", Connect { remote: b.into() }).await;
    assert_eq!(house.disconnected("near").await, Cause::Replaced);
    reaches(&app, entry, &at_b, b"to b").await;
    house.info_when("a", "nobody is connected there any more", |info| info.links.is_empty()).await;
    assert_eq!(house.info("near").await.local_udp, Some(entry));
    house.shutdown().await;
}

#[actix::test]
async fn disconnect_closes_the_tcp_side_and_keeps_the_udp_port() {
    let mut house = House::new().await;
    let [(a, at_a), (b, at_b)] = two_far_sides(&house).await;
    let (entry, app) = (house.local(SessionConfig::connect("near", a).local_udp(any())).await, udp().await);
    reaches(&app, entry, &at_a, b"before").await;
    house.tell("near", Disconnect).await;
    assert_eq!(house.disconnected("near").await, Cause::Told);
    let info = house.info_when("near", "it is idle", |info| info.state == SessionState::Idle).await;
    assert_eq!((info.local_udp, info.remote), (Some(entry), None));
    assert!(UdpSocket::bind(entry).await.is_err(), "the port is kept");
    house.tell("near", Connect { remote: b.into() }).await;
    house.connected("near").await;
    reaches(&app, entry, &at_b, b"after").await;
    house.shutdown().await;
}

#[actix::test]
async fn disconnect_stops_listening_and_listen_works_again() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let entry = house.local(SessionConfig::connect("near", far).local_udp(any())).await;
    until_echoed(&app, entry, "before").await;
    house.tell("far", Disconnect).await;
    house.disconnected("near").await;
    let info = house.info_when("far", "it is idle", |info| info.state == SessionState::Idle).await;
    assert!(info.local_tcp.is_empty());
    house.event("near", |kind| matches!(kind, EventKind::ConnectFailed { .. }).then_some(())).await;
    assert_eq!(house.tell("far", Listen { local_tcp: vec![far] }).await.unwrap(), [far]);
    until_echoed(&app, entry, "after Listen").await;
    house.shutdown().await;
}

#[actix::test]
async fn disconnect_ends_attempts_and_waits() {
    let mut house = House::new().await;
    house.start(SessionConfig::connect("near", vacant_tcp()).local_udp(any())).await;
    for _ in 0..3 {
        house.event("near", |kind| matches!(kind, EventKind::ConnectFailed { .. }).then_some(())).await;
    }
    house.tell("near", Disconnect).await;
    house.info_when("near", "it is idle", |info| info.state == SessionState::Idle).await;
    house.reported();
    // Longer than the wait that was due.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(house.info("near").await.state, SessionState::Idle);
    for event in house.reported() {
        assert!(!matches!(event.kind, EventKind::ConnectFailed { .. }), "{event}");
    }
    house.shutdown().await;
}

#[actix::test]
async fn connect_after_disconnect_works_at_once_for_a_session_that_was_called() {
    let (mut house, app) = (House::new().await, udp().await);
    let service = udp().await;
    let config = SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap());
    let far = house.listen(patient(config)).await;
    let entry = house.local(SessionConfig::listen("seed", any()).local_udp(any())).await;
    let at = house.info("seed").await.local_tcp[0];
    let _peer = TcpStream::connect(at).await.unwrap();
    house.connected("seed").await;
    house.tell("seed", Disconnect).await;
    house.tell("seed", Connect { remote: far.into() }).await;
    reaches(&app, entry, &service, b"the other way round").await;
    house.shutdown().await;
}

#[actix::test]
async fn connect_while_a_peer_is_connected_is_not_forgotten() {
    let (mut house, app) = (House::new().await, udp().await);
    let service = udp().await;
    let config = SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap());
    let far = house.listen(patient(config)).await;
    let entry = house.local(SessionConfig::listen("seed", any()).local_udp(any())).await;
    let peer = TcpStream::connect(house.info("seed").await.local_tcp[0]).await.unwrap();
    house.connected("seed").await;
    house.tell("seed", Connect { remote: far.into() }).await;
    drop(peer);
    reaches(&app, entry, &service, b"the other way round").await;
    house.shutdown().await;
}

#[actix::test]
async fn many_connects_in_a_row_make_one_connection() {
    let house = House::new().await;
    let [(a, at_a), (b, at_b)] = two_far_sides(&house).await;
    let (entry, app) = (house.local(SessionConfig::new("near").local_udp(any())).await, udp().await);
    let nobody = vacant_tcp();
    for round in 0..200u32 {
        let remote = [a, nobody, b, nobody][round as usize % 4];
        house.tell("near", Connect { remote: remote.into() }).await;
        if round.is_multiple_of(7) {
            house.tell("near", Disconnect).await;
        }
        if round.is_multiple_of(3) {
            tokio::task::yield_now().await;
        }
    }
    house.tell("near", Connect { remote: a.into() }).await;
    house.info_when("near", "it is connected", |info| info.state == SessionState::Connected).await;
    reaches(&app, entry, &at_a, b"the last word counts").await;
    house.info_when("a", "one connection", |info| info.waiting + info.links.len() == 1).await;
    house.info_when("b", "no connection", |info| info.waiting + info.links.len() == 0).await;
    assert_eq!(house.info("near").await.links.len(), 1);
    drop(at_b);
    house.shutdown().await;
}

#[actix::test]
async fn a_stopped_session_frees_its_ports_and_its_name() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = house
        .listen(SessionConfig::listen("far", (support::own_ip(), 0).into()).udp_forward(echo.addr))
        .await;
    let entry =
        house.local(SessionConfig::connect("near", far).local_udp((support::own_ip(), 0).into())).await;
    until_echoed(&app, entry, "before").await;
    house.stop("near").await.unwrap();
    drop(UdpSocket::bind(entry).await.expect("the UDP port is free"));
    house.stop("far").await.unwrap();
    drop(TcpListener::bind(far).await.expect("the TCP port is free"));
    assert_eq!(house.stop("far").await, Err(NoSession("far".into())));
    house.event("far", |kind| matches!(kind, EventKind::SessionStopped).then_some(())).await;
    house.listen(SessionConfig::listen("far", far).udp_forward(echo.addr)).await;
    let near = SessionConfig::connect("near", far).local_udp(entry);
    assert_eq!(house.local(near).await, entry);
    until_echoed(&app, entry, "again").await;
    house.shutdown().await;
}

#[actix::test]
async fn what_cannot_be_started_says_why() {
    let (house, taken_tcp, taken_udp) =
        (House::new().await, TcpListener::bind(any()).await.unwrap(), udp().await);
    let (tcp, udp) = (taken_tcp.local_addr().unwrap(), taken_udp.local_addr().unwrap());
    let error = house.refusal(SessionConfig::listen("a", tcp).udp_forward(vacant_udp())).await;
    assert!(matches!(error, StartError::Socket { .. }), "{error}");
    assert!(error.to_string().contains(&tcp.to_string()), "{error}");
    let error = house.refusal(SessionConfig::connect("a", tcp).local_udp(udp)).await;
    assert!(error.to_string().contains(&udp.to_string()), "{error}");
    let error = house.refusal(SessionConfig::connect("a", tcp)).await;
    assert!(matches!(error, StartError::Config(_)), "{error}");
    house.start(SessionConfig::new("a").local_udp(any())).await;
    let error = house.refusal(SessionConfig::new("a").local_udp(any())).await;
    assert!(matches!(&error, StartError::NameTaken(name) if *name == "a".into()), "{error}");
    house.shutdown().await;
}

#[actix::test]
async fn a_port_in_use_leaves_listening_as_it_was() {
    let (house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let taken = TcpListener::bind(any()).await.unwrap().local_addr().unwrap();
    let _taken = TcpListener::bind(taken).await.unwrap();
    let error = house.tell("far", Listen { local_tcp: vec![taken] }).await.unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    assert_eq!(house.info("far").await.local_tcp, [far]);
    let entry = house.local(SessionConfig::connect("near", far).local_udp(any())).await;
    until_echoed(&app, entry, "at the old port").await;
    house.shutdown().await;
}

#[actix::test]
async fn all_sessions_are_asked_at_once() {
    let house = House::new().await;
    for name in ["c", "a", "b"] {
        house.start(SessionConfig::new(name).local_udp(any())).await;
    }
    let infos = house.supervisor.send(GetSessions).await.unwrap();
    let names: Vec<_> = infos.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    house.stop("b").await.unwrap();
    assert_eq!(house.supervisor.send(GetSessions).await.unwrap().len(), 2);
    house.shutdown().await;
}

/// Passes on what it is told.
struct Listener(mpsc::UnboundedSender<Event>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Event> for Listener {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        let _ = self.0.send(event);
    }
}

#[actix::test]
async fn a_subscriber_hears_its_session_until_it_unsubscribes() {
    let mut house = House::new().await;
    let (tell, mut heard) = mpsc::unbounded_channel();
    let listener = Listener(tell).start();
    let recipient = listener.clone().recipient();
    let filter = Filter::Session("b".into());
    house.supervisor.send(Subscribe { recipient: recipient.clone(), filter }).await.unwrap();
    for name in ["a", "b"] {
        house.start(SessionConfig::new(name).local_udp(any())).await;
        house.stop(name).await.unwrap();
        house.event(name, |kind| matches!(kind, EventKind::SessionStopped).then_some(())).await;
    }
    loop {
        let event = soon("the end of b", heard.recv()).await.unwrap();
        assert_eq!(event.child, "b".into(), "{event}");
        if event.kind == EventKind::SessionStopped {
            break;
        }
    }
    house.supervisor.send(Unsubscribe { recipient }).await.unwrap();
    house.start(SessionConfig::new("b").local_udp(any())).await;
    house.stop("b").await.unwrap();
    house.event("b", |kind| matches!(kind, EventKind::SessionStopped).then_some(())).await;
    house.shutdown().await;
    assert!(heard.try_recv().is_err(), "unsubscribed");
}

#[actix::test]
async fn counters_are_reported_periodically() {
    let mut config = SupervisorConfig::default();
    config.stats_interval = Duration::from_millis(50);
    let (mut house, echo, app) = (House::with(config).await, Echo::start().await, udp().await);
    let far = house.listen(patient(SessionConfig::listen("far", any()).udp_forward(echo.addr))).await;
    let entry = house.local(patient(SessionConfig::connect("near", far).local_udp(any()))).await;
    echoed_once(&app, entry, b"counted").await;
    house
        .event("near", |kind| match kind {
            EventKind::Stats { connected: 1, counters } => (counters.to_udp.bytes == 7).then_some(()),
            _ => None,
        })
        .await;
    house.shutdown().await;
}

#[actix::test]
async fn shutdown_under_traffic_ends_all_and_frees_the_ports() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let far = house
        .listen(SessionConfig::listen("far", (support::own_ip(), 0).into()).udp_forward(echo.addr))
        .await;
    let entry =
        house.local(SessionConfig::connect("near", far).local_udp((support::own_ip(), 0).into())).await;
    house.connected("near").await;
    let flood = actix_rt::spawn(async move {
        let app = udp().await;
        loop {
            let _ = app.send_to(&[1; 1200], entry).await;
            tokio::task::yield_now().await;
        }
    });
    house.info_when("near", "traffic flows", |info| info.counters.to_udp.datagrams > 100).await;
    let supervisor = house.supervisor.clone();
    let began = std::time::Instant::now();
    soon("shutting down", supervisor.send(Shutdown)).await.unwrap();
    eprintln!("shut down after {:?}", began.elapsed());
    flood.abort();
    drop(UdpSocket::bind(entry).await.expect("the UDP port is free"));
    drop(TcpListener::bind(far).await.expect("the TCP port is free"));
    let stopped = house.reported().iter().filter(|event| event.kind == EventKind::SessionStopped).count();
    assert_eq!(stopped, 2);
    assert!(supervisor.send(GetSessions).await.is_err(), "the supervisor is gone too");
}

#[actix::test]
async fn what_was_sent_before_a_stop_arrives() {
    let (house, service, app) = (House::new().await, udp().await, udp().await);
    let far = SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap());
    let far = house.listen(patient(far)).await;
    let entry = house.local(patient(SessionConfig::connect("near", far).local_udp(any()))).await;
    app.send_to(b"first", entry).await.unwrap();
    assert_eq!(receive(&service).await.0, b"first");
    for number in 0..20u8 {
        app.send_to(&[number], entry).await.unwrap();
    }
    // Asked after the datagrams, it stops after them: they are in its socket already.
    house.info_when("near", "all are read", |info| info.counters.to_tcp.datagrams == 21).await;
    house.stop("near").await.unwrap();
    for number in 0..20u8 {
        assert_eq!(receive(&service).await.0, [number]);
    }
    house.shutdown().await;
}
