//! A relay behind a proxy that says by a PROXY header who calls.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use actix_relay::config::{
    RelayConfig, RelayRemote, ServerCertificate, ServerTls, SessionConfig, SupervisorConfig,
};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{EventKind, JoinRefusal, RelayEvent, SideEvent};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::relay_side::{Class, PASSWORD, Side, USER, XOR_MAPPED_ADDRESS, config, stun};
use support::tls::pinned;
use support::{Echo, House, any, echoed_once, soon, udp};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Where all proxies of these tests call from: everybody else is elsewhere on loopback.
const PROXY: &str = "127.0.0.1";
const CALLER: &str = "192.0.2.7:40000";
/// Reasons of Closing.
const PROTOCOL_ERROR: u32 = 5;
const LIMIT: u32 = 6;

fn behind_a_proxy() -> RelayConfig {
    let mut config = config("relay");
    config.proxy_protocol = vec![format!("{PROXY}/32").parse().unwrap()];
    config
}

async fn connect_from(ip: &str, relay: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((ip.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
    let stream = socket.connect(relay).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A header of version 1.
fn line(caller: &str) -> Vec<u8> {
    let caller: SocketAddr = caller.parse().unwrap();
    let (family, to) = if caller.is_ipv4() { ("TCP4", "198.51.100.1") } else { ("TCP6", "2001:db8::ffff") };
    format!("PROXY {family} {} {to} {} 443\r\n", caller.ip(), caller.port()).into_bytes()
}

/// A header of version 2, with something behind the addresses that is to be passed over.
fn binary(caller: &str) -> Vec<u8> {
    let caller: SocketAddr = caller.parse().unwrap();
    let (family, ips) = match caller.ip() {
        IpAddr::V4(ip) => (0x11, [ip.octets(); 2].concat()),
        IpAddr::V6(ip) => (0x21, [ip.octets(); 2].concat()),
    };
    let noop = [4, 0, 200].into_iter().chain([0xff; 200]);
    let rest: Vec<u8> =
        ips.into_iter().chain(caller.port().to_be_bytes()).chain([1, 187]).chain(noop).collect();
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21".as_slice(), &[family], &len, &rest].concat()
}

/// LOCAL: the proxy itself wants to know whether the relay is there.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Who the relay takes this connection's caller for.
async fn mapped(side: &mut Side) -> SocketAddr {
    side.send(&stun(1, Class::Request, [3; 12], &[], None)).await;
    let answer = side.answer([3; 12]).await;
    let value = answer.get(XOR_MAPPED_ADDRESS).unwrap();
    let mask = [&[0x21, 0x12, 0xa4, 0x42][..], &[3; 12]].concat();
    let port = u16::from_be_bytes([value[2] ^ 0x21, value[3] ^ 0x12]);
    let ip: Vec<u8> = value[4..].iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let ip: IpAddr = match value[1] {
        1 => <[u8; 4]>::try_from(ip).unwrap().into(),
        _ => <[u8; 16]>::try_from(ip).unwrap().into(),
    };
    (ip, port).into()
}

async fn joined_from(house: &mut House) -> SocketAddr {
    house
        .relay_event("relay", |event| match event {
            RelayEvent::SideJoined { peer, .. } => Some(*peer),
            _ => None,
        })
        .await
}

async fn refused(house: &mut House) -> (SocketAddr, JoinRefusal) {
    house
        .relay_event("relay", |event| match event {
            RelayEvent::JoinRefused { peer, reason, .. } => Some((*peer, *reason)),
            _ => None,
        })
        .await
}

/// That nothing more comes, not even an answer.
async fn is_closed(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = soon("the end", stream.read(&mut byte)).await;
    assert!(!matches!(read, Ok(1..)), "{byte:?}");
}

#[actix::test]
async fn the_address_in_the_header_is_the_caller_s() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(behind_a_proxy()).await;
    for caller in [CALLER, "[2001:db8::7]:40001"] {
        for header in [line(caller), binary(caller)] {
            let mut stream = connect_from(PROXY, relay).await;
            stream.write_all(&header).await.unwrap();
            let mut side = Side::over(stream);
            assert_eq!(mapped(&mut side).await, caller.parse().unwrap());
            side.log_in(USER, PASSWORD).await;
            side.join_as("pair", "a", &[7; 8], None).await.unwrap();
            assert_eq!(joined_from(&mut house).await, caller.parse().unwrap());
            assert_eq!(house.relay_pairs("relay").await[0].sides[0].peer, caller.parse().unwrap());
        }
    }
}

#[actix::test]
async fn without_an_address_in_it_the_caller_is_the_proxy() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(behind_a_proxy()).await;
    for header in [LOCAL, b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n"] {
        let mut stream = connect_from(PROXY, relay).await;
        let local = stream.local_addr().unwrap();
        stream.write_all(header).await.unwrap();
        assert_eq!(mapped(&mut Side::over(stream)).await, local);
    }
}

#[actix::test]
async fn a_header_may_come_in_pieces_and_with_what_follows() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(behind_a_proxy()).await;
    let ping = stun(1, Class::Request, [1; 12], &[], None);
    for header in [line(CALLER), binary(CALLER)] {
        // Byte by byte, each in a segment of its own as far as the system does it.
        let mut stream = connect_from(PROXY, relay).await;
        for byte in &header {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(mapped(&mut Side::over(stream)).await, CALLER.parse().unwrap());
        // All at once, messages behind it: the first of them is read from its first byte.
        let mut stream = connect_from(PROXY, relay).await;
        stream.write_all(&[&header[..], &ping, &ping].concat()).await.unwrap();
        let mut side = Side::over(stream);
        for _ in 0..2 {
            assert_eq!(side.stun().await.id, [1; 12]);
        }
        assert_eq!(mapped(&mut side).await, CALLER.parse().unwrap());
    }
}

/// A proxy that says, in turn, by these headers who calls.
async fn proxy(relay: SocketAddr, headers: Vec<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    actix::spawn(async move {
        for header in headers {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = connect_from(PROXY, relay).await;
            far.write_all(&header).await.unwrap();
            actix::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        }
    });
    addr
}

#[actix::test]
async fn the_header_comes_before_tls() {
    let mut house = House::new().await;
    let mut config = behind_a_proxy();
    config.tls = Some(ServerTls::new(ServerCertificate::SelfSigned));
    let (_, relay) = house.start_relay(config).await;
    let pin = house.event("relay", |kind| match kind {
        EventKind::CertificateShown { pin, .. } => Some(*pin),
        _ => None,
    });
    let tls = pinned(pin.await);
    let callers = [CALLER, "[2001:db8::7]:40001"];
    let proxy = proxy(relay, vec![line(callers[0]), binary(callers[1])]).await;
    let at = |side| {
        RelayRemote::new(proxy.into(), UserPassword::new(USER, PASSWORD), "pair", side).tls(tls.clone())
    };
    let echo = Echo::start().await;
    let near = SessionConfig::connect("near", at("near")).local_udp(any());
    let entry = house.local(near).await;
    assert_eq!(joined_from(&mut house).await, callers[0].parse().unwrap());
    house.start(SessionConfig::connect("far", at("far")).udp_forward(echo.addr)).await;
    assert_eq!(joined_from(&mut house).await, callers[1].parse().unwrap());
    house
        .event("near", |kind| {
            matches!(kind, EventKind::Side(SideEvent::RelayPeerPresent { .. })).then_some(())
        })
        .await;
    echoed_once(&udp().await, entry, &[7; 1200]).await;
    // A caller whose handshake fails is named by its own address too.
    let mut stream = connect_from(PROXY, relay).await;
    stream.write_all(&[line(CALLER), b"no TLS at all".to_vec()].concat()).await.unwrap();
    let peer = house.event("relay", |kind| match kind {
        EventKind::HandshakeFailed { peer, .. } => Some(*peer),
        _ => None,
    });
    assert_eq!(peer.await, CALLER.parse().unwrap());
    house.shutdown().await;
}

#[actix::test]
async fn the_limit_of_an_address_is_that_of_the_caller_s() {
    let house = House::new().await;
    let mut config = behind_a_proxy();
    config.max_unjoined_per_address = 2;
    let (_, relay) = house.start_relay(config).await;
    let mut sides = Vec::new();
    for caller in ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.1:3"] {
        let mut stream = connect_from(PROXY, relay).await;
        stream.write_all(&line(caller)).await.unwrap();
        let mut side = Side::over(stream);
        side.ping().await;
        sides.push(side);
    }
    // The third from 192.0.2.1 cost its first, and nobody else.
    assert_eq!(sides.remove(0).closed_for().await, LIMIT);
    for side in &mut sides {
        side.ping().await;
    }
}

