//! Sessions that only call out meet at a relay: what goes through, and what becomes of them.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::{RelayRemote, SessionConfig};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{Cause, EventKind, SideEvent};
use actix_relay::session::{Connect, Listen, SessionState};
use actix_relay::supervisor::{InSession, StopSession};
use support::relay_side::{PASSWORD, USER, config};
use support::{Echo, House, any, echoed_once, receive, udp, until_echoed};

fn at(relay: SocketAddr, side: &str) -> RelayRemote {
    RelayRemote::new(relay.into(), UserPassword::new(USER, PASSWORD), "pair", side)
}

/// Local applications send here.
fn near(relay: SocketAddr) -> SessionConfig {
    SessionConfig::connect("near", at(relay, "near")).local_udp(any())
}

/// Datagrams go to this service.
fn far(relay: SocketAddr, service: SocketAddr) -> SessionConfig {
    SessionConfig::connect("far", at(relay, "far")).udp_forward(service)
}

/// The peer is there.
async fn paired(house: &mut House, session: &str) -> String {
    house
        .event(session, |kind| match kind {
            EventKind::Side(SideEvent::RelayPeerPresent { side, .. }) => Some(side.clone()),
            _ => None,
        })
        .await
}

#[actix::test]
async fn many_applications_share_one_connection_and_each_gets_its_own_answers() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let echo = Echo::start().await;
    let entry = house.local(near(relay)).await;
    house.start(far(relay, echo.addr)).await;
    assert_eq!(paired(&mut house, "near").await, "far");
    let apps = [udp().await, udp().await, udp().await];
    for (number, app) in apps.iter().enumerate() {
        for len in [0, 1, 1200, 1201, 9000, 60_000] {
            echoed_once(app, entry, &vec![number as u8; len]).await;
        }
    }
    let info = house.info("near").await;
    assert_eq!((info.state, info.links.len()), (SessionState::Connected, 1));
    assert_eq!(info.links[0].peer, Some(relay));
    assert_eq!(info.counters.to_tcp.datagrams, 18);
    assert_eq!(info.counters.drops.total(), 0);
    assert_eq!(house.relay_info("relay").await.sides, 2);
    house.shutdown().await;
}

/// The peer has gone, and the connection has not.
async fn parted(house: &mut House, session: &str) {
    house
        .event(session, |kind| match kind {
            EventKind::Side(SideEvent::RelayPeerGone { .. }) => Some(()),
            EventKind::PeerDisconnected { detail, .. } => panic!("{detail}"),
            _ => None,
        })
        .await;
}

/// The connection to the relay has ended.
async fn ended(house: &mut House, session: &str) -> (Cause, String, Option<Duration>) {
    house
        .event(session, |kind| match kind {
            EventKind::PeerDisconnected { cause, detail, retry_in, .. } => {
                Some((*cause, detail.clone(), *retry_in))
            }
            _ => None,
        })
        .await
}

/// An attempt to join came to nothing.
async fn failed(house: &mut House, session: &str) -> (String, Option<Duration>) {
    house
        .event(session, |kind| match kind {
            EventKind::ConnectFailed { error, retry_in, .. } => Some((error.clone(), *retry_in)),
            _ => None,
        })
        .await
}

async fn stop(house: &House, name: &str) {
    house.supervisor.send(StopSession { session: name.into() }).await.unwrap().unwrap();
}

#[actix::test]
async fn a_side_whose_peer_goes_keeps_its_connection_and_its_port_and_the_peer_s_come_back() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let echo = Echo::start().await;
    let entry = house.local(near(relay)).await;
    house.start(far(relay, echo.addr)).await;
    paired(&mut house, "near").await;
    let app = udp().await;
    echoed_once(&app, entry, b"before").await;
    stop(&house, "far").await;
    parted(&mut house, "near").await;
    assert_eq!(house.info("near").await.state, SessionState::Waiting);
    house.start(far(relay, echo.addr)).await;
    paired(&mut house, "near").await;
    echoed_once(&app, entry, b"after").await;
    assert_eq!(house.info("near").await.local_udp, Some(entry));
    house.shutdown().await;
}

#[actix::test]
async fn a_service_goes_on_sending_through_a_relay_that_was_restarted() {
    let mut house = House::new().await;
    let mut settings = config("relay");
    let (_, relay) = house.start_relay(settings.clone()).await;
    settings.local_tcp = vec![relay];
    let service = udp().await;
    let entry = house.local(near(relay)).await;
    house.start(far(relay, service.local_addr().unwrap())).await;
    paired(&mut house, "near").await;
    let apps = [udp().await, udp().await];
    let mut ports = Vec::new();
    for app in &apps {
        app.send_to(b"hello", entry).await.unwrap();
        ports.push(receive(&service).await.1);
    }
    assert_ne!(ports[0], ports[1]);
    stop(&house, "relay").await;
    let (cause, detail, retry_in) = ended(&mut house, "near").await;
    assert_eq!((cause, detail.as_str()), (Cause::Restarting, "the relay restarts"));
    let wait = retry_in.unwrap();
    assert!((Duration::from_millis(200)..=Duration::from_secs(5)).contains(&wait), "{wait:?}");
    house.start_relay(settings).await;
    paired(&mut house, "near").await;
    // The applications have said nothing since: it is to the ports it knows that the service sends.
    for (app, port) in apps.iter().zip(&ports).rev() {
        service.send_to(b"news", port).await.unwrap();
        let (datagram, from) = receive(app).await;
        assert_eq!((datagram.as_slice(), from), (&b"news"[..], entry));
        app.send_to(b"thanks", entry).await.unwrap();
        assert_eq!(receive(&service).await, (b"thanks".to_vec(), *port));
    }
    house.shutdown().await;
}

