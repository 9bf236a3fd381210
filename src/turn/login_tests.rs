use super::server::{NONCE, PASSWORD_ALGORITHM, PASSWORD_ALGORITHMS, REALM, Sealing};
use super::*;
use turn_server_proto::types::stun::message::IntegrityAlgorithm;

const OFFERS: [Offer; 3] =
    [Offer::Sha1, Offer::Sha256 { anonymous: false }, Offer::Sha256 { anonymous: true }];

/// Allocate is asked once before the server says what it wants.
fn unsealed(method: Method) -> usize {
    usize::from(method == Method::ALLOCATE)
}

/// A pair in which the client's password is not the server's.
fn wrong_password(can_ask: bool) -> Pair {
    let setup = Setup { account: Some(account("wrong")), can_ask, ..setup(false, Relayed::Udp) };
    Pair::new(setup, Server::new(Offer::Sha1))
}

fn wants(pair: &Pair) -> usize {
    pair.told.iter().filter(|(_, output)| matches!(output, Output::WantCredentials { .. })).count()
}

#[test]
fn a_challenge_on_any_request_is_answered() {
    for offer in OFFERS {
        for method in METHODS {
            for code in [401, 438] {
                let mut pair = before(method, offer);
                pair.server.fault(method, 1, Fault::Challenge(code));
                ask(&mut pair, method);
                pair.run(secs(1));
                assert!(is_done(&pair, method), "{code} {method:?} {:?}", pair.told);
                assert_eq!(pair.asked(method).len(), 2);
                assert!(pair.server.log.last().unwrap().integrity().is_some());
            }
        }
    }
}

#[test]
fn stale_nonces_without_end_are_given_up_after_three_requests() {
    for method in METHODS {
        for fault in [|| Fault::Challenge(438), || Fault::ChallengeAgain(438)] {
            let mut pair = before(method, Offer::Sha1);
            pair.server.fault(method, usize::MAX, fault());
            ask(&mut pair, method);
            // One of many waits for ten seconds before the next try.
            let is_bulk = matches!(method, Method::CREATE_PERMISSION | Method::CHANNEL_BIND);
            pair.run(secs(if is_bulk { 11 } else { 1 }));
            let error = failure(&pair, method).unwrap();
            assert!(error.is_refusal() && error.to_string().contains("times in a row"), "{error}");
            assert!((2..=3).contains(&pair.asked(method).len()), "{:?}", pair.asked(method));
            pair.run(secs(9));
            assert!(busiest(&pair, secs(10)) <= 8, "{:?}", pair.server.log.len());
        }
    }
}

#[test]
fn a_401_to_a_sealed_request_is_believed_once_if_the_nonce_is_new() {
    for method in METHODS {
        for (fault, sealed) in [(Fault::Challenge(401), 2), (Fault::ChallengeAgain(401), 1)] {
            let mut pair = before(method, Offer::Sha1);
            pair.server.fault(method, usize::MAX, fault);
            ask(&mut pair, method);
            pair.run(secs(1));
            let asked = pair.asked(method).len();
            if method == Method::CONNECTION_BIND {
                // It concerns this connection only.
                let error = failure(&pair, method).unwrap();
                assert!(error.to_string().contains("401") && asked <= 3, "{error} {asked}");
            } else {
                assert_eq!(asked, unsealed(method) + sealed);
                let error = pair.error();
                assert!(error.contains("does not accept user 'alice' with this password"), "{error}");
                assert!(error.starts_with(method.name()), "{error}");
            }
        }
    }
}

#[test]
fn a_wrong_password_costs_two_requests_or_three_if_each_401_has_a_new_nonce() {
    for renews in [false, true] {
        let mut pair = wrong_password(false);
        if renews {
            pair.server.fault(Method::ALLOCATE, 10, Fault::Challenge(401));
        }
        pair.run(secs(3600));
        assert_eq!(pair.asked(Method::ALLOCATE).len(), 2 + usize::from(renews));
        let error = TurnError::Unauthorized { request: "Allocate", user: "alice".into() };
        assert_eq!(pair.told(), [Output::Ended { error }]);
        assert!(pair.end().unwrap().0 < secs(1));
    }
}

