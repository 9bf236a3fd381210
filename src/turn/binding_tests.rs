use super::super::super::connections::{BIND_TIMEOUT, GATE_TIMEOUT, MAX_ATTEMPTS, MAX_CONNECTIONS};
use super::*;
use turn_server_proto::types::stun::message::MessageClass::{self, Indication, Request as AsRequest};

const KEY: Key = Key(0);

/// A peer connects; what the client says of it.
fn attempt(pair: &mut Pair, last: u8, class: MessageClass) -> Vec<u8> {
    let message = pair.server.attempt(peer(last), class);
    pair.message(&message);
    message
}

fn failed(error: TurnError) -> Output {
    Output::ConnectionFailed { key: KEY, peer: peer(1), error }
}

fn bound() -> Output {
    Output::Bound { key: KEY, connection: 100, peer: peer(1) }
}

/// A pair whose data connection is up and whose ConnectionBind is on its way; the answer is for the test to give.
fn binding() -> (Pair, Vec<u8>) {
    let mut pair = Pair::tcp().allocated();
    ask(&mut pair, Method::CONNECT);
    while pair.asked(Method::CONNECTION_BIND).is_empty() {
        pair.run(millis(1));
    }
    let answer = pair.take_answer().expect("the server answered");
    (pair, answer)
}

#[test]
fn a_connection_is_asked_for_dialed_and_bound() {
    let mut pair = Pair::tcp().allocated();
    assert_eq!(pair.act(|core, now| core.connect(now, peer(1))), Ok(KEY));
    pair.run(secs(1));
    assert_eq!(pair.told(), [Output::Dial { key: KEY }, bound()]);
    assert_eq!(pair.client.core.connections.all_bound(), [(100, peer(1))]);
    assert_eq!(pair.server.held.as_ref().unwrap().bound.len(), 1);
    // It has no deadline, and its bytes are none of the core's.
    pair.run(secs(3600));
    assert_eq!(pair.client.core.handle_data(pair.now, KEY, b"the peer's"), 0);
    pair.act(|core, _| core.stream_ended(KEY));
    assert!(pair.client.core.connections.all_bound().is_empty());
    assert_eq!(pair.told.len(), 2);
}

#[test]
fn an_answer_comes_in_any_pieces_and_what_is_behind_it_is_the_peer_s() {
    let early = b"\x00\x01\x00\x08 early data that looks like a message";
    for size in [1, 2, 3, 7, 20, 1000] {
        let (mut pair, answer) = binding();
        let all = [&answer[..], early].concat();
        for piece in all.chunks(size) {
            pair.data(KEY, piece);
        }
        assert_eq!(pair.told(), [Output::Dial { key: KEY }, bound()], "{size}");
        assert_eq!(pair.unused[&KEY], early, "{size}");
    }
}

#[test]
fn a_challenge_and_the_answer_to_the_next_try_may_come_byte_by_byte_too() {
    let mut pair = Pair::tcp().allocated();
    pair.server.fault(Method::CONNECTION_BIND, 2, Fault::Challenge(438));
    ask(&mut pair, Method::CONNECT);
    for _ in 0..3 {
        let answer = loop {
            pair.run(millis(1));
            if pair.asked(Method::CONNECTION_BIND).is_empty() {
                continue;
            }
            if let Some(answer) = pair.take_answer() {
                break answer;
            }
        };
        answer.iter().for_each(|byte| pair.data(KEY, &[*byte]));
    }
    assert!(is_done(&pair, Method::CONNECTION_BIND), "{:?}", pair.told);
    assert_eq!(pair.unused[&KEY], b"");
}

#[test]
fn garbage_in_place_of_the_answer_fails_the_connection_at_once() {
    let (_, right) = binding();
    let mut other_id = right.clone();
    other_id[10] ^= 1;
    let too_long = b"\x01\x0b\xff\xfc\x21\x12\xa4\x42";
    let odd = b"\x01\x0b\x00\x03\x21\x12\xa4\x42";
    let no_cookie = b"\x01\x0b\x00\x00HTTP/1.1 400 Bad";
    for garbage in [b"HTTP/1.1 400 Bad Request", &[0; 20][..], &other_id, too_long, odd, no_cookie] {
        let (mut pair, _) = binding();
        pair.data(KEY, garbage);
        let told = pair.told();
        let Some(Output::ConnectionFailed { error, .. }) = told.last() else { panic!("{told:?}") };
        assert!(error.to_string().contains("not the answer that was asked for"), "{error}");
        assert!(pair.unused[&KEY].is_empty(), "nobody needs it");
        // The connection alone is concerned.
        pair.run(secs(60));
        assert!(pair.client.core.granted().is_some());
    }
}

