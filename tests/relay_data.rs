//! What goes through a relay, and what must not: data for a peer that is gone, for one that does not read, and bytes
//! that are no messages.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Instant;

use actix_relay::config::SupervisorConfig;
use support::relay_side::{
    Came, INSTANCE, JOIN, PAIR_ID, PASSWORD, PEER, PEER_STATUS, REFRESH, SIDE_ID, Side, USER, config, data,
};
use support::{House, PATIENCE, soon};

fn workers(workers: usize) -> SupervisorConfig {
    let mut config = SupervisorConfig::default();
    config.workers = workers;
    config
}

#[actix::test]
async fn a_parked_side_is_heard_again_when_it_has_shown_that_it_knows() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (a, mut b) = Side::pair(relay, "secret").await;
    drop(a);
    assert_eq!(b.peer().await, 2);
    b.send_data(0x4001, b"to nobody").await;
    let mut a = Side::joined(relay, "secret", "a").await;
    assert_eq!((a.peer().await, b.peer().await), (1, 1));
    b.send_data(0x4001, b"to the old one, for all that is known").await;
    assert_eq!(b.refresh(600).await, Ok(600));
    b.send_data(0x4001, b"to the new one").await;
    assert_eq!(a.datagram().await.1, b"to the new one");
    // The newcomer knows of no other.
    a.send_data(0x4000, b"back").await;
    assert_eq!(b.datagram().await.1, b"back");
    let pair = &house.relay_pairs("relay").await[0];
    assert_eq!((pair.counters.drops.no_peer, pair.counters.drops.total()), (2, 2));
}

/// One side stays, floods, and numbers what it sends by the peers that it has been told of.
async fn stays(mut side: Side, generations: u64) -> u64 {
    let (mut peers, mut is_there, mut received) = (0_u64, false, 0);
    loop {
        while let Some(came) = side.try_next() {
            match came {
                Came::Data(_, datagram) => {
                    assert_eq!(datagram[..8], peers.to_be_bytes(), "of another peer than the present one");
                    assert!(is_there);
                    received += 1;
                }
                Came::Stun(stun) if stun.method == PEER => {
                    is_there = stun.number(PEER_STATUS) == Some(1);
                    if is_there {
                        peers += 1;
                    } else {
                        let (_, refresh) = side.sealed(REFRESH, &[]);
                        side.send(&refresh).await;
                    }
                }
                // The nonce has ended with the last peer.
                Came::Stun(stun) => {
                    if side.is_stale(&stun) {
                        let (_, refresh) = side.sealed(REFRESH, &[]);
                        side.send(&refresh).await;
                    }
                }
                Came::Fin => panic!("closed"),
            }
        }
        if peers == generations && !is_there {
            return received;
        }
        if is_there {
            side.send_data(0x4001, &[&peers.to_be_bytes()[..], &[7; 1000]].concat()).await;
        }
        tokio::task::yield_now().await;
    }
}

fn floods(side: Side, number: [u8; 8]) {
    let mut stream = side.stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    let many = data(0x4000, &[&number[..], &[7; 1192]].concat()).repeat(50);
    while stream.write_all(&many).is_ok() {}
}

#[actix::test]
async fn nothing_meant_for_an_old_peer_reaches_a_new_one() {
    const GENERATIONS: u64 = 60;
    let house = House::with(workers(2)).await;
    let mut config = config("relay");
    config.queue_bytes = 64 << 10;
    let (_, relay) = house.start_relay(config).await;
    let staying = Side::joined(relay, "secret", "b").await;
    let staying = tokio::task::spawn_local(stays(staying, GENERATIONS));
    let mut old: Vec<JoinHandle<()>> = Vec::new();
    for generation in 1..=GENERATIONS {
        let number = generation.to_be_bytes();
        let (mut side, is_there) = Side::join(relay, "secret", "a").await.unwrap();
        assert!(is_there);
        assert_eq!(side.peer().await, 1);
        let mut received = 0;
        while received <= generation % 5 {
            side.send_data(0x4000, &[&number[..], &[7; 1000]].concat()).await;
            while let Some(came) = side.try_next() {
                let Came::Data(_, datagram) = came else { panic!("{came:?}") };
                assert_eq!(datagram[..8], number, "meant for another peer");
                received += 1;
            }
            tokio::task::yield_now().await;
        }
        if generation % 3 == 0 {
            drop(side);
            house.relay_when("relay", "it is forgotten", |info| info.sides <= 1).await;
        } else {
            // It goes on with all its might until it is told that another has taken its place.
            old.push(std::thread::spawn(move || floods(side, number)));
        }
    }
    let received = soon("the last one is gone", staying).await.unwrap();
    old.into_iter().for_each(|old| old.join().unwrap());
    eprintln!("{received} datagrams, {:?}", house.relay_info("relay").await.counters);
    assert!(received >= GENERATIONS);
}

