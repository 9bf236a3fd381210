//! Two sides that only call out meet at a relay; who may, and in whose place.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::time::Instant;

use actix_relay::credentials::UserPassword;
use actix_relay::event::{JoinRefusal, LeaveCause, RelayEvent};
use actix_relay::supervisor::{SetAccounts, SetAccountsError};
use support::House;
use support::relay_side::{
    BINDING, Came, Class, INSTANCE, LIFETIME, PASSWORD, PEER_STATUS, REASON, REFRESH, SIDE_ID, Side, USER,
    USERNAME, config, stun,
};

#[actix::test]
async fn what_one_side_sends_the_other_gets_as_it_stands() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    for len in [0, 1, 2, 3, 4, 1200, 9000, 65_527] {
        let datagram = vec![len as u8; len];
        a.send_data(0x4000, &datagram).await;
        assert_eq!(b.datagram().await, (0x4000, datagram.clone()));
        b.send_data(0x4ffe, &datagram).await;
        assert_eq!(a.datagram().await, (0x4ffe, datagram));
    }
    let info = house.relay_info("relay").await;
    assert_eq!((info.sides, info.pairs, info.unjoined), (2, 1, 0));
    assert_eq!(info.counters.forwarded.datagrams, 16);
    assert_eq!(info.counters.drops.total(), 0);
    let pairs = house.relay_pairs("relay").await;
    let sides: Vec<_> = pairs[0].sides.iter().map(|side| (side.side.as_str(), side.user.as_str())).collect();
    assert_eq!(sides, [("a", USER), ("b", USER)]);
    assert_eq!(pairs[0].counters, info.counters);
    house.shutdown().await;
}

#[actix::test]
async fn others_may_join_from_now_on_if_somebody_can() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let set = |relay: &str, users: &[(&str, &str)]| {
        let users = users.iter().map(|(user, password)| UserPassword::new(*user, *password)).collect();
        house.supervisor.send(SetAccounts { relay: relay.into(), users, shared_key: None })
    };
    assert!(matches!(set("other", &[("bob", "x")]).await.unwrap(), Err(SetAccountsError::NoRelay(_))));
    for impossible in [&[][..], &[("b:ob", "x")], &[("bob", "x"), ("bob", "y")], &[("b\u{7}", "x")]] {
        let refused = set("relay", impossible).await.unwrap();
        assert!(matches!(refused, Err(SetAccountsError::Accounts(_))), "{impossible:?}");
    }
    let alice = Side::joined(relay, "hers", "a").await;
    set("relay", &[("bob", "of bob")]).await.unwrap().unwrap();
    let told = house.relay_event("relay", |event| match event {
        RelayEvent::AccountsSet { users, short_lived } => Some((*users, *short_lived)),
        _ => None,
    });
    assert_eq!(told.await, (1, false));
    let mut bob = Side::connect(relay).await;
    bob.log_in("bob", "of bob").await;
    assert_eq!(bob.join_as("his", "b", &[0; 8], None).await, Ok(false));
    let mut again = Side::connect(relay).await;
    again.log_in(USER, PASSWORD).await;
    assert_eq!(again.join_as("hers", "b", &[0; 8], None).await, Err(401));
    assert_eq!(house.relay_info("relay").await.sides, 2, "alice stays");
    drop(alice);
}

#[actix::test]
async fn each_side_is_told_who_the_other_is() {
    let mut house = House::new().await;
    let mut config = config("relay").user(UserPassword::new("bob", "of bob"));
    config.pairs_across_users = true;
    let (_, relay) = house.start_relay(config).await;
    let mut a = Side::joined(relay, "secret", "left").await;
    let mut b = Side::connect(relay).await;
    b.log_in("bob", "of bob").await;
    assert_eq!(b.join_as("secret", "right", &[1; 8], None).await, Ok(true));
    for (side, name, user) in [(&mut a, "right", "bob"), (&mut b, "left", USER)] {
        let peer = side.stun().await;
        assert_eq!(peer.number(PEER_STATUS), Some(1));
        assert_eq!(peer.get(SIDE_ID), Some(name.as_bytes()));
        assert_eq!(peer.get(USERNAME), Some(user.as_bytes()));
    }
    let joined = house.relay_event("relay", |event| match event {
        RelayEvent::SideJoined { side, user, paired: true, .. } => Some((side.clone(), user.clone())),
        _ => None,
    });
    assert_eq!(joined.await, ("right".to_owned(), "bob".to_owned()));
}

#[actix::test]
async fn a_newer_connection_of_the_same_side_takes_its_place() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    let mut newer = Side::connect(relay).await;
    newer.log_in(USER, PASSWORD).await;
    assert_eq!(newer.join_as("secret", "a", b"newcomer", None).await, Ok(true));
    let closing = a.closing().await;
    assert_eq!(closing.number(REASON), Some(1));
    assert_eq!(closing.get(INSTANCE), Some(&b"newcomer"[..]));
    assert_eq!((b.peer().await, b.peer().await, newer.peer().await), (2, 1, 1));
    newer.send_data(0x4000, b"from the newer").await;
    assert_eq!(b.datagram().await.1, b"from the newer");
    let cause = house.relay_event("relay", |event| match event {
        RelayEvent::SideLeft { cause, .. } => Some(*cause),
        _ => None,
    });
    assert_eq!(cause.await, LeaveCause::Superseded);
    assert_eq!(house.relay_info("relay").await.sides, 2);
}

