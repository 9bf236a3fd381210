use super::server::{Answer, CONNECTION_ID, Sealing, XOR_PEER_ADDRESS};
use super::*;
use proptest::prelude::*;
use turn_server_proto::types::attribute::{ConnectionId, XorPeerAddress};
use turn_server_proto::types::stun::message::{LongTermKeyCredentials, MessageClass};

type Change = fn(&mut Answer);

/// Ways for an answer not to be the server's.
const FORGERIES: [(&str, Change); 6] = [
    ("no integrity", |answer| answer.sealing = Sealing::No),
    ("broken integrity", |answer| {
        if let Sealing::With(credentials, algorithm) = answer.sealing.clone() {
            answer.sealing = Sealing::Broken(credentials, algorithm);
        }
    }),
    ("another key", |answer| {
        if let Sealing::With(_, algorithm) = answer.sealing {
            let other = LongTermKeyCredentials::new("alice".into(), "guessed".into(), "example.org".into());
            answer.sealing = Sealing::With(other, algorithm);
        }
    }),
    ("another transaction id", |answer| answer.id = 7u128.into()),
    ("another method", |answer| answer.method = Method::BINDING),
    ("an error without integrity", |answer| {
        answer.class = MessageClass::Error;
        answer.attributes.clear();
        answer.put_raw(0x0009, b"\0\0\x04\x03Forbidden");
        answer.sealing = Sealing::No;
    }),
];

/// A pair that meets a forgery in place of the answer; Allocate is sealed already.
fn forged(method: Method, offer: Offer, times: usize, forgery: Change) -> Pair {
    let mut pair = before(method, offer);
    if method == Method::ALLOCATE {
        pair.server.fault(method, 1, Fault::Challenge(401));
    }
    pair.server.change(method, times, forgery);
    ask(&mut pair, method);
    pair
}

#[test]
fn a_forged_answer_has_no_effect_and_the_right_one_has() {
    for offer in [Offer::Sha1, Offer::Sha256 { anonymous: true }] {
        for method in METHODS.into_iter().filter(|method| *method != Method::CONNECTION_BIND) {
            for (name, forgery) in FORGERIES {
                let mut pair = forged(method, offer, 1, forgery);
                pair.run(millis(400));
                assert!(!is_done(&pair, method) && pair.told.is_empty(), "{name} {method:?}");
                if method != Method::CONNECT {
                    // Over UDP it is sent again.
                    pair.run(secs(1));
                    assert!(is_done(&pair, method), "{name} {method:?} {:?}", pair.told);
                }
            }
        }
    }
}

#[test]
fn forged_answers_only_are_an_error_in_time_that_names_them() {
    for method in METHODS.into_iter().filter(|method| *method != Method::CONNECTION_BIND) {
        for (name, forgery) in FORGERIES {
            let mut pair = forged(method, Offer::Sha1, usize::MAX, forgery);
            pair.run(secs(50));
            let error = failure(&pair, method).map(|error| error.to_string());
            // Where nothing else was answered the server counts as gone.
            let error = error.or_else(|| pair.end().map(|(_, error)| error.to_string()));
            let error = error.unwrap_or_else(|| panic!("{name} {method:?} {:?}", pair.told));
            assert!(error.starts_with(&format!("{}: no answer within", method.name())), "{error}");
            match name {
                "another transaction id" | "another method" => assert!(error.ends_with('s'), "{error}"),
                "an error without integrity" => assert!(error.contains("error 403 came without"), "{error}"),
                _ => assert!(error.contains("one came without a valid MESSAGE-INTEGRITY"), "{error}"),
            }
        }
    }
}

#[test]
fn on_a_data_connection_a_forged_answer_fails_that_connection_at_once() {
    for (name, forgery) in FORGERIES {
        let mut pair = forged(Method::CONNECTION_BIND, Offer::Sha1, 1, forgery);
        pair.run(secs(1));
        assert!(matches!(pair.told().last(), Some(Output::ConnectionFailed { .. })), "{name}");
        let error = failure(&pair, Method::CONNECTION_BIND).unwrap().to_string();
        match name {
            // Nobody but the server can answer there.
            "an error without integrity" => assert!(error.contains("403"), "{error}"),
            "another transaction id" | "another method" => assert!(error.contains("not the answer")),
            _ => assert!(error.contains("trust_unsealed_bind"), "{error}"),
        }
    }
}

