//! What a side must not get through a relay, or out of it, whatever it sends and whenever its peers come and go.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::time::Duration;

use actix_relay::config::SupervisorConfig;
use actix_relay::event::RelayEvent;
use support::relay_side::{PASSWORD, REASON, REFRESH, Side, USER, config, data};
use support::{House, soon};
use tokio::io::AsyncReadExt;

fn workers(workers: usize) -> SupervisorConfig {
    let mut config = SupervisorConfig::default();
    config.workers = workers;
    config
}

async fn gone(house: &House) {
    house.relay_when("relay", "it is forgotten", |info| info.sides == 1).await;
}

#[actix::test]
async fn a_refresh_that_extends_a_wait_does_not_count_for_the_peer_2_that_it_crosses() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut b = Side::joined(relay, "secret", "b").await;
    // Peer 1 and Peer 2 are under way to b …
    let x = Side::joined(relay, "secret", "a").await;
    drop(x);
    gone(&house).await;
    // … when b extends its wait; it hears of x only after that, and has something for it.
    let (_, refresh) = b.sealed(REFRESH, &[]);
    b.send(&refresh).await;
    b.ping().await;
    let mut y = Side::joined(relay, "secret", "a").await;
    assert_eq!(y.peer().await, 1);
    assert_eq!(b.peer().await, 1);
    b.send_data(0x4001, b"for x").await;
    // Now it hears that x has gone, and shows it.
    assert_eq!(b.refresh(600).await, Ok(600));
    b.send_data(0x4001, b"for y").await;
    assert_eq!(y.datagram().await.1, b"for y");
}

#[actix::test]
async fn the_refresh_for_one_peer_2_does_not_count_for_the_next() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut b = Side::joined(relay, "secret", "b").await;
    // x comes, and is superseded again and again: 1, 2, 1, 2, 1 are under way to b.
    let mut last = Side::joined(relay, "secret", "a").await;
    for _ in 0..2 {
        last = Side::joined(relay, "secret", "a").await;
    }
    assert_eq!((b.peer().await, b.peer().await), (1, 2));
    let (_, refresh) = b.sealed(REFRESH, &[]);
    b.send(&refresh).await;
    // Of the second one: it has not heard yet that that is gone too.
    assert_eq!(b.peer().await, 1);
    b.send_data(0x4001, b"for the second").await;
    b.send(&refresh).await;
    assert_eq!(b.peer().await, 2);
    assert_eq!(b.refresh(600).await, Ok(600));
    b.send_data(0x4001, b"for the third").await;
    assert_eq!(last.peer().await, 1);
    assert_eq!(last.datagram().await.1, b"for the third");
}

#[actix::test]
async fn a_side_that_does_not_read_while_its_peer_comes_and_goes_is_closed() {
    let house = House::with(workers(1)).await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    // a takes nothing: what is under way to it fills its socket.
    let flood = data(0x4001, &[7; 60_000]);
    for _ in 0..200 {
        b.send(&flood).await;
    }
    b.ping().await;
    let mut last = b;
    for _ in 0..1500 {
        last = Side::joined(relay, "secret", "b").await;
    }
    // More than what may wait of it: some would be lost, and nobody knows where the peer is then.
    let mut bytes = vec![0; 1 << 20];
    let end = async { while a.stream.read(&mut bytes).await.is_ok_and(|len| len > 0) {} };
    soon("it is closed", end).await;
    gone(&house).await;
    drop(last);
}

#[actix::test]
async fn passwords_are_guessed_a_few_times_only_also_by_one_that_has_joined() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut joined, mut peer) = Side::pair(relay, "secret").await;
    let mut unjoined = Side::connect(relay).await;
    unjoined.log_in(USER, PASSWORD).await;
    for side in [&mut joined, &mut unjoined] {
        let (_, mut wrong) = side.sealed(REFRESH, &[]);
        *wrong.last_mut().unwrap() ^= 1;
        side.send(&wrong.repeat(10)).await;
        for _ in 0..4 {
            assert_eq!(side.stun().await.error(), Some(401));
        }
        assert_eq!(side.closing().await.number(REASON), Some(6));
    }
    assert_eq!(peer.peer().await, 2);
}

/// One that reads nothing, and what waits for it.
#[actix::test]
async fn what_a_side_does_not_take_grows_too_old_also_when_nothing_more_comes() {
    let mut supervisor = SupervisorConfig::default();
    supervisor.stats_interval = Duration::from_millis(50);
    let mut house = House::with(supervisor).await;
    let mut config = config("relay");
    config.max_queue_delay = Duration::from_millis(20);
    let (_, relay) = house.start_relay(config).await;
    let (_deaf, mut b) = Side::pair(relay, "secret").await;
    let sent = 400;
    for _ in 0..sent {
        b.send_data(0x4001, &[7; 60_000]).await;
    }
    let all_told = house.relay_event("relay", |event| match event {
        RelayEvent::RelayStats { counters, .. } => {
            // What the socket of the deaf one has taken counts as forwarded, but for what it has a part of.
            let told = counters.forwarded.datagrams + counters.drops.total() + 1;
            (told >= sent).then_some(counters.drops.expired)
        }
        _ => None,
    });
    assert!(all_told.await > 0, "some was too old");
}
