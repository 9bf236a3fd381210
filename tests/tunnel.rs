//! Datagrams go through the tunnel and back, whole, whatever their size, in every mode and over every network.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::SessionConfig;
use actix_relay::session::SessionState;
use support::{Echo, House, any, patient, receive, soon};
use tokio::net::UdpSocket;

/// What an IPv4 datagram may hold at most is the last.
const SIZES: [usize; 6] = [0, 1, 1472, 1473, 9000, 65_507];

/// Who calls whom, and where the service is.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// The caller has the applications, the far side the service.
    ToFarService,
    /// The caller has the service (it may be behind a firewall), the far side the application.
    ToNearService,
}

/// A tunnel whose local UDP sockets are at `ip`; what is sent to the answer reaches `service`.
async fn tunnel(house: &mut House, mode: Mode, ip: SocketAddr, service: SocketAddr) -> SocketAddr {
    let (listen, entry) = match mode {
        Mode::ToFarService => (SessionConfig::listen("far", loopback(ip)).udp_forward(service), "near"),
        Mode::ToNearService => (SessionConfig::listen("far", loopback(ip)).local_udp(ip), "far"),
    };
    let far = house.listen(patient(listen)).await;
    let near = SessionConfig::connect("near", far);
    let near = match mode {
        Mode::ToFarService => near.local_udp(ip),
        Mode::ToNearService => near.udp_forward(service),
    };
    house.start(patient(near)).await;
    house.connected("near").await;
    house.info(entry).await.local_udp.unwrap()
}

/// TCP goes over loopback, in the same family.
fn loopback(ip: SocketAddr) -> SocketAddr {
    if ip.is_ipv4() { any() } else { "[::1]:0".parse().unwrap() }
}

async fn every_size_comes_back(app: &UdpSocket, entry: SocketAddr) {
    for (round, size) in SIZES.into_iter().chain(SIZES.into_iter().rev()).enumerate() {
        let datagram: Vec<u8> = (0..size).map(|n| (n + round) as u8).collect();
        app.send_to(&datagram, entry).await.unwrap();
        let (answer, from) = receive(app).await;
        assert_eq!(from, entry, "answered from the address it was sent to");
        assert!(answer == datagram, "{size} bytes came back as {}", answer.len());
    }
}

/// Every size there and back, nothing lost and nothing counted wrongly.
async fn over_loopback(mode: Mode, ip: &str) {
    let ip: SocketAddr = format!("{ip}:0").parse().unwrap();
    let mut house = House::new().await;
    let (echo, app) = (Echo::at(ip).await, UdpSocket::bind(ip).await.unwrap());
    let entry = tunnel(&mut house, mode, ip, echo.addr).await;
    every_size_comes_back(&app, entry).await;
    let count = 2 * SIZES.len() as u64;
    let bytes = 2 * SIZES.iter().sum::<usize>() as u64;
    for session in ["near", "far"] {
        let info = house.info(session).await;
        assert_eq!(info.state, SessionState::Connected);
        assert_eq!((info.counters.to_tcp.datagrams, info.counters.to_tcp.bytes), (count, bytes), "{session}");
        assert_eq!(info.counters.to_udp, info.counters.to_tcp, "{session}");
        assert_eq!(info.counters.drops.total(), 0, "{session}");
    }
    house.shutdown().await;
}

#[actix::test]
async fn every_size_comes_back_from_a_far_service_over_ipv4() {
    over_loopback(Mode::ToFarService, "127.0.0.1").await;
}

#[actix::test]
async fn every_size_comes_back_from_a_near_service_over_ipv4() {
    over_loopback(Mode::ToNearService, "127.0.0.1").await;
}

#[actix::test]
async fn every_size_comes_back_from_a_far_service_over_ipv6() {
    over_loopback(Mode::ToFarService, "[::1]").await;
}

#[actix::test]
async fn every_size_comes_back_from_a_near_service_over_ipv6() {
    over_loopback(Mode::ToNearService, "[::1]").await;
}