#[actix::test]
async fn a_header_from_elsewhere_is_a_protocol_error() {
    let house = House::new().await;
    let (_, relay) = house.start_relay(behind_a_proxy()).await;
    for header in [line(CALLER), binary(CALLER), LOCAL.to_vec()] {
        let mut stream = connect_from("127.0.0.2", relay).await;
        stream.write_all(&header).await.unwrap();
        assert_eq!(Side::over(stream).closed_for().await, PROTOCOL_ERROR);
    }
    // Without one they are served.
    let stream = connect_from("127.0.0.2", relay).await;
    let local = stream.local_addr().unwrap();
    assert_eq!(mapped(&mut Side::over(stream)).await, local);
}

#[actix::test]
async fn whoever_comes_from_there_without_a_good_header_is_turned_away() {
    let cases: [(Vec<u8>, JoinRefusal); 4] = [
        (stun(1, Class::Request, [1; 12], &[], None), JoinRefusal::NoProxyHeader),
        (b"\x16\x03\x01\x02\0\x01\0\x01".to_vec(), JoinRefusal::NoProxyHeader),
        (b"PROXY TCP4 192.0.2.1 here 1 2\r\n".to_vec(), JoinRefusal::BadProxyHeader),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(), JoinRefusal::BadProxyHeader),
    ];
    for (bytes, expected) in cases {
        // One event a second is told: a relay for each.
        let mut house = House::new().await;
        let (_, relay) = house.start_relay(behind_a_proxy()).await;
        let mut stream = connect_from(PROXY, relay).await;
        let local = stream.local_addr().unwrap();
        stream.write_all(&bytes).await.unwrap();
        is_closed(&mut stream).await;
        assert_eq!(refused(&mut house).await, (local, expected));
        assert_eq!(house.relay_info("relay").await.unjoined, 0);
        house.shutdown().await;
    }
}