#[test]
fn an_answer_that_never_becomes_whole_is_waited_for_until_the_deadline() {
    for begun in [0, 1, 3, 19, 30] {
        let (mut pair, answer) = binding();
        pair.data(KEY, &answer[..begun]);
        pair.run(secs(60));
        let (at, _) = pair.told.last().unwrap();
        let request = "ConnectionBind";
        let error = TurnError::NoAnswer { request, after: BIND_TIMEOUT, unbelieved: None };
        assert_eq!(pair.told()[1..], [failed(error)]);
        assert!((secs(25)..secs(28)).contains(at), "{at:?}");
        assert!(pair.client.core.granted().is_some());
    }
}

#[test]
fn a_bind_that_is_refused_is_told_with_its_code() {
    for code in [400, 403, 437, 447, 500] {
        let mut pair = Pair::tcp().allocated();
        pair.server.fault(Method::CONNECTION_BIND, 1, Fault::Refuse(code));
        ask(&mut pair, Method::CONNECT);
        pair.run(secs(1));
        let (request, reason) = ("ConnectionBind", "as told".to_owned());
        assert_eq!(pair.told()[1..], [failed(TurnError::Refused { request, code, reason })]);
        assert!(pair.client.core.granted().is_some());
    }
}

#[test]
fn a_data_connection_that_fails_is_told_in_every_phase() {
    let broken = |pair: &mut Pair| pair.act(|core, _| core.data_failed(KEY, "reset".into()));
    let error = failed(TurnError::DataConnection { why: "reset".into() });
    // While Connect is on its way, dialing, waiting for a nonce, binding.
    for time in [0, 25, 41, 59] {
        let mut pair = Pair::tcp().allocated();
        pair.run(secs(20));
        ask(&mut pair, Method::CONNECT);
        pair.run(millis(time));
        broken(&mut pair);
        assert_eq!(pair.told().last(), Some(&error), "{time}");
        let told = pair.told.len();
        pair.run(secs(60));
        assert_eq!(pair.told.len(), told, "told once");
        assert!(!pair.client.core.transactions.has(|request| matches!(request, Request::Connect { .. })));
    }
    // A bound one is its owner's.
    let mut pair = Pair::tcp().allocated();
    ask(&mut pair, Method::CONNECT);
    pair.run(secs(1));
    broken(&mut pair);
    assert_eq!(pair.told().last(), Some(&bound()));
}

#[test]
fn a_data_connection_that_does_not_come_up_is_given_up() {
    let mut pair = Pair::tcp().allocated();
    pair.dials = false;
    ask(&mut pair, Method::CONNECT);
    pair.run(secs(60));
    let error = TurnError::DataConnection { why: "not bound within 25s".into() };
    assert_eq!(pair.told(), [Output::Dial { key: KEY }, failed(error)]);
    // Too late.
    pair.act(|core, now| core.data_opened(now, KEY));
    assert!(pair.asked(Method::CONNECTION_BIND).is_empty());
}

#[test]
fn an_attempt_comes_as_an_indication_or_a_request_and_is_told_once() {
    for class in [Indication, AsRequest] {
        let mut pair = Pair::tcp().allocated();
        let message = attempt(&mut pair, 1, class);
        assert!(!pair.message(&message), "the same again");
        assert_eq!(pair.told(), [Output::Attempt { key: KEY, connection: 100, peer: peer(1) }]);
        pair.act(|core, now| core.accept(now, KEY));
        pair.act(|core, now| core.accept(now, KEY));
        pair.act(|core, _| core.reject(KEY));
        assert!(!pair.message(&message));
        pair.run(secs(1));
        assert!(!pair.message(&message));
        assert_eq!(pair.told()[1..], [Output::Dial { key: KEY }, bound()]);
    }
}

