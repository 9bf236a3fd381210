//! Servers that die, are replaced, refuse or talk nonsense: one event says so, and traffic flows again.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use actix::Addr;
use actix_relay::config::{TurnConfig, TurnServer, UdpForward};
use actix_relay::event::{TurnEvent, TurnState};
use actix_relay::turn::{Allocate, BindChannel, Permit, TurnClientActor, TurnError};
use support::coturn::Coturn;
use support::turn::{info, server, server_at};
use support::turn_proxy::{StreamProxy, Treatment, UdpProxy};
use support::{Echo, House, any, echoed_once, soon, udp, until_echoed, vacant_tcp, vacant_udp};
use tokio::net::UdpSocket;

/// Peers of messages: one is permitted, one has a channel.
const PERMITTED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 8));
const BOUND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

/// A client that forwards to a peer, and an application that has heard from it.
struct Scene {
    house: House,
    client: Addr<TurnClientActor>,
    echo: Echo,
    app: UdpSocket,
    local: SocketAddr,
    relayed: SocketAddr,
}

impl Scene {
    async fn new(server: TurnServer) -> Self {
        let mut house = House::new().await;
        let (echo, app) = (Echo::start().await, udp().await);
        let mut config = TurnConfig::new("turn", server);
        config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
        let client = house.turn(config).await;
        let relayed = house.allocated("turn").await;
        let local = info(&client).await.local_udp[0];
        until_echoed(&app, local, "before").await;
        client.send(Permit { peers: vec![PERMITTED] }).await.unwrap().unwrap();
        client.send(BindChannel { peer: (BOUND, 9).into() }).await.unwrap().unwrap();
        Self { house, client, echo, app, local, relayed }
    }

