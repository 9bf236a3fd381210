//! What a TURN client takes its time for: half a minute in all. What waits does so at the same time.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::time::{Duration, Instant};

use actix_relay::config::{TurnConfig, UdpForward};
use actix_relay::event::{EventKind, TurnEvent, TurnState};
use actix_relay::turn::{Allocate, ConnectPeer, Permit, TurnError};
use support::coturn::{Coturn, USER};
use support::turn::{Gate, Verdict, info, send, server, server_at, take, wrong_password};
use support::turn_proxy::{StreamProxy, Treatment, UdpProxy, Way};
use support::{Echo, House, any, echoed_once, own_ip, soon, udp, until_echoed};
use tokio::net::{TcpListener, TcpSocket};

async fn talks_for_20_s(coturn: &Coturn, transport: &str) {
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = TurnConfig::new("turn", server(&coturn.uri(transport)));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    // Nothing gets too old, however busy the machine is.
    config.max_queue_delay = support::PATIENCE;
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
async fn a_client_waits_as_long_as_it_should_and_no_longer() {
    tokio::join!(
        a_reader_that_pauses_comes_back(),
        the_answer_to_a_bind_does_not_come(),
        the_rest_of_a_message_does_not_come(),
        the_word_of_the_gate_does_not_come(),
        no_answer_at_all_comes(),
        a_server_that_refuses_is_left_in_peace(),
    );
}

/// Whoever carries bytes may let them wait, longer than a dead peer of a tunnel may be silent (10 s).
async fn a_reader_that_pauses_comes_back() {
    const BLOCKS: usize = 8 << 10;
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server(&coturn.uri("tcp")))).await;
    house.allocated("turn").await;
    let listener = TcpListener::bind(any()).await.unwrap();
    let peer = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(client.send(ConnectPeer { peer }), listener.accept());
    let (mut near, mut far) = (near.unwrap().unwrap(), far.unwrap().0);
    let reading = async {
        tokio::time::sleep(Duration::from_secs(15)).await;
        take(&mut far, BLOCKS).await;
    };
    tokio::join!(send(&mut near, BLOCKS), reading);
    house.shutdown().await;
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
    let began = Instant::now();
    let client = house.turn(TurnConfig::new("turn", server_at(proxy.addr, "udp"))).await;
    while proxy.requests().len() < 6 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // From before the first was sent, for it may have been long on its way.
    let after = proxy.requests()[5].0 - began;
    assert!(after >= Duration::from_millis(15_500), "6 tries within {after:?}");
    assert_eq!(info(&client).await.state, TurnState::Allocating);
    house.shutdown().await;
}

/// A server that refuses hears a handful of requests in ten seconds, also when somebody hurries the client: what the
/// supervisor has planned for the attempts before does not come on top.
async fn a_server_that_refuses_is_left_in_peace() {
    let coturn = Coturn::start();
    let (patient, hurried) = (UdpProxy::to(coturn.addr()).await, UdpProxy::to(coturn.addr()).await);
    let mut house = House::new().await;
    house.turn(TurnConfig::new("patient", wrong_password(patient.addr, "udp"))).await;
    let client = house.turn(TurnConfig::new("hurried", wrong_password(hurried.addr, "udp"))).await;
    let failed = |event: &TurnEvent| match event {
        TurnEvent::AllocationFailed { error, retry_in } => Some((error.clone(), *retry_in)),
        _ => None,
    };
    let (error, retry_in) = house.turn_event("patient", failed).await;
    assert_eq!(error, TurnError::Unauthorized { request: "Allocate", user: USER.into() });
    assert!(!error.to_string().contains("wrong"), "{error}");
    assert!(retry_in.is_some_and(|wait| wait >= Duration::from_secs(5)), "{retry_in:?}");
    for _ in 0..3 {
        soon("the back-off", async {
            while !matches!(info(&client).await.state, TurnState::Backoff { .. }) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(client.send(Allocate).await.unwrap().unwrap_err(), error);
    }
    let asked = hurried.requests().len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(patient.requests().len() <= 6, "{:?}", patient.requests());
    assert_eq!(hurried.requests().len(), asked, "{:?}", hurried.requests());
    assert!(matches!(info(&client).await.state, TurnState::Backoff { .. }));
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