#[test]
fn an_attempt_is_rejected_or_runs_out() {
    let mut pair = Pair::tcp().allocated();
    attempt(&mut pair, 1, Indication);
    let began = pair.now - pair.start;
    pair.act(|core, _| core.reject(KEY));
    assert_eq!(pair.told()[1..], [failed(TurnError::NotAccepted)]);
    pair.act(|core, now| core.accept(now, KEY));
    assert_eq!(pair.told.len(), 2);
    assert!(pair.server.log.is_empty(), "the server is told nothing");

    attempt(&mut pair, 2, Indication);
    pair.run(secs(10));
    let (at, last) = pair.told.last().unwrap();
    assert_eq!(*at - began, GATE_TIMEOUT);
    assert!(matches!(last, Output::ConnectionFailed { error: TurnError::NotAccepted, .. }));
    pair.act(|core, now| core.accept(now, Key(1)));
    assert_eq!(pair.told.len(), 4);
}

#[test]
fn of_many_attempts_so_many_wait_and_the_rest_is_turned_away() {
    let mut pair = Pair::tcp().allocated();
    (0..200).for_each(|last| _ = attempt(&mut pair, last, Indication));
    let refused = |output: &Output| matches!(output, Output::AttemptRefused { .. });
    assert_eq!(pair.told.len(), 200);
    assert_eq!(pair.told().iter().filter(|output| refused(output)).count(), 200 - MAX_ATTEMPTS);
    // They go through all at once, and make room.
    for key in 0..MAX_ATTEMPTS as u64 {
        pair.act(|core, now| core.accept(now, Key(key)));
    }
    attempt(&mut pair, 201, Indication);
    assert!(matches!(pair.told.last().unwrap().1, Output::Attempt { .. }));
    pair.run(secs(1));
    assert_eq!(pair.client.core.connections.all_bound().len(), MAX_ATTEMPTS);
}

#[test]
fn only_so_many_connections_are_possible() {
    let mut pair = Pair::tcp().allocated();
    pair.server.fault(Method::CONNECT, usize::MAX, Fault::LoseRequest);
    for _ in 0..MAX_CONNECTIONS {
        pair.act(|core, now| core.connect(now, peer(1))).unwrap();
    }
    let error = pair.act(|core, now| core.connect(now, peer(1))).unwrap_err();
    assert_eq!(error.to_string(), "more than 256 relay connections are not possible");
    attempt(&mut pair, 2, Indication);
    assert_eq!(pair.told().as_slice(), [Output::AttemptRefused { peer: peer(2) }]);
    pair.told.clear();
    // None of them holds back a Refresh.
    ask(&mut pair, Method::REFRESH);
    assert_eq!(pair.asked(Method::REFRESH).len(), 1);
    // All get their answer, and there is room again.
    pair.run(secs(50));
    assert_eq!(pair.told.len(), MAX_CONNECTIONS);
    assert!(pair.client.core.granted().is_some());
    pair.server.mend();
    pair.act(|core, now| core.connect(now, peer(1))).unwrap();
    pair.run(secs(1));
    assert_eq!(pair.client.core.connections.all_bound().len(), 1);
}

#[test]
fn twenty_connections_at_once_are_bound_whatever_the_nonce_does() {
    let mut pair = Pair::tcp().allocated();
    pair.server.nonce_lifetime = Some(secs(4));
    for round in 0..5 {
        for last in 1..=20 {
            pair.act(|core, now| core.connect(now, peer(20 * round + last))).unwrap();
            pair.run(millis(100));
        }
        pair.run(secs(3));
    }
    assert_eq!(pair.client.core.connections.all_bound().len(), 100);
    let failed = pair.told.iter().any(|(_, output)| matches!(output, Output::ConnectionFailed { .. }));
    assert!(!failed, "{:?}", pair.told);
}

#[test]
fn a_data_connection_is_bound_with_a_nonce_that_was_just_good() {
    for offer in [Offer::Sha1, Offer::Sha256 { anonymous: true }] {
        // The attempt comes so many milliseconds before the nonce runs out; the gate and the dial take theirs.
        for before in [0, 10, 30, 500, 900, 1100, 3000] {
            for gate in [0, 50, 2000] {
                for dial in [10, 1500] {
                    let server = Server::new(offer);
                    let mut pair = Pair::new(setup(true, Relayed::Tcp), server).allocated();
                    pair.server.nonce_lifetime = Some(secs(10));
                    pair.run(millis(9000 - before));
                    attempt(&mut pair, 1, Indication);
                    pair.run(millis(gate));
                    pair.delay = millis(dial);
                    pair.act(|core, now| core.accept(now, KEY));
                    pair.run(millis(1));
                    pair.delay = millis(20);
                    pair.run(secs(4));
                    assert!(pair.told().contains(&bound()), "{:?}", pair.told);
                    // A 438 there may be a reset that burns the connection.
                    let case = (offer, before, gate, dial);
                    assert_eq!(pair.asked(Method::CONNECTION_BIND).len(), 1, "{case:?}");
                }
            }
        }
    }
}

