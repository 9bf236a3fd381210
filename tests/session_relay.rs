//! Sessions that only call out meet at a relay: what goes through, and what becomes of them.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::{RelayRemote, SessionConfig};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{Cause, EventKind, SideEvent};
use actix_relay::session::SessionState;
use actix_relay::supervisor::StopSession;
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
