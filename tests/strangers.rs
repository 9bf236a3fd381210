//! What a stranger can do at an open port, or a mistaken neighbour at a local one, stays small.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::event::{Cause, EventKind};
use actix_relay::session::SessionState;
use actix_relay::supervisor::StartSession;
use support::peer::RawPeer;
use support::{Echo, House, any, receive, soon, udp, until_echoed};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Two bytes on TCP are a datagram of none on UDP, and a system call: many of them must not keep the session
/// from hearing what it is told. The flood goes on until it has heard it ten times.
#[actix::test]
async fn a_flood_of_null_packets_keeps_nobody_waiting() {
    let mut supervision = SupervisorConfig::default();
    supervision.workers = 1;
    let house = House::with(supervision).await;
    let service = udp().await;
    let far =
        house.listen(SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap())).await;
    let mut flood = TcpStream::connect(far).await.unwrap();
    let flood = tokio::spawn(async move {
        let nulls = vec![0; 1 << 20];
        while flood.write_all(&nulls).await.is_ok() {}
    });
    house.info_when("far", "the flood", |info| info.counters.to_udp.datagrams > 10_000).await;
    let mut before = 0;
    for _ in 0..10 {
        let now = soon("an answer amid the flood", house.info("far")).await.counters.to_udp.datagrams;
        assert!(now - before < 1_000_000, "{} in between", now - before);
        before = now;
    }
    flood.abort();
    house.shutdown().await;
}

#[actix::test]
async fn a_knocker_does_not_take_the_dialed_connection_of_a_session_that_also_listens() {
    let mut house = House::new().await;
    let far = TcpListener::bind(any()).await.unwrap();
    let mut near = SessionConfig::connect("near", far.local_addr().unwrap()).local_udp(any());
    near.local_tcp = vec![any()];
    house.start(near).await;
    let mut peer = RawPeer::accept(&far).await;
    house.connected("near").await;
    let info = house.info("near").await;
    let mut knocker = TcpStream::connect(info.local_tcp[0]).await.unwrap();
    knocker.write_all(b"\x00\x01x").await.unwrap();
    drop(knocker);
    let app = udp().await;
    app.send_to(b"to the peer", info.local_udp.unwrap()).await.unwrap();
    assert_eq!(peer.receive().await, b"to the peer");
    assert_eq!(house.info("near").await.state, SessionState::Connected);
    house.shutdown().await;
}

#[actix::test]
async fn a_dialed_connection_that_was_replaced_is_dialed_again_when_the_newcomer_has_gone() {
    let mut house = House::new().await;
    let far = TcpListener::bind(any()).await.unwrap();
    let mut near = SessionConfig::connect("near", far.local_addr().unwrap()).local_udp(any());
    near.local_tcp = vec![any()];
    house.start(near).await;
    let _first = RawPeer::accept(&far).await;
    house.connected("near").await;
    // It has been silent for 5 s by then, so the newcomer gets the place.
    let to = house.info("near").await.local_tcp[0];
    let newcomer = RawPeer::connect(to).await;
    assert_eq!(house.disconnected("near").await, Cause::Replaced);
    house.connected("near").await;
    drop(newcomer);
    let _again = RawPeer::accept(&far).await;
    house.shutdown().await;
}

#[actix::test]
async fn a_full_lobby_of_knockers_that_spoke_is_cleared() {
    let mut house = House::new().await;
    let echo = Echo::start().await;
    let mut far = SessionConfig::listen("far", any()).udp_forward(echo.addr);
    far.max_peers = Some(1);
    let far = house.listen(far).await;
    let mut peer = RawPeer::connect(far).await;
    peer.send(b"hello").await;
    assert_eq!(peer.receive().await, b"hello");
    let mut knockers = Vec::new();
    for _ in 0..128 {
        let mut knocker = RawPeer::connect(far).await;
        knocker.write(&[0]).await;
        knockers.push(knocker);
    }
    house.info_when("far", "a full lobby", |info| info.waiting == 128).await;
    let talk = async {
        loop {
            peer.send(b"still here").await;
            assert_eq!(peer.receive().await, b"still here");
            if house.info("far").await.waiting == 0 {
                return;
            }
        }
    };
    soon("an empty lobby", talk).await;
    let refused = |kind: &EventKind| matches!(kind, EventKind::PeerRefused { .. }).then_some(());
    house.event("far", refused).await;
    house.shutdown().await;
}

