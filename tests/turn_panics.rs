//! A panic in an actor of a TURN client ends that actor only; it is replaced, and what was wished for stays.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::{IpAddr, SocketAddr};

use actix::prelude::*;
use actix_relay::config::{SupervisorConfig, TurnConfig, UdpForward};
use actix_relay::event::EventKind;
use actix_relay::supervisor::InTurn;
use actix_relay::test_panic::{Panic, PanicInForward};
use actix_relay::turn::{
    Allocate, BindChannel, ConnectPeer, DeliverDatagrams, GetAllocation, Permit, TurnError,
};
use support::coturn::Coturn;
use support::turn::{Gate, Inbox, Verdict, server};
use support::{Echo, House, any, own_ip, soon, udp, until_echoed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

/// The address of the client's actor changes: it is reached by its name.
async fn ask<M>(house: &House, message: M) -> M::Result
where
    M: Message + Clone + Send + 'static,
    M::Result: Send,
    actix_relay::turn::TurnClientActor: Handler<M>,
{
    soon("the client's next life", async {
        loop {
            let message = InTurn { turn: "turn".into(), message: message.clone() };
            if let Ok(answer) = house.supervisor.send(message).await.unwrap() {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn panicked(house: &mut House) -> String {
    house
        .event("turn", |kind| match kind {
            EventKind::ActorPanicked { actor } => Some(actor.clone()),
            _ => None,
        })
        .await
}

async fn panic_in_client(house: &mut House) {
    let message = InTurn { turn: "turn".into(), message: Panic };
    // Nobody is left to answer.
    let _ = house.supervisor.send(message).await.unwrap();
    assert_eq!(panicked(house).await, "TurnClientActor");
}

struct Forward {
    house: House,
    app: UdpSocket,
    local: SocketAddr,
    _echo: Echo,
}

impl Forward {
    async fn new(coturn: &Coturn, transport: &str) -> Self {
        let mut house = House::new().await;
        let (echo, app) = (Echo::start().await, udp().await);
        let mut config = TurnConfig::new("turn", server(&coturn.uri(transport)));
        config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
        house.turn(config).await;
        house.allocated("turn").await;
        let local = ask(&house, GetAllocation).await.local_udp[0];
        until_echoed(&app, local, "before").await;
        Self { house, app, local, _echo: echo }
    }
}

#[actix::test]
async fn a_panic_of_the_client_is_survived_with_its_ports_channels_permissions_and_counters() {
    let coturn = Coturn::start();
    for transport in ["udp", "tcp"] {
        let Forward { mut house, app, local, _echo } = Forward::new(&coturn, transport).await;
        let (permitted, bound) = (IpAddr::from([127, 0, 0, 8]), SocketAddr::from(([127, 0, 0, 9], 9)));
        ask(&house, Permit { peers: vec![permitted] }).await.unwrap();
        ask(&house, BindChannel { peer: bound }).await.unwrap();
        let before = ask(&house, GetAllocation).await.counters;
        panic_in_client(&mut house).await;
        house.allocated("turn").await;
        until_echoed(&app, local, "after").await;
        ask(&house, Permit { peers: vec![permitted] }).await.unwrap();
        ask(&house, BindChannel { peer: bound }).await.unwrap();
        let after = ask(&house, GetAllocation).await;
        assert_eq!(after.local_udp, [local]);
        assert_eq!(after.channels.len(), 2);
        assert!(after.permissions.contains(&permitted), "{after:?}");
        assert!(after.counters.to_peers.datagrams > before.to_peers.datagrams);
        house.shutdown().await;
    }
}

#[actix::test]
async fn a_panic_of_a_forwards_endpoint_is_survived_without_losing_the_allocation() {
    let coturn = Coturn::start();
    for transport in ["udp", "tcp"] {
        let Forward { mut house, app, local, _echo } = Forward::new(&coturn, transport).await;
        let relayed = ask(&house, GetAllocation).await.relayed;
        ask(&house, PanicInForward(0)).await;
        assert_eq!(panicked(&mut house).await, "UdpEndpointActor of link 0");
        until_echoed(&app, local, "after").await;
        assert_eq!(ask(&house, GetAllocation).await.relayed, relayed);
        house.shutdown().await;
    }
}

#[actix::test]
async fn what_was_told_to_allocate_or_not_to_holds_after_a_panic() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let mut config = TurnConfig::new("turn", server(&coturn.uri("tcp")));
    config.allocate = false;
    house.turn(config).await;
    panic_in_client(&mut house).await;
    assert_eq!(ask(&house, GetAllocation).await.relayed, None);
    ask(&house, Allocate).await.unwrap();
    panic_in_client(&mut house).await;
    house.allocated("turn").await;
    panic_in_client(&mut house).await;
    house.allocated("turn").await;
    house.shutdown().await;
}

#[actix::test]
async fn who_waits_when_the_client_panics_hears_of_it() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server(&coturn.uri("tcp")))).await;
    house.allocated("turn").await;
    coturn.pause();
    let permit = tokio::task::spawn_local(client.send(Permit { peers: vec![own_ip()] }));
    let connect = tokio::task::spawn_local(client.send(ConnectPeer { peer: (own_ip(), 9).into() }));
    ask(&house, GetAllocation).await;
    panic_in_client(&mut house).await;
    let gone = TurnError::NoAllocation { retrying: false };
    assert_eq!(soon("the answer", permit).await.unwrap().unwrap(), Err(gone.clone()));
    assert_eq!(soon("the answer", connect).await.unwrap().unwrap().unwrap_err(), gone);
    coturn.resume();
    house.allocated("turn").await;
    house.shutdown().await;
}

/// Streams are their owners', and coturn ends them with the control connection; the gate goes on.
#[actix::test]
async fn a_gate_stays_when_the_client_panics() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    house.turn(TurnConfig::tcp("turn", server(&coturn.uri("tcp")))).await;
    house.allocated("turn").await;
    let mut gate = Gate::new(Verdict::Accept);
    ask(&house, gate.set()).await;
    let ip = own_ip();
    ask(&house, Permit { peers: vec![ip] }).await.unwrap();
    let listener = TcpListener::bind(any()).await.unwrap();
    let peer = listener.local_addr().unwrap();
    let client = InTurn { turn: "turn".into(), message: ConnectPeer { peer } };
    let (near, far) = tokio::join!(house.supervisor.send(client), listener.accept());
    let (mut near, _far) = (near.unwrap().unwrap().unwrap(), far.unwrap());
    panic_in_client(&mut house).await;
    assert!(matches!(soon("the end", near.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    drop(near);
    let relayed = house.allocated("turn").await;
    ask(&house, Permit { peers: vec![ip] }).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    let mut far = soon("a peer", socket.connect(relayed)).await.unwrap();
    far.write_all(b"hello").await.unwrap();
    assert_eq!(gate.attempt().await.peer, far.local_addr().unwrap());
    soon("a byte", gate.stream().await.read_u8()).await.unwrap();
    house.shutdown().await;
}

#[actix::test]
async fn an_inbox_stays_when_the_client_panics() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    house.turn(TurnConfig::new("turn", server(&coturn.uri("udp")))).await;
    house.allocated("turn").await;
    let mut inbox = Inbox::new();
    ask(&house, DeliverDatagrams { to: Some(inbox.recipient.clone()) }).await;
    panic_in_client(&mut house).await;
    let relayed = house.allocated("turn").await;
    let peer = udp().await;
    ask(&house, Permit { peers: vec![peer.local_addr().unwrap().ip()] }).await.unwrap();
    peer.send_to(b"hello", relayed).await.unwrap();
    assert_eq!(inbox.next().await, (peer.local_addr().unwrap(), b"hello".to_vec()));
    house.shutdown().await;
}

#[actix::test]
async fn a_client_that_panics_again_and_again_is_given_up() {
    let coturn = Coturn::start();
    let mut config = SupervisorConfig::default();
    config.max_panics = 2;
    let mut house = House::with(config).await;
    house.turn(TurnConfig::new("turn", server(&coturn.uri("udp")))).await;
    for _ in 0..3 {
        house.allocated("turn").await;
        panic_in_client(&mut house).await;
    }
    let given_up = |kind: &EventKind| matches!(kind, EventKind::GaveUp { .. }).then_some(());
    house.event("turn", given_up).await;
    house.event("turn", |kind| matches!(kind, EventKind::SessionStopped).then_some(())).await;
    house.shutdown().await;
}