#[test]
fn a_server_that_grants_unasked_is_believed_only_where_there_is_no_password() {
    let mut pair = Pair::new(setup(false, Relayed::Udp), Server::new(Offer::None));
    pair.run(secs(60));
    let (at, error) = pair.end().unwrap();
    assert_eq!(at, millis(39_500));
    let told = error.to_string();
    assert_eq!(
        told,
        "Allocate: no answer within 39.5s that could be believed (one came without a valid MESSAGE-INTEGRITY)"
    );

    let setup = Setup { account: None, ..setup(false, Relayed::Udp) };
    let mut pair = Pair::new(setup, Server::new(Offer::None)).allocated();
    pair.act(|core, now| core.permit(now, &[ip(1)])).unwrap();
    pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
    pair.run(secs(3600));
    assert!(pair.told().contains(&Output::ChannelBound { channel: 0x4000, peer: peer(2) }));
    pair.act(|core, now| core.deallocate(now));
    pair.run(secs(1));
    assert!(pair.server.held.is_none());
}

#[test]
fn without_credentials_a_challenge_is_the_end() {
    let setup = Setup { account: None, ..setup(false, Relayed::Udp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1));
    pair.run(secs(1));
    assert_eq!(pair.told(), [Output::Ended { error: TurnError::NoCredentials }]);
    assert_eq!(pair.server.log.len(), 1);
}

