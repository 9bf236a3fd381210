//! Many applications send to one local UDP port; each has its own connection and its own answers.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::time::Duration;

use actix_relay::config::SessionConfig;
use actix_relay::event::{Cause, Event, EventKind};
use support::{Echo, House, any, echoed_once, patient, receive, soon, udp, until_echoed};

#[actix::test]
async fn each_of_many_sources_gets_its_own_connection_and_its_own_answers() {
    let (house, service) = (House::new().await, udp().await);
    let far = SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap());
    let far = house.listen(patient(far)).await;
    let entry = house.local(patient(SessionConfig::connect("near", far).local_udp(any()))).await;
    let mut apps = Vec::new();
    for _ in 0..30 {
        apps.push(udp().await);
    }
    for (number, app) in apps.iter().enumerate() {
        app.send_to(&[number as u8], entry).await.unwrap();
    }
    let mut peers = vec![None; apps.len()];
    for _ in &apps {
        let (question, from) = receive(&service).await;
        assert!(peers[usize::from(question[0])].replace(from).is_none());
    }
    // Answered in another order than asked, each twice.
    for (number, peer) in peers.iter().enumerate().rev() {
        for _ in 0..2 {
            service.send_to(&[number as u8, 1], peer.unwrap()).await.unwrap();
        }
    }
    for (number, app) in apps.iter().enumerate() {
        for _ in 0..2 {
            assert_eq!(receive(app).await, (vec![number as u8, 1], entry));
        }
    }
    assert_eq!(house.info("near").await.links.len(), 30);
    house.info_when("far", "a connection each", |info| info.links.len() == 30).await;
    house.shutdown().await;
}

#[actix::test]
async fn sources_beyond_the_limit_are_refused_and_counted() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let far = house.listen(patient(SessionConfig::listen("far", any()).udp_forward(echo.addr))).await;
    let mut near = patient(SessionConfig::connect("near", far).local_udp(any()));
    near.max_sources = 2;
    let entry = house.local(near).await;
    let apps = [udp().await, udp().await, udp().await];
    for app in &apps[..2] {
        echoed_once(app, entry, b"served").await;
    }
    for _ in 0..5 {
        apps[2].send_to(b"one too many", entry).await.unwrap();
    }
    let refused = house
        .event("near", |kind| match kind {
            EventKind::SourceRefused { source, .. } => Some(*source),
            _ => None,
        })
        .await;
    assert_eq!(refused, apps[2].local_addr().unwrap());
    house.info_when("near", "all are counted", |info| info.counters.drops.too_many_sources == 5).await;
    for app in &apps[..2] {
        echoed_once(app, entry, b"still served").await;
    }
    let again = house.reported();
    assert!(
        !again.iter().any(|event| matches!(event.kind, EventKind::SourceRefused { .. })),
        "once a second"
    );
    house.shutdown().await;
}

#[actix::test]
async fn an_idle_source_is_forgotten_its_connection_closed_and_its_place_free() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let mut near = SessionConfig::connect("near", far).local_udp(any());
    near.source_idle = Duration::from_millis(300);
    near.max_sources = 2;
    let entry = house.local(near).await;
    let (first, second) = (udp().await, udp().await);
    until_echoed(&first, entry, "first").await;
    until_echoed(&second, entry, "second").await;
    let mut forgotten = Vec::new();
    for _ in 0..2 {
        let source = house
            .event("near", |kind| match kind {
                EventKind::SourceForgotten { source, .. } => Some(*source),
                _ => None,
            })
            .await;
        forgotten.push(source);
    }
    forgotten.sort_unstable();
    let mut expected = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    expected.sort_unstable();
    assert_eq!(forgotten, expected);
    house.info_when("near", "one link is left, for the next", |info| info.links.len() == 1).await;
    house.info_when("far", "no application's link is left", |info| info.links.is_empty()).await;
    for label in ["third", "fourth"] {
        until_echoed(&udp().await, entry, label).await;
    }
    until_echoed(&first, entry, "first again").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_forgotten_source_disconnects_with_that_cause() {
    let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let mut near = SessionConfig::connect("near", far).local_udp(any());
    near.source_idle = Duration::from_millis(200);
    let entry = house.local(near).await;
    until_echoed(&app, entry, "before").await;
    assert_eq!(house.disconnected("near").await, Cause::Forgotten);
    house.shutdown().await;
}

#[actix::test]
async fn a_source_that_only_receives_is_not_forgotten() {
    let (mut house, service, app) = (House::new().await, udp().await, udp().await);
    let far = SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap());
    let far = house.listen(patient(far)).await;
    let mut near = patient(SessionConfig::connect("near", far).local_udp(any()));
    // Long enough for a busy machine to send within it, short enough to end three times during the download.
    near.source_idle = Duration::from_secs(2);
    let entry = house.local(near).await;
    app.send_to(b"please", entry).await.unwrap();
    let (_, peer) = receive(&service).await;
    for part in 0..60u8 {
        service.send_to(&[part], peer).await.unwrap();
        assert_eq!(receive(&app).await.0, [part]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for event in house.reported() {
        assert!(!matches!(event.kind, EventKind::SourceForgotten { .. }), "{event}");
    }
    house.shutdown().await;
}

#[actix::test]
async fn sources_that_come_and_go_leave_nothing_behind() {
    let (mut house, echo) = (House::new().await, Echo::start().await);
    let far = house.listen(SessionConfig::listen("far", any()).udp_forward(echo.addr)).await;
    let mut near = SessionConfig::connect("near", far).local_udp(any());
    near.source_idle = Duration::from_millis(100);
    near.max_sources = 8;
    let entry = house.local(near).await;
    for wave in 0..5 {
        let mut apps = Vec::new();
        for _ in 0..8 {
            apps.push(udp().await);
        }
        let all = apps.iter().map(|app| until_echoed(app, entry, "come and go"));
        soon("a wave", async {
            for one in all {
                one.await;
            }
        })
        .await;
        eprintln!("wave {wave}");
    }
    house.info_when("near", "one link is left", |info| info.links.len() == 1).await;
    house.info_when("far", "no application's link is left", |info| info.links.is_empty()).await;
    let sum = house.info("near").await.counters;
    assert!(sum.to_tcp.datagrams >= 40, "links that are gone are counted too");
    house.reported();
    house.shutdown().await;
}

/// More at once than the far side's lobby holds: nobody is turned away for having come a moment ago.
#[actix::test]
async fn a_burst_of_new_applications_is_served_whole() {
    let mut house = House::new().await;
    let echo = Echo::start().await;
    let far = house.listen(patient(SessionConfig::listen("far", any()).udp_forward(echo.addr))).await;
    let mut near = patient(SessionConfig::connect("near", far).local_udp(any()));
    near.max_sources = 400;
    let near = house.local(near).await;
    let mut apps = Vec::new();
    for _ in 0..300 {
        apps.push(udp().await);
    }
    for app in &apps {
        app.send_to(b"one of many", near).await.unwrap();
    }
    for app in &apps {
        assert_eq!(receive(app).await.0, b"one of many");
    }
    let refused = |event: &Event| matches!(event.kind, EventKind::PeerRefused { .. });
    assert!(!house.reported().iter().any(refused));
    house.shutdown().await;
}
