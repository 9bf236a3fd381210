//! Many wishes, some of which the server refuses: the others must not suffer.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;

fn nth(number: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + number), 4000).into()
}

fn forbid(pair: &mut Pair, numbers: impl IntoIterator<Item = u32>) {
    pair.server.forbidden.extend(numbers.into_iter().map(|number| nth(number).ip()));
}

fn bind(pair: &mut Pair, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        pair.act(|core, now| core.bind_channel(now, nth(number))).unwrap();
    }
}

/// Seconds in which data flows both ways, so that nothing is asked for its own sake.
fn run_with_data(pair: &mut Pair, seconds: u64) {
    for _ in 0..seconds {
        let now = pair.now;
        pair.act(|core, _| core.note_data(Some(now), Some(now)));
        pair.run(secs(1));
    }
}

/// So many channels, of which some are refused when they are to be prolonged. How many good ones lapse, and how many
/// requests the server heard in its busiest ten seconds.
fn lapsed(all: u32, bad: u32, is_stale: bool) -> (usize, usize) {
    let mut pair = Pair::udp().allocated();
    bind(&mut pair, 0..all);
    run_with_data(&mut pair, 531);
    forbid(&mut pair, 0..bad);
    let due = pair.client.core.channels.poll_timeout().unwrap();
    while pair.now + secs(1) < due {
        run_with_data(&mut pair, 1);
    }
    if is_stale {
        pair.server.renew_nonce();
    }
    pair.forget();
    run_with_data(&mut pair, 140);
    let is_good = |peer: &SocketAddr| !pair.server.forbidden.contains(&peer.ip());
    let closed = |output: &Output| matches!(output, Output::ChannelClosed { peer } if is_good(peer));
    (pair.told().iter().filter(|output| closed(output)).count(), busiest(&pair, secs(10)))
}

#[test]
fn what_is_there_stays_while_others_are_refused_and_while_the_nonce_is_stale() {
    for (all, bad) in [(50, 4), (50, 6), (100, 24)] {
        for is_stale in [false, true] {
            assert_eq!(lapsed(all, bad, is_stale).0, 0, "{bad} of {all}, {is_stale}");
        }
    }
}

#[test]
fn a_good_permission_is_kept_beside_many_bad_ones() {
    for (bad, by_channels) in [(60, false), (200, false), (200, true)] {
        let mut pair = Pair::udp().allocated();
        let good = nth(5000).ip();
        pair.act(|core, now| core.permit(now, &[good])).unwrap();
        pair.run(secs(1));
        forbid(&mut pair, 0..bad);
        if by_channels {
            bind(&mut pair, 0..bad);
        } else {
            let peers: Vec<IpAddr> = (0..bad).map(|number| nth(number).ip()).collect();
            pair.act(|core, now| core.permit(now, &peers)).unwrap();
        }
        for second in 0..1200 {
            pair.run(secs(1));
            let held = pair.server.held.as_ref().unwrap();
            assert!(held.permissions.get(&good).is_some_and(|until| *until > pair.now), "{bad} {second}");
        }
    }
}

#[test]
fn a_new_wish_waits_little_beside_many_that_were_refused_before() {
    let mut pair = Pair::udp().allocated();
    forbid(&mut pair, 0..200);
    bind(&mut pair, 0..200);
    pair.run(secs(600));
    for number in 1000..1010 {
        let good = nth(number).ip();
        pair.act(|core, now| core.permit(now, &[good])).unwrap();
        pair.run(secs(11));
        assert!(pair.client.core.permissions.is_granted(pair.now, good), "{number}");
        pair.run(secs(u64::from(number - 1000)));
    }
}

#[test]
fn each_wish_is_answered_within_two_minutes_also_while_some_are_granted() {
    let mut pair = Pair::udp().allocated();
    pair.delay = millis(50);
    forbid(&mut pair, (0..300).filter(|number| number % 8 != 0));
    bind(&mut pair, 0..300);
    pair.run(secs(125));
    let answered: BTreeSet<SocketAddr> = pair
        .told()
        .iter()
        .filter_map(|output| match output {
            Output::ChannelBound { peer, .. } | Output::ChannelFailed { peer, .. } => Some(*peer),
            _ => None,
        })
        .collect();
    assert_eq!(answered.len(), 300);
}

#[test]
fn who_wishes_again_for_what_had_no_turn_is_first_of_those_that_wait() {
    let mut pair = Pair::udp().allocated();
    forbid(&mut pair, 0..60);
    bind(&mut pair, 0..60);
    let good = nth(99).ip();
    pair.act(|core, now| core.permit(now, &[good])).unwrap();
    pair.run(secs(40));
    let why = pair.told().iter().find_map(|output| match output {
        Output::PermissionsFailed { peers, error } if peers.contains(&good) => Some(error.to_string()),
        _ => None,
    });
    let expected = "CreatePermission: its turn did not come within 39.5s, for the server refuses others";
    assert_eq!(why.as_deref(), Some(expected));
    pair.act(|core, now| core.permit(now, &[good])).unwrap();
    pair.run(secs(11));
    assert!(pair.client.core.permissions.is_granted(pair.now, good));
}

#[test]
fn what_is_forbidden_while_under_way_is_not_asked_for_again() {
    let mut pair = Pair::udp().allocated();
    pair.server.renew_nonce();
    pair.act(|core, now| core.permit(now, &[ip(1)])).unwrap();
    pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
    pair.act(|core, now| core.forbid(now, &[ip(1), ip(2)]));
    pair.run(secs(2));
    assert!(pair.server.held.as_ref().unwrap().permissions.is_empty());

    // Nor when other credentials have come.
    let setup = Setup { can_ask: true, ..setup(false, Relayed::Udp) };
    let mut pair = Pair::new(setup, Server::new(Offer::Sha1)).allocated();
    pair.server.user.1 = "other".into();
    pair.act(|core, now| core.permit(now, &[ip(1), ip(2)])).unwrap();
    pair.run(secs(2));
    assert!(pair.told().iter().any(|output| matches!(output, Output::WantCredentials { .. })));
    pair.act(|core, now| core.forbid(now, &[ip(1)]));
    pair.act(|core, now| core.credentials(now, Some(account("other"))));
    pair.run(secs(2));
    let held = pair.server.held.as_ref().unwrap();
    assert_eq!(held.permissions.keys().copied().collect::<Vec<_>>(), [ip(2)]);
}