#[actix::test]
async fn a_side_that_does_not_read_slows_nobody_and_what_it_does_not_take_is_counted() {
    let house = House::with(workers(1)).await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, b) = Side::pair(relay, "deaf").await;
    let (mut c, mut d) = Side::pair(relay, "well").await;
    let datagram = vec![7; 1200];
    let sent = 40_000;
    let began = Instant::now();
    for number in 0..sent {
        a.send_data(0x4000, &datagram).await;
        if number % 1000 == 0 {
            c.send_data(0x4000, b"there").await;
            assert_eq!(d.datagram().await.1, b"there");
            d.send_data(0x4001, b"back").await;
            assert_eq!(c.datagram().await.1, b"back");
        }
    }
    // Its own control still comes through.
    a.ping().await;
    eprintln!("48 MB to a side that does not read: {:?}", began.elapsed());
    let pairs = house.relay_pairs("relay").await;
    let deaf = pairs.iter().find(|pair| pair.counters.drops.total() > 0).unwrap();
    let carried = deaf.counters;
    assert!(carried.drops.queue_full > sent / 2, "{carried:?}");
    assert!(carried.drops.total() + carried.forwarded.datagrams <= sent, "{carried:?}");
    let well = pairs.iter().find(|pair| pair.pair != deaf.pair).unwrap();
    assert_eq!((well.counters.forwarded.datagrams, well.counters.drops.total()), (80, 0));
    // It is dead after 10 s, and its peer hears so.
    let peer = tokio::time::timeout(PATIENCE, a.peer()).await.expect("it is still there");
    assert_eq!(peer, 2);
    assert!(began.elapsed().as_secs() >= 5);
    let pairs = house.relay_pairs("relay").await;
    let deaf = pairs.iter().find(|pair| pair.sides.len() == 1).unwrap().counters;
    assert_eq!(deaf.drops.total() + deaf.forwarded.datagrams, sent);
    drop(b);
}

#[actix::test]
async fn input_cut_anywhere_means_the_same() {
    let house = House::with(workers(1)).await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut other = Side::joined(relay, "other", "x").await;
    let attributes: [(u16, &[u8]); 3] = [(PAIR_ID, b"cut"), (SIDE_ID, b"a"), (INSTANCE, &[1; 8])];
    let mut cut = 0;
    loop {
        let mut side = Side::connect(relay).await;
        side.log_in(USER, PASSWORD).await;
        let (id, join) = side.sealed(JOIN, &attributes);
        if cut == join.len() {
            break;
        }
        side.send(&join[..cut]).await;
        // It has been read by then.
        other.ping().await;
        side.send(&join[cut..]).await;
        assert_eq!(side.answer(id).await.error(), None, "cut at {cut}");
        cut += 1;
    }
    let (mut a, mut b) = Side::pair(relay, "data").await;
    let (id, refresh) = a.sealed(REFRESH, &[]);
    let bytes = [&data(0x4000, b"one"), &data(0x4000, b""), &refresh[..], &data(0x4002, b"three")].concat();
    for cut in 0..bytes.len() {
        a.send(&bytes[..cut]).await;
        b.ping().await;
        a.send(&bytes[cut..]).await;
        for expected in [(0x4000, &b"one"[..]), (0x4000, b""), (0x4002, b"three")] {
            assert_eq!(b.datagram().await, (expected.0, expected.1.to_vec()), "cut at {cut}");
        }
        assert_eq!(a.answer(id).await.error(), None);
    }
}

