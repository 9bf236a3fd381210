//! Direct mode with TLS: what is carried, who is believed, and what is said to whom is not.

#![allow(clippy::unwrap_used, reason = "the helpers are test code too")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use actix_relay::config::{ClientTls, HostPort, Pin, Remote, ServerCertificate, ServerTls, SessionConfig};
use actix_relay::event::{Cause, EventKind};
use actix_relay::supervisor::{StartSession, StopSession};
use support::tls::{Authority, Dialect, Issued, accept, client, echoed, pinned};
use support::{Echo, House, any, echoed_once, soon, udp, until_echoed};

mod support;

/// The wait after a refusal is 5 s at the least.
const REFUSED_WAIT: Duration = Duration::from_secs(5);

fn far(echo: &Echo, tls: ServerTls) -> SessionConfig {
    let mut config = SessionConfig::listen("far", any()).udp_forward(echo.addr);
    config.listen_tls = Some(tls);
    config
}

fn near(to: impl Into<HostPort>, tls: ClientTls) -> SessionConfig {
    let to: HostPort = to.into();
    let mut config = SessionConfig::connect("near", Remote::Direct(to)).local_udp(any());
    config.tls = Some(tls);
    config
}

fn localhost(addr: SocketAddr) -> HostPort {
    HostPort { host: "localhost".to_owned(), port: addr.port() }
}

/// What the next failed attempt to connect said, and when the next is made.
async fn failed(house: &mut House) -> (String, Duration) {
    house
        .event("near", |kind| match kind {
            EventKind::ConnectFailed { error, retry_in, .. } => Some((error.clone(), retry_in.unwrap())),
            _ => None,
        })
        .await
}

/// What the listening session said of the next peer whose handshake failed.
async fn turned_away(house: &mut House) -> String {
    house
        .event("far", |kind| match kind {
            EventKind::HandshakeFailed { error, .. } => Some(error.clone()),
            _ => None,
        })
        .await
}

async fn shown(house: &mut House) -> Pin {
    house
        .event("far", |kind| match kind {
            EventKind::CertificateShown { pin, .. } => Some(*pin),
            _ => None,
        })
        .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    soon("blocking work", tokio::task::spawn_blocking(work)).await.unwrap()
}

