//! The TCP connection is lost, the far side is not there yet or no more: the tunnel comes back by itself.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::{HostPort, Remote, SessionConfig};
use actix_relay::event::{Cause, EventKind};
use actix_relay::session::SessionState;
use actix_relay::supervisor::StopSession;
use support::peer::RawPeer;
use support::proxy::{Cut, Mode, Proxy};
use support::{Echo, House, any, echoed_once, patient, receive, soon, udp, until_echoed, vacant_tcp};
use tokio::net::{TcpSocket, UdpSocket};

/// A tunnel through a proxy to an echo service.
struct Tunnel {
    house: House,
    proxy: Proxy,
    entry: SocketAddr,
    app: UdpSocket,
    echo: Echo,
}

impl Tunnel {
    async fn new() -> Self {
        let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
        let far = house.listen(patient(SessionConfig::listen("far", any()).udp_forward(echo.addr))).await;
        let proxy = Proxy::to(far).await;
        let near = SessionConfig::connect("near", proxy.addr).local_udp(any());
        let entry = house.local(patient(near)).await;
        house.connected("near").await;
        echoed_once(&app, entry, b"before").await;
        Self { house, proxy, entry, app, echo }
    }

    /// The same port and the same session as before, and traffic goes through.
    async fn comes_back(mut self) {
        until_echoed(&self.app, self.entry, "traffic is back").await;
        let info = self.house.info("near").await;
        assert_eq!(info.local_udp, Some(self.entry), "the UDP port stays the same");
        for event in self.house.reported() {
            let restarted =
                matches!(event.kind, EventKind::SessionStarted { .. } | EventKind::ActorPanicked { .. });
            assert!(!restarted, "the session lives on: {event}");
        }
        assert_ne!(self.echo.addr, self.entry);
        self.house.shutdown().await;
    }
}

#[actix::test]
async fn a_reset_connection_is_made_again() {
    let mut tunnel = Tunnel::new().await;
    for _ in 0..3 {
        tunnel.proxy.cut(Cut::Reset);
        assert_eq!(tunnel.house.disconnected("near").await, Cause::Broken);
        until_echoed(&tunnel.app, tunnel.entry, "after a reset").await;
    }
    tunnel.comes_back().await;
}

#[actix::test]
async fn a_closed_connection_is_made_again() {
    let mut tunnel = Tunnel::new().await;
    for _ in 0..3 {
        tunnel.proxy.cut(Cut::Fin);
        assert_eq!(tunnel.house.disconnected("near").await, Cause::Closed);
        until_echoed(&tunnel.app, tunnel.entry, "after a FIN").await;
    }
    tunnel.comes_back().await;
}

#[actix::test]
async fn a_connection_cut_under_traffic_again_and_again_comes_back() {
    let mut tunnel = Tunnel::new().await;
    let datagram = vec![7; 1200];
    for round in 0..10 {
        for _ in 0..200 {
            tunnel.app.send_to(&datagram, tunnel.entry).await.unwrap();
        }
        tunnel.proxy.cut(if round % 2 == 0 { Cut::Reset } else { Cut::Fin });
        tunnel.house.disconnected("near").await;
        until_echoed(&tunnel.app, tunnel.entry, "in between").await;
    }
    tunnel.comes_back().await;
}

#[actix::test]
async fn a_connection_cut_within_a_frame_is_followed_by_one_that_begins_with_a_whole_frame() {
    let (mut house, app) = (House::new().await, udp().await);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(any()).unwrap();
    let listener = socket.listen(8).unwrap();
    let near = SessionConfig::connect("near", listener.local_addr().unwrap()).local_udp(any());
    let entry = house.local(patient(near)).await;
    // Of each byte 4 there is no frame as long as 1028 bytes: read from its middle it would be found out.
    let datagram = vec![4; 60_000];
    for _ in 0..5 {
        app.send_to(&datagram, entry).await.unwrap();
    }
    for cut in 1..=2 {
        let mut peer = RawPeer::accept(&listener).await;
        let mut begun = [0; 100];
        let reading = tokio::io::AsyncReadExt::read_exact(&mut peer.0, &mut begun);
        soon("a frame is begun", reading).await.unwrap();
        assert_eq!(begun[..3], [0xea, 0x60, 4]);
        // Bytes are left unread, so this resets the connection.
        drop(peer);
        house.disconnected("near").await;
        house
            .info_when("near", "the one that was cut is counted", |info| {
                info.counters.drops.connection_lost == cut
            })
            .await;
    }
    let mut peer = RawPeer::accept(&listener).await;
    app.send_to(b"the last", entry).await.unwrap();
    let mut whole = 0;
    loop {
        let received = peer.receive().await;
        if received == b"the last" {
            break;
        }
        assert!(received == datagram, "a frame of {} bytes", received.len());
        whole += 1;
    }
    assert!(whole <= 3, "{whole} of 5 came, two were cut");
    house.shutdown().await;
}

