//! `turns:`: the TURN client speaks TLS to coturn, over the control connection and over data connections.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::{
    ClientTls, Pin, SessionConfig, TcpListen, TurnConfig, TurnListen, TurnRemote, TurnServer, UdpForward,
};
use actix_relay::event::{EventKind, TurnEvent};
use actix_relay::turn::{ConnectPeer, RelayStream, TurnError};
use support::coturn::Coturn;
use support::tls::{Authority, Issued, pinned};
use support::turn::{Gate, Verdict, info, server};
use support::{Echo, House, PATIENCE, any, echoed_once, patient, soon, udp, until_echoed};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MIB: usize = 1 << 20;

/// A server whose certificate is for this name, the authority that says so, and the pin.
fn start(name: &str) -> (Coturn, Authority, Pin) {
    let authority = Authority::new();
    let Issued { files, pin } = authority.issue(name);
    let coturn = Coturn::builder()
        .arg("--verbose")
        .arg(format!("--cert={}", files.cert.display()))
        .arg(format!("--pkey={}", files.key.display()))
        .start();
    (coturn, authority, pin)
}

fn server_with(coturn: &Coturn, tls: ClientTls) -> TurnServer {
    let mut server = server(&coturn.uri("tls"));
    server.tls = tls;
    server
}

/// One way after the other: when both are full coturn may stop reading, over TCP just the same.
async fn carries_1_mib_each_way(
    near: &mut (impl AsyncRead + AsyncWrite + Unpin),
    far: &mut (impl AsyncRead + AsyncWrite + Unpin),
) {
    let sent: Vec<u8> = (0..MIB).map(|index| (index * 31 + index / 257) as u8).collect();
    soon("1 MiB there", pass(near, far, &sent)).await;
    soon("1 MiB back", pass(far, near, &sent)).await;
}

async fn pass(from: &mut (impl AsyncWrite + Unpin), to: &mut (impl AsyncRead + Unpin), sent: &[u8]) {
    let mut got = vec![0; sent.len()];
    let write = async {
        from.write_all(sent).await?;
        from.flush().await
    };
    let (written, read) = tokio::join!(write, to.read_exact(&mut got));
    written.unwrap();
    read.unwrap();
    assert!(got == sent);
}

#[actix::test]
async fn a_udp_allocation_carries_datagrams() {
    let (coturn, authority, _) = start("127.0.0.1");
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = TurnConfig::new("turn", server_with(&coturn, authority.believed()));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    (config.max_queue_delay, config.connect_hold) = (PATIENCE, PATIENCE);
    let client = house.turn(config).await;
    house.allocated("turn").await;
    let local = info(&client).await.local_udp[0];
    for len in [0, 1, 148, 1200, 8000] {
        echoed_once(&app, local, &vec![7; len]).await;
    }
    house.shutdown().await;
    let log = coturn.log();
    assert!(log.contains("TLSv1.2") || log.contains("TLSv1.3"), "{log}");
    assert!(log.contains("lifetime=0"), "the allocation was not deleted: {log}");
}

#[actix::test]
async fn connections_of_a_tcp_allocation_carry_bytes_both_ways() {
    let (coturn, authority, _) = start("127.0.0.1");
    let mut house = House::new().await;
    let mut config = TurnConfig::tcp("turn", server_with(&coturn, authority.believed()));
    config.permit = vec![any().ip()];
    let client = house.turn(config).await;
    let relayed = house.allocated("turn").await;
    let permitted = |event: &TurnEvent| matches!(event, TurnEvent::PermissionsCreated { .. }).then_some(());
    house.turn_event("turn", permitted).await;
    // We call.
    let listener = TcpListener::bind(any()).await.unwrap();
    let peer = listener.local_addr().unwrap();
    let (stream, accepted) = tokio::join!(client.send(ConnectPeer { peer }), listener.accept());
    let (mut stream, mut far) = (stream.unwrap().unwrap(), accepted.unwrap().0);
    carries_1_mib_each_way(&mut stream, &mut far).await;
    ends(stream, far).await;
    // We are called, by one that speaks first.
    let mut gate = Gate::new(Verdict::Accept);
    client.send(gate.set()).await.unwrap();
    let mut far = TcpStream::connect(relayed).await.unwrap();
    far.write_all(b"early").await.unwrap();
    let mut stream = gate.stream().await;
    let mut early = [0; 5];
    soon("early bytes", stream.read_exact(&mut early)).await.unwrap();
    assert_eq!(&early, b"early");
    carries_1_mib_each_way(&mut stream, &mut far).await;
    drop(far);
    assert_eq!(soon("the end", stream.read(&mut [0; 1])).await.unwrap(), 0);
}

