use std::collections::BTreeSet;

use super::server::{
    ALTERNATE_SERVER, CONNECTION_ID, LIFETIME, Sealing, XOR_MAPPED_ADDRESS, XOR_RELAYED_ADDRESS,
};
use super::*;

/// Requests that meet a fault once the allocation is there; before that, Allocate's second one, which is sealed.
fn with_fault(method: Method, times: usize, fault: Fault) -> Pair {
    let mut pair = before(method, Offer::Sha1);
    if method == Method::ALLOCATE {
        pair.server.fault(method, 1, Fault::Challenge(401));
    }
    pair.server.fault(method, times, fault);
    ask(&mut pair, method);
    pair.run(secs(1));
    pair
}

fn changed(method: Method, change: impl Fn(&mut server::Answer) + 'static) -> Pair {
    with_fault(method, 1, Fault::Change(Box::new(change)))
}

/// The time of each output of a kind, in seconds.
fn times(pair: &Pair, is_it: impl Fn(&Output) -> bool) -> Vec<u64> {
    pair.told.iter().filter(|(_, output)| is_it(output)).map(|(at, _)| at.as_secs()).collect()
}

#[test]
fn each_attribute_that_a_success_must_have_is_missed() {
    for (method, missing, expected) in [
        (Method::ALLOCATE, XOR_RELAYED_ADDRESS, "without XOR-RELAYED-ADDRESS"),
        (Method::ALLOCATE, XOR_MAPPED_ADDRESS, "without XOR-MAPPED-ADDRESS"),
        (Method::ALLOCATE, LIFETIME, "without a LIFETIME"),
        (Method::REFRESH, LIFETIME, "without LIFETIME"),
        (Method::CONNECT, CONNECTION_ID, "without CONNECTION-ID"),
    ] {
        let mut pair = changed(method, move |answer| answer.remove(missing));
        let error = failure(&pair, method).unwrap_or_else(|| panic!("{:?}", pair.told));
        assert!(error.is_refusal() && error.to_string().contains(expected), "{error}");
        if method == Method::ALLOCATE {
            assert!(pair.server.held.is_none(), "of no use to us, and so deleted");
        } else {
            pair.run(secs(3600));
            assert!(pair.client.core.granted().is_some());
        }
    }
}

#[test]
fn a_lifetime_of_0_is_none() {
    let zero = |answer: &mut server::Answer| {
        answer.remove(LIFETIME);
        answer.put_raw(LIFETIME, &[0; 4]);
    };
    assert!(changed(Method::ALLOCATE, zero).error().contains("without a LIFETIME"));
    assert_eq!(changed(Method::REFRESH, zero).end().unwrap().1, TurnError::AllocationLost);
}

#[test]
fn a_relayed_address_of_another_family_is_of_no_use() {
    let setup = Setup { family: Some(Family::V6), ..setup(false, Relayed::Udp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1));
    pair.run(secs(1));
    assert!(pair.error().contains("another family"), "{}", pair.error());
    assert_eq!(pair.server.log[1].raw(0x0017), Some(vec![2, 0, 0, 0]));
    assert!(pair.server.held.is_none());
}

#[test]
fn an_attribute_that_must_be_understood_and_is_not_spoils_any_success() {
    for method in METHODS {
        let mut pair = changed(method, |answer| answer.put_raw(0x7777, b"?"));
        let error = failure(&pair, method).unwrap_or_else(|| panic!("{:?}", pair.told)).to_string();
        assert!(error.contains("0x7777"), "{error}");
        if method == Method::ALLOCATE {
            assert!(pair.server.held.is_none());
        }
        // One that need not be does no harm.
        pair = changed(method, |answer| answer.put_raw(0xf777, b"?"));
        assert!(is_done(&pair, method), "{:?}", pair.told);
    }
}