#[actix::test]
async fn places_held_by_silent_peers_are_given_to_one_that_speaks() {
    let mut house = House::new().await;
    let echo = Echo::start().await;
    let mut far = SessionConfig::listen("far", any()).udp_forward(echo.addr);
    far.max_peers = Some(4);
    let far = house.listen(far).await;
    let mut holders = Vec::new();
    for _ in 0..4 {
        let mut holder = RawPeer::connect(far).await;
        holder.send(b"").await;
        assert_eq!(holder.receive().await, b"");
        holders.push(holder);
    }
    // At once there is no room; after 5 s of silence there is.
    let mut early = RawPeer::connect(far).await;
    early.send(b"early").await;
    early.closed().await;
    let come_in = async {
        loop {
            let mut peer = RawPeer::connect(far).await;
            let _ = peer.0.write_all(b"\x00\x04late").await;
            let mut answer = [0; 6];
            if tokio::io::AsyncReadExt::read_exact(&mut peer.0, &mut answer).await.is_ok() {
                assert_eq!(&answer, b"\x00\x04late");
                return;
            }
        }
    };
    soon("a place", come_in).await;
    assert_eq!(house.disconnected("far").await, Cause::Replaced);
    house.shutdown().await;
}

#[actix::test]
async fn with_app_set_a_stray_datagram_does_not_take_its_place() {
    let mut house = House::new().await;
    let (app, stranger) = (udp().await, udp().await);
    let mut far = SessionConfig::listen("far", any()).local_udp(any());
    far.app = Some(app.local_addr().unwrap());
    let to = house.listen(far).await;
    let far_udp = house.info("far").await.local_udp.unwrap();
    let mut peer = RawPeer::connect(to).await;
    stranger.send_to(b"let me in", far_udp).await.unwrap();
    let refused = |kind: &EventKind| match kind {
        EventKind::SourceRefused { source, .. } => Some(*source),
        _ => None,
    };
    assert_eq!(house.event("far", refused).await, stranger.local_addr().unwrap());
    peer.send(b"for the application").await;
    assert_eq!(receive(&app).await.0, b"for the application");
    house.shutdown().await;
}

#[actix::test]
async fn two_applications_that_take_turns_flood_nobody_with_events() {
    let mut house = House::new().await;
    let to = house.listen(SessionConfig::listen("far", any()).local_udp(any())).await;
    let far = house.info("far").await.local_udp.unwrap();
    let mut peer = RawPeer::connect(to).await;
    let (one, other) = (udp().await, udp().await);
    for _ in 0..500 {
        one.send_to(b"one", far).await.unwrap();
        other.send_to(b"other", far).await.unwrap();
    }
    // What comes out at the far end shows that all before it has been dealt with.
    let insist = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        loop {
            pace.tick().await;
            one.send_to(b"last", far).await.unwrap();
        }
    });
    while peer.receive().await != b"last" {}
    insist.abort();
    let news = house.reported().into_iter().filter(|event| {
        matches!(event.kind, EventKind::SourceAppeared { .. } | EventKind::SourceForgotten { .. })
    });
    assert!(news.count() < 100);
    house.shutdown().await;
}

#[actix::test]
async fn an_ipv4_application_is_known_at_a_socket_for_both_families() {
    let house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let mut near = SessionConfig::connect("near", far).local_udp("[::]:0".parse().unwrap());
    near.app = Some(app.local_addr().unwrap());
    let near = house.local(near).await;
    until_echoed(&app, SocketAddr::from(([127, 0, 0, 1], near.port())), "mapped").await;
    assert_eq!(house.info("near").await.links.len(), 1);
    house.shutdown().await;
}

#[actix::test]
async fn a_client_that_wrote_to_a_broadcast_address_is_answered() {
    let house = House::new().await;
    let echo = Echo::start().await;
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let near = SessionConfig::connect("near", far).local_udp("0.0.0.0:0".parse().unwrap());
    let near = house.local(near).await;
    let app = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    app.set_broadcast(true).unwrap();
    app.send_to(b"who is there", (std::net::Ipv4Addr::new(127, 255, 255, 255), near.port())).await.unwrap();
    assert_eq!(receive(&app).await.0, b"who is there");
    house.shutdown().await;
}

#[actix::test]
async fn both_families_can_be_listened_to_at_one_port() {
    let house = House::new().await;
    // A port that was free a moment ago may be taken by then: a few attempts.
    for _ in 0..10 {
        let port = TcpListener::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port();
        let mut config = SessionConfig::listen("far", SocketAddr::from(([0; 4], port))).local_udp(any());
        config.local_tcp.push(SocketAddr::from(([0u16; 8], port)));
        if house.supervisor.send(StartSession { config }).await.unwrap().is_ok() {
            assert_eq!(house.info("far").await.local_tcp.len(), 2);
            house.shutdown().await;
            return;
        }
    }
    panic!("no port could be had for both families");
}