#[test]
fn where_the_nonce_cannot_be_confirmed_the_bind_is_tried_all_the_same() {
    let mut pair = Pair::tcp().allocated();
    pair.run(secs(5));
    pair.server.fault(Method::REFRESH, usize::MAX, Fault::Refuse(500));
    attempt(&mut pair, 1, Indication);
    pair.act(|core, now| core.accept(now, KEY));
    pair.run(secs(1));
    assert!(pair.told().contains(&bound()), "{:?}", pair.told);
    // Over a slow way it is asked a few times, not for ever.
    let mut pair = Pair::tcp();
    pair.delay = secs(2);
    pair.run(secs(5));
    attempt(&mut pair, 1, Indication);
    pair.act(|core, now| core.accept(now, KEY));
    pair.run(secs(12));
    assert!(pair.told().contains(&bound()), "{:?}", pair.told);
    assert!(pair.asked(Method::REFRESH).len() <= 3);
}

#[test]
fn a_connect_that_nobody_answers_fails_alone() {
    let mut pair = Pair::tcp().allocated();
    pair.server.fault(Method::CONNECT, 1, Fault::LoseRequest);
    ask(&mut pair, Method::CONNECT);
    pair.run(secs(46));
    let error = TurnError::NoAnswer { request: "Connect", after: secs(45), unbelieved: None };
    assert_eq!(pair.told(), [failed(error)]);
    pair.run(secs(100));
    assert!(pair.client.core.granted().is_some());
}

#[test]
fn connect_needs_a_tcp_allocation() {
    let no_allocation = |retrying| Err(TurnError::NoAllocation { retrying });
    let mut pair = Pair::tcp();
    assert_eq!(pair.act(|core, now| core.connect(now, peer(1))), no_allocation(true));
    pair.run(secs(1));
    pair.act(|core, now| core.deallocate(now));
    assert_eq!(pair.act(|core, now| core.connect(now, peer(1))), no_allocation(false));
    pair.run(secs(1));
    assert_eq!(pair.act(|core, now| core.connect(now, peer(1))), no_allocation(false));
    let mut pair = Pair::udp().allocated();
    let error = pair.act(|core, now| core.connect(now, peer(1))).unwrap_err();
    assert_eq!(error.to_string(), "Connect needs a TCP allocation");
    let mut pair = Pair::tcp().allocated();
    let error = pair.act(|core, now| core.bind_channel(now, peer(1))).unwrap_err();
    assert_eq!(error.to_string(), "ChannelBind needs a UDP allocation");
    // Nor are channels asked for that were wished for before.
    let setup = Setup { channels: vec![peer(1)], permissions: vec![ip(1)], ..setup(true, Relayed::Tcp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1));
    pair.run(secs(60));
    assert!(pair.asked(Method::CHANNEL_BIND).is_empty());
    assert_eq!(pair.asked(Method::CREATE_PERMISSION).len(), 1);
}

#[test]
fn the_end_takes_those_that_are_not_bound_with_it() {
    let mut pair = Pair::tcp().allocated();
    ask(&mut pair, Method::CONNECT);
    pair.run(secs(1));
    attempt(&mut pair, 2, Indication);
    pair.forget();
    let error = TurnError::ControlLost { why: "reset".into() };
    pair.act(|core, _| core.control_lost(error.clone()));
    let failed = Output::ConnectionFailed { key: Key(1), peer: peer(2), error: error.clone() };
    assert_eq!(pair.told(), [failed, Output::Ended { error }]);
    // Numbers go on in the next life.
    let first_key = pair.client.core.connections.next_key();
    let setup = Setup { first_key, ..setup(true, Relayed::Tcp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1)).allocated();
    assert_eq!(pair.act(|core, now| core.connect(now, peer(1))), Ok(Key(2)));
}