#[test]
fn an_error_without_a_code_is_one() {
    for method in METHODS {
        let pair = changed(method, |answer| {
            answer.class = turn_server_proto::types::stun::message::MessageClass::Error;
            answer.attributes.clear();
        });
        let error = failure(&pair, method).unwrap_or_else(|| panic!("{:?}", pair.told)).to_string();
        assert!(error.contains("an error without ERROR-CODE") || error.contains("nor an error"), "{error}");
    }
}

#[test]
fn a_437_says_that_the_allocation_is_lost() {
    for method in METHODS {
        let mut pair = with_fault(method, 1, Fault::Refuse(437));
        match method {
            Method::ALLOCATE => {
                let error = pair.error();
                assert!(error.contains("437") && error.contains("an earlier allocation"), "{error}");
                // And that is deleted.
                let last = pair.server.log.last().unwrap();
                assert_eq!((last.method(), last.lifetime()), (Method::REFRESH, Some(0)));
                assert!(last.integrity().is_some());
            }
            Method::CONNECTION_BIND => {
                let error = failure(&pair, method).unwrap().to_string();
                assert!(error.contains("437"), "{error}");
                // The server is asked, and knows it.
                assert_eq!(pair.server.log.last().unwrap().method(), Method::REFRESH);
                pair.server.replace();
                ask(&mut pair, Method::REFRESH);
                pair.run(secs(1));
                assert_eq!(pair.end().unwrap().1, TurnError::AllocationLost);
            }
            _ => assert_eq!(pair.end().unwrap().1, TurnError::AllocationLost, "{method:?}"),
        }
        assert!(pair.told.iter().filter(|(_, told)| matches!(told, Output::Ended { .. })).count() <= 1);
    }
}

#[test]
fn a_441_is_the_end() {
    for method in METHODS.into_iter().filter(|method| *method != Method::CONNECTION_BIND) {
        let pair = with_fault(method, 1, Fault::Refuse(441));
        assert!(pair.error().contains("441"), "{}", pair.error());
        assert!(pair.end().unwrap().1.is_refusal());
    }
}

#[test]
fn what_allocate_is_refused_for_is_told_once_and_not_asked_again() {
    for code in [400, 403, 420, 440, 442, 486, 500, 508] {
        let mut pair = with_fault(Method::ALLOCATE, usize::MAX, Fault::Refuse(code));
        pair.run(secs(3600));
        let reason = "as told".to_owned();
        let error = TurnError::Refused { request: "Allocate", code, reason };
        assert_eq!(pair.told(), [Output::Ended { error }]);
        assert_eq!(pair.server.log.len(), 2);
    }
}

#[test]
fn a_redirection_is_told_with_its_address() {
    let to =
        |answer: &mut server::Answer| answer.put_raw(ALTERNATE_SERVER, &[0, 1, 0x0d, 0x96, 192, 0, 2, 9]);
    let code = |answer: &mut server::Answer| {
        answer.attributes.clear();
        answer.class = turn_server_proto::types::stun::message::MessageClass::Error;
        answer.put_raw(0x0009, b"\0\0\x03\0Try Alternate");
    };
    // Before the server knows us it cannot be sealed.
    let mut pair = Pair::udp();
    pair.server.change(Method::ALLOCATE, 1, move |answer| {
        code(answer);
        to(answer);
        answer.sealing = Sealing::No;
    });
    pair.run(secs(1));
    let expected = TurnError::Redirected { to: ([192, 0, 2, 9], 3478).into() };
    assert_eq!(pair.told(), [Output::Ended { error: expected.clone() }]);
    assert_eq!(pair.server.log.len(), 1);
    // Later it is.
    let pair = changed(Method::ALLOCATE, move |answer| {
        code(answer);
        to(answer);
    });
    assert_eq!(pair.end().unwrap().1, expected);
    // One that is not sealed then is not the server's.
    let pair = changed(Method::ALLOCATE, move |answer| {
        code(answer);
        to(answer);
        answer.sealing = Sealing::No;
    });
    assert!(is_done(&pair, Method::ALLOCATE), "{:?}", pair.told);
    // Without an address, or in answer to another request, it is an error like others.
    let pair = changed(Method::ALLOCATE, code);
    assert!(pair.error().contains("300 without ALTERNATE-SERVER"), "{}", pair.error());
    for method in METHODS.into_iter().filter(|method| *method != Method::ALLOCATE) {
        let pair = changed(method, move |answer| {
            code(answer);
            to(answer);
        });
        assert!(matches!(failure(&pair, method), Some(TurnError::Refused { code: 300, .. })), "{method:?}");
    }
}