#[actix::test]
async fn a_header_that_is_never_complete_ends_within_10_s_and_its_time_counts_for_joining() {
    let mut config = SupervisorConfig::default();
    config.stats_interval = Duration::from_secs(5);
    let mut house = House::with(config).await;
    let (_, relay) = house.start_relay(behind_a_proxy()).await;
    // A proxy that only looks whether somebody listens is no event.
    drop(connect_from(PROXY, relay).await);
    let began = Instant::now();
    let mut never = connect_from(PROXY, relay).await;
    never.write_all(b"PROXY TCP4 192.0.2.1").await.unwrap();
    let mut late = connect_from(PROXY, relay).await;
    late.write_all(&line(CALLER)[..20]).await.unwrap();
    house.relay_when("relay", "both wait", |info| info.unjoined == 2).await;
    let half_time = house.relay_event("relay", |event| match event {
        RelayEvent::RelayStats { unjoined, .. } => Some(*unjoined),
        _ => None,
    });
    assert_eq!(half_time.await, 2);
    late.write_all(&line(CALLER)[20..]).await.unwrap();
    let mut late = Side::over(late);
    late.ping().await;
    assert_eq!(refused(&mut house).await.1, JoinRefusal::LateProxyHeader);
    is_closed(&mut never).await;
    assert_eq!(late.closed_for().await, LIMIT);
    let took = began.elapsed();
    assert!((10..14).contains(&took.as_secs()), "{took:?}");
    house.relay_when("relay", "they are gone", |info| info.unjoined == 0).await;
}

#[actix::test]
async fn the_1025th_that_waits_for_its_header_costs_the_oldest() {
    const MAX_WAITING: usize = 1024;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if maximum.is_some_and(|maximum| maximum < 3000) {
        return eprintln!("skipped: {maximum:?} descriptors are too few");
    }
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(behind_a_proxy()).await;
    let mut oldest = connect_from(PROXY, relay).await;
    let local = oldest.local_addr().unwrap();
    house.relay_when("relay", "the oldest is in", |info| info.unjoined == 1).await;
    let mut waiting = Vec::new();
    for _ in 0..MAX_WAITING {
        waiting.push(connect_from(PROXY, relay).await);
    }
    is_closed(&mut oldest).await;
    assert_eq!(refused(&mut house).await, (local, JoinRefusal::PlaceNeeded));
    assert_eq!(house.relay_info("relay").await.unjoined, MAX_WAITING);
    // Meanwhile others are served, and the oldest but one is still heard.
    Side::over(connect_from("127.0.0.2", relay).await).ping().await;
    let mut next = waiting.remove(0);
    next.write_all(&line(CALLER)).await.unwrap();
    assert_eq!(mapped(&mut Side::over(next)).await, CALLER.parse().unwrap());
    // A relay that stops does not wait for them.
    soon("the end", house.shutdown()).await;
    is_closed(&mut waiting[0]).await;
}