#[test]
fn a_server_that_leaves_integrity_out_of_connect_and_bind_can_be_trusted() {
    let run = |trust_unsealed_bind| {
        let setup = Setup { trust_unsealed_bind, ..setup(true, Relayed::Tcp) };
        let mut pair = Pair::new(setup, Server::new(Offer::Sha1)).allocated();
        for method in [Method::CONNECT, Method::CONNECTION_BIND] {
            pair.server.change(method, 1, |answer| answer.sealing = Sealing::No);
        }
        ask(&mut pair, Method::CONNECT);
        pair.run(secs(60));
        pair
    };
    let pair = run(true);
    assert!(is_done(&pair, Method::CONNECTION_BIND), "{:?}", pair.told);
    assert!(matches!(failure(&run(false), Method::CONNECT), Some(TurnError::NoAnswer { .. })));
    // That covers success only, and nothing else.
    let setup = Setup { trust_unsealed_bind: true, ..setup(false, Relayed::Udp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1)).allocated();
    pair.server.change(Method::CREATE_PERMISSION, 1, |answer| answer.sealing = Sealing::No);
    ask(&mut pair, Method::CREATE_PERMISSION);
    pair.run(millis(400));
    assert!(pair.told.is_empty());
}

#[test]
fn an_answer_counts_once() {
    for method in METHODS.into_iter().filter(|method| *method != Method::CONNECTION_BIND) {
        let mut pair = before(method, Offer::Sha1);
        if method == Method::CONNECT {
            pair.dials = false;
        }
        ask(&mut pair, method);
        pair.run(secs(1));
        let (answer, told) = (pair.answered.clone(), pair.told.len());
        assert!(told > 0 || method == Method::REFRESH);
        assert!(!pair.message(&answer), "{method:?}");
        assert_eq!(pair.told.len(), told);
    }
}

#[test]
fn an_attempt_must_say_who_and_which_and_be_of_a_tcp_allocation() {
    let mut whole = Answer::unasked(MessageClass::Indication, Method::CONNECTION_ATTEMPT);
    whole.put(&ConnectionId::new(7));
    whole.put(&XorPeerAddress::new(peer(1), whole.id));
    let mut pair = Pair::tcp().allocated();
    for missing in [CONNECTION_ID, XOR_PEER_ADDRESS] {
        let mut part = whole.clone();
        part.remove(missing);
        assert!(!pair.message(&part.write()));
    }
    assert!(pair.told.is_empty());
    let success = Answer { class: MessageClass::Success, ..whole.clone() };
    assert!(!pair.message(&success.write()));
    assert!(pair.message(&whole.write()));
    assert_eq!(pair.told(), [Output::Attempt { key: Key(0), connection: 7, peer: peer(1) }]);
    let mut pair = Pair::udp().allocated();
    assert!(!pair.message(&whole.write()));
    let mut pair = Pair::tcp();
    assert!(!pair.message(&whole.write()), "before there is an allocation");
    assert!(pair.told.is_empty());
}

#[test]
fn what_is_nobodys_answer_has_no_effect() {
    let mut pair = Pair::udp().allocated();
    ask(&mut pair, Method::CREATE_PERMISSION);
    let before = format!("{:?}", pair.client.core);
    for method in 0..=0xf {
        for class in
            [MessageClass::Request, MessageClass::Indication, MessageClass::Success, MessageClass::Error]
        {
            let mut message = Answer::unasked(class, Method(method));
            message.put_raw(0x0009, b"\0\0\x04\x26Stale");
            message.put_raw(0x0014, b"evil.example");
            message.put_raw(0x0015, b"nonce");
            assert!(!pair.message(&message.write()));
        }
    }
    assert_eq!(format!("{:?}", pair.client.core), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn garbage_has_no_effect(mut bytes in prop::collection::vec(any::<u8>(), 0..120), is_stun: bool) {
        let mut pair = Pair::udp().allocated();
        ask(&mut pair, Method::CHANNEL_BIND);
        if is_stun && bytes.len() >= 20 {
            let len = (bytes.len() - 20) as u16 & !3;
            bytes.truncate(20 + usize::from(len));
            bytes[0] &= 0x3f;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        }
        let before = format!("{:?}", pair.client.core);
        prop_assert!(!pair.message(&bytes));
        prop_assert_eq!(format!("{:?}", pair.client.core), before);
    }

    /// An answer with some of its bytes changed is none, as it is sealed; challenges are not, and may do harm only
    /// where they are believed as far as they go.
    #[test]
    fn a_changed_answer_has_no_effect(
        which in 0..METHODS.len() - 1,
        at in any::<prop::sample::Index>(),
        to in 1..=255u8,
    ) {
        let mut pair = before(METHODS[which], Offer::Sha256 { anonymous: false });
        ask(&mut pair, METHODS[which]);
        if METHODS[which] == Method::ALLOCATE {
            pair.run(millis(30));
        }
        pair.settle();
        let answer = pair.pending_answer().unwrap();
        let mut changed = answer.clone();
        let at = at.index(changed.len());
        changed[at] ^= to;
        let is_challenge = changed[0] == 1 && changed[20..].windows(4).any(|it| matches!(it, [0, 0, 4, 1 | 38]));
        prop_assume!(!is_challenge);
        prop_assert!(!pair.message(&changed));
        prop_assert!(pair.told.is_empty());
        pair.run(secs(1));
        prop_assert!(is_done(&pair, METHODS[which]));
    }
}
