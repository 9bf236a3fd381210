//! When a side asks for more time, and what waits for the answer.

use super::tests::{NONCE, SECOND, Scene, key, request};
use super::*;

/// By data, or by pings.
fn keep_alive(scene: &mut Scene, until: Instant) {
    while scene.now < until - SECOND {
        scene.now += SECOND;
        assert!(scene.side.poll_timeout().is_some_and(|due| due > scene.now));
        scene.side.heard(scene.now);
    }
}

#[test]
fn nothing_is_sent_while_a_refresh_may_cross_a_peer_that_comes_and_goes() {
    let mut scene = Scene::joined();
    let joined = scene.now;
    keep_alive(&mut scene, joined + 540 * SECOND);
    scene.wait();
    assert_eq!(request(&scene.sent()).0, Method::REFRESH);
    scene.peer(PeerStatus::Present, Some("a"));
    assert!(matches!(scene.output(), Output::PeerPresent(_)));
    scene.nothing();
    scene.peer(PeerStatus::Gone, None);
    assert_eq!(scene.output(), Output::PeerGone);
    // A stale nonce changes nothing: the relay still waits.
    scene.challenge(438, "obMatJos2gAAAtwo");
    let again = scene.sent();
    scene.peer(PeerStatus::Present, Some("c"));
    assert!(matches!(scene.output(), Output::PeerPresent(_)));
    scene.nothing();
    let id = request(&again).1.id;
    scene.say(&Granted { lifetime: 600, peer: PeerStatus::Present }.encode(Method::REFRESH, id, &key()));
    assert_eq!(scene.output(), Output::MaySend);
    scene.nothing();
}

#[test]
fn waiting_is_extended_in_time_and_only_while_it_runs() {
    let mut scene = Scene::joined();
    let joined = scene.now;
    keep_alive(&mut scene, joined + 540 * SECOND);
    scene.wait();
    assert_eq!(scene.now, joined + 540 * SECOND);
    scene.grant(100, PeerStatus::Absent);
    let refreshed = scene.now;
    keep_alive(&mut scene, refreshed + 50 * SECOND);
    scene.wait();
    assert_eq!(scene.now, refreshed + 50 * SECOND);
    scene.grant(0, PeerStatus::Absent);
    assert_eq!(scene.wait(), REFRESH_MIN_INTERVAL);
    assert_eq!(request(&scene.sent()).0, Method::REFRESH);
    // Not answered before the peer comes: then there is nothing to be extended.
    scene.peer(PeerStatus::Present, Some("a"));
    let _ = scene.output();
    let mut scene = Scene::paired();
    let paired = scene.now;
    keep_alive(&mut scene, paired + 3600 * SECOND);
    scene.nothing();
}

#[test]
fn a_refresh_is_answered_or_the_connection_ends() {
    let gone = || {
        let mut scene = Scene::paired();
        scene.peer(PeerStatus::Gone, None);
        let _ = scene.output();
        scene
    };
    let mut scene = gone();
    let _ = scene.sent();
    assert_eq!(scene.wait(), REQUEST_TIMEOUT);
    let error = SideError::NoAnswer { request: "Refresh", after: REQUEST_TIMEOUT, unbelieved: false };
    assert_eq!(scene.error(), error);
    let mut scene = gone();
    scene.refuse(&Refusal::new(441), Some(&key()));
    assert_eq!(scene.error(), SideError::Refused { request: "Refresh", code: 441, retry_after: None });
    let mut scene = gone();
    scene.challenge(401, NONCE);
    assert_eq!(scene.error(), SideError::Unauthorized { user: "alice".into() });
    let mut scene = gone();
    scene.grant(600, PeerStatus::Absent);
    scene.nothing();
    assert_eq!(scene.wait(), PING_INTERVAL);
}