#[actix::test]
async fn a_third_side_and_other_peoples_pairs_are_refused() {
    let mut house = House::new().await;
    let config = config("relay").user(UserPassword::new("bob", "of bob"));
    let (_, relay) = house.start_relay(config).await;
    let _pair = Side::pair(relay, "secret").await;
    assert_eq!(Side::join(relay, "secret", "c").await.map(|_| ()), Err(409));
    let mut bob = Side::connect(relay).await;
    bob.log_in("bob", "of bob").await;
    for side in ["a", "b", "c"] {
        assert_eq!(bob.join_as("secret", side, &[1; 8], None).await, Err(403));
    }
    // The connection stays open for another pair.
    assert_eq!(bob.join_as("of bob", "a", &[1; 8], None).await, Ok(false));
    let reason = house.relay_event("relay", |event| match event {
        RelayEvent::JoinRefused { reason, .. } => Some(*reason),
        _ => None,
    });
    assert_eq!(reason.await, JoinRefusal::TwoOthers);
}

#[actix::test]
async fn an_unknown_user_and_a_wrong_password_are_not_told_apart_and_four_are_enough() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut answers = Vec::new();
    for user in [USER, "carol"] {
        let mut side = Side::connect(relay).await;
        side.log_in(user, "wrong").await;
        for _ in 0..4 {
            let answer = side.request(0x0f1, &[(0x7f01, b"p"), (SIDE_ID, b"s"), (INSTANCE, &[0; 8])]).await;
            assert_eq!(answer.error(), Some(401));
            let shape: Vec<_> = answer.attributes.iter().map(|(kind, value)| (*kind, value.len())).collect();
            answers.push(shape);
        }
        assert_eq!(side.closed_for().await, 6);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let reason = house.relay_event("relay", |event| match event {
        RelayEvent::JoinRefused { reason, .. } => Some(*reason),
        _ => None,
    });
    assert_eq!(reason.await, JoinRefusal::Unauthenticated);
    assert_eq!(house.relay_info("relay").await.sides, 0);
}

#[actix::test]
async fn sessions_and_pairs_are_limited_and_giving_way_is_not() {
    let house = House::new().await;
    let mut config = config("relay").user(UserPassword::new("bob", "of bob"));
    (config.max_sessions_per_user, config.max_pairs) = (3, 2);
    let (_, relay) = house.start_relay(config).await;
    let _one = Side::joined(relay, "one", "a").await;
    let _two = Side::pair(relay, "two").await;
    assert_eq!(Side::join(relay, "one", "b").await.map(|_| ()), Err(486));
    let _again = Side::joined(relay, "two", "b").await;
    let mut bob = Side::connect(relay).await;
    bob.log_in("bob", "of bob").await;
    let answer = bob.request(0x0f1, &[(0x7f01, b"three"), (SIDE_ID, b"s"), (INSTANCE, &[0; 8])]).await;
    assert_eq!(answer.error(), Some(508));
    assert!((200..=5000).contains(&answer.number(0xff01).unwrap()), "{answer:?}");
    drop(_one);
    house.relay_when("relay", "the pair is gone", |info| info.pairs == 1).await;
    assert_eq!(bob.join_as("three", "s", &[0; 8], None).await, Ok(false));
}

#[actix::test]
async fn who_leaves_is_answered_and_closed_and_its_peer_waits() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    assert_eq!(a.refresh(0).await, Ok(0));
    assert!(matches!(a.next().await, Came::Fin));
    assert_eq!(b.peer().await, 2);
    house.relay_when("relay", "it is forgotten", |info| info.sides == 1).await;
}

#[actix::test]
async fn pings_are_answered_in_every_phase() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut side = Side::connect(relay).await;
    side.ping().await;
    side.log_in(USER, PASSWORD).await;
    side.ping().await;
    side.join_as("secret", "a", &[0; 8], None).await.unwrap();
    side.ping().await;
    let _b = Side::joined(relay, "secret", "b").await;
    side.ping().await;
    assert_eq!(side.peer().await, 1);
}

#[actix::test]
async fn a_side_that_waits_long_enough_is_told_so() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut side = Side::connect(relay).await;
    side.log_in(USER, PASSWORD).await;
    side.join_as("secret", "a", &[0; 8], Some(1)).await.unwrap();
    assert_eq!(side.refresh(2).await, Ok(2));
    assert_eq!(side.closed_for().await, 4);
    // Nobody waits for as long as he likes.
    let mut side = Side::connect(relay).await;
    side.log_in(USER, PASSWORD).await;
    side.join_as("secret", "a", &[0; 8], None).await.unwrap();
    let answer = side.request(REFRESH, &[(LIFETIME, &100_000u32.to_be_bytes())]).await;
    assert_eq!(answer.number(LIFETIME), Some(3600));
}

#[actix::test]
async fn who_says_nothing_is_asked_after_15_s_and_given_up_10_s_later() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut silent, mut well) = Side::pair(relay, "secret").await;
    let began = Instant::now();
    let asked = silent.stun().await;
    assert_eq!((asked.method, asked.class), (BINDING, Class::Request));
    assert!((14..17).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // Any byte will do.
    let asked = well.stun().await;
    assert_eq!(asked.method, BINDING);
    well.send(&stun(BINDING, Class::Success, asked.id, &[], None)).await;
    assert_eq!(silent.closed_for().await, 3);
    assert!((24..29).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(well.peer().await, 2);
    let cause = house.relay_event("relay", |event| match event {
        RelayEvent::SideLeft { cause, .. } => Some(*cause),
        _ => None,
    });
    assert_eq!(cause.await, LeaveCause::Idle);
}
