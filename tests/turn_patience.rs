//! What a TURN client takes its time for: half a minute in all.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::time::{Duration, Instant};

use actix_relay::config::{TurnConfig, UdpForward};
use actix_relay::event::{EventKind, TurnEvent, TurnState};
use actix_relay::turn::{ConnectPeer, Permit, TurnError};
use support::coturn::Coturn;
use support::turn::{Gate, Verdict, info, server, server_at};
use support::turn_proxy::{StreamProxy, Treatment, UdpProxy, Way};
use support::{Echo, House, any, echoed_once, own_ip, udp, until_echoed};
use tokio::net::{TcpListener, TcpSocket};

async fn talks_for_20_s(coturn: &Coturn, transport: &str) {
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = TurnConfig::new("turn", server(&coturn.uri(transport)));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    let client = house.turn(config).await;
    house.allocated("turn").await;
    let local = info(&client).await.local_udp[0];
    let began = Instant::now();
    let mut number = 0u32;
    while began.elapsed() < Duration::from_secs(20) {
        echoed_once(&app, local, &number.to_be_bytes().repeat(50)).await;
        // Each second a request, whose nonce may be stale.
        if number.is_multiple_of(20) {
            let peers = vec![[127, 0, 1, (number / 20) as u8].into()];
            client.send(Permit { peers }).await.unwrap().unwrap();
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let events = house.reported();
    let is_trouble = |kind: &EventKind| {
        use TurnEvent::{AllocationDeleted, ChannelFailed, PermissionsFailed, RefreshFailed};
        let EventKind::Turn(event) = kind else { return false };
        matches!(
            event,
            AllocationDeleted { .. } | ChannelFailed { .. } | PermissionsFailed { .. } | RefreshFailed { .. }
        )
    };
    assert!(!events.iter().any(|event| is_trouble(&event.kind)), "{events:?}");
    house.shutdown().await;
}

#[actix::test]
async fn nonces_of_4_s_disturb_nobody_for_20_s() {
    let coturn = Coturn::builder().arg("--stale-nonce=4").start();
    tokio::join!(talks_for_20_s(&coturn, "udp"), talks_for_20_s(&coturn, "tcp"));
}

#[actix::test]
async fn whatever_does_not_come_is_given_up_in_time() {
    tokio::join!(
        the_answer_to_a_bind_does_not_come(),
        the_rest_of_a_message_does_not_come(),
        the_word_of_the_gate_does_not_come(),
        no_answer_at_all_comes(),
    );
}

async fn the_answer_to_a_bind_does_not_come() {
    let coturn = Coturn::start();
    let treat = |number| if number == 0 { Treatment::Pass } else { Treatment::Swallow };
    let proxy = StreamProxy::to(coturn.addr(), treat).await;
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server_at(proxy.addr, "tcp"))).await;
    house.allocated("turn").await;
    let listener = TcpListener::bind(any()).await.unwrap();
    let peer = listener.local_addr().unwrap();
    // No `soon`: the deadline is the client's.
    let error = client.send(ConnectPeer { peer }).await.unwrap().unwrap_err();
    assert!(matches!(error, TurnError::NoAnswer { request: "ConnectionBind", .. }), "{error:?}");
    let failed = |event: &TurnEvent| match event {
        TurnEvent::RelayConnectionBindingFailed { error, .. } => Some(error.clone()),
        _ => None,
    };
    assert_eq!(house.turn_event("turn", failed).await, error);
    house.shutdown().await;
}

async fn the_rest_of_a_message_does_not_come() {
    let coturn = Coturn::start();
    let begun = Treatment::Say(b"\x01\x03\x00\x44\x21\x12");
    let proxy =
        StreamProxy::to(coturn.addr(), move |number| if number == 0 { begun } else { Treatment::Pass }).await;
    let mut house = House::new().await;
    house.turn(TurnConfig::new("turn", server_at(proxy.addr, "tcp"))).await;
    let failed = |event: &TurnEvent| match event {
        TurnEvent::AllocationFailed { error, .. } => Some(error.to_string()),
        _ => None,
    };
    let error = house.turn_event("turn", failed).await;
    assert!(error.contains("not finished within 10s"), "{error}");
    house.allocated("turn").await;
    house.shutdown().await;
}

async fn the_word_of_the_gate_does_not_come() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server(&coturn.uri("tcp")))).await;
    let relayed = house.allocated("turn").await;
    let mut gate = Gate::new(Verdict::Silence);
    client.send(gate.set()).await.unwrap();
    let ip = own_ip();
    client.send(Permit { peers: vec![ip] }).await.unwrap().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    let far = socket.connect(relayed).await.unwrap();
    gate.attempt().await;
    let asked = Instant::now();
    let rejected = |event: &TurnEvent| match event {
        TurnEvent::PeerConnectionRejected { peer } => Some(*peer),
        _ => None,
    };
    assert_eq!(house.turn_event("turn", rejected).await, far.local_addr().unwrap());
    assert!(asked.elapsed() > Duration::from_secs(4), "after {:?}", asked.elapsed());
    house.shutdown().await;
}

/// Requests are repeated more and more seldom.
async fn no_answer_at_all_comes() {
    let coturn = Coturn::start();
    let proxy = UdpProxy::to(coturn.addr()).await;
    proxy.filter(|way, _| way == Way::Up);
    let house = House::new().await;
    let client = house.turn(TurnConfig::new("turn", server_at(proxy.addr, "udp"))).await;
    while proxy.requests().len() < 6 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let requests = proxy.requests();
    let after = requests[5].0 - requests[0].0;
    assert!(after > Duration::from_millis(15_400), "6 tries within {after:?}");
    assert_eq!(info(&client).await.state, TurnState::Allocating);
    house.shutdown().await;
}

#[actix::test]
#[ignore = "takes 45 s; the core's tests play the same in virtual time"]
async fn a_server_that_pauses_for_good_is_noticed_within_60_s() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = TurnConfig::new("turn", server(&coturn.uri("udp")));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    let client = house.turn(config).await;
    house.allocated("turn").await;
    let local = info(&client).await.local_udp[0];
    until_echoed(&app, local, "before").await;
    coturn.pause();
    let paused = Instant::now();
    while info(&client).await.relayed.is_some() {
        assert!(paused.elapsed() < Duration::from_secs(60));
        app.send_to(b"anybody?", local).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("noticed after {:?}", paused.elapsed());
    coturn.resume();
    until_echoed(&app, local, "after").await;
    house.shutdown().await;
}