#[test]
fn a_refresh_that_is_refused_is_told_and_tried_again_until_the_end() {
    let mut pair = Pair::udp().allocated();
    pair.server.fault(Method::REFRESH, usize::MAX, Fault::Refuse(500));
    pair.run(secs(3600));
    // Silence makes the client ask early; from the answer on the server is there, and answers no.
    let failed = times(&pair, |output| matches!(output, Output::RefreshFailed { .. }));
    assert!(failed.len() > 10 && failed.len() < 60, "{failed:?}");
    assert!(busiest(&pair, secs(10)) <= 5, "{failed:?}");
    let (at, error) = pair.end().unwrap();
    assert_eq!((at.as_secs(), error), (600, TurnError::AllocationLost));

    // A server that changes its mind keeps it.
    let mut pair = Pair::udp().allocated();
    pair.server.fault(Method::REFRESH, 15, Fault::Refuse(508));
    pair.run(secs(3600));
    assert!(pair.client.core.granted().is_some(), "{:?}", pair.told);
}

#[test]
fn one_peer_that_may_not_be_permitted_costs_the_others_little() {
    let mut pair = Pair::udp().allocated();
    pair.server.forbidden.insert(ip(7));
    let peers: Vec<IpAddr> = (1..=16).map(ip).collect();
    pair.act(|core, now| core.permit(now, &peers)).unwrap();
    pair.run(secs(6));
    let granted = pair.client.core.permissions.all_granted(pair.now);
    assert_eq!(granted.len(), 15, "{granted:?}");
    assert!(!granted.contains(&ip(7)));
    let failed = times(&pair, |output| matches!(output, Output::PermissionsFailed { .. }));
    assert_eq!(failed.len(), 1, "{:?}", pair.told);
    assert_eq!(pair.asked(Method::CREATE_PERMISSION).len(), 17);
    // Refreshed together, and the one alone at long intervals.
    pair.forget();
    pair.run(secs(290));
    let asked = pair.asked(Method::CREATE_PERMISSION).len();
    assert!((9..=12).contains(&asked), "{asked}");
    // Once the server lets it, it is permitted.
    pair.server.forbidden.clear();
    pair.run(secs(31));
    assert_eq!(pair.client.core.permissions.all_granted(pair.now).len(), 16);
}

/// A client that wishes for many permissions and channels of a server that says no to every request.
fn with_many_wishes(fault: impl Fn() -> Fault) -> Pair {
    let mut pair = Pair::udp().allocated();
    for method in [Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND] {
        pair.server.fault(method, usize::MAX, fault());
    }
    let peers: Vec<IpAddr> = (1..=64).map(ip).collect();
    pair.act(|core, now| core.permit(now, &peers)).unwrap();
    for last in 100..164 {
        pair.act(|core, now| core.bind_channel(now, peer(last))).unwrap();
    }
    pair
}

#[test]
fn a_server_that_refuses_everything_hears_a_handful_in_ten_seconds() {
    for fault in [|| Fault::Refuse(403), || Fault::Challenge(438), || Fault::ChallengeAgain(438)] {
        let mut pair = with_many_wishes(fault);
        // To the end of the allocation, which the server does not prolong either.
        pair.run(secs(700));
        assert!(busiest(&pair, secs(10)) <= 8, "{}", busiest(&pair, secs(10)));
        let (first, later) = (pair.asked(Method::CHANNEL_BIND).len(), pair.server.log.len());
        assert!(first > 20 && later < 500, "{first} {later}");
    }
}

