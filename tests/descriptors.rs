//! No descriptors left: the listener rests and recovers. In a process of its own, whose limit it lowers.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use actix_relay::config::SessionConfig;
use actix_relay::event::EventKind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::peer::RawPeer;
use support::{Echo, House, any, echoed_once, patient, udp};

/// One test at a time, its runtime included: descriptors are everybody's.
fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    actix::System::new().block_on(test);
}

/// All that are left but `spare`.
fn use_up_descriptors(spare: usize) -> Vec<File> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum }).unwrap();
    let mut open: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    open.truncate(open.len().checked_sub(spare).expect("256 are more than are in use"));
    open
}

async fn paused(house: &mut House, far: SocketAddr) {
    let error = house
        .event("far", |kind| match kind {
            EventKind::AcceptPaused { local_tcp, error } if *local_tcp == far => Some(error.clone()),
            _ => None,
        })
        .await;
    assert!(error.contains("Too many open files"), "{error}");
}

async fn resumed(house: &mut House, far: SocketAddr) {
    house
        .event("far", |kind| {
            assert!(!matches!(kind, EventKind::AcceptPaused { .. }), "said once");
            matches!(kind, EventKind::AcceptResumed { local_tcp } if *local_tcp == far).then_some(())
        })
        .await;
}

#[test]
fn without_descriptors_the_listener_rests_and_then_accepts_again() {
    alone(async {
        let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
        let far = house.listen(patient(SessionConfig::listen("far", any()).udp_forward(echo.addr))).await;
        let entry = house.local(patient(SessionConfig::connect("near", far).local_udp(any()))).await;
        echoed_once(&app, entry, b"before").await;
        for round in 0..3 {
            // One for our end of the connection, none for theirs.
            let open = use_up_descriptors(1);
            let mut peer = RawPeer::connect(far).await;
            paused(&mut house, far).await;
            echoed_once(&app, entry, format!("served meanwhile {round}").as_bytes()).await;
            drop(open);
            resumed(&mut house, far).await;
            peer.send(b"at last").await;
            assert_eq!(peer.receive().await, b"at last");
            drop(peer);
            house.info_when("far", "its descriptors are free", |info| info.links.len() == 1).await;
        }
        house.shutdown().await;
    });
}

#[test]
fn a_listener_that_found_its_last_descriptor_used_says_so_and_recovers() {
    alone(async {
        let (mut house, echo) = (House::new().await, Echo::start().await);
        let far = house.listen(patient(SessionConfig::listen("far", any()).udp_forward(echo.addr))).await;
        // One for each end of a connection, none for the next.
        let open = use_up_descriptors(2);
        let peer = RawPeer::connect(far).await;
        paused(&mut house, far).await;
        drop(open);
        resumed(&mut house, far).await;
        drop(peer);
        house.shutdown().await;
    });
}
