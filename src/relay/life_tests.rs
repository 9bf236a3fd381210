//! What becomes of a connection: its limits, waiting, silence, its end.

use proptest::prelude::*;

use super::super::messages::{Alternate, Refresh, ping, pong};
use super::tests::{Bench, ID, OWN_ID, SECOND, SHARED_KEY, WALL, joined, peer, remote};
use super::*;
use crate::credentials::UserPassword;
use crate::relay::accounts::short_lived_password;
use crate::stun::Draft;

const MILLISECOND: Duration = Duration::from_millis(1);

fn limit() -> Option<Closing> {
    Some(Closing::new(Reason::Limit))
}

fn request(method: Method) -> Draft {
    Draft::new(method, Class::Request, ID)
}

/// A connection in each of its phases.
fn every_phase() -> [Bench; 5] {
    let mut joining = Bench::challenged();
    joining.asks_to_join();
    [Bench::new(), Bench::challenged(), joining, Bench::waiting(), Bench::paired()]
}

#[test]
fn a_binding_is_answered_in_every_phase() {
    for mut bench in every_phase() {
        assert_eq!(bench.gives(&ping(ID)), [Output::Send(pong(ID, remote()))]);
        let bytes = request(Method::BINDING).with(0x7f09, b"").with(0x8099, b"").unsealed();
        assert_eq!(bench.refusal(&bytes).unknown, [0x7f09]);
        assert_eq!(bench.connection.refused, 0);
    }
}

#[test]
fn unknown_requests_are_bad_ones_and_unknown_indications_and_answers_are_ignored() {
    for mut bench in every_phase() {
        for method in
            [Method::ALLOCATE, Method::CONNECTION_BIND, Method::PEER, Method::CLOSING, Method(0xfff)]
        {
            assert_eq!(bench.refusal(&request(method).unsealed()).code, 400);
        }
        for method in [Method::BINDING, Method::JOIN, Method::REFRESH, Method::PEER, Method::DATA] {
            for class in [Class::Indication, Class::Success, Class::Error] {
                assert_eq!(bench.gives(&Draft::new(method, class, ID).unsealed()), []);
            }
        }
        // A Closing that cannot be understood is none.
        let bytes = Draft::new(Method::CLOSING, Class::Indication, ID).with_u32(0x7f04, 99).unsealed();
        assert_eq!(bench.gives(&bytes), []);
        let outputs = bench.gives(&Closing::new(Reason::Idle).encode(ID));
        bench.ends(&outputs, Ending::Deaf, None);
    }
}

#[test]
fn a_second_join_and_a_refresh_before_the_first_succeeded_do_not_match() {
    let mut bench = Bench::challenged();
    let bytes = bench.encoded_refresh(None);
    assert_eq!(bench.refusal(&bytes).code, 437);
    bench.asks_to_join();
    let bytes = bench.encoded_refresh(None);
    assert_eq!(bench.refusal(&bytes).code, 437);
    let bytes = bench.encoded_join();
    assert_eq!(bench.refusal(&bytes).code, 437);
    bench.connection.join_answered(bench.now, joined(false));
    assert_eq!(bench.granted().lifetime, 600);
    let bytes = bench.encoded_join();
    assert_eq!(bench.refusal(&bytes).code, 437);
    assert!(bench.connection.is_joined());
}

#[test]
fn what_the_directory_refuses_is_told_and_may_be_tried_again() {
    let server = "192.0.2.9:443".parse().unwrap();
    for refusal in [
        Refusal::new(403),
        Refusal::new(409),
        Refusal::new(486),
        Refusal { retry_after: Some(SECOND * 2), ..Refusal::new(508) },
        Refusal {
            alternate: Some(Alternate { server, domain: Some("b.example".into()) }),
            ..Refusal::new(300)
        },
    ] {
        let mut bench = Bench::challenged();
        bench.asks_to_join();
        bench.connection.join_answered(bench.now, JoinAnswer::Refused(refusal.clone()));
        let outputs = bench.outputs();
        assert_eq!(bench.refusal_from(&outputs), refusal);
        let Output::Send(bytes) = &outputs[0] else { unreachable!() };
        assert!(messages::decode(bytes).unwrap().is_sealed_with(&bench.alice().key));
        bench.asks_to_join();
        bench.connection.join_answered(bench.now, joined(false));
        assert_eq!(bench.granted().lifetime, 600);
        // Nobody has asked any more.
        bench.connection.join_answered(bench.now, JoinAnswer::Refused(refusal));
        assert_eq!(bench.outputs(), []);
    }
}

