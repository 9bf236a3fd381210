//! Datagrams go through the tunnel and back, whole, whatever their size.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use actix_relay::config::SessionConfig;
use actix_relay::session::SessionState;
use support::{Echo, House, any, receive, udp};

/// A tunnel between an application and a service: what is sent to the answer reaches `service`.
async fn tunnel(house: &mut House, service: std::net::SocketAddr) -> std::net::SocketAddr {
    house.start(SessionConfig::listen("far", any()).udp_forward(service)).await;
    let far = house.info("far").await.local_tcp[0];
    house.start(SessionConfig::connect("near", far).local_udp(any())).await;
    house.info("near").await.local_udp.unwrap()
}

#[actix::test]
async fn datagrams_of_every_size_come_back_whole() {
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let near = tunnel(&mut house, echo.addr).await;
    for size in [1, 0, 148, 1472, 1473, 9000, 65_507, 0, 3] {
        let datagram: Vec<u8> = (0..size).map(|n| n as u8).collect();
        app.send_to(&datagram, near).await.unwrap();
        let (answer, from) = receive(&app).await;
        assert_eq!(from, near);
        assert!(answer == datagram, "{size} bytes came back as {}", answer.len());
    }
    let info = house.info("near").await;
    assert_eq!(info.state, SessionState::Connected);
    assert_eq!(info.counters.to_tcp.datagrams, 9);
    assert_eq!(info.counters.to_udp, info.counters.to_tcp);
    assert_eq!(info.counters.drops.total(), 0);
    house.shutdown().await;
}
