//! Who a TURN client is to its server: wrong passwords, quotas, credentials asked for, redirections; SHA-256 and
//! USERHASH against the embedded server.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use actix_relay::config::{TurnConfig, TurnServer, TurnUri, UdpForward};
use actix_relay::credentials::{Credentials, CredentialsWanted, UserPassword};
use actix_relay::event::TurnEvent;
use actix_relay::supervisor::StopSession;
use actix_relay::turn::{Allocate, ConnectPeer, Permit, RelayStream, TurnError};
use support::coturn::{Coturn, PASSWORD, REALM, USER};
use support::turn::{Gate, Verdict, info, send, server, server_at, take, wrong_password};
use support::turn_proxy::{UdpProxy, Way};
use support::turn_server::{Config, TurnServer as Embedded};
use support::{Echo, House, any, echoed_once, own_ip, soon, udp, until_echoed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

async fn failed(house: &mut House, child: &str) -> (TurnError, Option<Duration>) {
    house
        .turn_event(child, |event| match event {
            TurnEvent::AllocationFailed { error, retry_in } => Some((error.clone(), *retry_in)),
            _ => None,
        })
        .await
}

#[actix::test]
async fn a_wrong_password_is_told_over_tcp_too_and_to_who_waits() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let mut config = TurnConfig::tcp("turn", wrong_password(coturn.addr(), "tcp"));
    config.allocate = false;
    let client = house.turn(config).await;
    let error = client.send(Allocate).await.unwrap().unwrap_err();
    assert_eq!(error, TurnError::Unauthorized { request: "Allocate", user: USER.into() });
    assert_eq!(failed(&mut house, "turn").await.0, error);
    house.shutdown().await;
}

#[actix::test]
async fn a_server_that_asks_for_credentials_gets_none_where_there_are_none() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    house.turn(TurnConfig::new("turn", TurnServer::new(coturn.uri("udp").parse().unwrap()))).await;
    let (error, retry_in) = failed(&mut house, "turn").await;
    assert_eq!(error, TurnError::NoCredentials);
    assert!(retry_in.is_some_and(|wait| wait >= Duration::from_secs(5)), "{retry_in:?}");
    house.shutdown().await;
}

#[actix::test]
async fn a_quota_that_is_full_is_told_and_waited_for() {
    let coturn = Coturn::builder().arg("--user-quota=1").start();
    let mut house = House::new().await;
    // Over UDP it would remember the first one for a while.
    house.turn(TurnConfig::new("first", server(&coturn.uri("tcp")))).await;
    house.allocated("first").await;
    let second = house.turn(TurnConfig::new("second", server(&coturn.uri("udp")))).await;
    let (error, retry_in) = failed(&mut house, "second").await;
    assert!(matches!(error, TurnError::Refused { request: "Allocate", code: 486, .. }), "{error:?}");
    assert!(retry_in.is_some_and(|wait| wait >= Duration::from_secs(5)), "{retry_in:?}");
    house.supervisor.send(StopSession { session: "first".into() }).await.unwrap().unwrap();
    // Told to, it does not wait.
    soon("an allocation", async { while second.send(Allocate).await.unwrap().is_err() {} }).await;
    house.shutdown().await;
}

/// Gives credentials, one answer after the other, and remembers what it was asked.
struct Giver {
    answers: VecDeque<Option<UserPassword>>,
    asked: Arc<Mutex<Vec<CredentialsWanted>>>,
}

impl Actor for Giver {
    type Context = Context<Self>;
}

impl Handler<CredentialsWanted> for Giver {
    type Result = Option<UserPassword>;

    fn handle(&mut self, wanted: CredentialsWanted, _: &mut Self::Context) -> Self::Result {
        self.asked.lock().unwrap().push(wanted);
        self.answers.pop_front().flatten()
    }
}

/// What is asked of a giver of these passwords (`None`: it has none).
fn giver(passwords: &[Option<&str>]) -> (Recipient<CredentialsWanted>, Arc<Mutex<Vec<CredentialsWanted>>>) {
    let answers = passwords.iter().map(|it| it.map(|password| UserPassword::new(USER, password))).collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    (Giver { answers, asked: asked.clone() }.start().recipient(), asked)
}

