//! TLS on the accepting side of a relay.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use actix_relay::config::{ClientTls, Pin, RelayRemote, ServerCertificate, ServerTls, SessionConfig};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{EventKind, SideEvent};
use support::relay_side::{Class, PASSWORD, Side, USER, config, stun};
use support::tls::{Authority, Dialect, client, pinned};
use support::{Echo, House, any, echoed_once, soon, udp};

const PROTOCOL: &[u8] = b"actix-relay/1";

async fn tls_relay(house: &House, tls: ServerTls) -> SocketAddr {
    let mut config = config("relay");
    config.tls = Some(tls);
    house.start_relay(config).await.1
}

fn at(relay: SocketAddr, side: &str, tls: ClientTls) -> RelayRemote {
    RelayRemote::new(relay.into(), UserPassword::new(USER, PASSWORD), "pair", side).tls(tls)
}

async fn shown(house: &mut House) -> Pin {
    house
        .event("relay", |kind| match kind {
            EventKind::CertificateShown { pin, .. } => Some(*pin),
            _ => None,
        })
        .await
}

async fn refused(house: &mut House) -> String {
    house
        .event("relay", |kind| match kind {
            EventKind::HandshakeFailed { error, .. } => Some(error.clone()),
            _ => None,
        })
        .await
}

#[actix::test]
async fn two_sessions_that_pin_the_relay_s_own_certificate_meet() {
    let mut house = House::new().await;
    let relay = tls_relay(&house, ServerTls::new(ServerCertificate::SelfSigned)).await;
    let tls = pinned(shown(&mut house).await);
    let echo = Echo::start().await;
    let near = SessionConfig::connect("near", at(relay, "near", tls.clone())).local_udp(any());
    let entry = house.local(near).await;
    let far = SessionConfig::connect("far", at(relay, "far", tls)).udp_forward(echo.addr);
    house.start(far).await;
    house
        .event("near", |kind| {
            matches!(kind, EventKind::Side(SideEvent::RelayPeerPresent { .. })).then_some(())
        })
        .await;
    let app = udp().await;
    for len in [0, 1, 1200, 9000, 60_000] {
        echoed_once(&app, entry, &vec![7; len]).await;
    }
    let info = house.relay_info("relay").await;
    assert_eq!((info.sides, info.counters.forwarded.datagrams, info.counters.drops.total()), (2, 10, 0));
    house.shutdown().await;
}

#[actix::test]
async fn a_client_of_another_protocol_and_a_plain_one_are_turned_away() {
    let mut house = House::new().await;
    let authority = Authority::new();
    let relay = tls_relay(&house, authority.issue("127.0.0.1").shown()).await;
    for protocols in [vec![&b"actix-relay-direct/1"[..]], vec![]] {
        let dialect = Dialect { protocols, ..Dialect::default() };
        let mut stream = client(relay, &authority, &dialect);
        let ended = tokio::task::spawn_blocking(move || {
            let _ = stream.write_all(b"\x00");
            !matches!(stream.read(&mut [0; 1]), Ok(1))
        });
        assert!(ended.await.unwrap());
    }
    assert!(!refused(&mut house).await.is_empty());
    let mut plain = Side::connect(relay).await;
    plain.send(&stun(1, Class::Request, [1; 12], &[], None)).await;
    // What the alert says, no plain client understands.
    let mut alert = Vec::new();
    let _ = soon("the end", tokio::io::AsyncReadExt::read_to_end(&mut plain.stream, &mut alert)).await;
    assert!(alert.is_empty() || alert[0] == 21, "{alert:?}");
    assert_eq!(house.relay_info("relay").await.sides, 0);
}

#[actix::test]
async fn a_session_whose_certificate_the_relay_does_not_take_hears_why_and_asks_slowly() {
    let mut house = House::new().await;
    let authority = Authority::new();
    let mut tls = authority.issue("127.0.0.1").shown();
    tls.client_pins = vec![Pin([7; 32])];
    let relay = tls_relay(&house, tls).await;
    let near = SessionConfig::connect("near", at(relay, "near", authority.believed())).local_udp(any());
    house.start(near).await;
    let failed = house.event("near", |kind| match kind {
        EventKind::ConnectFailed { error, retry_in, .. } => Some((error.clone(), *retry_in)),
        _ => None,
    });
    let (error, retry_in) = failed.await;
    assert!(error.contains("it asks for a certificate"), "{error}");
    assert!(retry_in.is_some_and(|retry_in| retry_in >= Duration::from_secs(5)), "{retry_in:?}");
}

#[actix::test]
async fn a_handshake_that_is_not_finished_ends_and_those_that_need_its_place_get_it() {
    let house = House::new().await;
    let mut config = config("relay");
    config.tls = Some(ServerTls::new(ServerCertificate::SelfSigned));
    config.max_unjoined_per_address = 2;
    let (_, relay) = house.start_relay(config).await;
    let began = Instant::now();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut side = Side::connect(relay).await;
        side.send(b"\x16\x03\x01").await;
        waiting.push(side);
    }
    assert!(waiting.remove(0).is_closed().await);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for side in &mut waiting {
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut side.stream, &mut Vec::new()).await;
    }
    assert!((9..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    house.relay_when("relay", "they are gone", |info| info.unjoined == 0).await;
}

#[actix::test]
async fn a_side_with_tls_hears_why_the_relay_closes_and_a_renewed_certificate_is_shown() {
    let mut house = House::new().await;
    let authority = Authority::new();
    let (first, second) = (authority.issue("127.0.0.1"), authority.issue("127.0.0.1"));
    let relay = tls_relay(&house, first.shown()).await;
    assert_eq!(shown(&mut house).await, first.pin);
    let dialect = Dialect { protocols: vec![PROTOCOL], ..Dialect::default() };
    let mut stream = client(relay, &authority, &dialect);
    let heard = tokio::task::spawn_blocking(move || {
        let ping = stun(1, Class::Request, [1; 12], &[], None);
        stream.write_all(&ping).unwrap();
        let mut answer = [0; 32];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[8..20], [1; 12]);
        stream.write_all(b"POST").unwrap();
        let mut closing = Vec::new();
        // An end with its close_notify: no error.
        stream.read_to_end(&mut closing).unwrap();
        closing
    });
    let closing = heard.await.unwrap();
    assert_eq!(closing[closing.len() - 8..], [0x7f, 0x04, 0, 4, 0, 0, 0, 5]);
    second.take_the_place_of(&first);
    // It is looked at once a second, when somebody comes.
    let renewed = async {
        loop {
            drop(Side::connect(relay).await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        pin = shown(&mut house) => assert_eq!(pin, second.pin),
        () = renewed => {}
    }
}