#[test]
fn credentials_that_stun_forbids_are_named_and_not_shown() {
    let setup = Setup { account: Some(account("hunter2\u{7}")), ..setup(false, Relayed::Udp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1));
    pair.run(secs(1));
    let error = pair.error();
    assert!(error.contains("the password cannot be used") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_challenge_without_what_it_must_have_is_the_end() {
    for (missing, expected) in [(REALM, "401 without REALM"), (NONCE, "401 without NONCE")] {
        let mut pair = Pair::udp();
        pair.server.change(Method::ALLOCATE, 1, move |answer| answer.remove(missing));
        pair.run(secs(1));
        assert_eq!(pair.error(), format!("Allocate: the server's answer is no use: {expected}"));
        assert_eq!(pair.server.log.len(), 1);
    }
}

#[test]
fn an_offer_may_not_be_bid_down() {
    type Change = fn(&mut server::Answer);
    let cases: [(Change, &str); 3] = [
        (|answer| answer.remove(PASSWORD_ALGORITHMS), "PASSWORD-ALGORITHMS that its NONCE announces"),
        (|answer| set(answer, PASSWORD_ALGORITHMS, &[0, 9, 0, 0]), "no password algorithm that is known"),
        (
            |answer| set(answer, PASSWORD_ALGORITHMS, &[0, 2, 0]),
            "PASSWORD-ALGORITHMS that its NONCE announces",
        ),
    ];
    for (change, expected) in cases {
        let mut pair = before(Method::ALLOCATE, Offer::Sha256 { anonymous: false });
        pair.server.change(Method::ALLOCATE, 1, change);
        pair.run(secs(1));
        assert!(pair.error().contains(expected), "{}", pair.error());
        assert_eq!(pair.server.log.len(), 1);
    }
    // Later: neither the list nor a nonce that announces it.
    for method in METHODS.into_iter().filter(|method| *method != Method::ALLOCATE) {
        let mut pair = before(method, Offer::Sha256 { anonymous: true });
        pair.server.fault(method, 1, Fault::Challenge(438));
        pair.server.mend();
        pair.server.change(method, usize::MAX, |answer| {
            *answer = challenge(answer);
            answer.remove(PASSWORD_ALGORITHMS);
            set(answer, NONCE, b"plain");
        });
        ask(&mut pair, method);
        pair.run(secs(1));
        let error = challenge_error(&pair, method);
        assert!(error.contains("no longer offers the password algorithms"), "{error}");
        assert!(pair.server.log.iter().all(|asked| asked.integrity() == Some(IntegrityAlgorithm::Sha256)));
    }
}

fn set(answer: &mut server::Answer, kind: u16, value: &[u8]) {
    answer.remove(kind);
    answer.put_raw(kind, value);
}

/// A 438 in place of an answer.
fn challenge(answer: &server::Answer) -> server::Answer {
    let mut challenge = answer.clone();
    challenge.class = turn_server_proto::types::stun::message::MessageClass::Error;
    challenge.sealing = Sealing::No;
    challenge.attributes.clear();
    challenge.put_raw(0x0009, b"\0\0\x04\x26Stale");
    challenge.put_raw(REALM, b"example.org");
    challenge.put_raw(NONCE, b"obMatJos2gAAAother");
    challenge.put_raw(PASSWORD_ALGORITHMS, &server::BOTH_ALGORITHMS);
    challenge
}

/// What an unusable challenge leads to: where it answers a Refresh, another server has taken the place of the one that
/// made the allocation, and that is the end of it.
fn challenge_error(pair: &Pair, method: Method) -> String {
    if method == Method::REFRESH { pair.error() } else { failure(pair, method).unwrap().to_string() }
}

#[test]
fn another_realm_is_refused() {
    for method in METHODS.into_iter().filter(|method| *method != Method::ALLOCATE) {
        let mut pair = before(method, Offer::Sha1);
        pair.server.change(method, usize::MAX, |answer| {
            *answer = challenge(answer);
            answer.remove(PASSWORD_ALGORITHMS);
            set(answer, NONCE, b"other");
            set(answer, REALM, b"evil.example");
        });
        ask(&mut pair, method);
        pair.run(secs(1));
        let error = challenge_error(&pair, method);
        assert!(error.contains("the realm changed from 'example.org' to 'evil.example'"), "{error}");
    }
}

#[test]
fn a_400_without_integrity_makes_the_client_ask_once_without_its_nonce() {
    let bad_request = |answer: &mut server::Answer| {
        *answer = challenge(answer);
        answer.attributes.clear();
        answer.put_raw(0x0009, b"\0\0\x04\0Bad Request");
    };
    for method in [Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        let mut pair = before(method, Offer::Sha256 { anonymous: true });
        pair.server.change(method, 1, bad_request);
        ask(&mut pair, method);
        pair.run(secs(1));
        assert!(is_done(&pair, method), "{:?}", pair.told);
        let sealed: Vec<bool> = pair.server.log.iter().map(|asked| asked.integrity().is_some()).collect();
        assert_eq!(sealed[..3], [true, false, true]);
    }
    // Without end it is an error in time, and few requests.
    let mut pair = Pair::udp().allocated();
    pair.server.change(Method::CREATE_PERMISSION, usize::MAX, bad_request);
    ask(&mut pair, Method::CREATE_PERMISSION);
    pair.run(secs(42));
    let error = failure(&pair, Method::CREATE_PERMISSION).unwrap().to_string();
    assert!(error.contains("error 400 came without"), "{error}");
    assert_eq!(pair.asked(Method::CREATE_PERMISSION).len(), 8);
}

#[test]
fn md5_is_used_under_sha_256_where_nothing_better_is_offered() {
    let mut pair = before(Method::ALLOCATE, Offer::Sha256 { anonymous: false });
    pair.server.change(Method::ALLOCATE, 1, |answer| set(answer, PASSWORD_ALGORITHMS, &[0, 1, 0, 0]));
    pair.server.fault(Method::ALLOCATE, usize::MAX, Fault::LoseRequest);
    pair.run(millis(100));
    let asked = pair.server.log.last().unwrap();
    assert_eq!(asked.integrity(), Some(IntegrityAlgorithm::Sha256));
    assert_eq!(asked.raw(PASSWORD_ALGORITHMS), Some(vec![0, 1, 0, 0]));
    assert_eq!(asked.raw(PASSWORD_ALGORITHM), Some(vec![0, 1, 0, 0]));
    let key = stun::Key::long_term("alice", "example.org", "secret", stun::Algorithm::Md5).unwrap();
    let read = stun::Received::decode(&asked.bytes).unwrap();
    assert!(read.is_sealed_with(&key, stun::Integrity::Sha256));
}

#[test]
fn nonces_that_run_out_all_the_time_disturb_nothing() {
    for offer in OFFERS {
        let mut pair = before(Method::REFRESH, offer);
        pair.server.nonce_lifetime = Some(secs(4));
        pair.act(|core, now| core.permit(now, &[ip(1)])).unwrap();
        pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
        pair.run(secs(7200));
        // The server checks that everything comes back that it sent.
        let told = pair.told();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(pair.client.core.permissions.is_granted(pair.now, ip(1)));
    }
}

#[test]
fn other_credentials_are_asked_for_and_used() {
    let mut pair = wrong_password(true);
    pair.run(secs(5));
    let want = Output::WantCredentials { rejected: "alice".into(), realm: Some("example.org".into()) };
    assert_eq!(pair.told(), [want]);
    pair.forget();
    pair.act(|core, now| core.credentials(now, Some(account("secret"))));
    pair.run(secs(1));
    assert!(is_done(&pair, Method::ALLOCATE), "{:?}", pair.told);
    assert_eq!(pair.server.log.len(), 1);
}

#[test]
fn where_no_others_are_to_be_had_the_first_are_refused() {
    let error = TurnError::Unauthorized { request: "Allocate", user: "alice".into() };
    for (wait, answer) in [(secs(3), Some(None)), (secs(20), None)] {
        let mut pair = wrong_password(true);
        pair.run(wait);
        if let Some(answer) = answer {
            pair.act(|core, now| core.credentials(now, answer));
        }
        let (at, why) = pair.end().unwrap();
        assert_eq!(why, error);
        assert!(at <= CREDENTIALS_TIMEOUT + secs(2));
        assert_eq!(pair.server.log.len(), 2);
        // Too late.
        pair.act(|core, now| core.credentials(now, Some(account("secret"))));
        pair.run(secs(60));
        assert_eq!(pair.server.log.len(), 2);
    }
}

#[test]
fn credentials_are_asked_for_once_for_a_request() {
    for renews in [false, true] {
        let mut pair = wrong_password(true);
        if renews {
            pair.server.fault(Method::ALLOCATE, 10, Fault::Challenge(401));
        }
        pair.run(secs(1));
        pair.act(|core, now| core.credentials(now, Some(account("wrong too"))));
        pair.run(secs(60));
        assert!(pair.error().contains("does not accept user 'alice'"));
        assert_eq!(wants(&pair), 1);
        assert!(pair.server.log.len() <= 5, "{}", pair.server.log.len());
    }
}

/// An allocation whose password the server no longer takes.
fn expired() -> Pair {
    let setup = Setup { can_ask: true, ..setup(false, Relayed::Udp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1)).allocated();
    pair.server.user.1 = "other".into();
    pair
}

#[test]
fn what_waits_for_credentials_is_sent_when_they_come() {
    let mut pair = expired();
    pair.act(|core, now| core.permit(now, &[ip(1)])).unwrap();
    pair.run(secs(1));
    assert_eq!(wants(&pair), 1);
    // They wait in line.
    pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
    ask(&mut pair, Method::REFRESH);
    pair.run(secs(1));
    assert_eq!(pair.server.log.len(), 1);
    pair.act(|core, now| core.credentials(now, Some(account("other"))));
    pair.run(secs(1));
    assert_eq!(pair.server.log.len(), 4);
    assert!(pair.told().contains(&Output::Permitted { peers: vec![ip(1)] }));
    assert!(pair.told().contains(&Output::ChannelBound { channel: 0x4000, peer: peer(2) }));
    assert_eq!(wants(&pair), 1);
}

#[test]
fn a_refusal_of_the_credentials_before_is_no_refusal_of_the_new_ones() {
    let mut pair = expired();
    pair.act(|core, now| core.permit(now, &[ip(1)])).unwrap();
    pair.delay = millis(200);
    pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
    pair.delay = millis(20);
    pair.run(millis(50));
    pair.act(|core, now| core.credentials(now, Some(account("other"))));
    pair.run(secs(1));
    assert_eq!(wants(&pair), 1, "{:?}", pair.told);
    assert!(pair.told().contains(&Output::ChannelBound { channel: 0x4000, peer: peer(2) }));
}

#[test]
fn another_user_than_the_allocation_s_is_a_441_and_the_end() {
    let mut pair = expired();
    pair.server.user = ("bob".into(), "other".into());
    ask(&mut pair, Method::REFRESH);
    pair.run(secs(1));
    pair.act(|core, now| core.credentials(now, Some(UserPassword::new("bob", "other"))));
    pair.run(secs(1));
    assert!(pair.error().contains("441"), "{}", pair.error());
}

#[test]
fn told_to_deallocate_nobody_asks_for_credentials() {
    let mut pair = expired();
    ask(&mut pair, Method::REFRESH);
    pair.run(secs(1));
    assert_eq!(wants(&pair), 1);
    pair.act(|core, now| core.deallocate(now));
    pair.run(secs(2));
    assert_eq!(pair.end().unwrap().1, TurnError::Told);
    assert_eq!(wants(&pair), 1);

    let mut pair = wrong_password(true);
    pair.run(secs(1));
    pair.act(|core, now| core.deallocate(now));
    let (at, why) = pair.end().expect("there is nothing to undo");
    assert_eq!((at, why), (secs(1), TurnError::Told));
}