#[test]
fn the_fourth_refused_join_closes_whatever_refused_it() {
    let first = Join::encode_first(ID);
    let mut bench = Bench::challenged();
    assert_eq!(bench.refusal(&first).code, 401);
    let wrong = bench.seal("alice", "Secret");
    let wrong = super::tests::join().encode(ID, &wrong).unwrap();
    assert_eq!(bench.refusal(&wrong).code, 401);
    bench.asks_to_join();
    bench.connection.join_answered(bench.now, JoinAnswer::Refused(Refusal::new(409)));
    bench.outputs();
    let bytes = bench.encoded_refresh(None);
    assert_eq!(bench.refusal(&bytes).code, 437, "a Refresh does not count");
    bench.asks_to_join();
    bench.connection.join_answered(bench.now, JoinAnswer::Refused(Refusal::new(403)));
    let outputs = bench.outputs();
    assert_eq!(bench.refusal_from(&outputs).code, 403);
    bench.ends(&outputs[1..], Ending::TooManyRefused, limit());

    // The challenge that everyone has is not counted, if it was asked for by a Join without credentials.
    let mut bench = Bench::new();
    (0..3).for_each(|_| assert_eq!(bench.refusal(&wrong).code, 401));
    let outputs = bench.gives(&first);
    assert_eq!(bench.refusal_from(&outputs).code, 401);
    bench.ends(&outputs[1..], Ending::TooManyRefused, limit());
}

#[test]
fn a_connection_joins_within_10_s_and_nothing_extends_that() {
    let mut bench = Bench::new();
    let end = bench.start + SECOND * 10;
    while bench.now + SECOND < end {
        assert_eq!(bench.runs_until(bench.now + SECOND), []);
        bench.gives(&ping(ID));
        if bench.connection.refused < 3 {
            bench.gives(&Join::encode_first(ID));
        }
    }
    assert_eq!(bench.connection.poll_timeout(), Some(end));
    assert_eq!(bench.runs_until(end - MILLISECOND), []);
    let outputs = bench.runs_until(end);
    bench.ends(&outputs, Ending::NotJoined, limit());

    // Nor does a directory that takes its time; an answer that is in time is enough.
    let mut late = Bench::challenged();
    late.asks_to_join();
    let outputs = late.runs_until(late.start + SECOND * 10);
    late.ends(&outputs, Ending::NotJoined, limit());
    let mut early = Bench::challenged();
    early.asks_to_join();
    early.now = early.start + SECOND * 10 - MILLISECOND;
    early.connection.join_answered(early.now, joined(true));
    assert_eq!(early.granted().peer, PeerStatus::Present);
    assert_eq!(early.runs_until(early.start + SECOND * 11), []);
}

#[test]
fn at_most_4_kib_come_before_a_connection_has_joined() {
    let mut bench = Bench::new();
    bench.connection.heard(bench.now, 4096);
    assert_eq!(bench.outputs(), []);
    bench.connection.heard(bench.now, 1);
    let outputs = bench.outputs();
    bench.ends(&outputs, Ending::TooMuchUnjoined, limit());

    let mut bench = Bench::challenged();
    bench.asks_to_join();
    bench.connection.heard(bench.now, 4096);
    let outputs = bench.outputs();
    bench.ends(&outputs, Ending::TooMuchUnjoined, limit());

    let mut bench = Bench::waiting();
    bench.connection.heard(bench.now, usize::MAX);
    assert!(bench.outputs().is_empty() && bench.connection.is_joined());
}

#[test]
fn a_silent_side_is_asked_after_15_s_and_closed_10_s_later() {
    for mut bench in [Bench::waiting(), Bench::paired()] {
        let (asked, end) = (bench.start + SECOND * 15, bench.start + SECOND * 25);
        assert_eq!(bench.runs_until(asked - MILLISECOND), []);
        assert_eq!(bench.runs_until(asked), [Output::Send(ping(OWN_ID))]);
        assert_eq!(bench.runs_until(end - MILLISECOND), []);
        let outputs = bench.runs_until(end);
        bench.ends(&outputs, Ending::Idle, Some(Closing::new(Reason::Idle)));
    }
}