/// Ours is an end for the peer too.
async fn ends(mut stream: RelayStream, mut far: TcpStream) {
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut last = [0; 4];
    soon("the last bytes", far.read_exact(&mut last)).await.unwrap();
    assert_eq!(&last, b"last");
    // coturn resets its connection with the peer.
    assert!(!soon("the end", far.read(&mut last)).await.is_ok_and(|len| len > 0));
}

#[actix::test]
async fn a_local_port_reaches_a_peer() {
    let (coturn, authority, _) = start("127.0.0.1");
    let mut house = House::new().await;
    let listener = TcpListener::bind(any()).await.unwrap();
    let mut config = TurnConfig::tcp("turn", server_with(&coturn, authority.believed()));
    config.tcp_listen.push(TcpListen { local_tcp: any(), peer: listener.local_addr().unwrap() });
    let client = house.turn(config).await;
    house.allocated("turn").await;
    let entry = info(&client).await.local_tcp[0];
    let (near, accepted) = tokio::join!(TcpStream::connect(entry), listener.accept());
    let (mut near, mut far) = (near.unwrap(), accepted.unwrap().0);
    carries_1_mib_each_way(&mut near, &mut far).await;
}

#[actix::test]
async fn two_sessions_that_can_only_call_out_meet() {
    let (coturn, authority, _) = start("127.0.0.1");
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut far = patient(SessionConfig::new("far").udp_forward(echo.addr));
    let server = server_with(&coturn, authority.believed());
    far.turn_listen = Some(TurnListen::new(server.clone(), vec![any().ip()]));
    house.start(far).await;
    let relayed = house.allocated("far").await;
    let permitted = |event: &TurnEvent| matches!(event, TurnEvent::PermissionsCreated { .. }).then_some(());
    house.turn_event("far", permitted).await;
    let near = SessionConfig::connect("near", TurnRemote::new(server, relayed)).local_udp(any());
    let local = house.local(patient(near)).await;
    until_echoed(&app, local, "TLS to the server").await;
    for len in [0, 1, 1200, 9000] {
        echoed_once(&app, local, &vec![len as u8; len]).await;
    }
    house.shutdown().await;
}

/// What the next failed attempt said, and when the next is made.
async fn failed(house: &mut House) -> (TurnError, Duration) {
    house
        .event("turn", |kind| match kind {
            EventKind::Turn(TurnEvent::AllocationFailed { error, retry_in }) => {
                Some((error.clone(), retry_in.unwrap()))
            }
            _ => None,
        })
        .await
}

#[actix::test]
async fn a_server_that_is_not_believed_is_named_and_asked_slowly() {
    let (coturn, authority, pin) = start("a.example");
    let stranger = Authority::new().issue("a.example").pin;
    for (tls, expected) in [
        (authority.believed(), "the server: TLS: the peer's certificate is for a.example, not for 127.0.0.1"),
        (ClientTls::default(), "authority that is not believed here"),
        (pinned(stranger), "the peer is not who is expected"),
    ] {
        let mut house = House::new().await;
        house.turn(TurnConfig::new("turn", server_with(&coturn, tls))).await;
        let (error, retry_in) = failed(&mut house).await;
        assert!(matches!(error, TurnError::Untrusted { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(retry_in >= Duration::from_secs(5), "{retry_in:?}");
    }
    let mut house = House::new().await;
    house.turn(TurnConfig::new("turn", server_with(&coturn, pinned(pin)))).await;
    house.allocated("turn").await;
}

#[actix::test]
async fn a_server_without_tls_is_told_apart() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    house.turn(TurnConfig::new("turn", server(&coturn.uri("tls")))).await;
    let (error, _) = failed(&mut house).await;
    assert!(error.to_string().contains("TLS: "), "{error}");
}

#[actix::test]
async fn a_lost_allocation_is_made_again() {
    let (mut coturn, authority, _) = start("127.0.0.1");
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = TurnConfig::new("turn", server_with(&coturn, authority.believed()));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    let client = house.turn(config).await;
    house.allocated("turn").await;
    let local: SocketAddr = info(&client).await.local_udp[0];
    until_echoed(&app, local, "before").await;
    coturn.restart();
    until_echoed(&app, local, "after").await;
}
