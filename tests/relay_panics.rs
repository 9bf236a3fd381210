//! A panic in a relay ends what panicked only: a connection, or all of them where it is the relay's own actor, which is
//! replaced and listens at the same port.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use actix_relay::event::{EventKind, LeaveCause, RelayEvent};
use actix_relay::supervisor::InRelay;
use actix_relay::test_panic::{Panic, PanicInSide};
use support::House;
use support::relay_side::{Side, config};

async fn panicked(house: &mut House) -> String {
    house
        .event("relay", |kind| match kind {
            EventKind::ActorPanicked { actor } => Some(actor.clone()),
            _ => None,
        })
        .await
}

#[actix::test]
async fn a_connection_that_panics_parks_its_peer_and_no_more() {
    let mut house = House::new().await;
    let (actor, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    let (mut c, mut d) = Side::pair(relay, "another").await;
    d.send_data(0x4001, b"well").await;
    assert_eq!(c.datagram().await.1, b"well");
    drop((c, d));
    house.relay_when("relay", "one pair is left", |info| info.pairs == 1).await;
    actor.send(PanicInSide("a".into())).await.unwrap();
    assert!(panicked(&mut house).await.starts_with("relay connection "));
    assert!(a.is_closed().await);
    assert_eq!(b.peer().await, 2);
    let cause = house.relay_event("relay", |event| match event {
        RelayEvent::SideLeft { cause: LeaveCause::Panicked, parked, .. } => Some(*parked),
        _ => None,
    });
    assert!(cause.await);
    let mut a = Side::joined(relay, "secret", "a").await;
    assert_eq!((a.peer().await, b.peer().await), (1, 1));
    assert!(actor.connected());
}

#[actix::test]
async fn a_relay_that_panics_is_replaced_at_the_same_port() {
    let mut house = House::new().await;
    let (actor, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    a.send_data(0x4000, b"before").await;
    assert_eq!(b.datagram().await.1, b"before");
    let _ = house.supervisor.send(InRelay { relay: "relay".into(), message: Panic }).await.unwrap();
    assert_eq!(panicked(&mut house).await, "TcpRelayActor");
    assert!(a.is_closed().await && b.is_closed().await);
    house.relay_event("relay", |event| matches!(event, RelayEvent::RelayStarted { .. }).then_some(())).await;
    assert!(!actor.connected());
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    a.send_data(0x4000, b"after").await;
    assert_eq!(b.datagram().await.1, b"after");
    // Counters are the relay's, not a life's.
    assert_eq!(house.relay_info("relay").await.counters.forwarded.datagrams, 2);
    house.shutdown().await;
}

#[actix::test]
async fn a_relay_that_is_told_to_stop_tells_its_sides_when_to_come_back() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    let mut unjoined = Side::connect(relay).await;
    unjoined.ping().await;
    let stop = actix_relay::supervisor::StopSession { session: "relay".into() };
    let stopped = house.supervisor.send(stop);
    for side in [&mut a, &mut b, &mut unjoined] {
        let closing = side.closing().await;
        assert_eq!(closing.number(0x7f04), Some(2));
        assert!((200..=5000).contains(&closing.number(0xff01).unwrap()), "{closing:?}");
    }
    drop((a, b, unjoined));
    stopped.await.unwrap().unwrap();
    house.event("relay", |kind| matches!(kind, EventKind::SessionStopped).then_some(())).await;
    assert!(std::net::TcpStream::connect(relay).is_err());
}
