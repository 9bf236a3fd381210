//! A panic in any actor ends that actor only; it is replaced, and the ports stay.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;

use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::event::EventKind;
use actix_relay::session::LinkId;
use actix_relay::supervisor::InSession;
use actix_relay::test_panic::{Panic, PanicIn};
use support::{Echo, House, any, receive, udp, until_echoed};
use tokio::net::UdpSocket;

struct Tunnel {
    house: House,
    app: UdpSocket,
    near: SocketAddr,
    far: SocketAddr,
    _echo: Echo,
}

impl Tunnel {
    async fn new() -> Self {
        Self::with(SupervisorConfig::default()).await
    }

    async fn with(config: SupervisorConfig) -> Self {
        let mut house = House::with(config).await;
        let (echo, app) = (Echo::start().await, udp().await);
        house.start(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
        let far = house.info("far").await.local_tcp[0];
        house.start(SessionConfig::connect("near", far).local_udp(any())).await;
        let near = house.info("near").await.local_udp.unwrap();
        house.connected("near").await;
        until_echoed(&app, near, "before").await;
        Self { house, app, near, far, _echo: echo }
    }

    async fn panic_in(&mut self, session: &str, victim: PanicIn) -> String {
        let message = InSession { session: session.into(), message: victim };
        // The session's own panic leaves nobody to answer.
        let _ = self.house.supervisor.send(message).await.unwrap();
        self.house
            .event(session, |kind| match kind {
                EventKind::ActorPanicked { actor } => Some(actor.clone()),
                _ => None,
            })
            .await
    }

    async fn works_at_the_same_ports(self) {
        until_echoed(&self.app, self.near, "after").await;
        assert_eq!(self.house.info("near").await.local_udp, Some(self.near));
        assert_eq!(self.house.info("far").await.local_tcp, [self.far]);
        self.house.shutdown().await;
    }
}

#[actix::test]
async fn a_panic_of_the_dialing_session_is_survived() {
    let mut tunnel = Tunnel::new().await;
    assert_eq!(tunnel.panic_in("near", PanicIn::Session).await, "RelaySessionActor");
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn a_panic_of_the_listening_session_is_survived() {
    let mut tunnel = Tunnel::new().await;
    tunnel.panic_in("far", PanicIn::Session).await;
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn what_was_carried_before_a_panic_stays_counted() {
    let mut tunnel = Tunnel::new().await;
    let before = tunnel.house.info("near").await.counters.to_tcp.datagrams;
    assert!(before > 0);
    tunnel.panic_in("near", PanicIn::Session).await;
    until_echoed(&tunnel.app, tunnel.near, "after").await;
    assert!(tunnel.house.info("near").await.counters.to_tcp.datagrams > before);
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn a_panic_of_the_local_udp_endpoint_is_survived_without_losing_the_connection() {
    let mut tunnel = Tunnel::new().await;
    assert_eq!(tunnel.panic_in("near", PanicIn::Endpoint).await, "UdpEndpointActor");
    until_echoed(&tunnel.app, tunnel.near, "after").await;
    assert_eq!(tunnel.house.info("near").await.links.len(), 1);
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn a_panic_of_the_endpoint_towards_the_service_is_survived() {
    let mut tunnel = Tunnel::new().await;
    let link = tunnel.house.info("far").await.links[0].link;
    let actor = tunnel.panic_in("far", PanicIn::LinkEndpoint(link)).await;
    assert_eq!(actor, format!("UdpEndpointActor of link {link}"));
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn a_panic_of_a_dialed_connection_is_survived() {
    let mut tunnel = Tunnel::new().await;
    assert_eq!(tunnel.panic_in("near", PanicIn::Link(LinkId(0))).await, "TcpPeerActor of link 0");
    tunnel.house.connected("near").await;
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn a_panic_of_an_accepted_connection_is_survived() {
    let mut tunnel = Tunnel::new().await;
    let link = tunnel.house.info("far").await.links[0].link;
    // The near side may hear of it first: its events are not waited for here.
    tunnel.panic_in("far", PanicIn::Link(link)).await;
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn a_session_that_panics_again_and_again_is_given_up() {
    let mut config = SupervisorConfig::default();
    config.max_panics = 3;
    let mut tunnel = Tunnel::with(config).await;
    for life in 0..4 {
        tunnel.panic_in("near", PanicIn::Session).await;
        if life < 3 {
            let started = |kind: &EventKind| matches!(kind, EventKind::SessionStarted { .. }).then_some(());
            tunnel.house.event("near", started).await;
        }
    }
    let reason = |kind: &EventKind| match kind {
        EventKind::GaveUp { reason } => Some(reason.clone()),
        _ => None,
    };
    assert_eq!(tunnel.house.event("near", reason).await, "RelaySessionActor panicked too often");
    tunnel.house.shutdown().await;
}

#[actix::test]
async fn when_the_supervisor_panics_its_sessions_end() {
    let tunnel = Tunnel::new().await;
    let Tunnel { house, app, near, .. } = tunnel;
    house.supervisor.do_send(Panic);
    // The ports are free again as soon as the sessions are gone.
    let again = async {
        while UdpSocket::bind(near).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::PATIENCE, again).await.expect("the session lives on");
    drop(app);
    assert!(!house.supervisor.connected());
}

#[actix::test]
async fn an_answer_to_a_source_known_before_the_panic_still_reaches_it() {
    let mut tunnel = Tunnel::new().await;
    let other = udp().await;
    until_echoed(&other, tunnel.near, "other").await;
    tunnel.panic_in("near", PanicIn::Endpoint).await;
    tunnel.app.send_to(b"mine", tunnel.near).await.unwrap();
    other.send_to(b"yours", tunnel.near).await.unwrap();
    let mut got = receive(&tunnel.app).await.0;
    while got.starts_with(b"before") {
        got = receive(&tunnel.app).await.0;
    }
    assert_eq!(got, b"mine");
    let mut got = receive(&other).await.0;
    while got.starts_with(b"other") {
        got = receive(&other).await.0;
    }
    assert_eq!(got, b"yours");
    assert_eq!(tunnel.house.info("near").await.links.len(), 2);
    tunnel.works_at_the_same_ports().await;
}

#[actix::test]
async fn sources_known_before_the_panic_of_their_endpoint_are_still_forgotten_in_time() {
    let mut house = House::new().await;
    let echo = Echo::start().await;
    house.start(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let far = house.info("far").await.local_tcp[0];
    let mut near = SessionConfig::connect("near", far).local_udp(any());
    near.source_idle = std::time::Duration::from_millis(500);
    house.start(near).await;
    let near = house.info("near").await.local_udp.unwrap();
    let (one, other) = (udp().await, udp().await);
    until_echoed(&one, near, "one").await;
    until_echoed(&other, near, "other").await;
    let message = InSession { session: "near".into(), message: PanicIn::Endpoint };
    house.supervisor.send(message).await.unwrap().unwrap();
    for _ in 0..2 {
        let forgotten = |kind: &EventKind| matches!(kind, EventKind::SourceForgotten { .. }).then_some(());
        house.event("near", forgotten).await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_supervisor_that_never_forgets_a_panic_survives_several() {
    let mut config = SupervisorConfig::default();
    config.panic_window = std::time::Duration::MAX;
    let mut tunnel = Tunnel::with(config).await;
    for _ in 0..3 {
        tunnel.panic_in("near", PanicIn::Endpoint).await;
        until_echoed(&tunnel.app, tunnel.near, "again").await;
    }
    tunnel.works_at_the_same_ports().await;
}