#[actix::test]
async fn credentials_are_asked_for_first_and_again_when_they_are_refused() {
    let coturn = Coturn::start();
    for transport in ["udp", "tcp"] {
        let mut house = House::new().await;
        let (giver, asked) = giver(&[Some("expired"), Some(PASSWORD)]);
        let uri: TurnUri = coturn.uri(transport).parse().unwrap();
        let server = TurnServer::new(uri.clone()).credentials(Credentials::Asked(giver));
        house.turn(TurnConfig::new("turn", server)).await;
        house.allocated("turn").await;
        let asked = asked.lock().unwrap().clone();
        let known: Vec<_> = asked.iter().map(|it| (it.realm.as_deref(), it.rejected.as_deref())).collect();
        assert_eq!(known, [(None, None), (Some(REALM), Some(USER))]);
        assert!(asked.iter().all(|it| it.server == uri));
        house.shutdown().await;
    }
}

#[actix::test]
async fn whoever_has_no_credentials_to_give_is_not_asked_all_the_time() {
    let coturn = Coturn::start();
    for passwords in [&[][..], &[Some("expired"), None]] {
        let mut house = House::new().await;
        let (giver, asked) = giver(passwords);
        let server =
            TurnServer::new(coturn.uri("udp").parse().unwrap()).credentials(Credentials::Asked(giver));
        house.turn(TurnConfig::new("turn", server)).await;
        let (error, retry_in) = failed(&mut house, "turn").await;
        if passwords.is_empty() {
            assert_eq!(error, TurnError::NoCredentials);
        } else {
            assert_eq!(error, TurnError::Unauthorized { request: "Allocate", user: USER.into() });
        }
        assert!(retry_in.is_some_and(|wait| wait >= Duration::from_secs(5)), "{retry_in:?}");
        assert_eq!(asked.lock().unwrap().len(), passwords.len().max(1));
        house.shutdown().await;
    }
}