#[test]
fn each_of_many_wishes_is_answered_within_a_minute_and_all_come_true_once_the_server_lets_them() {
    let mut pair = with_many_wishes(|| Fault::Refuse(403));
    pair.run(secs(60));
    let mut failed: BTreeSet<IpAddr> = BTreeSet::new();
    let mut channels = BTreeSet::new();
    for (_, output) in &pair.told {
        match output {
            Output::PermissionsFailed { peers, .. } => failed.extend(peers),
            Output::ChannelFailed { peer, .. } => {
                channels.insert(*peer);
            }
            _ => {}
        }
    }
    assert_eq!((failed.len(), channels.len()), (64, 64));
    pair.server.mend();
    pair.run(secs(70));
    assert_eq!(pair.client.core.permissions.all_granted(pair.now).len(), 128);
    assert_eq!(pair.client.core.channels.all_bound(pair.now).len(), 64);
}

#[test]
fn many_wishes_are_granted_at_once_by_a_server_that_grants_and_wait_for_no_refused_one() {
    let mut pair = Pair::udp().allocated();
    (1..=3).for_each(|last| assert!(pair.server.forbidden.insert(ip(last))));
    for last in 1..=100 {
        pair.act(|core, now| core.bind_channel(now, peer(last))).unwrap();
    }
    pair.run(secs(3));
    assert_eq!(pair.client.core.channels.all_bound(pair.now).len(), 97);
    // The refused ones are asked for again, and when they are wished for again.
    pair.forget();
    pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
    pair.run(secs(1));
    assert_eq!(pair.asked(Method::CHANNEL_BIND).len(), 1);
    pair.run(secs(29));
    assert_eq!(pair.asked(Method::CHANNEL_BIND).len(), 3);
}

#[test]
fn what_connect_is_refused_for_concerns_that_connection_only() {
    for (code, expected) in [
        (403, "does not relay to this address"),
        (446, "there is, or was just now, a connection to this peer"),
        (447, "could not connect to the peer"),
    ] {
        let mut pair = with_fault(Method::CONNECT, 1, Fault::Refuse(code));
        let error = failure(&pair, Method::CONNECT).unwrap().to_string();
        assert!(error.contains(&code.to_string()) && error.contains(expected), "{error}");
        pair.forget();
        pair.act(|core, now| core.connect(now, peer(2))).unwrap();
        pair.run(secs(1));
        assert!(is_done(&pair, Method::CONNECTION_BIND), "{:?}", pair.told);
    }
}

#[test]
fn a_channel_or_a_permission_that_is_a_bad_request_makes_the_client_look_for_its_allocation() {
    for method in [Method::CHANNEL_BIND, Method::CREATE_PERMISSION] {
        let mut pair = Pair::udp().allocated();
        pair.run(secs(15));
        pair.server.replace();
        pair.server.fault(method, usize::MAX, Fault::Refuse(400));
        if method == Method::CHANNEL_BIND {
            pair.act(|core, now| core.bind_channel(now, peer(1))).unwrap();
        } else {
            pair.act(|core, now| core.permit(now, &[ip(1)])).unwrap();
        }
        pair.run(secs(1));
        assert_eq!(pair.end().unwrap().1, TurnError::AllocationLost);
    }
}

#[test]
fn a_server_that_knew_the_allocation_just_now_is_asked_a_little_later() {
    let mut pair = Pair::udp().allocated();
    pair.server.replace();
    pair.server.fault(Method::CHANNEL_BIND, usize::MAX, Fault::Refuse(400));
    pair.act(|core, now| core.bind_channel(now, peer(1))).unwrap();
    pair.run(secs(9));
    assert!(pair.end().is_none(), "{:?}", pair.told);
    pair.run(secs(2));
    assert_eq!(pair.end().unwrap().1, TurnError::AllocationLost);
}
