//! TCP ports forwarded through a TCP allocation, either way (`tcp_listen`, `tcp_forward`), against coturn.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use actix::Addr;
use actix_relay::config::{TcpListen, TurnConfig};
use actix_relay::event::TurnEvent;
use actix_relay::turn::TurnClientActor;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::coturn::Coturn;
use support::turn::{info, server};
use support::{House, any, soon, vacant_tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MIB: usize = 1 << 20;

/// A TCP service at this address; each connection is answered by itself until the client has sent its end.
async fn echo_service() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    addr
}

/// Everything that `forward` is made of: a local port whose connections go to `service`, or the other way round.
struct Scene {
    coturn: Coturn,
    house: House,
    client: Addr<TurnClientActor>,
    /// Where connections are made to.
    entry: SocketAddr,
}

impl Scene {
    /// `tcp_listen`.
    async fn listening(service: SocketAddr) -> Self {
        let coturn = Coturn::start();
        let mut config = TurnConfig::tcp("turn", server(&coturn.uri("tcp")));
        config.tcp_listen.push(TcpListen { local_tcp: any(), peer: service });
        let mut house = House::new().await;
        let client = house.turn(config).await;
        house.allocated("turn").await;
        let entry = info(&client).await.local_tcp[0];
        Self { coturn, house, client, entry }
    }

    /// `tcp_forward`, for peers at 127.0.0.1.
    async fn forwarding(service: SocketAddr) -> Self {
        let coturn = Coturn::start();
        let mut config = TurnConfig::tcp("turn", server(&coturn.uri("tcp")));
        config.tcp_forward = Some(service);
        config.permit = vec![any().ip()];
        let mut house = House::new().await;
        let client = house.turn(config).await;
        let entry = house.allocated("turn").await;
        let permitted =
            |event: &TurnEvent| matches!(event, TurnEvent::PermissionsCreated { .. }).then_some(());
        house.turn_event("turn", permitted).await;
        Self { coturn, house, client, entry }
    }

    async fn enter(&self) -> TcpStream {
        soon("a connection", TcpStream::connect(self.entry)).await.unwrap()
    }
}

/// Bytes that differ everywhere.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 257) as u8).collect()
}

async fn carries_1_mib_both_ways(stream: TcpStream) {
    let sent = bytes(MIB);
    let (mut from, mut to) = stream.into_split();
    let mut got = vec![0; MIB];
    let both = async { tokio::join!(to.write_all(&sent), from.read_exact(&mut got)) };
    let (written, read) = soon("1 MiB each way", both).await;
    written.unwrap();
    read.unwrap();
    assert!(got == sent);
}

/// The client sends, ends its half, and still gets all of the answer.
async fn answers_a_half_closed(mut stream: TcpStream, len: usize) {
    let sent = bytes(len);
    let (mut from, mut to) = stream.split();
    let sending = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut got = vec![0; len];
    let (read, ()) =
        soon("the whole answer", async { tokio::join!(from.read_exact(&mut got), sending) }).await;
    read.unwrap();
    assert!(got == sent);
}

#[actix::test]
async fn a_local_port_reaches_a_peer_and_connections_follow_one_another() {
    let scene = Scene::listening(echo_service().await).await;
    carries_1_mib_both_ways(scene.enter().await).await;
    answers_a_half_closed(scene.enter().await, MIB).await;
    carries_1_mib_both_ways(scene.enter().await).await;
    scene.house.shutdown().await;
}

/// Nobody can tell whether an application that has sent its end still reads: that must not hold up the next one.
#[actix::test]
async fn the_next_connection_need_not_wait_long_for_the_one_before() {
    let scene = Scene::listening(echo_service().await).await;
    let began = Instant::now();
    for _ in 0..4 {
        let mut stream = scene.enter().await;
        stream.write_all(b"x").await.unwrap();
        soon("the echo", stream.read_u8()).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_peer_reaches_a_local_service_and_several_do_at_once() {
    let scene = Scene::forwarding(echo_service().await).await;
    let (first, second, third) = (scene.enter().await, scene.enter().await, scene.enter().await);
    tokio::join!(
        carries_1_mib_both_ways(first),
        carries_1_mib_both_ways(second),
        carries_1_mib_both_ways(third)
    );
    scene.house.shutdown().await;
}

/// The peer says much and closes; coturn resets, but the local application sees an end in order.
#[actix::test]
async fn the_end_of_a_peer_reaches_the_local_application_in_order() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let scene = Scene::listening(listener.local_addr().unwrap()).await;
    let mut near = scene.enter().await;
    let (mut far, _) = soon("the peer", listener.accept()).await.unwrap();
    far.write_all(b"bye").await.unwrap();
    let mut got = [0; 3];
    soon("the last words", near.read_exact(&mut got)).await.unwrap();
    drop(far);
    assert_eq!(soon("the end", near.read(&mut got)).await.unwrap(), 0);
    scene.house.shutdown().await;
}

#[actix::test]
async fn the_end_of_a_local_application_reaches_the_peer() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let scene = Scene::listening(listener.local_addr().unwrap()).await;
    let near = scene.enter().await;
    let (mut far, _) = soon("the peer", listener.accept()).await.unwrap();
    drop(near);
    assert!(matches!(soon("the end", far.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_local_port_whose_peer_is_not_there_closes_its_connections_and_goes_on() {
    let peer = vacant_tcp();
    let mut scene = Scene::listening(peer).await;
    let mut near = scene.enter().await;
    assert!(matches!(soon("the end", near.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    let failed =
        |event: &TurnEvent| matches!(event, TurnEvent::RelayConnectionBindingFailed { .. }).then_some(());
    scene.house.turn_event("turn", failed).await;
    let listener = TcpListener::bind(peer).await.unwrap();
    let mut near = scene.enter().await;
    let (mut far, _) = soon("the peer", listener.accept()).await.unwrap();
    near.write_all(b"hello").await.unwrap();
    soon("a byte", far.read_u8()).await.unwrap();
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_peer_whose_service_is_not_there_is_closed_and_an_event_says_so() {
    let vacant = vacant_tcp();
    let mut scene = Scene::forwarding(vacant).await;
    // It may be reset before this side has looked at it.
    if let Ok(mut far) = TcpStream::connect(scene.entry).await {
        assert!(matches!(soon("the end", far.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    }
    let failed = |event: &TurnEvent| match event {
        TurnEvent::TcpForwardFailed { service, error, .. } => Some((*service, error.clone())),
        _ => None,
    };
    let (service, error) = scene.house.turn_event("turn", failed).await;
    assert!(service == vacant && error.contains("refused"), "{service} {error}");
    scene.house.shutdown().await;
}

#[actix::test]
async fn a_connection_that_is_made_while_there_is_no_allocation_waits_for_one() {
    let mut scene = Scene::listening(echo_service().await).await;
    scene.coturn.kill();
    let lost = |event: &TurnEvent| matches!(event, TurnEvent::AllocationDeleted { .. }).then_some(());
    scene.house.turn_event("turn", lost).await;
    let near = scene.enter().await;
    scene.coturn.restart();
    carries_1_mib_both_ways(near).await;
    assert_eq!(info(&scene.client).await.local_tcp, [scene.entry]);
    scene.house.shutdown().await;
}