/// The password has changed on the server, which was restarted for that.
#[actix::test]
async fn credentials_that_expire_later_are_asked_for_again() {
    let (first, second) = (Coturn::start(), Coturn::builder().user(USER, "new password").start());
    let proxy = UdpProxy::to(first.addr()).await;
    let mut house = House::new().await;
    // Once when the old one is refused, and once for the next allocation.
    let (giver, asked) = giver(&[Some(PASSWORD), Some("new password"), Some("new password")]);
    let uri = format!("turn:{}?transport=udp", proxy.addr).parse().unwrap();
    let server = TurnServer::new(uri).credentials(Credentials::Asked(giver));
    let mut config = TurnConfig::new("turn", server);
    let peer = udp().await.local_addr().unwrap();
    config.udp_forward.push(UdpForward { local_udp: any(), peer });
    let client = house.turn(config).await;
    let bound = |event: &TurnEvent| matches!(event, TurnEvent::ChannelBound { .. }).then_some(());
    house.turn_event("turn", bound).await;
    proxy.replace_server(second.addr());
    // With data that nobody answers the client finds out.
    let (app, local) = (udp().await, info(&client).await.local_udp[0]);
    tokio::select! {
        _ = house.allocated("turn") => {}
        () = async {
            loop {
                app.send_to(b"anybody?", local).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } => {}
    }
    let rejected: Vec<_> = asked.lock().unwrap().iter().map(|it| it.rejected.clone()).collect();
    assert_eq!(rejected, [None, Some(USER.into()), None]);
    house.shutdown().await;
}

/// A server that sends everybody elsewhere (300), before it asks who they are.
async fn redirecting(to: impl FnOnce(SocketAddr) -> SocketAddr) -> (SocketAddr, Arc<Mutex<usize>>) {
    let socket = UdpSocket::bind(any()).await.unwrap();
    let addr = socket.local_addr().unwrap();
    let SocketAddr::V4(to) = to(addr) else { unreachable!() };
    let count = Arc::new(Mutex::new(0));
    let counting = count.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (_, from) = socket.recv_from(&mut buffer).await.unwrap();
            *counting.lock().unwrap() += 1;
            let mut answer = b"\x01\x13\x00\x14\x21\x12\xa4\x42".to_vec();
            answer.extend(&buffer[8..20]);
            answer.extend(b"\x00\x09\x00\x04\x00\x00\x03\x00\x80\x23\x00\x08\x00\x01");
            answer.extend(to.port().to_be_bytes());
            answer.extend(to.ip().octets());
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    (addr, count)
}

#[actix::test]
async fn a_redirection_is_followed() {
    let coturn = Coturn::start();
    let (second, _) = redirecting(|_| coturn.addr()).await;
    let (first, _) = redirecting(|_| second).await;
    let mut house = House::new().await;
    let echo = Echo::start().await;
    let mut config = TurnConfig::new("turn", server_at(first, "udp"));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    let client = house.turn(config).await;
    let server = house.turn_event("turn", |event| match event {
        TurnEvent::AllocationCreated { server, .. } => Some(*server),
        _ => None,
    });
    assert_eq!(server.await, coturn.addr());
    until_echoed(&udp().await, info(&client).await.local_udp[0], "redirected").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_redirection_in_a_circle_or_without_end_is_given_up() {
    let (to_itself, _) = redirecting(|addr| addr).await;
    let (back, back_count) = redirecting(|_| to_itself).await;
    let (fifth, _) = redirecting(|_| own_addr()).await;
    let (fourth, _) = redirecting(|_| fifth).await;
    let (third, _) = redirecting(|_| fourth).await;
    let (second, _) = redirecting(|_| third).await;
    for first in [to_itself, back, second] {
        let mut house = House::new().await;
        house.turn(TurnConfig::new("turn", server_at(first, "udp"))).await;
        let (error, retry_in) = failed(&mut house, "turn").await;
        assert!(matches!(error, TurnError::Redirected { .. }), "{error:?}");
        assert!(retry_in.is_some_and(|wait| wait >= Duration::from_secs(5)), "{retry_in:?}");
        house.shutdown().await;
    }
    assert_eq!(*back_count.lock().unwrap(), 1);
}

#[actix::test]
async fn a_port_that_the_server_remembers_is_given_up_for_another_once() {
    let socket = UdpSocket::bind(any()).await.unwrap();
    let server = socket.local_addr().unwrap();
    let mut house = House::new().await;
    house.turn(TurnConfig::new("turn", server_at(server, "udp"))).await;
    let mut asked = Vec::new();
    let mut buffer = [0; 1500];
    while asked.len() < 2 {
        let (_, from) = soon("an Allocate", socket.recv_from(&mut buffer)).await.unwrap();
        // What goes with the first refusal is the deletion of what the server may remember.
        if buffer[..2] == [0x00, 0x03] {
            let mut answer = b"\x01\x13\x00\x08\x21\x12\xa4\x42".to_vec();
            answer.extend(&buffer[8..20]);
            answer.extend(b"\x00\x09\x00\x04\x00\x00\x04\x25");
            socket.send_to(&answer, from).await.unwrap();
            asked.push(from);
        }
    }
    assert_ne!(asked[0], asked[1]);
    let (error, retry_in) = failed(&mut house, "turn").await;
    assert!(matches!(error, TurnError::Refused { code: 437, .. }), "{error:?}");
    assert!(retry_in.is_some_and(|wait| wait >= Duration::from_secs(5)), "{retry_in:?}");
    house.shutdown().await;
}

fn own_addr() -> SocketAddr {
    (own_ip(), 9).into()
}

/// The types of all attributes of a STUN message.
fn attributes(message: &[u8]) -> HashSet<u16> {
    let mut types = HashSet::new();
    let mut rest = &message[20..];
    while let [a, b, c, d, ..] = *rest {
        types.insert(u16::from_be_bytes([a, b]));
        let len = usize::from(u16::from_be_bytes([c, d])).next_multiple_of(4);
        rest = rest.get(4 + len..).unwrap_or_default();
    }
    types
}

#[actix::test]
async fn sha_256_and_userhash_are_used_where_the_server_offers_them() {
    let embedded = Embedded::start(any(), &Config::new(USER, PASSWORD)).await.unwrap();
    let proxy = UdpProxy::to(embedded.addr()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = seen.clone();
    proxy.filter(move |way, datagram| {
        // Requests that are sealed.
        if way == Way::Up && datagram[0] == 0 && attributes(datagram).contains(&0x0015) {
            noting.lock().unwrap().push(attributes(datagram));
        }
        true
    });
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = TurnConfig::new("turn", server_at(proxy.addr, "udp"));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    let client = house.turn(config).await;
    house.allocated("turn").await;
    echoed_once(&app, info(&client).await.local_udp[0], b"hello").await;
    house.shutdown().await;
    assert_eq!(embedded.relayed(), [], "the allocation was deleted");
    let seen = seen.lock().unwrap();
    assert!(seen.len() >= 3, "Allocate, ChannelBind, Refresh: {seen:x?}");
    for request in &*seen {
        // MESSAGE-INTEGRITY-SHA256, USERHASH, PASSWORD-ALGORITHM; not MESSAGE-INTEGRITY, USERNAME.
        assert!([0x001c, 0x001e, 0x001d].iter().all(|it| request.contains(it)), "{request:x?}");
        assert!([0x0008, 0x0006].iter().all(|it| !request.contains(it)), "{request:x?}");
    }
}

#[actix::test]
async fn with_sha_256_a_channel_carries_datagrams_over_tcp_and_a_stale_nonce_is_renewed() {
    for transport in ["udp", "tcp"] {
        let embedded = Embedded::start(any(), &Config::new(USER, PASSWORD)).await.unwrap();
        let mut house = House::new().await;
        let (echo, app) = (Echo::start().await, udp().await);
        let mut config = TurnConfig::new("turn", server(&embedded.uri(transport)));
        config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
        let client = house.turn(config).await;
        let relayed = house.allocated("turn").await;
        assert_eq!(embedded.relayed(), [relayed]);
        let local = info(&client).await.local_udp[0];
        for len in [0, 1, 3, 4, 1200] {
            echoed_once(&app, local, &vec![7; len]).await;
        }
        // Longer than its nonces live, shorter than the allocation.
        embedded.advance(Duration::from_secs(200));
        client.send(Permit { peers: vec![own_ip()] }).await.unwrap().unwrap();
        echoed_once(&app, local, b"still there").await;
        house.shutdown().await;
    }
}

#[actix::test]
async fn with_sha_256_a_wrong_password_is_told() {
    let embedded = Embedded::start(any(), &Config::new(USER, "another")).await.unwrap();
    for transport in ["udp", "tcp"] {
        let mut house = House::new().await;
        house.turn(TurnConfig::new("turn", server(&embedded.uri(transport)))).await;
        let (error, _) = failed(&mut house, "turn").await;
        assert_eq!(error, TurnError::Unauthorized { request: "Allocate", user: USER.into() });
        house.shutdown().await;
    }
}

#[actix::test]
async fn with_sha_256_connections_are_made_both_ways() {
    let embedded = Embedded::start(any(), &Config::new(USER, PASSWORD)).await.unwrap();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server(&embedded.uri("tcp")))).await;
    let relayed = house.allocated("turn").await;
    let listener = TcpListener::bind(any()).await.unwrap();
    let peer = listener.local_addr().unwrap();
    client.send(Permit { peers: vec![peer.ip()] }).await.unwrap().unwrap();
    let (near, far) = tokio::join!(client.send(ConnectPeer { peer }), listener.accept());
    let (mut near, mut far) = (near.unwrap().unwrap(), far.unwrap().0);
    says(&mut near, &mut far).await;
    // Both ways at once, and at first nobody reads.
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (tokio::io::split(near), far.split());
    let sending = async { tokio::join!(send(&mut to_near, 8 << 10), send(&mut to_far, 8 << 10)) };
    let taking = async { tokio::join!(take(&mut from_near, 8 << 10), take(&mut from_far, 8 << 10)) };
    soon("8 MiB each way", Box::pin(async { tokio::join!(sending, taking) })).await;

    let mut gate = Gate::new(Verdict::Accept);
    client.send(gate.set()).await.unwrap();
    let mut far = TcpStream::connect(relayed).await.unwrap();
    far.write_all(b"early").await.unwrap();
    let mut near = gate.stream().await;
    let mut early = [0; 5];
    soon("early bytes", near.read_exact(&mut early)).await.unwrap();
    says(&mut near, &mut far).await;
    house.shutdown().await;
}

async fn says(near: &mut RelayStream, far: &mut TcpStream) {
    let mut got = [0; 5];
    near.write_all(b"there").await.unwrap();
    soon("there", far.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"there");
    far.write_all(b"again").await.unwrap();
    soon("and back", near.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"again");
}