#[actix::test]
async fn datagrams_are_carried_where_an_own_authority_vouches_for_the_name() {
    let (house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let tcp = house.listen(far(&echo, authority.issue("localhost").shown())).await;
    let local = house.local(near(localhost(tcp), authority.believed())).await;
    let app = udp().await;
    until_echoed(&app, local, "TLS").await;
    for len in [0, 1, 1200, 9000] {
        echoed_once(&app, local, &vec![len as u8; len]).await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn both_ends_speak_either_version_with_others_too() {
    let (house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let issued = authority.issue("127.0.0.1");
    let tcp = house.listen(far(&echo, issued.shown())).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let dialect = Dialect { versions: vec![version], ..Dialect::default() };
        let mut stream = client(tcp, &authority, &dialect);
        blocking(move || {
            echoed(&mut stream, b"hello").unwrap();
            assert_eq!(stream.conn.protocol_version(), Some(version.version));
        })
        .await;
        let listener = TcpListener::bind(any()).unwrap();
        let config = near(listener.local_addr().unwrap(), authority.believed());
        let server = tokio::task::spawn_blocking({
            let issued = issued.clone();
            move || {
                let mut stream = accept(&listener, &issued, &dialect);
                let mut frame = [0; 7];
                stream.read_exact(&mut frame).unwrap();
                stream.write_all(&frame).unwrap();
                assert_eq!(stream.conn.protocol_version(), Some(version.version));
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
        });
        let local = house.local(config).await;
        echoed_once(&udp().await, local, b"hello").await;
        server.await.unwrap();
        let stop = StopSession { session: "near".into() };
        house.supervisor.send(stop).await.unwrap().unwrap();
    }
}

#[actix::test]
async fn a_self_signed_certificate_is_believed_by_its_pin_and_only_by_that() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let tcp = house.listen(far(&echo, ServerTls::new(ServerCertificate::SelfSigned))).await;
    let pin = shown(&mut house).await;
    let local = house.local(near(tcp, pinned(pin))).await;
    until_echoed(&udp().await, local, "pinned").await;
    let mut other = near(tcp, pinned(Pin([7; 32])));
    other.name = "other".into();
    house.start(other).await;
    let (error, retry_in) = house
        .event("other", |kind| match kind {
            EventKind::ConnectFailed { error, retry_in, .. } => Some((error.clone(), retry_in.unwrap())),
            _ => None,
        })
        .await;
    assert!(error.contains("the peer is not who is expected") && error.contains(&pin.to_string()), "{error}");
    assert!(retry_in >= REFUSED_WAIT, "{retry_in:?}");
}

#[actix::test]
async fn what_is_wrong_with_a_server_s_certificate_is_said_and_not_hammered() {
    let (echo, authority) = (Echo::start().await, Authority::new());
    let stranger = Authority::new();
    for (issued, believes, expected, there) in [
        (
            authority.issue("a.example"),
            authority.believed(),
            "the peer's certificate is for a.example, not for 127.0.0.1",
            "it does not believe our certificate",
        ),
        (
            authority.issue_expired("127.0.0.1"),
            authority.believed(),
            "the peer's certificate expired on 2020-02-03T00:00:00Z",
            "our certificate has expired",
        ),
        (
            authority.issue("127.0.0.1"),
            stranger.believed(),
            "from an authority that is not believed here",
            "it does not believe the authority of our certificate",
        ),
        (
            authority.issue("127.0.0.1"),
            ClientTls::default(),
            "from an authority that is not believed here",
            "it does not believe the authority of our certificate",
        ),
    ] {
        let (mut far_house, mut near_house) = (House::new().await, House::new().await);
        let tcp = far_house.listen(far(&echo, issued.shown())).await;
        near_house.start(near(tcp, believes)).await;
        let (error, retry_in) = failed(&mut near_house).await;
        assert!(error.contains(expected), "{error}");
        assert!(retry_in >= REFUSED_WAIT, "{retry_in:?}");
        let error = turned_away(&mut far_house).await;
        assert!(error.contains(there), "{error}");
    }
}

#[actix::test]
async fn a_pin_is_enough_whatever_else_the_certificate_says() {
    let (mut house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let issued = authority.issue_expired("a.example");
    let tcp = house.listen(far(&echo, issued.shown())).await;
    let doubt = house
        .event("far", |kind| match kind {
            EventKind::CertificateShown { doubt, .. } => Some(doubt.clone()),
            _ => None,
        })
        .await;
    assert_eq!(doubt.unwrap(), "it expired on 2020-02-03T00:00:00Z");
    let local = house.local(near(tcp, pinned(issued.pin))).await;
    until_echoed(&udp().await, local, "expired, but pinned").await;
}

#[actix::test]
async fn both_ends_can_pin_each_other() {
    let (mut far_house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let (server, good, bad) = (authority.issue("127.0.0.1"), authority.issue("good"), authority.issue("bad"));
    let mut tls = server.shown();
    tls.client_pins = vec![good.pin];
    let tcp = far_house.listen(far(&echo, tls)).await;
    let shows = |certificate: Option<&Issued>| {
        let mut tls = pinned(server.pin);
        tls.certificate = certificate.map(|issued| issued.files.clone());
        near(tcp, tls)
    };
    for (certificate, here, there) in [
        (None, "the peer showed no certificate".to_owned(), "it asks for a certificate"),
        (Some(&bad), format!("pin {}", bad.pin), "it does not believe our certificate"),
    ] {
        let mut house = House::new().await;
        house.start(shows(certificate)).await;
        let error = turned_away(&mut far_house).await;
        assert!(error.contains(&here), "{error}");
        // Since TLS 1.3 a client is sure of the connection before the server is.
        let (cause, detail, retry_in) = house
            .event("near", |kind| match kind {
                EventKind::PeerDisconnected { cause, detail, retry_in, .. } => {
                    Some((*cause, detail.clone(), retry_in.unwrap()))
                }
                _ => None,
            })
            .await;
        assert!(detail.contains(there), "{detail}");
        assert_eq!(cause, Cause::Refused);
        assert!(retry_in >= REFUSED_WAIT, "{retry_in:?}");
        // One such event a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let local = far_house.local(shows(Some(&good))).await;
    until_echoed(&udp().await, local, "pinned both ways").await;
}

#[actix::test]
async fn who_does_not_agree_on_the_protocol_is_turned_away() {
    let (mut house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let issued = authority.issue("127.0.0.1");
    let tcp = house.listen(far(&echo, issued.shown())).await;
    for (protocols, expected) in [
        (vec![], "the peer does not speak actix-relay-direct/1 (ALPN)"),
        (vec![&b"h2"[..]], "the peer asks for another protocol (ALPN)"),
    ] {
        // One such event a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let mut stream = client(tcp, &authority, &Dialect { protocols, ..Dialect::default() });
        assert!(blocking(move || echoed(&mut stream, b"hello").is_err()).await);
        assert_eq!(turned_away(&mut house).await, format!("TLS: {expected}"));
    }
    let listener = TcpListener::bind(any()).unwrap();
    house.start(near(listener.local_addr().unwrap(), authority.believed())).await;
    let server = tokio::task::spawn_blocking(move || {
        let mut stream = accept(&listener, &issued, &Dialect { protocols: vec![], ..Dialect::default() });
        stream.read(&mut [0; 1]).map(|_| ()).ok();
    });
    let (error, retry_in) = failed(&mut house).await;
    assert_eq!(error, "TLS: the peer does not speak actix-relay-direct/1 (ALPN)");
    assert!(retry_in >= REFUSED_WAIT, "{retry_in:?}");
    server.await.unwrap();
}

#[actix::test]
async fn a_plain_peer_is_told_apart_on_either_side() {
    let (mut house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let tcp = house.listen(far(&echo, authority.issue("127.0.0.1").shown())).await;
    let mut plain = TcpStream::connect(tcp).unwrap();
    plain.write_all(b"\x00\x05hello").unwrap();
    assert_eq!(turned_away(&mut house).await, "TLS: the peer does not speak TLS");
    // An alert, and the end; nothing of what was sent.
    blocking(move || {
        let mut all = Vec::new();
        let _ = plain.read_to_end(&mut all);
        assert!(all.first().is_none_or(|first| *first == 21), "{all:?}");
    })
    .await;
    let listener = TcpListener::bind(any()).unwrap();
    house.start(near(listener.local_addr().unwrap(), authority.believed())).await;
    let (mut plain, _) = blocking(move || listener.accept().unwrap()).await;
    plain.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    assert_eq!(failed(&mut house).await.0, "TLS: the peer does not speak TLS");
}

#[actix::test]
async fn a_peer_that_never_answers_is_waited_for_10_s() {
    let (mut house, authority) = (House::new().await, Authority::new());
    let listener = TcpListener::bind(any()).unwrap();
    let began = Instant::now();
    house.start(near(listener.local_addr().unwrap(), authority.believed())).await;
    let (error, _) = failed(&mut house).await;
    assert!(error.contains("not finished within 10s; does the peer speak TLS?"), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(10));
}

#[actix::test]
async fn a_replaced_certificate_is_shown_and_a_bad_one_is_not() {
    let (mut house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let (first, second) = (authority.issue("127.0.0.1"), authority.issue("127.0.0.1"));
    let tcp = house.listen(far(&echo, first.shown())).await;
    assert_eq!(shown(&mut house).await, first.pin);
    // Whoever connects makes the session look, once a second at most.
    let knock = || async {
        loop {
            drop(tokio::net::TcpStream::connect(tcp).await.unwrap());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    second.take_the_place_of(&first);
    let pin = tokio::select! {
        pin = shown(&mut house) => pin,
        () = knock() => unreachable!(),
    };
    assert_eq!(pin, second.pin);
    std::fs::write(&first.files.cert, "nothing").unwrap();
    let kept = house.event("far", |kind| match kind {
        EventKind::CertificateKept { error } => Some(error.clone()),
        _ => None,
    });
    let error = tokio::select! {
        error = kept => error,
        () = knock() => unreachable!(),
    };
    assert!(error.ends_with("no certificate in it (PEM)"), "{error}");
    let local = house.local(near(tcp, pinned(second.pin))).await;
    until_echoed(&udp().await, local, "the one before").await;
}

#[actix::test]
async fn an_abrupt_end_is_an_ordinary_end_and_ours_is_in_order() {
    let (mut house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let tcp = house.listen(far(&echo, authority.issue("127.0.0.1").shown())).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let dialect = Dialect { versions: vec![version], ..Dialect::default() };
        let mut stream = client(tcp, &authority, &dialect);
        blocking(move || {
            echoed(&mut stream, b"hello").unwrap();
            // FIN without close_notify.
            stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = stream.read(&mut [0; 1]);
        })
        .await;
        assert_eq!(house.disconnected("far").await, Cause::Closed);
    }
    let mut stream = client(tcp, &authority, &Dialect::default());
    let mut stream = blocking(move || {
        echoed(&mut stream, b"hello").unwrap();
        stream
    })
    .await;
    house.shutdown().await;
    // Without close_notify this would be an error.
    assert_eq!(blocking(move || stream.read(&mut [0; 1]).unwrap()).await, 0);
}

#[actix::test]
async fn clients_that_never_finish_their_handshake_hold_up_nobody() {
    let (house, echo, authority) = (House::new().await, Echo::start().await, Authority::new());
    let issued = authority.issue("127.0.0.1");
    for max_peers in [1, 100] {
        let mut config = far(&echo, issued.shown());
        config.name = format!("far {max_peers}").into();
        config.max_peers = Some(max_peers);
        let name = config.name.clone();
        let tcp = house.listen(config).await;
        // More than may wait at once; every second one begins a handshake.
        let idle: Vec<_> = (0..200)
            .map(|number| {
                let mut idle = TcpStream::connect(tcp).unwrap();
                if number % 2 == 0 {
                    idle.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
                }
                idle
            })
            .collect();
        let mut config = near(tcp, pinned(issued.pin));
        config.name = format!("near {max_peers}").into();
        let local = house.local(config).await;
        let began = Instant::now();
        until_echoed(&udp().await, local, "past those who idle").await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(house.info(name.as_str()).await.waiting <= 128);
        drop(idle);
    }
}

#[actix::test]
async fn a_session_does_not_start_without_what_it_is_to_show_or_believe() {
    let (house, echo) = (House::new().await, Echo::start().await);
    let mut believes = ClientTls::default();
    believes.ca = Some("/nowhere/cert.pem".into());
    for config in [
        far(&echo, ServerTls::files("/nowhere/cert.pem", "/nowhere/key.pem")),
        near(SocketAddr::from(([127, 0, 0, 1], 9)), believes.clone()),
    ] {
        let start = StartSession { config };
        let error = house.supervisor.send(start).await.unwrap().unwrap_err().to_string();
        assert!(error.contains("/nowhere/cert.pem: No such file"), "{error}");
    }
}