#[test]
fn any_byte_is_a_sign_of_life() {
    let mut bench = Bench::paired();
    bench.runs_until(bench.start + SECOND * 24);
    bench.connection.heard(bench.now, 1);
    assert_eq!(bench.runs_until(bench.start + SECOND * 39 - MILLISECOND), []);
    assert_eq!(bench.runs_until(bench.start + SECOND * 39), [Output::Send(ping(OWN_ID))]);
    assert_eq!(bench.gives(&pong(OWN_ID, remote())), []);
    assert_eq!(bench.connection.poll_timeout(), Some(bench.start + SECOND * 54));
    // Asked late, by a relay that was asleep, it still has its 10 s.
    bench.now = bench.start + SECOND * 1000;
    bench.connection.handle_timeout(bench.now);
    assert_eq!(bench.outputs(), [Output::Send(ping(OWN_ID))]);
    assert_eq!(bench.connection.poll_timeout(), Some(bench.now + SECOND * 10));
}

#[test]
fn lifetime_has_a_default_and_a_longest_value() {
    for (asked, longest, expected) in [
        (None, 3600, 600),
        (Some(1), 3600, 1),
        (Some(3600), 3600, 3600),
        (Some(3601), 3600, 3600),
        (Some(u32::MAX), u32::MAX, 3600),
        (None, 60, 60),
        (Some(61), 60, 60),
        (Some(5), 0, 1),
    ] {
        let mut bench = Bench::challenged();
        Arc::get_mut(&mut bench.connection.shared).unwrap().max_lifetime = longest;
        let join = Join { lifetime: asked, ..super::tests::join() }.encode(ID, &bench.alice()).unwrap();
        assert!(matches!(bench.gives(&join)[..], [Output::Join(_)]));
        bench.connection.join_answered(bench.now, joined(false));
        assert_eq!(bench.granted().lifetime, expected);
        assert_eq!(bench.refreshes(asked).lifetime, expected);
        let outputs = bench.stays_until(bench.start + SECOND * expected - MILLISECOND);
        assert_eq!(outputs, [], "{asked:?}");
        let outputs = bench.stays_until(bench.start + SECOND * expected);
        bench.ends(&outputs, Ending::LifetimeOver, Some(Closing::new(Reason::LifetimeOver)));
    }
}

#[test]
fn lifetime_runs_only_while_a_side_waits_and_anew_from_refresh_and_from_peer_2() {
    let mut bench = Bench::waiting();
    assert_eq!(bench.stays_until(bench.start + SECOND * 599), []);
    assert_eq!(bench.refreshes(Some(100)), Granted { lifetime: 100, peer: PeerStatus::Absent });
    assert_eq!(bench.stays_until(bench.now + SECOND * 99), []);
    bench.connection.peer(bench.now, &peer(PeerStatus::Present));
    bench.outputs();
    assert_eq!(bench.stays_until(bench.now + SECOND * 10_000), []);
    bench.peer(PeerStatus::Gone);
    assert_eq!(bench.stays_until(bench.now + SECOND * 99), []);
    let outputs = bench.stays_until(bench.now + SECOND);
    bench.ends(&outputs, Ending::LifetimeOver, Some(Closing::new(Reason::LifetimeOver)));

    // A Refresh while the peer is there sets how long the next wait may be.
    let mut bench = Bench::paired();
    assert_eq!(bench.refreshes(Some(50)), Granted { lifetime: 50, peer: PeerStatus::Present });
    assert_eq!(bench.stays_until(bench.now + SECOND * 51), []);
    bench.peer(PeerStatus::Gone);
    let end = bench.now + SECOND * 50;
    assert_eq!(bench.connection.poll_timeout(), Some(bench.now + SECOND * 15));
    assert_eq!(bench.stays_until(end - SECOND), []);
    let outputs = bench.stays_until(end);
    bench.ends(&outputs, Ending::LifetimeOver, Some(Closing::new(Reason::LifetimeOver)));
}