#[actix::test]
async fn a_network_that_is_silent_for_a_while_costs_no_connection() {
    let mut tunnel = Tunnel::new().await;
    tunnel.proxy.set(Mode::Silent);
    let ticks = async {
        for number in 0..30 {
            tunnel.app.send_to(format!("into the silence {number}").as_bytes(), tunnel.entry).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    ticks.await;
    tunnel.proxy.set(Mode::Open);
    until_echoed(&tunnel.app, tunnel.entry, "after the silence").await;
    assert_eq!(tunnel.proxy.accepted(), 1);
    for event in tunnel.house.reported() {
        assert!(!matches!(event.kind, EventKind::PeerDisconnected { .. }), "{event}");
    }
    tunnel.comes_back().await;
}

#[actix::test]
async fn the_far_session_may_be_stopped_and_started_again() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let at = vacant_tcp();
    let far = SessionConfig::listen("far", at).udp_forward(echo.addr);
    house.start(far.clone()).await;
    let entry = house.local(SessionConfig::connect("near", at).local_udp(any())).await;
    for life in 0..3 {
        until_echoed(&app, entry, &format!("far life {life}")).await;
        house.supervisor.send(StopSession { session: "far".into() }).await.unwrap().unwrap();
        house.disconnected("near").await;
        // At least one attempt finds nobody.
        house.event("near", |kind| matches!(kind, EventKind::ConnectFailed { .. }).then_some(())).await;
        house.start(far.clone()).await;
    }
    until_echoed(&app, entry, "the last far life").await;
    assert_eq!(house.info("near").await.local_udp, Some(entry));
    house.shutdown().await;
}

#[actix::test]
async fn the_first_datagram_waits_for_a_far_side_that_starts_later() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let at = vacant_tcp();
    let entry = house.local(patient(SessionConfig::connect("near", at).local_udp(any()))).await;
    house.event("near", |kind| matches!(kind, EventKind::ConnectFailed { .. }).then_some(())).await;
    app.send_to(b"the very first", entry).await.unwrap();
    house.event("near", |kind| matches!(kind, EventKind::SourceAppeared { .. }).then_some(())).await;
    house.start(patient(SessionConfig::listen("far", at).udp_forward(echo.addr))).await;
    assert_eq!(receive(&app).await.0, b"the very first");
    assert_eq!(house.info("near").await.counters.drops.total(), 0);
    house.shutdown().await;
}

#[actix::test]
async fn first_datagrams_wait_in_order_while_the_connection_is_being_made() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    // A listener whose queue is full answers no SYN: the attempt stays under way.
    let listener = TcpSocket::new_v4().unwrap();
    listener.bind(any()).unwrap();
    let at = listener.local_addr().unwrap();
    let listener = listener.listen(0).unwrap();
    let mut fillers = Vec::new();
    while let Ok(filler) =
        tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(at)).await
    {
        fillers.push(filler.unwrap());
    }
    let entry = house.local(SessionConfig::connect("near", at).local_udp(any())).await;
    for number in 0..50 {
        app.send_to(format!("early {number}").as_bytes(), entry).await.unwrap();
    }
    house.event("near", |kind| matches!(kind, EventKind::SourceAppeared { .. }).then_some(())).await;
    assert_eq!(house.info("near").await.state, SessionState::Connecting);
    for _ in 0..fillers.len() {
        listener.accept().await.unwrap();
    }
    let mut peer = RawPeer::accept(&listener).await;
    for number in 0..50 {
        assert_eq!(peer.receive().await, format!("early {number}").as_bytes());
    }
    assert_eq!(house.info("near").await.counters.drops.total(), 0);
    drop(echo);
    house.shutdown().await;
}

#[actix::test]
async fn a_failed_attempt_says_why_and_when_the_next_one_is() {
    let mut house = House::new().await;
    let at = vacant_tcp();
    house.start(SessionConfig::connect("near", at).local_udp(any())).await;
    for _ in 0..3 {
        let (error, retry_in) = house
            .event("near", |kind| match kind {
                EventKind::ConnectFailed { error, retry_in, .. } => Some((error.clone(), *retry_in)),
                _ => None,
            })
            .await;
        assert!(error.contains(&at.to_string()), "{error}");
        assert!(retry_in.is_some());
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_host_name_is_dialed_like_an_address() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let remote = Remote::Direct(HostPort { host: "localhost".into(), port: far.port() });
    let entry = house.local(SessionConfig::connect("near", remote).local_udp(any())).await;
    house.connected("near").await;
    echoed_once(&app, entry, b"by name").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_name_without_an_address_is_tried_again() {
    let mut house = House::new().await;
    let remote: Remote = "no-such-host.invalid:9".parse().unwrap();
    let mut config = SessionConfig::connect("near", remote).local_udp(any());
    config.connect_timeout = Duration::from_secs(1);
    house.start(config).await;
    for _ in 0..2 {
        let error = house
            .event("near", |kind| match kind {
                EventKind::ConnectFailed { error, .. } => Some(error.clone()),
                _ => None,
            })
            .await;
        assert!(error.contains("no-such-host.invalid"), "{error}");
    }
    house.shutdown().await;
}
