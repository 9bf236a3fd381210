//! The UDP programs at either end come, go, and come back on other ports; the TCP connection stays.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::SessionConfig;
use actix_relay::event::EventKind;
use support::proxy::Proxy;
use support::{Echo, House, any, echoed_once, patient, receive, soon, udp, until_echoed, vacant_udp};
use tokio::net::UdpSocket;

/// A tunnel to `service` on the far side: what answers is where its applications send to.
async fn to_far_service(house: &mut House, service: SocketAddr) -> SocketAddr {
    let far = house.listen(patient(SessionConfig::listen("far", any()).udp_forward(service))).await;
    house.local(patient(SessionConfig::connect("near", far).local_udp(any()))).await
}

/// A tunnel to `service` on the near side, the one that calls.
async fn to_near_service(house: &mut House, service: SocketAddr) -> SocketAddr {
    let entry = house.local(patient(SessionConfig::listen("far", any()).local_udp(any()))).await;
    let far = house.info("far").await.local_tcp[0];
    house.start(patient(SessionConfig::connect("near", far).udp_forward(service))).await;
    house.connected("near").await;
    entry
}

/// A service that is absent, then comes at the address that `forwarder` sends to, then goes and comes again.
async fn comes_and_goes(mut house: House, entry: SocketAddr, service: SocketAddr, forwarder: &str) {
    let app = udp().await;
    for _ in 0..3 {
        let calls = async {
            loop {
                app.send_to(b"anybody?", entry).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let missed = house.event(forwarder, |kind| match kind {
            EventKind::ServiceUnreachable { service } => Some(*service),
            EventKind::PeerDisconnected { .. } => panic!("the TCP connection was not kept: {kind}"),
            _ => None,
        });
        tokio::select! {
            missed = missed => assert_eq!(missed, service),
            () = calls => {}
        }
        for _ in 0..20 {
            app.send_to(b"anybody?", entry).await.unwrap();
        }
        let echo = Echo::at(service).await;
        until_echoed(&app, entry, "the service has come").await;
        let said = Cell::new(0);
        house
            .event(forwarder, |kind| match kind {
                EventKind::ServiceUnreachable { .. } => {
                    said.set(said.get() + 1);
                    None
                }
                EventKind::PeerDisconnected { .. } => panic!("the TCP connection was not kept: {kind}"),
                EventKind::ServiceReachable { .. } => Some(()),
                _ => None,
            })
            .await;
        assert_eq!(said.get(), 0, "unreachable is said once");
        drop(echo);
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_service_behind_the_far_side_may_come_later_and_go_and_come_again() {
    let (mut house, service) = (House::new().await, vacant_udp());
    let entry = to_far_service(&mut house, service).await;
    comes_and_goes(house, entry, service, "far").await;
}

#[actix::test]
async fn a_service_behind_the_calling_side_may_come_later_and_go_and_come_again() {
    let (mut house, service) = (House::new().await, vacant_udp());
    let entry = to_near_service(&mut house, service).await;
    comes_and_goes(house, entry, service, "near").await;
}

#[actix::test]
async fn datagrams_to_an_absent_service_are_counted() {
    let (mut house, service) = (House::new().await, vacant_udp());
    let (entry, app) = (to_far_service(&mut house, service).await, udp().await);
    soon("datagrams are counted as refused", async {
        while house.info("far").await.counters.drops.service_unreachable == 0 {
            app.send_to(b"anybody?", entry).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    house.shutdown().await;
}

#[actix::test]
async fn an_application_that_is_absent_does_not_end_the_connection() {
    let mut house = House::new().await;
    let service = udp().await;
    let entry = to_far_service(&mut house, service.local_addr().unwrap()).await;
    let app = udp().await;
    let port = app.local_addr().unwrap();
    app.send_to(b"hello", entry).await.unwrap();
    let (_, far) = receive(&service).await;
    drop(app);
    for _ in 0..20 {
        service.send_to(b"are you there?", far).await.unwrap();
    }
    house.info_when("near", "all have come", |info| info.counters.to_udp.datagrams >= 20).await;
    let other = udp().await;
    until_echoed_by(&service, &other, entry).await;
    let app = UdpSocket::bind(port).await.unwrap();
    service.send_to(b"welcome back", far).await.unwrap();
    assert_eq!(receive(&app).await.0, b"welcome back");
    for event in house.reported() {
        assert!(!matches!(event.kind, EventKind::PeerDisconnected { .. }), "{event}");
    }
    house.shutdown().await;
}

/// One datagram to a service that the test plays itself, and its answer.
async fn until_echoed_by(service: &UdpSocket, app: &UdpSocket, entry: SocketAddr) {
    app.send_to(b"question", entry).await.unwrap();
    let (question, from) = receive(service).await;
    assert_eq!(question, b"question");
    service.send_to(b"answer", from).await.unwrap();
    assert_eq!(receive(app).await.0, b"answer");
}

#[actix::test]
async fn an_application_comes_back_on_another_port_where_there_are_many_places() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let entry = to_far_service(&mut house, echo.addr).await;
    for life in 0..4 {
        let app = udp().await;
        until_echoed(&app, entry, &format!("life {life}")).await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn an_application_comes_back_on_another_port_where_it_was_called() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let entry = to_near_service(&mut house, echo.addr).await;
    for life in 0..4 {
        let app = udp().await;
        until_echoed(&app, entry, &format!("life {life}")).await;
    }
    let mut disconnected = 0;
    for event in house.reported() {
        disconnected += u32::from(matches!(event.kind, EventKind::PeerDisconnected { .. }));
    }
    assert_eq!(disconnected, 0, "the newest application has the one lane");
    house.shutdown().await;
}

#[actix::test]
async fn an_application_comes_back_on_another_port_where_there_is_one_place() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let mut far = SessionConfig::listen("far", any()).udp_forward(echo.addr);
    far.max_peers = Some(1);
    let far = house.listen(patient(far)).await;
    let proxy = Proxy::to(far).await;
    let entry = house.local(patient(SessionConfig::connect("near", proxy.addr).local_udp(any()))).await;
    let first = udp().await;
    echoed_once(&first, entry, b"the first").await;
    drop(first);
    let second = udp().await;
    until_echoed(&second, entry, "the second life").await;
    house.reported();
    // It pauses for longer than a silent connection keeps its place. The link of its first life, which
    // nobody uses any more, is not to fight for that.
    let before = proxy.accepted();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let fights = proxy.accepted() - before;
    house.reported();
    assert!(fights <= 4, "{fights} connections were made while nobody sent anything");
    until_echoed(&second, entry, "after a pause").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_service_can_go_on_sending_at_once_after_a_cut_where_there_is_one_place() {
    let mut house = House::new().await;
    let service = udp().await;
    let mut far = SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap());
    far.max_peers = Some(1);
    let far = house.listen(far).await;
    let proxy = Proxy::to(far).await;
    let entry = house.local(SessionConfig::connect("near", proxy.addr).local_udp(any())).await;
    let app = udp().await;
    app.send_to(b"hello", entry).await.unwrap();
    let (_, peer) = receive(&service).await;
    proxy.cut(support::proxy::Cut::Reset);
    house.disconnected("near").await;
    // The application says nothing: the service alone makes the download go on.
    let mut buffer = [0; 64];
    soon("the service is heard again", async {
        loop {
            service.send_to(b"the download goes on", peer).await.unwrap();
            let wait = Duration::from_millis(50);
            if let Ok(Ok((len, _))) = tokio::time::timeout(wait, app.recv_from(&mut buffer)).await {
                return assert_eq!(&buffer[..len], b"the download goes on");
            }
        }
    })
    .await;
    house.shutdown().await;
}