#[test]
fn nothing_that_may_be_meant_for_an_old_peer_is_forwarded() {
    let mut bench = Bench::paired();
    bench.peer(PeerStatus::Gone);
    assert!(!bench.connection.may_forward());
    bench.peer(PeerStatus::Present);
    assert!(!bench.connection.may_forward(), "it has not shown that it knows");
    bench.peer(PeerStatus::Gone);
    bench.peer(PeerStatus::Present);
    // A Refresh that was under way may be for an earlier one, or only have extended the wait.
    let crossing = bench.encoded_refresh(None);
    assert_eq!(bench.refusal(&crossing).code, 438);
    assert!(!bench.connection.may_forward());
    assert_eq!(bench.refreshes(None).peer, PeerStatus::Present);
    assert!(bench.connection.may_forward());
    bench.peer(PeerStatus::Gone);
    assert_eq!(bench.refreshes(None).peer, PeerStatus::Absent);
    assert!(!bench.connection.may_forward());
    bench.peer(PeerStatus::Present);
    assert!(bench.connection.may_forward());
    // A refused Refresh shows nothing.
    bench.peer(PeerStatus::Gone);
    bench.peer(PeerStatus::Present);
    let wrong = Refresh { lifetime: None }.encode(ID, &bench.seal("alice", "Secret")).unwrap();
    assert_eq!(bench.refusal(&wrong).code, 401);
    assert!(!bench.connection.may_forward());
}

#[test]
fn being_slowed_is_told_and_stops_nothing() {
    let mut bench = Bench::paired();
    let slowed = Peer { retry_after: Some(MILLISECOND * 20), ..peer(PeerStatus::Present) };
    bench.connection.peer(bench.now, &slowed);
    assert_eq!(bench.outputs(), [Output::Send(slowed.encode(OWN_ID))]);
    assert!(bench.connection.may_forward());
}

