//! The channels of a session at a relay, seen by a far side that is spoken by hand.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;

use actix_relay::config::{RelayRemote, SessionConfig};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{EventKind, SideEvent};
use actix_relay::session::SessionState;
use sha2::{Digest, Sha256};
use support::relay_side::{
    INSTANCE, JOIN, PAIR_ID, PASSWORD, PEER_STATUS, REALM, SIDE_ID, Side, USER, config,
};
use support::{House, any, receive, udp};

fn at(relay: SocketAddr, side: &str) -> RelayRemote {
    RelayRemote::new(relay.into(), UserPassword::new(USER, PASSWORD), "pair", side)
}

/// A side of the same pair that has been told of its peer.
async fn paired(relay: SocketAddr, name: &str) -> Side {
    let mut side = Side::connect(relay).await;
    side.log_in(USER, PASSWORD).await;
    let pair = Sha256::digest(format!("{REALM}:{USER}:pair"));
    let answer =
        side.request(JOIN, &[(PAIR_ID, &pair), (SIDE_ID, name.as_bytes()), (INSTANCE, &[7; 8])]).await;
    assert_eq!((answer.error(), answer.number(PEER_STATUS)), (None, Some(1)));
    assert_eq!(side.peer().await, 1);
    side
}

async fn waiting(house: &House, session: &str) {
    house.info_when(session, "it waits", |info| info.state == SessionState::Waiting).await;
}

#[actix::test]
async fn applications_get_channels_of_their_own_of_the_right_parity() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    for (name, first) in [("left", 0x4000), ("z", 0x4001)] {
        let session = SessionConfig::connect(name, at(relay, name)).local_udp(any());
        let entry = house.local(session).await;
        waiting(&house, name).await;
        let mut far = paired(relay, "near").await;
        let apps = [udp().await, udp().await, udp().await];
        for (app, channel) in apps.iter().zip((first..first + 6).step_by(2)) {
            app.send_to(b"hello", entry).await.unwrap();
            assert_eq!(far.datagram().await, (channel, b"hello".to_vec()));
        }
        for (app, channel) in apps.iter().zip((first..first + 6).step_by(2)).rev() {
            far.send_data(channel, b"answer").await;
            assert_eq!(receive(app).await, (b"answer".to_vec(), entry));
        }
        // Of ours, and not open; reserved.
        far.send_data(first + 6, b"?").await;
        far.send_data(0x4fff, b"?").await;
        house.info_when(name, "both are dropped", |info| info.counters.drops.no_application == 2).await;
        house
            .supervisor
            .send(actix_relay::supervisor::StopSession { session: name.into() })
            .await
            .unwrap()
            .unwrap();
        assert_eq!(far.peer().await, 2);
        assert_eq!(far.refresh(0).await, Ok(0));
    }
    house.shutdown().await;
}

#[actix::test]
async fn each_channel_of_the_peer_reaches_the_service_from_a_port_of_its_own_up_to_a_limit() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let service = udp().await;
    let mut session =
        SessionConfig::connect("left", at(relay, "left")).udp_forward(service.local_addr().unwrap());
    session.max_sources = 2;
    house.start(session).await;
    waiting(&house, "left").await;
    let mut far = paired(relay, "near").await;
    let mut ports = Vec::new();
    for channel in [0x4001, 0x4ffd] {
        far.send_data(channel, b"hello").await;
        ports.push(receive(&service).await.1);
    }
    assert_ne!(ports[0], ports[1]);
    far.send_data(0x4003, b"one too many").await;
    let refused = house.event("left", |kind| match kind {
        EventKind::Side(SideEvent::RelayChannelRefused { channel, .. }) => Some(*channel),
        _ => None,
    });
    assert_eq!(refused.await, 0x4003);
    for (channel, port) in [(0x4ffd, ports[1]), (0x4001, ports[0])] {
        service.send_to(b"answer", port).await.unwrap();
        assert_eq!(far.datagram().await, (channel, b"answer".to_vec()));
        far.send_data(channel, b"again").await;
        assert_eq!(receive(&service).await, (b"again".to_vec(), port));
    }
    house.shutdown().await;
}

#[actix::test]
async fn nothing_meant_for_one_peer_reaches_another() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let service = udp().await;
    let session =
        SessionConfig::connect("left", at(relay, "left")).udp_forward(service.local_addr().unwrap());
    house.start(session).await;
    waiting(&house, "left").await;
    let mut near = paired(relay, "near").await;
    near.send_data(0x4001, b"hello").await;
    let (_, port) = receive(&service).await;
    assert_eq!(near.refresh(0).await, Ok(0));
    waiting(&house, "left").await;
    // It waits for the peer, as it comes back at times.
    service.send_to(b"for near", port).await.unwrap();
    let mut other = paired(relay, "other").await;
    service.send_to(b"for near", port).await.unwrap();
    other.send_data(0x4001, b"hello").await;
    let (datagram, of_other) = receive(&service).await;
    assert_eq!(datagram, b"hello");
    assert_ne!(of_other, port);
    service.send_to(b"for other", of_other).await.unwrap();
    assert_eq!(other.datagram().await, (0x4001, b"for other".to_vec()));
    assert_eq!(other.refresh(0).await, Ok(0));
    waiting(&house, "left").await;
    // The same peer again has the same port.
    let mut other = paired(relay, "other").await;
    service.send_to(b"for other", of_other).await.unwrap();
    assert_eq!(other.datagram().await, (0x4001, b"for other".to_vec()));
    house.shutdown().await;
}