#[actix::test]
async fn an_answer_comes_from_the_address_that_was_written_to() {
    let mut house = House::new().await;
    let echo = Echo::start().await;
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let entry = tunnel(&mut house, Mode::ToFarService, everywhere, echo.addr).await;
    for last in [1, 2, 77] {
        let app = support::udp().await;
        every_size_comes_back(&app, SocketAddr::from(([127, 0, 0, last], entry.port()))).await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_burst_comes_back_whole_and_in_order() {
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, support::udp().await);
    let entry = tunnel(&mut house, Mode::ToFarService, any(), echo.addr).await;
    let datagram = |number: usize| {
        let mut datagram = vec![number as u8; 20 + number % 1400];
        datagram[..8].copy_from_slice(&(number as u64).to_be_bytes());
        datagram
    };
    // As many as every socket on the way holds for sure.
    for first in (0..2000).step_by(40) {
        for number in first..first + 40 {
            app.send_to(&datagram(number), entry).await.unwrap();
        }
        for number in first..first + 40 {
            assert!(receive(&app).await.0 == datagram(number), "{number}");
        }
    }
    house.shutdown().await;
}

/// House, service and application on two machines: all local UDP crosses a link of 1500 bytes.
#[cfg(target_os = "linux")]
fn over_a_cable(test: &str, mode: Mode, left: &str, right: &str) {
    use support::namespace::{Cable, skipped};
    use tokio::sync::oneshot;

    let cable = match Cable::new() {
        Ok(cable) => cable,
        Err(why) => return skipped(test, &why),
    };
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 0);
    let (left, right) = (at(left), at(right));
    let (tell_service, service) = oneshot::channel();
    let (tell_entry, entry) = oneshot::channel();
    let (done, stop) = oneshot::channel::<()>();
    let house = cable.left.spawn(move || {
        actix::System::new().block_on(async move {
            let mut house = House::new().await;
            let service = soon("the service", service).await.unwrap();
            let entry = tunnel(&mut house, mode, left, service).await;
            tell_entry.send(entry).unwrap();
            let _ = stop.await;
            for session in ["near", "far"] {
                assert_eq!(house.info(session).await.counters.drops.total(), 0, "{session}");
            }
            house.shutdown().await;
        });
    });
    let app = cable.right.spawn(move || {
        actix::System::new().block_on(async move {
            let echo = Echo::at(right).await;
            tell_service.send(echo.addr).unwrap();
            let app = UdpSocket::bind(right).await.unwrap();
            let entry = soon("the tunnel", entry).await.unwrap();
            every_size_comes_back(&app, entry).await;
            // Many at once: batched on receive, sent as runs.
            for size in [1400, 1472, 1473, 3000] {
                let datagrams: Vec<Vec<u8>> = (0..30).map(|n| vec![n; size]).collect();
                for datagram in &datagrams {
                    app.send_to(datagram, entry).await.unwrap();
                }
                for datagram in datagrams {
                    assert!(receive(&app).await.0 == datagram, "{size} bytes");
                }
            }
            drop(done);
        });
    });
    app.join().unwrap();
    house.join().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn every_size_crosses_a_link_with_an_mtu_of_1500_to_a_far_service() {
    over_a_cable("MTU 1500, IPv4, far service", Mode::ToFarService, "10.7.0.1", "10.7.0.2");
}

#[test]
#[cfg(target_os = "linux")]
fn every_size_crosses_a_link_with_an_mtu_of_1500_to_a_near_service() {
    over_a_cable("MTU 1500, IPv4, near service", Mode::ToNearService, "10.7.0.1", "10.7.0.2");
}

#[test]
#[cfg(target_os = "linux")]
fn every_size_crosses_a_link_with_an_mtu_of_1500_over_ipv6() {
    over_a_cable("MTU 1500, IPv6, far service", Mode::ToFarService, "fd07::1", "fd07::2");
}

#[actix::test]
async fn traffic_both_ways_at_once_comes_through() {
    let mut house = House::new().await;
    let (service, app) = (support::udp().await, support::udp().await);
    let entry = tunnel(&mut house, Mode::ToFarService, any(), service.local_addr().unwrap()).await;
    app.send_to(b"hello", entry).await.unwrap();
    let (_, far) = receive(&service).await;
    let there = async {
        for number in 0..500u32 {
            app.send_to(&number.to_be_bytes(), entry).await.unwrap();
            assert_eq!(receive(&service).await.0, number.to_be_bytes());
        }
    };
    let back = async {
        for number in 0..500u32 {
            service.send_to(&number.to_be_bytes(), far).await.unwrap();
            assert_eq!(receive(&app).await.0, number.to_be_bytes());
        }
    };
    soon("both ways", async { tokio::join!(there, back) }).await;
    tokio::time::timeout(Duration::from_secs(30), house.shutdown()).await.unwrap();
}
