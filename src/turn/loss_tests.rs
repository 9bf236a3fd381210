use super::server::Sealing;
use super::*;

/// How many milliseconds after the first one each repetition over UDP comes.
const REPEATED: [u128; 7] = [0, 500, 1500, 3500, 7500, 15_500, 31_500];

fn lose(pair: &mut Pair, method: Method, times: usize, answers: bool) {
    pair.server.fault(method, times, if answers { Fault::LoseAnswer } else { Fault::LoseRequest });
}

#[test]
fn over_udp_any_request_and_any_answer_may_be_lost_six_times() {
    for method in [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        for times in 1..=6 {
            for answers in [false, true] {
                let mut pair = before(method, Offer::Sha1);
                if method == Method::ALLOCATE && answers {
                    // That of the sealed one.
                    pair.server.fault(method, 1, Fault::Challenge(401));
                }
                lose(&mut pair, method, times, answers);
                ask(&mut pair, method);
                let began = (pair.now - pair.start).as_millis();
                pair.run(millis(REPEATED[times] as u64 + 300));
                assert!(is_done(&pair, method), "{method:?} {times} {answers} {:?}", pair.told);
                if method != Method::ALLOCATE {
                    let sent: Vec<u128> = pair.asked(method).iter().map(|at| at - began).collect();
                    assert_eq!(sent[..=times], REPEATED[..=times]);
                }
            }
        }
    }
}

#[test]
fn over_udp_the_server_is_given_up_when_seven_are_lost() {
    for method in [Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        for answers in [false, true] {
            let mut pair = before(method, Offer::Sha1);
            for method in METHODS {
                lose(&mut pair, method, usize::MAX, answers);
            }
            ask(&mut pair, method);
            let began = pair.now - pair.start;
            pair.run(secs(60));
            let (at, error) = pair.end().unwrap();
            assert_eq!(at - began, millis(39_500));
            assert_eq!(error.to_string(), format!("{}: no answer within 39.5s", method.name()));
            assert!(!error.is_refusal());
            let sent: Vec<u128> = pair.asked(method).iter().map(|at| at - began.as_millis()).collect();
            assert_eq!(sent, REPEATED);
        }
    }
}

#[test]
fn over_tcp_nothing_is_repeated_and_each_request_has_its_time() {
    for (method, time) in [
        (Method::ALLOCATE, 39_500),
        (Method::REFRESH, 39_500),
        (Method::CREATE_PERMISSION, 39_500),
        (Method::CONNECT, 45_000),
        (Method::CONNECTION_BIND, 25_000),
    ] {
        let mut pair = Pair::tcp();
        if method != Method::ALLOCATE {
            pair = pair.allocated();
        }
        lose(&mut pair, method, usize::MAX, false);
        ask(&mut pair, method);
        pair.run(secs(60));
        let failed = pair.told.iter().find(|(_, output)| !matches!(output, Output::Dial { .. }));
        let (at, _) = failed.unwrap_or_else(|| panic!("{method:?}"));
        let asked = pair.asked(method);
        let waited = at.as_millis() - asked[0];
        assert!(waited <= time && waited + 100 >= time, "{method:?} {waited} {:?}", pair.told);
        assert_eq!(asked.iter().filter(|it| **it < at.as_millis()).count(), 1, "{method:?}");
    }
}

#[test]
fn one_request_without_an_answer_does_not_end_what_others_prove_alive() {
    for method in [Method::CREATE_PERMISSION, Method::CHANNEL_BIND, Method::REFRESH] {
        let mut pair = Pair::udp().allocated();
        lose(&mut pair, method, usize::MAX, false);
        ask(&mut pair, method);
        for _ in 0..20 {
            pair.run(secs(5));
            if method == Method::REFRESH {
                // Data comes.
                let now = pair.now;
                pair.act(|core, _| core.note_data(None, Some(now)));
            }
        }
        let error =
            failure(&pair, method).unwrap_or_else(|| panic!("{method:?} {:?}", pair.told)).to_string();
        assert_eq!(error, format!("{}: no answer within 39.5s", method.name()));
    }
}

#[test]
fn a_lost_answer_to_a_bind_does_not_change_the_number() {
    let mut pair = Pair::udp().allocated();
    lose(&mut pair, Method::CHANNEL_BIND, 7, true);
    pair.act(|core, now| core.bind_channel(now, peer(1))).unwrap();
    pair.run(secs(120));
    assert!(matches!(pair.told[0].1, Output::ChannelFailed { .. }), "{:?}", pair.told);
    // The server would refuse another number for this peer.
    assert!(pair.told().contains(&Output::ChannelBound { channel: 0x4000, peer: peer(1) }));
    // Nor is the number given to another peer.
    lose(&mut pair, Method::CHANNEL_BIND, 7, true);
    pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
    pair.run(secs(45));
    pair.act(|core, now| core.forbid(now, &[ip(2)]));
    pair.act(|core, now| core.bind_channel(now, peer(3))).unwrap();
    pair.run(secs(1));
    assert!(pair.told().contains(&Output::ChannelBound { channel: 0x4002, peer: peer(3) }));
}

