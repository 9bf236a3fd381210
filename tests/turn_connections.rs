//! Connections that a TURN client asks for (RFC 6062), against coturn.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix::Addr;
use actix_relay::config::TurnConfig;
use actix_relay::event::TurnEvent;
use actix_relay::supervisor::StartTurn;
use actix_relay::turn::{ConnectPeer, RelayStream, TurnClientActor, TurnError};
use support::coturn::Coturn;
use support::turn::{info, server, server_at};
use support::turn_proxy::{StreamProxy, Treatment};
use support::{House, any, soon, vacant_tcp};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A server, a client with a TCP allocation on it, and a peer that can be connected to.
struct Scene {
    coturn: Coturn,
    house: House,
    client: Addr<TurnClientActor>,
    listener: TcpListener,
    peer: SocketAddr,
}

impl Scene {
    async fn new() -> Self {
        Self::at(Coturn::start(), None).await
    }

    /// The client reaches the server through `proxy`.
    async fn at(coturn: Coturn, proxy: Option<&StreamProxy>) -> Self {
        let mut house = House::new().await;
        let addr = proxy.map_or(coturn.addr(), |proxy| proxy.addr);
        let client = house.turn(TurnConfig::tcp("turn", server_at(addr, "tcp"))).await;
        house.allocated("turn").await;
        let listener = TcpListener::bind(any()).await.unwrap();
        let peer = listener.local_addr().unwrap();
        Self { coturn, house, client, listener, peer }
    }

    async fn connect(&self, peer: SocketAddr) -> Result<RelayStream, TurnError> {
        soon("the answer to ConnectPeer", self.client.send(ConnectPeer { peer })).await.unwrap()
    }

