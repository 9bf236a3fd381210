use super::*;

/// What is to be there after any time: a permission, a channel and the allocation.
fn kept(lifetime: u32) -> Pair {
    let mut server = Server::new(Offer::Sha1);
    server.lifetime = lifetime;
    let setup =
        Setup { permissions: vec![ip(1)], channels: vec![peer(2), peer(3)], ..setup(false, Relayed::Udp) };
    Pair::new(setup, server).allocated()
}

/// The server has it all, and will have it for another second.
fn check_kept(pair: &Pair) {
    let soon = pair.now + millis(500);
    let held = pair.server.held.as_ref().expect("the server has the allocation");
    assert!(held.until > soon);
    for last in 1..=3 {
        assert!(held.permissions.get(&ip(last)).is_some_and(|until| *until > soon), "{last}");
    }
    for (number, last) in [(0x4000, 2), (0x4001, 3)] {
        assert!(held.channels.get(&number).is_some_and(|(to, until)| *to == peer(last) && *until > soon));
    }
}

/// Data goes out and comes in all the time.
fn busy(pair: &mut Pair, time: Duration) {
    let until = pair.now + time;
    while pair.now < until {
        let now = pair.now;
        pair.act(|core, _| core.note_data(Some(now), Some(now)));
        pair.run(secs(1));
    }
}

#[test]
fn everything_wished_for_is_there_with_the_allocation_and_for_ten_hours() {
    let mut pair = kept(600);
    assert_eq!(pair.server.held.as_ref().unwrap().channels.len(), 2);
    for _ in 0..600 {
        pair.run(secs(60));
        check_kept(&pair);
    }
    assert!(pair.told.is_empty(), "{:?}", pair.told);
    let core = &pair.client.core;
    assert_eq!(core.permissions.all_granted(pair.now), [ip(1), ip(2), ip(3)]);
    assert_eq!(core.channels.all_bound(pair.now), [(0x4000, peer(2)), (0x4001, peer(3))]);
}

#[test]
fn a_busy_allocation_is_refreshed_in_time_and_no_sooner() {
    let mut pair = kept(600);
    busy(&mut pair, secs(3600));
    check_kept(&pair);
    assert!((6..=7).contains(&pair.asked(Method::REFRESH).len()), "{:?}", pair.asked(Method::REFRESH));
    assert!((14..=30).contains(&pair.asked(Method::CREATE_PERMISSION).len()));
    assert!((12..=14).contains(&pair.asked(Method::CHANNEL_BIND).len()));
    // A minute before the end there is time for all seven tries of a request.
    let mut pair = kept(600);
    pair.server.fault(Method::REFRESH, 6, Fault::LoseRequest);
    busy(&mut pair, secs(3600));
    check_kept(&pair);
}

#[test]
fn lifetimes_of_4_seconds_are_kept() {
    for lifetime in [1, 2, 4] {
        let mut pair = kept(lifetime);
        for _ in 0..120 {
            pair.run(secs(10));
            assert!(pair.client.core.granted().is_some(), "{:?}", pair.told);
        }
        assert!(pair.told.is_empty());
        let asked = pair.asked(Method::REFRESH).len();
        assert!(asked <= 1200 * 2 / lifetime as usize + 10, "{asked}");
    }
    // With a lost request now and then.
    let mut pair = kept(4);
    for _ in 0..120 {
        pair.server.fault(Method::REFRESH, 1, Fault::LoseRequest);
        pair.run(secs(10));
    }
    assert!(pair.told.is_empty(), "{:?}", pair.told);
}

#[test]
fn what_is_asked_for_and_granted_is_told_as_the_server_says() {
    let setup = Setup { lifetime: Some(1200), ..setup(false, Relayed::Udp) };
    let mut server = Server::new(Offer::Sha1);
    server.lifetime = 900;
    let mut pair = Pair::new(setup, server);
    pair.run(secs(1));
    assert!(matches!(pair.told[0].1, Output::Allocated { lifetime, .. } if lifetime == secs(900)));
    busy(&mut pair, secs(850));
    let asked: Vec<_> = pair.server.log.iter().map(|asked| asked.lifetime()).collect();
    assert_eq!(asked, [Some(1200); 3]);
}

