//! The two seeds joined: sessions whose links run on relay connections of a TURN server (RFC 6062), against coturn.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::{IpAddr, SocketAddr};

use actix_relay::config::{SessionConfig, TurnListen, TurnRemote};
use actix_relay::event::{EventKind, TurnEvent};
use actix_relay::session::{Disconnect, SessionState};
use actix_relay::supervisor::InSession;
use support::coturn::Coturn;
use support::turn::server;
use support::{Echo, House, any, echoed_once, patient, udp, until_echoed};

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A session that is reached through the server, and its relayed address.
async fn listen(house: &mut House, coturn: &Coturn, config: SessionConfig) -> SocketAddr {
    let mut config = config;
    config.turn_listen = Some(TurnListen::new(server(&coturn.uri("tcp")), vec![LOOPBACK]));
    let name = config.name.as_str().to_owned();
    house.start(config).await;
    let relayed = house.allocated(&name).await;
    // An attempt that comes before the permission is lost without a word.
    house
        .turn_event(&name, |event| matches!(event, TurnEvent::PermissionsCreated { .. }).then_some(()))
        .await;
    relayed
}

fn through(coturn: &Coturn, peer: SocketAddr) -> TurnRemote {
    TurnRemote::new(server(&coturn.uri("tcp")), peer)
}

#[actix::test]
async fn a_session_behind_a_relayed_address_is_reached_directly() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let relayed =
        listen(&mut house, &coturn, patient(SessionConfig::new("far").udp_forward(echo.addr))).await;
    let near = house.local(patient(SessionConfig::connect("near", relayed).local_udp(any()))).await;
    for len in [0, 1, 1200, 9000, 60_000] {
        echoed_once(&app, near, &vec![len as u8; len]).await;
    }
    let far = house.info("far").await;
    assert_eq!((far.links.len(), far.state), (1, SessionState::Connected));
    house.shutdown().await;
}

#[actix::test]
async fn two_sessions_that_can_only_call_out_meet_at_the_server() {
    let coturn = Coturn::builder().arg("--verbose").start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let relayed =
        listen(&mut house, &coturn, patient(SessionConfig::new("far").udp_forward(echo.addr))).await;
    let remote = through(&coturn, relayed);
    let near = house.local(patient(SessionConfig::connect("near", remote).local_udp(any()))).await;
    echoed_once(&app, near, b"held while the connection was being made").await;
    let datagrams: Vec<Vec<u8>> = (0..200u8).map(|number| vec![number; 1200]).collect();
    for datagram in &datagrams {
        echoed_once(&app, near, datagram).await;
    }
    house.shutdown().await;
    assert_eq!(
        coturn.log().matches("lifetime=0").count(),
        2,
        "both allocations are deleted: {}",
        coturn.log()
    );
}

#[actix::test]
async fn a_session_calls_a_plain_listener_through_the_server() {
    let coturn = Coturn::start();
    let house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let near = house.local(SessionConfig::connect("near", through(&coturn, far)).local_udp(any())).await;
    until_echoed(&app, near, "through").await;
    house.shutdown().await;
}

#[actix::test]
async fn after_the_server_was_restarted_traffic_flows_again() {
    let mut coturn = Coturn::start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let near = house.local(SessionConfig::connect("near", through(&coturn, far)).local_udp(any())).await;
    until_echoed(&app, near, "before").await;
    coturn.restart();
    house
        .turn_event("near", |event| matches!(event, TurnEvent::AllocationDeleted { .. }).then_some(()))
        .await;
    house.allocated("near").await;
    until_echoed(&app, near, "after").await;
    assert_eq!(house.info("near").await.local_udp, Some(near));
    house.shutdown().await;
}

#[actix::test]
async fn a_disconnected_session_gives_its_allocation_back() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let echo = Echo::start().await;
    listen(&mut house, &coturn, patient(SessionConfig::new("far").udp_forward(echo.addr))).await;
    assert_eq!(house.info("far").await.state, SessionState::Listening);
    let message = InSession { session: "far".into(), message: Disconnect };
    house.supervisor.send(message).await.unwrap().unwrap();
    house.turn_event("far", |event| matches!(event, TurnEvent::AllocationDeleted { .. }).then_some(())).await;
    assert_eq!(house.info("far").await.state, SessionState::Idle);
    house.shutdown().await;
}

#[actix::test]
async fn a_peer_that_is_not_there_is_told_with_what_the_server_said() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let nobody = support::vacant_tcp();
    house.start(SessionConfig::connect("near", through(&coturn, nobody)).local_udp(any())).await;
    let error = house
        .event("near", |kind| match kind {
            EventKind::ConnectFailed { error, .. } => Some(error.clone()),
            _ => None,
        })
        .await;
    assert!(error.contains("447"), "{error}");
    house.shutdown().await;
}
