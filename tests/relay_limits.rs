//! Connections that do not join: how many there may be, who has to go, and that all others are served.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use actix_relay::config::RelayConfig;
use actix_relay::event::{JoinRefusal, RelayEvent};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::relay_side::{
    Came, Class, JOIN, PEER, PEER_STATUS, RETRY_AFTER, SIDE_ID, Side, config, data, stun,
};
use support::{House, PATIENCE};
use tokio::net::TcpSocket;
use tokio::sync::Mutex;

/// The limits, as they are by default.
const EVERYBODY: usize = 4096;
const OF_ONE: usize = 64;

/// One at a time: descriptors are everybody's.
static ALONE: Mutex<()> = Mutex::const_new(());

/// All of loopback is ours to call from.
async fn connect_from(number: u32, relay: SocketAddr) -> Side {
    let ip = Ipv4Addr::from_bits(0x7f10_0000 + number);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    Side::over(socket.connect(relay).await.unwrap())
}

/// Whether so many connections, both ends of each, may be open.
fn may_open(connections: u64) -> bool {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let may = maximum.is_none_or(|maximum| maximum >= 2 * connections + 500);
    if !may {
        eprintln!("skipped: {maximum:?} descriptors are too few for {connections} connections");
    }
    may
}

#[actix::test]
async fn the_65th_of_an_address_and_the_4097th_of_all_cost_the_oldest() {
    let _alone = ALONE.lock().await;
    if !may_open(EVERYBODY as u64 + 10) {
        return;
    }
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let began = Instant::now();
    let mut waiting = Vec::new();
    for number in 0..EVERYBODY {
        waiting.push(connect_from((number / OF_ONE) as u32, relay).await);
    }
    house.relay_when("relay", "all are in", |info| info.unjoined == EVERYBODY).await;
    let mut first = waiting.remove(0);
    let mut second_address = waiting.remove(OF_ONE - 1);
    assert!(first.try_next().is_none());
    // All have as many as they may: it is the oldest of all that goes, for one from elsewhere.
    let _more = connect_from(1000, relay).await;
    assert_eq!(first.closed_for().await, 6);
    // Its address has one place now. Those of another go in their own order.
    let _again = connect_from(0, relay).await;
    let _from_second = connect_from(1, relay).await;
    assert_eq!(second_address.closed_for().await, 6);
    assert_eq!(house.relay_info("relay").await.unjoined, EVERYBODY);
    let reason = house.relay_event("relay", |event| match event {
        RelayEvent::JoinRefused { reason, .. } => Some(*reason),
        _ => None,
    });
    assert_eq!(reason.await, JoinRefusal::PlaceNeeded);
    eprintln!("4096 connections: {:?}", began.elapsed());
    // Nothing extends their time.
    house.relay_when("relay", "they are gone", |info| info.unjoined == 0).await;
    assert!(began.elapsed() > Duration::from_secs(10), "{:?}", began.elapsed());
}

#[actix::test]
async fn ten_thousand_that_never_join_keep_nobody_out() {
    let _alone = ALONE.lock().await;
    let part = [10_000, 4_000, 1_000, 100].into_iter().find(|part| may_open(*part)).unwrap() as usize;
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (mut a, mut b) = Side::pair(relay, "well").await;
    let (mut made, mut longest) = (0, Duration::ZERO);
    while made < 10_000 {
        let mut crowd = Vec::new();
        for number in 0..part {
            crowd.push(connect_from((number % 250) as u32, relay).await);
            made += 1;
            if number % 500 == 0 {
                let began = Instant::now();
                a.send_data(0x4000, b"there").await;
                assert_eq!(b.datagram().await.1, b"there");
                longest = longest.max(began.elapsed());
            }
        }
        let _late = Side::joined(relay, &format!("late {made}"), "a").await;
        assert!(house.relay_info("relay").await.unjoined <= EVERYBODY);
    }
    eprintln!("{made} connections, {part} at once; a datagram took {longest:?} at most");
    house.relay_when("relay", "they are gone", |info| info.unjoined == 0).await;
    // Whoever joined is still there.
    a.ping().await;
    assert!(
        house.reported().iter().any(|event| event.to_string().contains("its place was needed"))
            || part < EVERYBODY
    );
}