    /// A connection, and the peer's end of it.
    async fn connected(&self) -> (RelayStream, TcpStream) {
        let (near, far) = tokio::join!(self.connect(self.peer), self.listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// All events about connections that have come when `last` has.
    async fn connection_events(&mut self, last: impl Fn(&TurnEvent) -> bool) -> Vec<TurnEvent> {
        let mut events = self.house.turn_events("turn", last).await;
        events.retain(|event| {
            matches!(
                event,
                TurnEvent::RelayConnectionCreated { .. }
                    | TurnEvent::RelayConnectionError { .. }
                    | TurnEvent::RelayConnectionClosed { .. }
                    | TurnEvent::RelayConnectionBindingFailed { .. }
            )
        });
        events
    }

    async fn binding_failed(&mut self) -> TurnError {
        let failed = |event: &TurnEvent| match event {
            TurnEvent::RelayConnectionBindingFailed { error, .. } => Some(error.clone()),
            _ => None,
        };
        self.house.turn_event("turn", failed).await
    }
}

fn is_closed(event: &TurnEvent) -> bool {
    matches!(event, TurnEvent::RelayConnectionClosed { .. })
}

const KIB: usize = 1024;

/// Numbered blocks of 1 KiB.
async fn send(to: &mut (impl AsyncWrite + Unpin), blocks: usize) {
    for number in 0..blocks {
        to.write_all(&[number as u8; KIB]).await.unwrap();
    }
    to.flush().await.unwrap();
}

async fn take(from: &mut (impl AsyncRead + Unpin), blocks: usize) {
    let mut block = [0; KIB];
    for number in 0..blocks {
        from.read_exact(&mut block).await.unwrap();
        assert_eq!(block, [number as u8; KIB]);
    }
}

async fn says(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), to: &mut TcpStream, what: &[u8]) {
    let mut got = vec![0; what.len()];
    stream.write_all(what).await.unwrap();
    soon("what was said", to.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, what);
    to.write_all(what).await.unwrap();
    soon("the echo", stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, what);
}

#[actix::test]
async fn a_slow_reader_of_8_mib_each_way_holds_up_nobody_else() {
    let scene = Scene::new().await;
    let (mut near, mut far) = scene.connected().await;
    assert_eq!(near.peer(), scene.peer);
    assert_eq!(far.peer_addr().unwrap(), info(&scene.client).await.relayed.unwrap());
    // Nobody reads yet: both directions fill up.
    let blocks = 8 * KIB;
    let (mut from_near, mut to_near) = tokio::io::split(&mut near);
    let (mut from_far, mut to_far) = far.split();
    let sending = async { tokio::join!(send(&mut to_near, blocks), send(&mut to_far, blocks)) };
    tokio::pin!(sending);
    let meanwhile = async {
        let other = TcpListener::bind(any()).await.unwrap();
        let peer = other.local_addr().unwrap();
        let (second, accepted) = tokio::join!(scene.connect(peer), other.accept());
        let mut second = second.unwrap();
        says(&mut second, &mut accepted.unwrap().0, b"second").await;
        assert_eq!(info(&scene.client).await.connections.len(), 2);
    };
    soon("the second connection", async {
        tokio::select! {
            _ = &mut sending => panic!("somebody keeps 8 MiB that nobody reads"),
            () = meanwhile => {}
        }
    })
    .await;
    let reading = async { tokio::join!(take(&mut from_near, blocks), take(&mut from_far, blocks)) };
    soon("8 MiB each way", async { tokio::join!(sending, reading) }).await;
    scene.house.shutdown().await;
}

#[actix::test]
async fn twenty_connections_are_made_at_once() {
    let mut scene = Scene::new().await;
    let mut peers = Vec::new();
    for _ in 0..20 {
        peers.push(TcpListener::bind(any()).await.unwrap());
    }
    let mut connecting = JoinSet::new();
    for listener in peers {
        let connected = scene.client.send(ConnectPeer { peer: listener.local_addr().unwrap() });
        connecting.spawn_local(async move {
            let (near, far) = tokio::join!(connected, listener.accept());
            (near.unwrap().unwrap(), far.unwrap().0)
        });
    }
    let mut connections = soon("20 connections", connecting.join_all()).await;
    for (number, (near, far)) in connections.iter_mut().enumerate() {
        says(near, far, format!("this is number {number}").as_bytes()).await;
    }
    let mut ids: Vec<_> = info(&scene.client).await.connections;
    ids.sort();
    ids.dedup_by_key(|(id, _)| *id);
    assert_eq!(ids.len(), 20);
    drop(connections);
    for _ in 0..20 {
        scene.connection_events(is_closed).await;
    }
    assert_eq!(info(&scene.client).await.connections, []);
    scene.house.shutdown().await;
}

/// The peer's bytes are there before the data connection is, and come together with the success of its bind.
#[actix::test]
async fn what_the_peer_sends_before_the_bind_is_read_first() {
    const EARLY: usize = 6000;
    for how in [Treatment::Pass, Treatment::ByteByByte, Treatment::Gather(EARLY)] {
        let coturn = Coturn::start();
        let treat = move |number| if number == 0 { Treatment::Pass } else { how };
        let proxy = StreamProxy::to(coturn.addr(), treat).await;
        let scene = Scene::at(coturn, Some(&proxy)).await;
        let early: Vec<u8> = (0..EARLY).map(|number| number as u8).collect();
        let speaking = async {
            let mut far = scene.listener.accept().await.unwrap().0;
            far.write_all(&early).await.unwrap();
            far
        };
        let (near, mut far) = tokio::join!(scene.connect(scene.peer), speaking);
        let mut near = near.unwrap();
        let mut got = vec![0; EARLY];
        soon("early bytes", near.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, early);
        if how != Treatment::Gather(EARLY) {
            says(&mut near, &mut far, b"and later ones").await;
        }
        scene.house.shutdown().await;
    }
}

#[actix::test]
async fn a_second_connection_to_the_same_peer_is_refused_until_the_first_has_ended() {
    let mut scene = Scene::new().await;
    let (near, _far) = scene.connected().await;
    let refused = scene.connect(scene.peer).await.unwrap_err();
    assert!(matches!(refused, TurnError::Refused { request: "Connect", code: 446, .. }), "{refused:?}");
    assert_eq!(scene.binding_failed().await, refused);
    drop(near);
    scene.connection_events(is_closed).await;
    let (mut near, mut far) = soon("another connection", async {
        loop {
            match scene.connect(scene.peer).await {
                Ok(near) => return (near, scene.listener.accept().await.unwrap().0),
                Err(error) => assert!(matches!(error, TurnError::Refused { code: 446, .. }), "{error:?}"),
            }
        }
    })
    .await;
    says(&mut near, &mut far, b"again").await;
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_peer_that_is_not_there_is_told_at_once() {
    let mut scene = Scene::new().await;
    let refused = scene.connect(vacant_tcp()).await.unwrap_err();
    assert!(matches!(refused, TurnError::Refused { request: "Connect", code: 447, .. }), "{refused:?}");
    assert_eq!(scene.binding_failed().await, refused);
    assert_eq!(info(&scene.client).await.connections, []);
    scene.house.shutdown().await;
}

#[actix::test]
async fn connections_need_a_tcp_allocation_and_that_needs_tcp() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::new("udp", server(&coturn.uri("tcp")))).await;
    house.allocated("udp").await;
    let refused = client.send(ConnectPeer { peer: vacant_tcp() }).await.unwrap().unwrap_err();
    assert_eq!(refused, TurnError::WrongTransport { request: "Connect", needed: "a TCP" });
    let config = TurnConfig::tcp("tcp", server(&coturn.uri("udp")));
    let refused = house.supervisor.send(StartTurn { config }).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("transport=tcp"), "{refused}");
    house.shutdown().await;
}

#[actix::test]
async fn without_an_allocation_there_are_no_connections() {
    let coturn = Coturn::start();
    let house = House::new().await;
    let mut config = TurnConfig::tcp("turn", server(&coturn.uri("tcp")));
    config.allocate = false;
    let client = house.turn(config).await;
    let refused = client.send(ConnectPeer { peer: vacant_tcp() }).await.unwrap().unwrap_err();
    assert_eq!(refused, TurnError::NoAllocation { retrying: false });
    house.shutdown().await;
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    PeerCloses,
    PeerResets,
    WeDrop,
    WeShutDown,
    ServerDies,
}