/// What leads to a state in which to deallocate, and whether the server may know of an allocation then.
type Stage = (&'static str, fn() -> Pair);

const STAGES: [Stage; 12] = [
    ("at once", Pair::udp),
    ("asked", || after(Pair::udp(), 10)),
    ("asked, sealed", || after(Pair::udp(), 25)),
    ("asked, sealed, slow", || {
        let mut pair = Pair::udp();
        pair.delay = millis(300);
        after(pair, 310)
    }),
    ("allocated", || Pair::udp().allocated()),
    ("refreshing", || asking(Method::REFRESH)),
    ("permitting", || asking(Method::CREATE_PERMISSION)),
    ("binding a channel", || asking(Method::CHANNEL_BIND)),
    ("connecting", || asking(Method::CONNECT)),
    ("dialing", || after(asking(Method::CONNECT), 25)),
    ("binding", || after(asking(Method::CONNECTION_BIND), 45)),
    ("bound", || after(asking(Method::CONNECTION_BIND), 500)),
];

fn after(mut pair: Pair, time: u64) -> Pair {
    pair.run(millis(time));
    pair
}

fn asking(method: Method) -> Pair {
    let mut pair = before(method, Offer::Sha1);
    ask(&mut pair, method);
    pair
}

fn ends(pair: &Pair) -> Vec<Output> {
    pair.told().into_iter().filter(|output| matches!(output, Output::Ended { .. })).collect()
}

#[test]
fn told_to_deallocate_it_does_in_every_state() {
    for (stage, pair) in STAGES {
        let mut pair = pair();
        let began = pair.now - pair.start;
        pair.act(|core, now| core.deallocate(now));
        // Again has no effect.
        pair.act(|core, now| core.deallocate(now));
        pair.run(secs(3));
        assert_eq!(ends(&pair), [Output::Ended { error: TurnError::Told }], "{stage}");
        assert!(pair.end().unwrap().0 - began <= DEALLOCATE_TIMEOUT, "{stage}");
        assert!(pair.server.held.is_none(), "{stage}: the server still has it");
    }
}

#[test]
fn told_to_deallocate_it_waits_for_nothing_longer_than_a_second() {
    for (stage, pair) in STAGES {
        let mut pair = pair();
        for method in METHODS {
            lose(&mut pair, method, usize::MAX, false);
        }
        let began = pair.now - pair.start;
        pair.act(|core, now| core.deallocate(now));
        pair.run(secs(3));
        assert_eq!(ends(&pair), [Output::Ended { error: TurnError::Told }], "{stage}");
        assert!(pair.end().unwrap().0 - began <= DEALLOCATE_TIMEOUT, "{stage}");
    }
}

#[test]
fn the_deletion_is_repeated_when_lost_or_challenged() {
    let faults: [fn(&mut Server); 5] = [
        |server| server.fault(Method::REFRESH, 1, Fault::LoseRequest),
        |server| server.fault(Method::REFRESH, 1, Fault::LoseAnswer),
        |server| server.fault(Method::REFRESH, 2, Fault::Challenge(438)),
        |server| server.fault(Method::REFRESH, 1, Fault::Challenge(401)),
        |server| server.change(Method::REFRESH, 1, |answer| answer.sealing = Sealing::No),
    ];
    for fault in faults {
        let mut pair = Pair::udp().allocated();
        fault(&mut pair.server);
        pair.act(|core, now| core.deallocate(now));
        pair.run(secs(2));
        assert_eq!(ends(&pair), [Output::Ended { error: TurnError::Told }]);
        assert!(pair.server.held.is_none());
        let (at, _) = pair.end().unwrap();
        assert!(at < secs(2), "it was answered: {at:?}");
    }
}

#[test]
fn a_deletion_that_is_refused_is_the_end_too() {
    for (code, times) in [(437, 1), (400, 1), (441, 1), (500, 1)] {
        let mut pair = Pair::udp().allocated();
        pair.server.fault(Method::REFRESH, times, Fault::Refuse(code));
        pair.act(|core, now| core.deallocate(now));
        pair.run(millis(100));
        assert_eq!(ends(&pair), [Output::Ended { error: TurnError::Told }], "{code}");
    }
    for code in [401, 438] {
        let mut pair = Pair::udp().allocated();
        pair.server.fault(Method::REFRESH, usize::MAX, Fault::Challenge(code));
        pair.act(|core, now| core.deallocate(now));
        pair.run(secs(1));
        assert_eq!(ends(&pair), [Output::Ended { error: TurnError::Told }], "{code}");
        assert!(pair.asked(Method::REFRESH).len() <= 5);
    }
}

#[test]
fn what_was_asked_for_before_the_end_fails_with_it() {
    let mut pair = asking(Method::CONNECT);
    pair.run(millis(25));
    pair.act(|core, _| core.control_lost(TurnError::ControlLost { why: "reset".into() }));
    let error = TurnError::ControlLost { why: "reset".into() };
    let (key, to) = (Key(0), peer(1));
    assert_eq!(
        pair.told(),
        [
            Output::Dial { key },
            Output::ConnectionFailed { key, peer: to, error: error.clone() },
            Output::Ended { error }
        ]
    );
    // Nothing has an effect any more.
    pair.act(|core, now| {
        core.data_opened(now, key);
        core.data_failed(key, "late".into());
        core.control_lost(TurnError::Congested);
        core.deallocate(now);
        core.unreachable(now, "late");
        core.credentials(now, None);
        core.forbid(now, &[ip(1)]);
        assert!(core.permit(now, &[ip(1)]).is_err() && core.bind_channel(now, peer(1)).is_err());
        assert!(core.connect(now, peer(1)).is_err());
        assert_eq!(core.handle_data(now, key, b"late"), 4);
        core.handle_timeout(now);
    });
    pair.run(secs(60));
    assert_eq!(ends(&pair).len(), 1);
}