#[test]
fn an_allocation_that_cannot_be_refreshed_ends_when_the_server_forgets_it() {
    let mut pair = kept(600);
    pair.server.fault(Method::REFRESH, usize::MAX, Fault::Refuse(500));
    busy(&mut pair, secs(700));
    let (at, error) = pair.end().unwrap();
    assert_eq!(error, TurnError::AllocationLost);
    assert_eq!(at.as_secs(), 600);
    // It is tried again each time when half of what is left is over.
    let asked: Vec<u128> = pair.asked(Method::REFRESH).iter().map(|at| at / 1000).collect();
    assert_eq!(asked, [540, 570, 585, 592, 597]);
}

#[test]
fn a_channel_that_cannot_be_kept_is_closed_when_it_runs_out_and_bound_again() {
    let mut pair = kept(600);
    pair.server.fault(Method::CHANNEL_BIND, usize::MAX, Fault::Refuse(508));
    busy(&mut pair, secs(700));
    let closed = pair.told.iter().filter(|(_, output)| matches!(output, Output::ChannelClosed { .. }));
    let closed: Vec<u64> = closed.map(|(at, _)| at.as_secs()).collect();
    assert_eq!(closed, [600, 600]);
    assert!(pair.client.core.channels.all_bound(pair.now).is_empty());
    let last = pair.told.len();
    pair.server.mend();
    busy(&mut pair, secs(60));
    let told: Vec<Output> = pair.told().split_off(last);
    for (channel, last) in [(0x4000, 2), (0x4001, 3)] {
        assert!(told.contains(&Output::ChannelBound { channel, peer: peer(last) }), "{told:?}");
    }
}

#[test]
fn what_is_forbidden_runs_out_and_is_not_asked_for_again() {
    let mut pair = kept(600);
    pair.act(|core, now| core.forbid(now, &[ip(1), ip(2)]));
    assert_eq!(pair.told(), [Output::ChannelClosed { peer: peer(2) }]);
    busy(&mut pair, secs(1000));
    let held = pair.server.held.as_ref().unwrap();
    assert!(held.permissions.keys().eq([&ip(3)]), "{:?}", held.permissions);
    assert!(held.channels.get(&0x4000).is_none_or(|(_, until)| *until <= pair.now));
    // Asked for again it gets its number back.
    let bound = pair.act(|core, now| core.bind_channel(now, peer(2)));
    assert_eq!(bound, Ok(None));
    busy(&mut pair, secs(1));
    assert!(pair.told().contains(&Output::ChannelBound { channel: 0x4000, peer: peer(2) }));
}

#[test]
fn numbers_are_never_reused_too_soon() {
    // The server checks the guard time.
    let mut pair = Pair::udp().allocated();
    for last in 1..=200 {
        pair.act(|core, now| core.bind_channel(now, peer(last))).unwrap();
        busy(&mut pair, secs(7));
        pair.act(|core, now| core.forbid(now, &[ip(last)]));
        busy(&mut pair, secs(6));
    }
    let bound = pair.told.iter().filter_map(|(_, output)| match output {
        Output::ChannelBound { channel, .. } => Some(*channel),
        _ => None,
    });
    let bound: Vec<u16> = bound.collect();
    assert_eq!(bound.len(), 200);
    assert!(bound.iter().max() < Some(&0x4060), "numbers come back in the end");
}

#[test]
fn requests_for_what_is_forbidden_meanwhile_do_not_pile_up() {
    let mut pair = Pair::udp().allocated();
    for method in METHODS {
        pair.server.fault(method, usize::MAX, Fault::LoseRequest);
    }
    for _ in 0..500 {
        pair.act(|core, now| core.permit(now, &[ip(1)])).unwrap();
        pair.act(|core, now| core.bind_channel(now, peer(2))).unwrap();
        pair.act(|core, now| core.forbid(now, &[ip(1), ip(2)]));
    }
    let count = Cell::new(0);
    pair.client.core.transactions.has(|_| {
        count.set(count.get() + 1);
        false
    });
    assert!(count.get() <= super::super::super::pace::MAX_IN_FLIGHT, "{}", count.get());
}