/// Whoever ends it: it is told once that the connection has closed, and before that perhaps that it broke.
#[actix::test]
async fn each_end_of_a_connection_is_told_once() {
    for end in [End::PeerCloses, End::PeerResets, End::WeDrop, End::WeShutDown, End::ServerDies] {
        let mut scene = Scene::new().await;
        let (mut near, mut far) = scene.connected().await;
        says(&mut near, &mut far, b"hello").await;
        let read = match end {
            End::PeerCloses => {
                drop(far);
                soon("the end", near.read(&mut [0; 8])).await
            }
            End::PeerResets => {
                far.set_zero_linger().unwrap();
                drop(far);
                soon("the end", near.read(&mut [0; 8])).await
            }
            End::WeDrop => Ok(0),
            End::WeShutDown => {
                near.shutdown().await.unwrap();
                let _ = soon("the end", far.read(&mut [0; 8])).await;
                soon("the end", near.read(&mut [0; 8])).await
            }
            End::ServerDies => {
                scene.coturn.kill();
                soon("the end", near.read(&mut [0; 8])).await
            }
        };
        eprintln!("{end:?}: {read:?}");
        let (connection, peer) = (near.connection(), near.peer());
        drop(near);
        let mut expected = vec![TurnEvent::RelayConnectionCreated { connection, peer }];
        expected.extend(read.err().map(|error| {
            let error = error.to_string();
            TurnEvent::RelayConnectionError { connection, peer, error }
        }));
        expected.push(TurnEvent::RelayConnectionClosed { connection, peer });
        assert_eq!(scene.connection_events(is_closed).await, expected, "{end:?}");
        scene.house.shutdown().await;
    }
}

/// For each way in which a data connection can fail before it is bound.
#[actix::test]
async fn a_data_connection_that_fails_is_told_to_the_caller_and_to_observers() {
    for how in [
        Treatment::Refuse,
        Treatment::CutAtAnswer,
        Treatment::Say(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        // A success of ConnectionBind that answers nothing we asked.
        Treatment::Say(b"\x01\x0b\x00\x00\x21\x12\xa4\x42not yours at all"),
    ] {
        let coturn = Coturn::start();
        let treat = move |number| if number == 0 { Treatment::Pass } else { how };
        let proxy = StreamProxy::to(coturn.addr(), treat).await;
        let mut scene = Scene::at(coturn, Some(&proxy)).await;
        let error = scene.connect(scene.peer).await.unwrap_err();
        eprintln!("{how:?}: {error}");
        let is_right = matches!(error, TurnError::DataConnection { .. } | TurnError::BadAnswer { .. });
        assert!(is_right, "{how:?}: {error:?}");
        assert_eq!(scene.binding_failed().await, error);
        assert_eq!(info(&scene.client).await.connections, []);
        // The control connection is none the worse.
        let refused = scene.connect(vacant_tcp()).await.unwrap_err();
        assert!(matches!(refused, TurnError::Refused { code: 447, .. }), "{refused:?}");
        scene.house.shutdown().await;
    }
}

/// Connections are made long after the nonce that was used last has run out, again and again.
#[actix::test]
async fn a_stale_nonce_stands_in_nobodys_way() {
    let mut scene = Scene::at(Coturn::builder().arg("--stale-nonce=1").start(), None).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let (mut near, mut far) = scene.connected().await;
        says(&mut near, &mut far, b"hello").await;
        drop(near);
        scene.connection_events(is_closed).await;
        let listener = TcpListener::bind(any()).await.unwrap();
        scene.peer = listener.local_addr().unwrap();
        scene.listener = listener;
    }
    scene.house.shutdown().await;
}

#[actix::test]
async fn who_waits_for_a_connection_hears_that_the_allocation_is_lost() {
    let mut scene = Scene::new().await;
    let (near, _far) = scene.connected().await;
    let other = TcpListener::bind(any()).await.unwrap();
    scene.coturn.pause();
    let waiting = scene.client.send(ConnectPeer { peer: other.local_addr().unwrap() });
    let waiting = tokio::task::spawn_local(waiting);
    assert_eq!(info(&scene.client).await.connections.len(), 1);
    scene.coturn.kill();
    let error = soon("the answer", waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, TurnError::ControlLost { .. }), "{error:?}");
    assert_eq!(scene.binding_failed().await, error);
    let deleted = |event: &TurnEvent| matches!(event, TurnEvent::AllocationDeleted { .. }).then_some(());
    scene.house.turn_event("turn", deleted).await;
    assert_eq!(info(&scene.client).await.connections, []);
    drop(near);
    scene.coturn.restart();
    scene.house.allocated("turn").await;
    let (mut near, mut far) = scene.connected().await;
    says(&mut near, &mut far, b"hello").await;
    scene.house.shutdown().await;
}
