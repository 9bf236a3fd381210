//! The helper that starts coturn: what the other tests rely on.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use support::PATIENCE;
use support::coturn::Coturn;

mod support;

/// STUN's Binding request, and whether it is answered in this time.
fn answers(server: SocketAddr, within: Duration) -> Result<bool, ErrorKind> {
    let socket = UdpSocket::bind((server.ip(), 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(within)).unwrap();
    socket.send(b"\x00\x01\x00\x00\x21\x12\xa4\x42twelve bytes").unwrap();
    match socket.recv(&mut [0; 1500]) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(error.kind()),
    }
}

#[test]
fn several_run_at_once_on_ports_of_their_own_and_start_in_well_under_a_second() {
    let began = Instant::now();
    let servers: Vec<Coturn> = (0..4).map(|_| Coturn::start()).collect();
    eprintln!("4 servers after {:?}", began.elapsed());
    for server in &servers {
        assert_eq!(answers(server.addr(), PATIENCE), Ok(true));
        assert!(!server.relay_ports().contains(&server.addr().port()));
        for other in servers.iter().filter(|other| other.pid() != server.pid()) {
            assert!(!other.relay_ports().contains(server.relay_ports().start()));
        }
    }
}

#[test]
fn a_killed_one_is_gone_and_a_restarted_one_has_its_address() {
    let mut server = Coturn::start();
    server.kill();
    assert_eq!(answers(server.addr(), PATIENCE), Err(ErrorKind::ConnectionRefused));
    server.restart();
    assert_eq!(answers(server.addr(), PATIENCE), Ok(true));
}

#[test]
fn a_paused_one_is_silent_until_it_resumes() {
    let server = Coturn::start();
    server.pause();
    assert_eq!(answers(server.addr(), Duration::from_millis(100)), Ok(false));
    server.resume();
    assert_eq!(answers(server.addr(), PATIENCE), Ok(true));
}

#[test]
fn its_arguments_reach_it_and_its_log_is_kept() {
    let server = Coturn::builder()
        .ip(Ipv6Addr::LOCALHOST)
        .no_auth()
        .realm("another.example")
        .arg("--stale-nonce=4")
        .arg("--user-quota=1")
        .start();
    assert!(server.addr().is_ipv6());
    assert_eq!(answers(server.addr(), PATIENCE), Ok(true));
    assert!(server.log().contains("Default realm: another.example"), "{}", server.log());
}