#[test]
fn what_is_forbidden_leaves_the_line_and_others_stay_in_it() {
    let mut pair = Pair::udp().allocated();
    for last in 1..=40 {
        pair.act(|core, now| core.bind_channel(now, peer(last))).unwrap();
    }
    // One is on its way, one in line.
    pair.act(|core, now| core.forbid(now, &[ip(1), ip(40)]));
    pair.run(secs(1));
    let asked: Vec<SocketAddr> = pair.server.log.iter().map(|asked| asked.peers()[0]).collect();
    assert_eq!(asked, (1..40).map(peer).collect::<Vec<_>>());
    assert_eq!(pair.client.core.channels.all_bound(pair.now).len(), 38);

    let mut pair = Pair::udp().allocated();
    for last in 1..=32 {
        pair.act(|core, now| core.permit(now, &[ip(last)])).unwrap();
    }
    pair.act(|core, now| core.permit(now, &[ip(33), ip(34), ip(35)])).unwrap();
    pair.act(|core, now| core.forbid(now, &[ip(34)]));
    pair.run(secs(1));
    assert_eq!(pair.server.log.last().unwrap().peers().len(), 2);
    assert_eq!(pair.client.core.permissions.all_granted(pair.now).len(), 34);
}

#[test]
fn a_permission_that_came_with_a_channel_is_told_to_who_waits_for_it() {
    let mut pair = Pair::udp().allocated();
    pair.act(|core, now| core.bind_channel(now, peer(1))).unwrap();
    assert_eq!(pair.act(|core, now| core.permit(now, &[ip(1)])), Ok(vec![]));
    pair.run(secs(1));
    let permitted = Output::Permitted { peers: vec![ip(1)] };
    assert_eq!(pair.told(), [permitted, Output::ChannelBound { channel: 0x4000, peer: peer(1) }]);
    assert_eq!(pair.act(|core, now| core.permit(now, &[ip(1)])), Ok(vec![ip(1)]));
    assert_eq!(pair.act(|core, now| core.bind_channel(now, peer(1))), Ok(Some(0x4000)));
}

#[test]
fn over_udp_something_is_sent_at_least_every_25_s() {
    let mut pair = Pair::udp().allocated();
    pair.run(secs(3600));
    let sent: Vec<u128> = pair.sent.iter().map(|(at, _)| at.as_millis()).collect();
    assert!(sent.windows(2).all(|pair| pair[1] - pair[0] <= 25_000), "{sent:?}");
    let is_binding = |bytes: &[u8]| bytes[..2] == [0x00, 0x11];
    assert!(pair.sent.iter().filter(|(_, bytes)| is_binding(bytes)).count() > 50);
    assert!(sent.len() < 3600 / 10);
    // Data makes that needless, and so does TCP.
    let mut pair = Pair::udp().allocated();
    busy(&mut pair, secs(500));
    assert!(pair.sent.is_empty(), "{:?}", pair.sent);
    let mut pair = Pair::tcp().allocated();
    pair.run(secs(3600));
    assert!(!pair.sent.is_empty() && !pair.sent.iter().any(|(_, bytes)| is_binding(bytes)));
}