/// What an unjoined connection may send and how long it may take.
async fn ends_with_limit(relay: SocketAddr, bytes: &[u8]) {
    let mut side = Side::connect(relay).await;
    side.send(bytes).await;
    assert_eq!(side.closed_for().await, 6, "{} bytes", bytes.len());
}

#[actix::test]
async fn before_joining_there_are_4_kib_and_10_s() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let began = Instant::now();
    let mut patient = Side::connect(relay).await;
    let ping = stun(1, Class::Request, [1; 12], &[], None);
    ends_with_limit(relay, &ping.repeat(205)).await;
    ends_with_limit(relay, &data(0x4000, &[0; 5000])).await;
    // 4,080 bytes are not too many: all are answered.
    let mut side = Side::connect(relay).await;
    side.send(&ping.repeat(204)).await;
    for _ in 0..204 {
        assert_eq!(side.stun().await.id, [1; 12]);
    }
    assert_eq!(patient.closed_for().await, 6);
    assert!((10..PATIENCE.as_secs()).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[actix::test]
async fn a_pair_that_sends_too_much_is_read_later_and_told_so() {
    let house = House::new().await;
    let mut config = config("relay");
    config.max_rate = Some(1_000_000);
    config.max_sessions_per_user = 2;
    let (_, relay) = house.start_relay(config).await;
    let (mut a, mut b) = Side::pair(relay, "secret").await;
    let (began, sent, mut received) = (Instant::now(), 3000, 0);
    let mut told = None;
    let send = async {
        for _ in 0..sent {
            a.send_data(0x4000, &[7; 1000]).await;
        }
    };
    let receive = async {
        while !house
            .relay_pairs("relay")
            .await
            .iter()
            .all(|pair| pair.counters.forwarded.datagrams + pair.counters.drops.total() == sent)
        {
            while let Some(came) = b.try_next() {
                match came {
                    Came::Data(..) => received += 1,
                    Came::Stun(stun) => {
                        assert_eq!((stun.method, stun.number(PEER_STATUS)), (PEER, Some(1)));
                        assert!(told.replace(stun.number(RETRY_AFTER).unwrap()).is_none(), "told twice");
                    }
                    Came::Fin => panic!("closed"),
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::join!(send, receive);
    let took = began.elapsed();
    eprintln!("3 MB at 1 MB/s: {took:?}, {received} arrived, told {told:?} ms");
    assert!(took > Duration::from_millis(1800), "{took:?}");
    assert!(received > sent / 2 && told.is_some());
    let peer = a.stun().await;
    assert_eq!((peer.method, peer.number(PEER_STATUS)), (PEER, Some(1)));
    assert_eq!((peer.get(SIDE_ID), peer.number(RETRY_AFTER)), (Some(&b"b"[..]), told));
}

#[actix::test]
async fn the_first_join_is_not_counted_among_the_refused() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut side = Side::connect(relay).await;
    for _ in 0..5 {
        side.send(&stun(JOIN, Class::Request, [9; 12], &[], None)).await;
    }
    for _ in 0..5 {
        assert_eq!(side.stun().await.error(), Some(401));
    }
    assert_eq!(side.closed_for().await, 6);
}

#[actix::test]
async fn a_relay_whose_port_is_taken_says_so() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let mut other: RelayConfig = config("other");
    other.local_tcp = vec![relay];
    let start = actix_relay::supervisor::StartRelay { config: other };
    let error = house.supervisor.send(start).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&relay.to_string()) && error.starts_with("relay 'other'"), "{error}");
}
