//! Peers that connect to a TURN client's relayed address (RFC 6062), against coturn.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use actix::Addr;
use actix_relay::config::TurnConfig;
use actix_relay::event::TurnEvent;
use actix_relay::turn::{Forbid, Permit, SetGate, TurnClientActor};
use support::coturn::Coturn;
use support::turn::{Gate, Verdict, info, server_at};
use support::turn_proxy::{StreamProxy, Treatment};
use support::{House, own_ip, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A server, a client with a TCP allocation on it, and where peers connect to.
struct Scene {
    coturn: Coturn,
    house: House,
    client: Addr<TurnClientActor>,
    relayed: SocketAddr,
}

impl Scene {
    async fn new() -> Self {
        Self::at(Coturn::start(), None).await
    }

    async fn at(coturn: Coturn, proxy: Option<&StreamProxy>) -> Self {
        let mut house = House::new().await;
        let addr = proxy.map_or(coturn.addr(), |proxy| proxy.addr);
        let client = house.turn(TurnConfig::tcp("turn", server_at(addr, "tcp"))).await;
        let relayed = house.allocated("turn").await;
        Self { coturn, house, client, relayed }
    }

    async fn set(&self, gate: SetGate) {
        self.client.send(gate).await.unwrap();
    }

    async fn permit(&self, peer: IpAddr) {
        self.client.send(Permit { peers: vec![peer] }).await.unwrap().unwrap();
    }

    /// A peer with an address of its own connects.
    async fn peer_at(&self, ip: IpAddr) -> TcpStream {
        self.try_peer_at(ip).await.unwrap()
    }

    /// The server resets one that is not permitted, perhaps before it has noticed that it is connected.
    async fn try_peer_at(&self, ip: IpAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((ip, 0).into())?;
        soon("the peer's connection", socket.connect(self.relayed)).await
    }

    /// A peer connects, and its connection ends: at once, or when it reads.
    async fn is_turned_away(&self, ip: IpAddr) {
        if let Ok(mut far) = self.try_peer_at(ip).await {
            assert!(matches!(soon("the end", far.read(&mut [0; 8])).await, Ok(0) | Err(_)));
        }
    }

    async fn permitted_peer(&self) -> TcpStream {
        let ip = own_ip();
        self.permit(ip).await;
        self.peer_at(ip).await
    }

    async fn rejected(&mut self) -> SocketAddr {
        self.house
            .turn_event("turn", |event| match event {
                TurnEvent::PeerConnectionRejected { peer } => Some(*peer),
                _ => None,
            })
            .await
    }
}

#[actix::test]
async fn an_attempt_that_the_gate_accepts_carries_bytes_both_ways_early_ones_first() {
    let mut scene = Scene::new().await;
    let mut gate = Gate::new(Verdict::Accept);
    scene.set(gate.set()).await;
    let mut far = scene.permitted_peer().await;
    far.write_all(b"early").await.unwrap();
    let attempt = gate.attempt().await;
    assert_eq!(attempt.peer, far.local_addr().unwrap());
    let mut near = gate.stream().await;
    assert_eq!((near.peer(), near.connection()), (attempt.peer, attempt.connection));
    assert_eq!(info(&scene.client).await.connections, [(attempt.connection, attempt.peer)]);
    let mut got = [0; 5];
    soon("early bytes", near.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"early");
    near.write_all(b"later").await.unwrap();
    soon("the answer", far.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"later");
    let created = |event: &TurnEvent| match event {
        TurnEvent::RelayConnectionCreated { connection, peer } => Some((*connection, *peer)),
        _ => None,
    };
    assert_eq!(scene.house.turn_event("turn", created).await, (attempt.connection, attempt.peer));
    scene.house.shutdown().await;
}

#[actix::test]
async fn an_attempt_that_the_gate_rejects_comes_to_nothing() {
    let mut scene = Scene::new().await;
    let mut gate = Gate::new(Verdict::Reject);
    scene.set(gate.set()).await;
    let far = scene.permitted_peer().await;
    assert_eq!(gate.attempt().await.peer, far.local_addr().unwrap());
    assert_eq!(scene.rejected().await, far.local_addr().unwrap());
    assert_eq!(info(&scene.client).await.connections, []);
    scene.house.shutdown().await;
}

#[actix::test]
async fn without_a_gate_all_permitted_peers_are_let_in() {
    let scene = Scene::new().await;
    let mut gate = Gate::new(Verdict::Reject);
    scene.set(gate.takes_all()).await;
    let far = scene.permitted_peer().await;
    assert_eq!(gate.stream().await.peer(), far.local_addr().unwrap());
    scene.house.shutdown().await;
}

#[actix::test]
async fn where_nobody_takes_connections_nobody_is_let_in() {
    let mut scene = Scene::new().await;
    let far = scene.permitted_peer().await;
    assert_eq!(scene.rejected().await, far.local_addr().unwrap());
    // A gate alone takes none.
    let mut gate = Gate::new(Verdict::Accept);
    scene.set(SetGate { streams: None, ..gate.set() }).await;
    let far = scene.permitted_peer().await;
    assert_eq!(scene.rejected().await, far.local_addr().unwrap());
    assert!(gate.asked.try_recv().is_err(), "there was nothing to decide on");
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_gate_and_a_taker_that_are_gone_let_nobody_in() {
    let mut scene = Scene::new().await;
    let gate = Gate::new(Verdict::Accept);
    let set = gate.set();
    gate.stop().await;
    scene.set(set.clone()).await;
    let far = scene.permitted_peer().await;
    assert_eq!(scene.rejected().await, far.local_addr().unwrap());
    // Accepted, and then there is nobody to give it to: it is closed.
    scene.set(SetGate { gate: None, ..set }).await;
    let ip = own_ip();
    scene.permit(ip).await;
    scene.is_turned_away(ip).await;
    let closed = |event: &TurnEvent| matches!(event, TurnEvent::RelayConnectionClosed { .. }).then_some(());
    scene.house.turn_event("turn", closed).await;
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_peer_that_is_not_permitted_is_not_heard_of() {
    let scene = Scene::new().await;
    let mut gate = Gate::new(Verdict::Accept);
    scene.set(gate.set()).await;
    let (stranger, forbidden) = (own_ip(), own_ip());
    scene.is_turned_away(stranger).await;
    // The server would let it in for 5 minutes more.
    scene.permit(forbidden).await;
    scene.client.send(Forbid { peers: vec![forbidden] }).await.unwrap();
    let late = scene.try_peer_at(forbidden).await;
    let far = scene.permitted_peer().await;
    assert_eq!(gate.attempt().await.peer, far.local_addr().unwrap());
    assert_eq!(gate.stream().await.peer(), far.local_addr().unwrap());
    drop(late);
    scene.house.shutdown().await;
}

#[actix::test]
async fn many_attempts_at_once_are_all_served() {
    let scene = Scene::new().await;
    let mut gate = Gate::new(Verdict::Accept);
    scene.set(gate.set()).await;
    let ip = own_ip();
    scene.permit(ip).await;
    let mut peers = Vec::new();
    for number in 0u8..20 {
        let mut far = scene.peer_at(ip).await;
        far.write_all(&[number]).await.unwrap();
        peers.push(far);
    }
    for _ in 0..20 {
        let mut near = gate.stream().await;
        let number = soon("its number", near.read_u8()).await.unwrap();
        let far = &mut peers[usize::from(number)];
        assert_eq!(near.peer(), far.local_addr().unwrap());
        near.write_all(&[number, 7]).await.unwrap();
        let mut got = [0; 2];
        soon("the answer", far.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, [number, 7]);
    }
    scene.house.shutdown().await;
}

/// The last request was long ago, and its nonce with it: the client learns the new one and binds at once.
#[actix::test]
async fn a_nonce_that_ran_out_before_the_attempt_does_not_hold_it_up() {
    let scene = Scene::at(Coturn::builder().arg("--stale-nonce=1").start(), None).await;
    let mut gate = Gate::new(Verdict::Accept);
    scene.set(gate.set()).await;
    let ip = own_ip();
    scene.permit(ip).await;
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let began = Instant::now();
        let mut far = scene.peer_at(ip).await;
        let mut near = gate.stream().await;
        far.write_all(b"hello").await.unwrap();
        soon("a byte", near.read_u8()).await.unwrap();
        longest = longest.max(began.elapsed());
    }
    // Were nobody woken it would be done at the next look at the clock, every 5 s.
    assert!(longest < Duration::from_millis(1500), "{longest:?}");
    scene.house.shutdown().await;
}

#[actix::test]
async fn an_attempt_whose_data_connection_fails_is_told_and_the_next_one_works() {
    let coturn = Coturn::start();
    let treat = |number| if number == 1 { Treatment::Refuse } else { Treatment::Pass };
    let proxy = StreamProxy::to(coturn.addr(), treat).await;
    let mut scene = Scene::at(coturn, Some(&proxy)).await;
    let mut gate = Gate::new(Verdict::Accept);
    scene.set(gate.set()).await;
    let ip = own_ip();
    scene.permit(ip).await;
    let unlucky = scene.peer_at(ip).await;
    let failed = |event: &TurnEvent| match event {
        TurnEvent::RelayConnectionBindingFailed { peer, .. } => Some(*peer),
        _ => None,
    };
    assert_eq!(scene.house.turn_event("turn", failed).await, unlucky.local_addr().unwrap());
    let lucky = scene.peer_at(ip).await;
    assert_eq!(gate.stream().await.peer(), lucky.local_addr().unwrap());
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_permission_holds_over_the_servers_restart() {
    let mut scene = Scene::new().await;
    let mut gate = Gate::new(Verdict::Accept);
    scene.set(gate.set()).await;
    let ip = own_ip();
    scene.permit(ip).await;
    scene.coturn.restart();
    scene.relayed = scene.house.allocated("turn").await;
    let permitted = |event: &TurnEvent| match event {
        TurnEvent::PermissionsCreated { peers } => Some(peers.clone()),
        _ => None,
    };
    assert_eq!(scene.house.turn_event("turn", permitted).await, [ip]);
    let far = scene.peer_at(ip).await;
    assert_eq!(gate.stream().await.peer(), far.local_addr().unwrap());
    scene.house.shutdown().await;
}