#[test]
fn data_that_brings_nothing_back_makes_the_client_ask_and_less_and_less_often() {
    for reliable in [false, true] {
        let mut pair = Pair::new(setup(reliable, Relayed::Udp), Server::new(Offer::Sha1)).allocated();
        let send = |pair: &mut Pair, time: u64, is_answered: bool| {
            pair.forget();
            let began = pair.now - pair.start;
            for _ in 0..time {
                let now = pair.now;
                pair.act(|core, _| core.note_data(Some(now), is_answered.then_some(now)));
                pair.run(secs(1));
            }
            let asked = pair.asked(Method::REFRESH);
            asked.iter().map(|at| (at - began.as_millis()) / 1000).collect::<Vec<_>>()
        };
        let asked = send(&mut pair, 60, false);
        assert!(asked[0] <= 4 && (4..=7).contains(&asked.len()), "{asked:?}");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= 17), "{asked:?}");
        assert!(asked.windows(3).all(|all| all[2] - all[1] + 1 >= all[1] - all[0]), "{asked:?}");
        // Once data comes again it starts anew.
        assert!(send(&mut pair, 10, true).is_empty());
        assert!(send(&mut pair, 10, false)[0] <= 4);
    }
}

#[test]
fn a_server_that_was_silently_replaced_is_noticed_within_seconds_or_half_a_minute() {
    for sends in [true, false] {
        let mut pair = Pair::udp().allocated();
        pair.run(secs(100));
        pair.server.replace();
        let began = pair.now - pair.start;
        for _ in 0..60 {
            let now = pair.now;
            pair.act(|core, _| core.note_data(sends.then_some(now), None));
            pair.run(secs(1));
        }
        let (at, error) = pair.end().unwrap();
        assert_eq!(error, TurnError::AllocationLost);
        assert!(at - began <= secs(if sends { 5 } else { 31 }), "{sends} {:?}", at - began);
    }
}

#[test]
fn a_server_that_is_gone_is_noticed_within_75_s() {
    for reliable in [false, true] {
        let mut pair = Pair::new(setup(reliable, Relayed::Udp), Server::new(Offer::Sha1)).allocated();
        pair.run(secs(100));
        for method in METHODS {
            pair.server.fault(method, usize::MAX, Fault::LoseRequest);
        }
        let began = pair.now - pair.start;
        pair.run(secs(120));
        let (at, error) = pair.end().unwrap();
        assert_eq!(error.to_string(), "Refresh: no answer within 39.5s");
        assert!(at - began <= secs(75), "{:?}", at - began);
    }
}

#[test]
fn three_icmp_errors_in_a_row_are_the_end_and_one_makes_the_client_ask() {
    let mut pair = Pair::udp().allocated();
    pair.act(|core, now| core.unreachable(now, "refused"));
    pair.run(secs(1));
    assert_eq!(pair.asked(Method::REFRESH).len(), 1);
    assert!(pair.told.is_empty());
    // The server has answered, so they are counted anew.
    for _ in 0..2 {
        pair.server.fault(Method::REFRESH, usize::MAX, Fault::LoseRequest);
        pair.act(|core, now| core.unreachable(now, "refused"));
        pair.run(millis(290));
        pair.act(|core, now| core.unreachable(now, "the same datagram's"));
        pair.run(millis(20));
    }
    assert!(pair.told.is_empty(), "{:?}", pair.told);
    pair.act(|core, now| core.unreachable(now, "Connection refused"));
    let error = TurnError::Unreachable { why: "Connection refused".into() };
    assert_eq!(pair.told(), [Output::Ended { error }]);
    assert_eq!(pair.error(), "the server cannot be reached: Connection refused");
}

#[test]
fn icmp_errors_now_and_then_do_no_harm() {
    let mut pair = Pair::udp().allocated();
    for _ in 0..100 {
        pair.act(|core, now| core.unreachable(now, "refused"));
        pair.run(secs(10));
    }
    assert!(pair.told.is_empty(), "{:?}", pair.told);
}

#[test]
fn while_allocating_icmp_errors_end_it_within_two_seconds() {
    let mut pair = Pair::udp();
    for method in METHODS {
        pair.server.fault(method, usize::MAX, Fault::LoseRequest);
    }
    let mut seen = 0;
    while pair.end().is_none() {
        pair.run(millis(10));
        // Each request that goes out is answered so.
        while seen < pair.sent.len() {
            seen += 1;
            pair.act(|core, now| core.unreachable(now, "refused"));
        }
        assert!(pair.now - pair.start < secs(2));
    }
    assert_eq!(seen, 3);
}