#[test]
fn a_refresh_is_the_joined_users_also_under_a_renewed_name() {
    let account = |expiry: u64| {
        let name = format!("{expiry}:carol");
        UserPassword::new(name.clone(), short_lived_password(&SHARED_KEY.into(), &name))
    };
    let mut bench = Bench::challenged();
    let seal = |bench: &Bench, expiry| bench.challenge.clone().unwrap().seal(&account(expiry)).unwrap();
    let bytes = super::tests::join().encode(ID, &seal(&bench, WALL)).unwrap();
    let outputs = bench.gives(&bytes);
    let [Output::Join(request)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(&*request.user, "carol");
    bench.connection.join_answered(bench.now, joined(false));
    bench.outputs();
    for (wall, expiry, is_good) in [(WALL, WALL, true), (WALL + 1, WALL, false), (WALL + 1, WALL + 9, true)] {
        let seal = seal(&bench, expiry);
        bench.connection.handle_message(
            bench.now,
            wall,
            &Refresh { lifetime: None }.encode(ID, &seal).unwrap(),
        );
        let outputs = bench.outputs();
        let [Output::Send(bytes)] = &outputs[..] else { panic!("{outputs:?}") };
        let message = messages::decode(bytes).unwrap();
        let code = Refusal::read(&message).map_or(0, |refusal| refusal.code);
        assert_eq!(code, if is_good { 0 } else { 401 });
        assert_eq!(message.is_sealed_with(&seal.key), is_good);
    }
    let bytes = bench.encoded_refresh(Some(0));
    let outputs = bench.gives(&bytes);
    assert_eq!(bench.refusal_from(&outputs).code, 441);
    assert!(bench.connection.is_joined());
}

#[test]
fn what_breaks_the_protocol_closes_in_every_phase() {
    let mut cut = request(Method::JOIN).with(0x7f01, b"pair").unsealed();
    cut[23] = 9;
    let mut long = request(Method::JOIN).with(0x8022, &[0; 2048]).unsealed();
    let mut cookie = ping(ID);
    cookie[5] ^= 1;
    for (bytes, error) in [
        (cut, ProtocolError::CutShort),
        (std::mem::take(&mut long), ProtocolError::TooLong),
        (cookie, ProtocolError::NotTurn(crate::tcp::channel_data::NotTurn)),
    ] {
        for mut bench in every_phase() {
            let outputs = bench.gives(&bytes);
            bench.ends(&outputs, Ending::Protocol(error), Some(Closing::new(Reason::ProtocolError)));
        }
    }
    let mut bench = Bench::paired();
    bench.connection.protocol_error(ProtocolError::TooLong);
    let outputs = bench.outputs();
    bench.ends(&outputs, Ending::Protocol(ProtocolError::TooLong), Some(Closing::new(Reason::ProtocolError)));
}

#[test]
fn the_relay_closes_in_every_phase_and_says_why() {
    let instance = Some(Instance([9; 8]));
    for closing in [
        Closing { instance, ..Closing::new(Reason::Superseded) },
        Closing { retry_after: Some(MILLISECOND * 300), ..Closing::new(Reason::Restarting) },
        Closing::new(Reason::Limit),
    ] {
        for mut bench in every_phase() {
            bench.connection.close(closing);
            let outputs = bench.outputs();
            bench.ends(&outputs, Ending::Told(closing), Some(closing));
        }
    }
}

#[test]
fn no_secret_is_in_debug() {
    let mut bench = Bench::challenged();
    bench.asks_to_join();
    let printed = format!("{:?}", bench.connection);
    assert!(printed.contains("NonceKey(..)") && printed.contains("Key(..)"), "{printed}");
    assert!(!printed.contains("[7, 7") && !printed.contains(SHARED_KEY), "{printed}");
}

/// What may happen to a connection.
#[derive(Clone, Debug)]
enum Step {
    Bytes(Vec<u8>),
    Join,
    Refresh(Option<u32>),
    Ping,
    Answer(bool),
    Peer(PeerStatus),
    Close,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Bytes),
        3 => Just(Step::Join),
        3 => prop::option::of(0..700u32).prop_map(Step::Refresh),
        1 => Just(Step::Ping),
        3 => any::<bool>().prop_map(Step::Answer),
        3 => prop::sample::select(vec![PeerStatus::Present, PeerStatus::Gone]).prop_map(Step::Peer),
        1 => Just(Step::Close),
        2 => (0..30_000u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_ends_once_and_forwards_only_what_it_may(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut bench = Bench::challenged();
        let (mut ended, mut is_there, mut owes) = (false, false, false);
        for step in steps {
            let was_joined = bench.connection.is_joined();
            let outputs = match step {
                Step::Bytes(bytes) => bench.gives(&bytes),
                Step::Join => { let bytes = bench.encoded_join(); bench.gives(&bytes) }
                Step::Refresh(lifetime) => {
                    let bytes = bench.encoded_refresh(lifetime);
                    let outputs = bench.gives(&bytes);
                    owes &= !was_joined || bench.is_stale(&outputs);
                    outputs
                }
                Step::Ping => bench.gives(&ping(ID)),
                Step::Answer(is_good) => {
                    let refused = JoinAnswer::Refused(Refusal::new(409));
                    let answer = if is_good { joined(false) } else { refused };
                    bench.connection.join_answered(bench.now, answer);
                    bench.outputs()
                }
                Step::Peer(status) => {
                    bench.connection.peer(bench.now, &peer(status));
                    is_there = if was_joined { status == PeerStatus::Present } else { is_there };
                    owes |= was_joined && !is_there;
                    bench.outputs()
                }
                Step::Close => { bench.connection.close(Closing::new(Reason::Limit)); bench.outputs() }
                Step::Pass(millis) => bench.runs_until(bench.now + MILLISECOND * millis as u32),
            };
            prop_assert!(!ended || outputs.is_empty(), "{outputs:?}");
            let closes = outputs.iter().filter(|output| matches!(output, Output::Close(_))).count();
            prop_assert_eq!(closes, usize::from(matches!(outputs.last(), Some(Output::Close(_)))));
            ended |= closes > 0;
            prop_assert_eq!(bench.connection.poll_timeout().is_none(), ended);
            // A nonce lives 600 s, and so little time passes here only with luck: then `owes` says too little.
            let may = bench.connection.is_joined() && is_there && !owes;
            prop_assert!(!bench.connection.may_forward() || may);
            prop_assert!(bench.connection.may_forward() || !may || bench.now > bench.start + SECOND * 600);
        }
        bench.runs_until(bench.now + SECOND * 30);
        prop_assert!(bench.connection.poll_timeout().is_none(), "silence ends it");
    }

    #[test]
    fn a_join_cut_or_changed_anywhere_is_never_taken_for_another(
        at in any::<prop::sample::Index>(),
        bit in 0..8u32,
        is_cut in any::<bool>(),
    ) {
        let mut bench = Bench::challenged();
        let mut bytes = bench.encoded_join();
        let at = at.index(bytes.len());
        if is_cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        let outputs = bench.gives(&bytes);
        prop_assert!(!outputs.iter().any(|output| matches!(output, Output::Join(_))), "{outputs:?}");
    }
}
