//! The end of a TURN client, wherever it stands: within 2 s, with the allocation deleted on the server.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_relay::config::{TurnConfig, TurnServer};
use actix_relay::credentials::{Credentials, CredentialsWanted, UserPassword};
use actix_relay::event::{EventKind, TurnState};
use actix_relay::supervisor::StopSession;
use actix_relay::turn::{Allocate, ConnectPeer, Deallocate, Permit, TurnClientActor, TurnError};
use support::coturn::Coturn;
use support::turn::{info, logged, server, server_at, wrong_password};
use support::turn_proxy::{StreamProxy, Treatment, UdpProxy, Way};
use support::{House, any, own_ip, soon};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// How long an end may take.
const END_TIMEOUT: Duration = Duration::from_secs(2);

async fn until(client: &Addr<TurnClientActor>, what: &str, is_so: impl Fn(&TurnState) -> bool) {
    soon(what, async {
        while !is_so(&info(client).await.state) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Stops the client, and then all.
async fn ends_in_time(mut house: House, client: Addr<TurnClientActor>) {
    let began = Instant::now();
    house.supervisor.send(StopSession { session: "turn".into() }).await.unwrap().unwrap();
    assert!(began.elapsed() < END_TIMEOUT, "{:?}", began.elapsed());
    house.event("turn", |kind| matches!(kind, EventKind::SessionStopped).then_some(())).await;
    soon("the end of the actor", async {
        while client.connected() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    house.shutdown().await;
}

#[actix::test]
async fn stop_and_shutdown_delete_the_allocation() {
    for transport in ["udp", "tcp"] {
        let coturn = Coturn::builder().arg("--verbose").start();
        for is_shutdown in [false, true] {
            let mut house = House::new().await;
            let client = house.turn(TurnConfig::new("turn", server(&coturn.uri(transport)))).await;
            house.allocated("turn").await;
            if is_shutdown {
                let began = Instant::now();
                house.shutdown().await;
                assert!(began.elapsed() < END_TIMEOUT, "{:?}", began.elapsed());
            } else {
                ends_in_time(house, client).await;
            }
        }
        let log = logged(&coturn, "lifetime=0").await;
        assert_eq!(log.matches("lifetime=0").count(), 2, "{log}");
    }
}

/// The last request's nonce is stale by then: it is asked again.
#[actix::test]
async fn an_allocation_is_deleted_although_the_nonce_is_stale() {
    let coturn = Coturn::builder().arg("--verbose").arg("--stale-nonce=1").start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::new("turn", server(&coturn.uri("udp")))).await;
    house.allocated("turn").await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    ends_in_time(house, client).await;
    assert_eq!(logged(&coturn, "lifetime=0").await.matches("lifetime=0").count(), 1);
}

#[actix::test]
async fn a_client_whose_server_is_silent_ends_while_allocated_and_while_allocating() {
    for transport in ["udp", "tcp"] {
        let coturn = Coturn::start();
        let mut house = House::new().await;
        let client = house.turn(TurnConfig::new("turn", server(&coturn.uri(transport)))).await;
        house.allocated("turn").await;
        coturn.pause();
        ends_in_time(house, client).await;

        let house = House::new().await;
        let client = house.turn(TurnConfig::new("turn", server(&coturn.uri(transport)))).await;
        until(&client, "allocating", |state| *state == TurnState::Allocating).await;
        ends_in_time(house, client).await;
    }
}

/// Told to end when the request that makes the allocation is on its way already, sealed.
#[actix::test]
async fn an_allocation_that_is_made_while_the_client_ends_is_deleted() {
    let coturn = Coturn::builder().arg("--verbose").start();
    let proxy = UdpProxy::to(coturn.addr()).await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    // The success is lost the first time: the client is told to end before it comes.
    let mut lost = false;
    proxy.filter(move |way, datagram| {
        let is_success = way == Way::Down && datagram[..2] == [1, 3];
        if is_success && !lost {
            lost = true;
            let _ = tell.send(());
            return false;
        }
        true
    });
    let house = House::new().await;
    let client = house.turn(TurnConfig::new("turn", server_at(proxy.addr, "udp"))).await;
    soon("the first success", told.recv()).await;
    ends_in_time(house, client).await;
    logged(&coturn, "lifetime=0").await;
}

#[actix::test]
async fn a_client_in_back_off_ends() {
    let coturn = Coturn::start();
    let house = House::new().await;
    let client = house.turn(TurnConfig::new("turn", wrong_password(coturn.addr(), "tcp"))).await;
    until(&client, "back-off", |state| matches!(state, TurnState::Backoff { .. })).await;
    ends_in_time(house, client).await;
}

/// Never answers.
struct Mute(Vec<tokio::sync::oneshot::Sender<UserPassword>>);

impl Actor for Mute {
    type Context = Context<Self>;
}

impl Handler<CredentialsWanted> for Mute {
    type Result = ResponseFuture<Option<UserPassword>>;

    fn handle(&mut self, _: CredentialsWanted, _: &mut Self::Context) -> Self::Result {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.0.push(tell);
        Box::pin(async move { told.await.ok() })
    }
}

#[actix::test]
async fn a_client_that_is_connecting_ends_and_who_waits_hears_of_it() {
    let mute = Mute(Vec::new()).start();
    let uri = "turn:127.0.0.1:9".parse().unwrap();
    let server = TurnServer::new(uri).credentials(Credentials::Asked(mute.recipient()));
    let house = House::new().await;
    let client = house.turn(TurnConfig::new("turn", server)).await;
    until(&client, "connecting", |state| *state == TurnState::Connecting).await;
    let waiting = tokio::task::spawn_local(client.send(Allocate));
    until(&client, "connecting", |state| *state == TurnState::Connecting).await;
    client.send(Deallocate).await.unwrap();
    assert_eq!(soon("the answer", waiting).await.unwrap().unwrap().unwrap_err(), TurnError::Told);
    assert_eq!(info(&client).await.state, TurnState::Idle);
    let waiting = tokio::task::spawn_local(client.send(Allocate));
    until(&client, "connecting", |state| *state == TurnState::Connecting).await;
    ends_in_time(house, client).await;
    assert!(matches!(soon("the answer", waiting).await.unwrap(), Ok(Err(TurnError::Told)) | Err(_)));
}

#[actix::test]
async fn to_deallocate_while_allocating_and_to_allocate_again_gives_an_allocation() {
    let coturn = Coturn::start();
    for transport in ["udp", "tcp"] {
        let house = House::new().await;
        let client = house.turn(TurnConfig::new("turn", server(&coturn.uri(transport)))).await;
        for _ in 0..20 {
            // Nobody waits for anybody.
            let deallocated = client.send(Deallocate);
            let allocated = client.send(Allocate);
            let (deallocated, allocated) =
                soon("both answers", async { tokio::join!(deallocated, allocated) }).await;
            deallocated.unwrap();
            assert!(allocated.unwrap().unwrap().relayed.is_some());
        }
        house.shutdown().await;
    }
}

#[actix::test]
async fn who_waits_hears_of_the_end() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server(&coturn.uri("tcp")))).await;
    house.allocated("turn").await;
    coturn.pause();
    let peer = (own_ip(), 9).into();
    let permit = tokio::task::spawn_local(client.send(Permit { peers: vec![own_ip()] }));
    let connect = tokio::task::spawn_local(client.send(ConnectPeer { peer }));
    assert_eq!(info(&client).await.connections, []);
    ends_in_time(house, client).await;
    assert_eq!(soon("the answer", permit).await.unwrap().unwrap(), Err(TurnError::Told));
    assert_eq!(soon("the answer", connect).await.unwrap().unwrap().unwrap_err(), TurnError::Told);
}

#[actix::test]
async fn streams_end_with_their_allocation() {
    let coturn = Coturn::start();
    let proxy = StreamProxy::to(coturn.addr(), |_| Treatment::Pass).await;
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server_at(proxy.addr, "tcp"))).await;
    house.allocated("turn").await;
    let listener = TcpListener::bind(any()).await.unwrap();
    let peer = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(client.send(ConnectPeer { peer }), listener.accept());
    let (mut near, _far) = (near.unwrap().unwrap(), far.unwrap());
    client.send(Deallocate).await.unwrap();
    assert!(matches!(soon("the end", near.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    // The client is gone before its stream is.
    ends_in_time(house, client).await;
    drop(near);
}