#[actix::test]
async fn two_applications_meet_whoever_speaks_first() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (left, right) = (udp().await, udp().await);
    let known = |side: &str, app: SocketAddr| {
        let mut config = SessionConfig::connect(side, at(relay, side)).local_udp(any());
        config.app = Some(app);
        config
    };
    let left_entry = house.local(known("left", left.local_addr().unwrap())).await;
    let right_entry = house.local(near(relay)).await;
    for side in ["left", "near"] {
        house.info_when(side, "it is paired", |info| info.state == SessionState::Connected).await;
    }
    right.send_to(b"first", right_entry).await.unwrap();
    assert_eq!(receive(&left).await, (b"first".to_vec(), left_entry));
    left.send_to(b"second", left_entry).await.unwrap();
    assert_eq!(receive(&right).await, (b"second".to_vec(), right_entry));
    // It comes back at another port: what the far side sends goes there from its first datagram on.
    let moved = udp().await;
    moved.send_to(b"third", right_entry).await.unwrap();
    assert_eq!(receive(&left).await, (b"third".to_vec(), left_entry));
    left.send_to(b"fourth", left_entry).await.unwrap();
    assert_eq!(receive(&moved).await, (b"fourth".to_vec(), right_entry));
    house.shutdown().await;
}

#[actix::test]
async fn a_wrong_password_is_said_and_tried_again_slowly() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut remote = at(relay, "near");
    remote.credentials = UserPassword::new(USER, "wrong");
    house.start(SessionConfig::connect("near", remote).local_udp(any())).await;
    let (error, retry_in) = failed(&mut house, "near").await;
    assert_eq!(error, format!("the relay does not accept user '{USER}' with this password"));
    assert!(retry_in.unwrap() >= Duration::from_secs(5), "{retry_in:?}");
    let info = house.info("near").await;
    assert!(matches!(info.state, SessionState::Backoff { .. }), "{info:?}");
    house.shutdown().await;
}

#[actix::test]
async fn whoever_comes_with_the_same_name_takes_the_place_and_a_third_side_finds_none() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let echo = Echo::start().await;
    house.start(SessionConfig::connect("old", at(relay, "near")).local_udp(any())).await;
    house.start(far(relay, echo.addr)).await;
    paired(&mut house, "old").await;
    let entry = house.local(near(relay)).await;
    let (cause, detail, retry_in) = ended(&mut house, "old").await;
    assert_eq!(cause, Cause::Superseded);
    assert!(detail.contains("another session with the same name"), "{detail}");
    // Without TLS anybody could have said so: it comes again, slowly.
    assert!(retry_in.unwrap() >= Duration::from_secs(5), "{retry_in:?}");
    echoed_once(&udp().await, entry, b"to the newer").await;
    house.start(SessionConfig::connect("third", at(relay, "third")).local_udp(any())).await;
    let (error, retry_in) = failed(&mut house, "third").await;
    assert_eq!(error, "Join: the relay answered 409 (two other sides of this pair are there already)");
    assert!(retry_in.unwrap() >= Duration::from_secs(5), "{retry_in:?}");
    house.shutdown().await;
}

#[actix::test]
async fn a_relay_that_is_not_there_is_called_again_and_datagrams_wait_for_the_peer() {
    let mut house = House::new().await;
    let relay = support::vacant_tcp();
    let echo = Echo::start().await;
    let entry = house.local(near(relay)).await;
    house.start(far(relay, echo.addr)).await;
    let (error, _) = failed(&mut house, "near").await;
    assert!(error.starts_with(&format!("connecting to {relay}: ")), "{error}");
    let mut settings = config("relay");
    settings.local_tcp = vec![relay];
    house.start_relay(settings).await;
    until_echoed(&udp().await, entry, "through a late relay").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_session_moves_to_a_relay_and_back_by_messages() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let echo = Echo::start().await;
    let direct = house.listen(SessionConfig::listen("direct", any()).udp_forward(echo.addr)).await;
    let entry = house.local(SessionConfig::connect("near", direct).local_udp(any())).await;
    house.start(far(relay, echo.addr)).await;
    let app = udp().await;
    echoed_once(&app, entry, b"directly").await;
    for round in ["once", "again"] {
        let connect = Connect { remote: at(relay, "near").into() };
        house.supervisor.send(InSession { session: "near".into(), message: connect }).await.unwrap().unwrap();
        paired(&mut house, "near").await;
        until_echoed(&app, entry, round).await;
        assert_eq!(house.info("near").await.links.len(), 1);
        let listen = Listen { local_tcp: vec![any()] };
        let refused = house.supervisor.send(InSession { session: "near".into(), message: listen }).await;
        assert!(refused.unwrap().unwrap().unwrap_err().to_string().contains("comes through a relay"));
        let connect = Connect { remote: direct.into() };
        house.supervisor.send(InSession { session: "near".into(), message: connect }).await.unwrap().unwrap();
        house.connected("near").await;
        until_echoed(&app, entry, round).await;
        assert_eq!(house.relay_info("relay").await.sides, 1);
    }
    house.shutdown().await;
}