/// Sends these bytes on a connection that has joined; `true`: it was closed for a protocol error.
async fn is_refused(relay: SocketAddr, bytes: &[u8]) -> bool {
    let (mut a, _b) = Side::pair(relay, "hostile").await;
    a.send(bytes).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut a.stream).await;
    let mut reason = None;
    loop {
        match a.next().await {
            Came::Stun(stun) => reason = stun.number(0x7f04).or(reason),
            Came::Data(..) => {}
            Came::Fin => return reason == Some(5),
        }
    }
}

#[actix::test]
async fn what_is_no_message_ends_its_connection_and_no_other() {
    let house = House::with(workers(1)).await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut well, mut peer) = Side::pair(relay, "well").await;
    let too_long = [&[0, 1, 8, 4, 0x21, 0x12, 0xa4, 0x42][..], &[0; 2064]].concat();
    let past_end = [&[0, 1, 0, 4, 0x21, 0x12, 0xa4, 0x42][..], &[0; 12], &[0x80, 0x22, 0, 8]].concat();
    for bytes in [
        &b"POST / HTTP/1.1\r\n\r\n"[..],
        b"\x80",
        b"\xff\xff\xff\xff",
        b"\x50\x00\x00\x00",
        b"\x00\x01\x00\x02\x21\x12\xa4\x42",
        b"\x00\x01\x00\x00\x21\x12\xa4\x43",
        &too_long,
        &past_end,
    ] {
        assert!(is_refused(relay, bytes).await, "{bytes:x?}");
    }
    // What is legal, or not all there, is not held against a side.
    for bytes in [&b""[..], b"\x40", b"\x40\x00\x00\x10half", b"\x4f\xff\x00\x00"] {
        assert!(!is_refused(relay, bytes).await, "{bytes:x?}");
    }
    let mut random = fastrand::Rng::with_seed(4);
    for _ in 0..200 {
        let len = random.usize(1..3000);
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
        // Half of them get past the first look.
        if random.bool() {
            bytes[0] = 0x40 | bytes[0] & 0xf;
        }
        is_refused(relay, &bytes).await;
    }
    well.send_data(0x4000, b"well").await;
    assert_eq!(peer.datagram().await.1, b"well");
    house.relay_when("relay", "the others are gone", |info| info.sides == 2).await;
}

#[actix::test]
async fn datagrams_longer_than_allowed_are_dropped_and_counted() {
    let house = House::new().await;
    let mut config = config("relay");
    config.max_datagram = 1200;
    let (_, relay) = house.start_relay(config).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    for len in [1200, 1201, 65_527, 65_535, 0] {
        a.send_data(0x4000, &vec![1; len]).await;
    }
    assert_eq!((b.datagram().await.1.len(), b.datagram().await.1.len()), (1200, 0));
    assert_eq!(house.relay_info("relay").await.counters.drops.too_long, 3);
}

#[actix::test]
async fn a_side_that_asks_and_does_not_read_the_answers_is_not_read_from() {
    let house = House::with(workers(1)).await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, _b) = Side::pair(relay, "secret").await;
    let (_, request) = a.sealed(REFRESH, &[]);
    // Until the relay takes no more: its memory is not ours to fill.
    let many = request.repeat(1000);
    let mut sent = 0;
    let blocked = async {
        loop {
            match tokio::time::timeout(std::time::Duration::from_secs(2), a.stream.writable()).await {
                Ok(_) => sent += a.stream.try_write(&many).unwrap_or(0),
                Err(_) => return,
            }
        }
    };
    soon("it is not read from any more", blocked).await;
    eprintln!("blocked after {sent} bytes");
    // All of it is answered once the answers are read.
    let answered = soon("the answers", async {
        let mut answered = 0;
        while answered < sent / request.len() {
            if let Came::Stun(stun) = a.next().await {
                assert_eq!(stun.error(), None);
                answered += 1;
            }
        }
        answered
    });
    assert_eq!(answered.await, sent / request.len());
}
