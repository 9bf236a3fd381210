//! Who connects to the TCP port: programs of other makes, strangers, knockers, and those who send junk.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::net::SocketAddr;

use actix_relay::config::SessionConfig;
use actix_relay::event::{Cause, EventKind, Refusal};
use support::peer::{RawPeer, framed};
use support::{Echo, House, any, echoed_once, patient, receive, soon, udp, until_echoed};
use tokio::net::TcpListener;

/// A far side with an echo service, `max_peers` as given.
async fn far(house: &House, echo: &Echo, max_peers: Option<usize>) -> SocketAddr {
    let mut config = patient(SessionConfig::listen("far", any()).udp_forward(echo.addr));
    config.max_peers = max_peers;
    house.listen(config).await
}

async fn refused(house: &mut House, why: Refusal) -> SocketAddr {
    house
        .event("far", |kind| match kind {
            EventKind::PeerRefused { peer, reason, .. } if *reason == why => Some(*peer),
            _ => None,
        })
        .await
}

#[actix::test]
async fn a_peer_of_another_make_is_served_one_byte_at_a_time() {
    let (house, echo) = (House::new().await, Echo::start().await);
    let mut peer = RawPeer::connect(far(&house, &echo, None).await).await;
    for datagram in [&b"one byte at a time"[..], b"", &[7; 600]] {
        for byte in framed(datagram) {
            peer.write(&[byte]).await;
        }
        assert_eq!(peer.receive().await, datagram);
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_peer_of_another_make_is_served_with_many_frames_at_once() {
    let (house, echo) = (House::new().await, Echo::start().await);
    let mut peer = RawPeer::connect(far(&house, &echo, None).await).await;
    let datagrams: Vec<Vec<u8>> = (0..100).map(|n| vec![n as u8; n * 13 % 400]).collect();
    let coalesced: Vec<u8> = datagrams.iter().flat_map(|datagram| framed(datagram)).collect();
    peer.write(&coalesced).await;
    for datagram in datagrams {
        assert_eq!(peer.receive().await, datagram);
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_listener_of_another_make_gets_plain_frames() {
    let (house, app) = (House::new().await, udp().await);
    let listener = TcpListener::bind(any()).await.unwrap();
    let near = SessionConfig::connect("near", listener.local_addr().unwrap()).local_udp(any());
    let entry = house.local(patient(near)).await;
    let mut peer = RawPeer::accept(&listener).await;
    let sizes = [0, 1, 256, 65_507];
    for size in sizes {
        app.send_to(&vec![9; size], entry).await.unwrap();
        assert_eq!(peer.receive().await, vec![9; size]);
    }
    // Both halves at once: the header split from its datagram, two frames in one write.
    peer.write(&[0]).await;
    peer.write(&[3, b'a', b'b']).await;
    assert_eq!(house.info("near").await.counters.to_udp.datagrams, 0);
    peer.write(b"c\x00\x00\x00\x01d").await;
    for datagram in [&b"abc"[..], b"", b"d"] {
        assert_eq!(receive(&app).await, (datagram.to_vec(), entry));
    }
    house.shutdown().await;
}

#[actix::test]
async fn what_is_too_long_for_udp_is_counted_and_the_connection_kept() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let mut peer = RawPeer::connect(far(&house, &echo, None).await).await;
    for len in [65_535, 65_508] {
        peer.send(&vec![1; len]).await;
    }
    peer.send(b"the next one").await;
    assert_eq!(peer.receive().await, b"the next one");
    let info = house.info("far").await;
    assert_eq!(info.counters.drops.too_long, 2);
    assert_eq!(info.counters.to_udp.datagrams, 1);
    for event in house.reported() {
        assert!(!matches!(event.kind, EventKind::PeerDisconnected { .. }), "{event}");
    }
    house.shutdown().await;
}

#[actix::test]
async fn random_bytes_disturb_nobody_else() {
    let (house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = far(&house, &echo, None).await;
    let near = SessionConfig::connect("near", far).local_udp(any());
    let entry = house.local(patient(near)).await;
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut junk = RawPeer::connect(far).await;
        let mut bytes = vec![0; 1 << random.usize(0..18)];
        random.fill(&mut bytes);
        // Its answers are not read, and it goes without a word.
        junk.write(&bytes).await;
        echoed_once(&app, entry, format!("beside the junk {seed}").as_bytes()).await;
    }
    house.info_when("far", "the junk is gone", |info| info.links.len() == 1).await;
    house.shutdown().await;
}

#[actix::test]
async fn junk_that_takes_the_one_place_gives_it_back() {
    let (house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = far(&house, &echo, Some(1)).await;
    let mut junk = RawPeer::connect(far).await;
    junk.write(&[0xff; 1000]).await;
    let entry = house.local(SessionConfig::connect("near", far).local_udp(any())).await;
    until_echoed(&app, entry, "after the junk has been silent").await;
    junk.closed().await;
    house.shutdown().await;
}

#[actix::test]
async fn a_frame_that_is_never_finished_has_ten_seconds() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = far(&house, &echo, None).await;
    let mut peer = RawPeer::connect(far).await;
    peer.write(&[0xff, 0xff, 1, 2, 3]).await;
    house.connected("far").await;
    let entry = house.local(patient(SessionConfig::connect("near", far).local_udp(any()))).await;
    // A byte now and then makes it no better.
    let (mut read, mut write) = peer.0.split();
    let mut byte = [0; 1];
    let drip = async {
        while tokio::io::AsyncWriteExt::write_all(&mut write, &[4]).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    };
    let served = async {
        for number in 0.. {
            echoed_once(&app, entry, format!("meanwhile {number}").as_bytes()).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let end = tokio::select! {
        end = tokio::io::AsyncReadExt::read(&mut read, &mut byte) => end,
        () = async { tokio::join!(drip, served); } => unreachable!("it is served for ever"),
        () = tokio::time::sleep(support::PATIENCE) => panic!("the connection is kept for ever"),
    };
    assert!(matches!(end, Ok(0) | Err(_)));
    assert_eq!(house.disconnected("far").await, Cause::UnfinishedFrame);
    house.shutdown().await;
}

/// Connections that say nothing, more than any session keeps.
async fn knockers(far: SocketAddr) -> Vec<RawPeer> {
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(RawPeer::connect(far).await);
    }
    silent
}

#[actix::test]
async fn the_oldest_of_many_silent_connections_make_room() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = far(&house, &echo, None).await;
    let mut silent = knockers(far).await;
    let first = silent[0].0.local_addr().unwrap();
    assert_eq!(refused(&mut house, Refusal::Silent).await, first);
    let info = house.info_when("far", "the lobby is full", |info| info.waiting == 128).await;
    assert!(info.links.is_empty(), "they cost no UDP socket");
    for evicted in &mut silent[..200 - 128] {
        evicted.closed().await;
    }
    let entry = house.local(SessionConfig::connect("near", far).local_udp(any())).await;
    until_echoed(&app, entry, "a real peer beside 200 silent ones").await;
    assert!(house.info("far").await.waiting <= 128);
    // One of those that were kept is as good as any other.
    let last = silent.last_mut().unwrap();
    last.send(b"I was only shy").await;
    assert_eq!(last.receive().await, b"I was only shy");
    house.shutdown().await;
}

#[actix::test]
async fn many_silent_connections_do_not_keep_the_one_place() {
    let (house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = far(&house, &echo, Some(1)).await;
    let silent = knockers(far).await;
    let entry = house.local(SessionConfig::connect("near", far).local_udp(any())).await;
    until_echoed(&app, entry, "a real peer after 200 silent ones").await;
    assert!(house.info("far").await.waiting <= 128);
    assert_eq!(house.info("far").await.links.len(), 1);
    drop(silent);
    house.info_when("far", "those who left are forgotten", |info| info.waiting == 0).await;
    until_echoed(&app, entry, "the real peer still has the place").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_peer_that_has_spoken_keeps_the_one_place() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let far = far(&house, &echo, Some(1)).await;
    let mut peer = RawPeer::connect(far).await;
    peer.send(b"hello").await;
    assert_eq!(peer.receive().await, b"hello");
    let mut newcomer = RawPeer::connect(far).await;
    newcomer.send(b"let me in").await;
    let newcomer_addr = newcomer.0.local_addr().unwrap();
    let talk = async {
        loop {
            peer.send(b"still here").await;
            assert_eq!(peer.receive().await, b"still here");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        who = refused(&mut house, Refusal::Full) => assert_eq!(who, newcomer_addr),
        () = talk => {}
    }
    newcomer.closed().await;
    house.shutdown().await;
}

#[actix::test]
async fn places_that_are_taken_are_refused_and_free_again_later() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let far = far(&house, &echo, Some(2)).await;
    let mut peers = [RawPeer::connect(far).await, RawPeer::connect(far).await];
    for peer in &mut peers {
        peer.send(b"hello").await;
        assert_eq!(peer.receive().await, b"hello");
    }
    let mut third = RawPeer::connect(far).await;
    third.send(b"me too").await;
    assert_eq!(refused(&mut house, Refusal::Full).await, third.0.local_addr().unwrap());
    third.closed().await;
    drop(peers);
    house.info_when("far", "the places are free", |info| info.links.is_empty()).await;
    let mut fourth = RawPeer::connect(far).await;
    fourth.send(b"hello").await;
    assert_eq!(fourth.receive().await, b"hello");
    house.shutdown().await;
}

/// A far side at `listen` that lets in 127.0.0.2 only, by a far side that sees both families.
async fn only_allowed(listen: &str) {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let mut config = SessionConfig::listen("far", listen.parse().unwrap()).udp_forward(echo.addr);
    config.allow = vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.2/32".parse().unwrap()];
    let port = house.listen(config).await.port();
    let far = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stranger = RawPeer::connect(far).await;
    let who = refused(&mut house, Refusal::NotAllowed).await;
    assert_eq!(who.ip().to_canonical(), stranger.0.local_addr().unwrap().ip());
    stranger.closed().await;
    let mut near = SessionConfig::connect("near", far).local_udp(any());
    near.bind = Some([127, 0, 0, 2].into());
    let entry = house.local(near).await;
    until_echoed(&app, entry, "a peer that is allowed").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_peer_from_elsewhere_is_refused() {
    only_allowed("127.0.0.1:0").await;
}

#[actix::test]
async fn an_ipv4_peer_of_a_dual_stack_listener_is_matched_as_ipv4() {
    only_allowed("[::]:0").await;
}

#[actix::test]
async fn the_far_side_may_speak_first_to_a_named_application() {
    let (mut house, app, service) = (House::new().await, udp().await, udp().await);
    let mut near = SessionConfig::listen("called", any()).local_udp(any());
    near.app = Some(app.local_addr().unwrap());
    let entry = house.local(patient(near)).await;
    let called = house.info("called").await.local_tcp[0];
    let caller = SessionConfig::connect("caller", called).local_udp(any());
    let caller = house.local(patient(caller)).await;
    house.connected("called").await;
    service.send_to(b"the far side speaks first", caller).await.unwrap();
    assert_eq!(receive(&app).await, (b"the far side speaks first".to_vec(), entry));
    app.send_to(b"and is answered", entry).await.unwrap();
    assert_eq!(receive(&service).await, (b"and is answered".to_vec(), caller));
    house.shutdown().await;
}

#[actix::test]
async fn the_called_side_may_speak_first_to_a_named_application() {
    let (mut house, app, other) = (House::new().await, udp().await, udp().await);
    let listening = house.local(patient(SessionConfig::listen("called", any()).local_udp(any()))).await;
    let called = house.info("called").await.local_tcp[0];
    let mut caller = SessionConfig::connect("caller", called).local_udp(any());
    caller.app = Some(app.local_addr().unwrap());
    let entry = house.local(patient(caller)).await;
    house.connected("called").await;
    other.send_to(b"first", listening).await.unwrap();
    assert_eq!(receive(&app).await, (b"first".to_vec(), entry));
    app.send_to(b"second", entry).await.unwrap();
    assert_eq!(receive(&other).await, (b"second".to_vec(), listening));
    house.shutdown().await;
}

#[actix::test]
async fn without_a_named_application_what_comes_first_is_counted() {
    let (mut house, service) = (House::new().await, udp().await);
    let config = SessionConfig::listen("called", any()).local_udp(any());
    let called = house.listen(patient(config)).await;
    let mut peer = RawPeer::connect(called).await;
    house.connected("called").await;
    for _ in 0..5 {
        peer.send(b"is anybody there?").await;
    }
    house.info_when("called", "all are counted", |info| info.counters.drops.no_application == 5).await;
    let entry = house.info("called").await.local_udp.unwrap();
    service.send_to(b"I am", entry).await.unwrap();
    assert_eq!(peer.receive().await, b"I am");
    peer.send(b"welcome").await;
    assert_eq!(soon("an answer", receive(&service)).await.0, b"welcome");
    house.shutdown().await;
}