    /// Sends one datagram after the other until an event says that the allocation is gone.
    async fn sends_until_deleted(&mut self) -> TurnError {
        let deleted = self.house.turn_event("turn", |event| match event {
            TurnEvent::AllocationDeleted { cause, .. } => Some(cause.clone()),
            _ => None,
        });
        let sending = async {
            loop {
                let _ = self.app.send_to(b"anybody?", self.local).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            cause = deleted => cause,
            () = sending => unreachable!(),
        }
    }

    /// The end of the allocation, and when another is asked for.
    async fn deleted(&mut self) -> (TurnError, Option<Duration>) {
        let relayed = self.relayed;
        self.house
            .turn_event("turn", |event| match event {
                TurnEvent::AllocationDeleted { relayed: old, cause, retry_in } => {
                    assert_eq!(*old, relayed);
                    Some((cause.clone(), *retry_in))
                }
                _ => None,
            })
            .await
    }

    /// Another allocation is there, all that belonged to the first one is back, and traffic flows at the old port.
    async fn serves_as_before(mut self) {
        let old = self.relayed;
        let (relayed, replaces) = self
            .house
            .turn_event("turn", |event| match event {
                TurnEvent::AllocationCreated { relayed, replaces, .. } => Some((*relayed, *replaces)),
                _ => None,
            })
            .await;
        assert_eq!(replaces, (relayed != old).then_some(old));
        until_echoed(&self.app, self.local, "after").await;
        // All has been asked for together, and no answer is lost here: it is there, or comes at once.
        let info = soon("all that there was", async {
            loop {
                let info = info(&self.client).await;
                if info.channels.len() == 2 && info.permissions.len() == 3 {
                    return info;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(info.local_udp, [self.local]);
        assert_eq!(info.relayed, Some(relayed));
        assert!(info.channels.iter().any(|(_, peer)| *peer == self.echo.addr), "{info:?}");
        for peer in [PERMITTED, BOUND, self.echo.addr.ip()] {
            assert!(info.permissions.contains(&peer), "{info:?}");
        }
        self.house.shutdown().await;
    }
}

async fn failed(house: &mut House, child: &str) -> (TurnError, Option<Duration>) {
    house
        .turn_event(child, |event| match event {
            TurnEvent::AllocationFailed { error, retry_in } => Some((error.clone(), *retry_in)),
            _ => None,
        })
        .await
}

#[actix::test]
async fn a_server_that_is_killed_and_restarted_is_used_again_over_udp() {
    let mut coturn = Coturn::start();
    let mut scene = Scene::new(server(&coturn.uri("udp"))).await;
    coturn.kill();
    // Only who sends hears that nobody is there.
    let cause = scene.sends_until_deleted().await;
    assert!(matches!(cause, TurnError::Unreachable { .. }), "{cause:?}");
    coturn.restart();
    scene.serves_as_before().await;
}

#[actix::test]
async fn a_server_that_is_killed_and_restarted_is_used_again_over_tcp() {
    let mut coturn = Coturn::start();
    let mut scene = Scene::new(server(&coturn.uri("tcp"))).await;
    coturn.kill();
    let (cause, retry_in) = scene.deleted().await;
    assert!(matches!(cause, TurnError::ControlLost { .. }), "{cause:?}");
    assert!(retry_in.is_some_and(|wait| wait < Duration::from_secs(1)), "{retry_in:?}");
    coturn.restart();
    scene.serves_as_before().await;
}

/// Another server has taken the place of the first, without any ICMP, and nothing but data is sent.
#[actix::test]
async fn a_server_that_is_replaced_in_silence_is_noticed_by_the_answers_it_does_not_give() {
    let (first, second) = (Coturn::start(), Coturn::start());
    let proxy = UdpProxy::to(first.addr()).await;
    let mut scene = Scene::new(server_at(proxy.addr, "udp")).await;
    proxy.replace_server(second.addr());
    let cause = scene.sends_until_deleted().await;
    assert_eq!(cause, TurnError::AllocationLost);
    scene.serves_as_before().await;
}

#[actix::test]
async fn a_server_that_pauses_is_used_again_when_it_resumes() {
    let coturn = Coturn::start();
    for transport in ["udp", "tcp"] {
        let scene = Scene::new(server(&coturn.uri(transport))).await;
        coturn.pause();
        for _ in 0..10 {
            scene.app.send_to(b"anybody?", scene.local).await.unwrap();
        }
        coturn.resume();
        until_echoed(&scene.app, scene.local, "after").await;
        assert_eq!(info(&scene.client).await.relayed, Some(scene.relayed));
        scene.house.shutdown().await;
    }
}

#[actix::test]
async fn a_client_that_is_not_to_try_again_does_not_until_told() {
    let mut coturn = Coturn::start();
    let mut house = House::new().await;
    let mut config = TurnConfig::new("turn", server(&coturn.uri("tcp")));
    config.again = false;
    let client = house.turn(config).await;
    house.allocated("turn").await;
    coturn.restart();
    let retry_in = house.turn_event("turn", |event| match event {
        TurnEvent::AllocationDeleted { retry_in, .. } => Some(*retry_in),
        _ => None,
    });
    assert_eq!(retry_in.await, None);
    assert_eq!(info(&client).await.state, TurnState::Idle);
    client.send(Allocate).await.unwrap().unwrap();
    house.shutdown().await;
}

#[actix::test]
async fn a_server_that_cannot_be_reached_is_told_with_the_step_that_failed() {
    for (uri, expected) in [
        ("turn:no-such-host.invalid".to_owned(), "resolving 'no-such-host.invalid'"),
        ("turn:no-such-host.invalid?transport=tcp".to_owned(), "resolving 'no-such-host.invalid'"),
        (format!("turn:{}?transport=tcp", vacant_tcp()), "connecting to"),
        (format!("turn:{}?transport=udp", vacant_udp()), "ICMP"),
    ] {
        let mut house = House::new().await;
        let mut config = TurnConfig::new("turn", server(&uri));
        config.allocate = false;
        let client = house.turn(config).await;
        let error = client.send(Allocate).await.unwrap().unwrap_err();
        assert!(matches!(&error, TurnError::Unreachable { why } if why.contains(expected)), "{uri}: {error}");
        let (told, retry_in) = failed(&mut house, "turn").await;
        assert_eq!(told, error);
        assert!(retry_in.is_some_and(|wait| wait < Duration::from_secs(1)), "{retry_in:?}");
        house.shutdown().await;
    }
}

#[actix::test]
async fn garbage_that_comes_as_datagrams_changes_nothing() {
    let coturn = Coturn::start();
    let proxy = UdpProxy::to(coturn.addr()).await;
    let scene = Scene::new(server_at(proxy.addr, "udp")).await;
    for garbage in [
        &b""[..],
        b"\x00",
        b"\xff\xff\xff\xff",
        // ChannelData: cut, of a channel that is not bound, of length 0.
        b"\x40\x00\x00\x09short",
        b"\x4f\xff\x00\x03abc",
        b"\x40\x01\x00\x00",
        // STUN: cut, a Refresh success and an Allocate error 437 that answer nothing, a Data indication of nobody.
        b"\x01\x04\x00\x08\x21\x12\xa4\x42",
        b"\x01\x04\x00\x08\x21\x12\xa4\x42abcdefghijkl\x00\x0d\x00\x04\x00\x00\x00\x00",
        b"\x01\x13\x00\x08\x21\x12\xa4\x42abcdefghijkl\x00\x09\x00\x04\x00\x00\x04\x25",
        b"\x00\x17\x00\x04\x21\x12\xa4\x42abcdefghijkl\x00\x13\x00\x00",
    ] {
        proxy.inject(garbage).await;
    }
    echoed_once(&scene.app, scene.local, b"still there").await;
    assert_eq!(info(&scene.client).await.relayed, Some(scene.relayed));
    scene.house.shutdown().await;
}

#[actix::test]
async fn garbage_in_the_control_stream_ends_it_and_the_next_one_works() {
    let coturn = Coturn::start();
    let garbage = |number| if number == 0 { Treatment::Say(b"\xff\xff\xff\xff") } else { Treatment::Pass };
    let proxy = StreamProxy::to(coturn.addr(), garbage).await;
    let mut house = House::new().await;
    house.turn(TurnConfig::new("turn", server_at(proxy.addr, "tcp"))).await;
    let (error, _) = failed(&mut house, "turn").await;
    assert!(error.to_string().contains("neither STUN nor ChannelData"), "{error}");
    house.allocated("turn").await;
    house.shutdown().await;
}
