//! Any order of events, any messages, any times, against a model of what may be put out.

use std::collections::BTreeSet;

use super::*;
use proptest::prelude::*;
use turn_server_proto::types::stun::message::MessageClass;

/// What happens to a client.
#[derive(Clone, Debug)]
enum Op {
    Permit(Vec<u8>),
    Forbid(Vec<u8>),
    Bind(u8),
    Connect(u8),
    Accept(u64),
    Reject(u64),
    DataFailed(u64),
    StreamEnded(u64),
    /// Bytes on a data connection.
    Data(u64, Vec<u8>),
    Attempt(u8, bool),
    Credentials(Option<bool>),
    NoteData(bool, bool),
    Unreachable,
    ControlLost,
    Deallocate,
    /// An answer that is on its way is lost, comes twice, or comes changed besides.
    Lose(usize),
    Repeat(usize),
    Change(usize, usize, u8),
    Garbage(Vec<u8>),
    /// The next so many requests of a method meet a fault.
    Fault(usize, usize, u8),
    Replace,
    RenewNonce,
    OtherPassword(bool),
    Refuse(u8, bool),
    Slow(u64),
    /// Milliseconds pass.
    Pass(u64),
    /// As long as it takes to the next deadline, and a little less, or more.
    PassToDeadline(i64),
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 1..9u8;
    let peers = || prop::collection::vec(which(), 1..5);
    let key = || 0..12u64;
    let controls = prop_oneof![
        4 => peers().prop_map(Op::Permit),
        2 => peers().prop_map(Op::Forbid),
        4 => which().prop_map(Op::Bind),
        3 => which().prop_map(Op::Connect),
        3 => key().prop_map(Op::Accept),
        1 => key().prop_map(Op::Reject),
        1 => key().prop_map(Op::DataFailed),
        1 => key().prop_map(Op::StreamEnded),
        1 => (key(), prop::collection::vec(any::<u8>(), 0..30)).prop_map(|(key, bytes)| Op::Data(key, bytes)),
        2 => any::<Option<bool>>().prop_map(Op::Credentials),
        2 => any::<(bool, bool)>().prop_map(|(sent, heard)| Op::NoteData(sent, heard)),
        1 => Just(Op::Unreachable),
    ];
    let network = prop_oneof![
        3 => (which(), any::<bool>()).prop_map(|(peer, request)| Op::Attempt(peer, request)),
        2 => (0..4usize).prop_map(Op::Lose),
        1 => (0..4usize).prop_map(Op::Repeat),
        2 => (0..4usize, 0..200usize, 1..=255u8).prop_map(|(which, at, to)| Op::Change(which, at, to)),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Op::Garbage),
        4 => (0..METHODS.len(), 1..9usize, 0..9u8).prop_map(|(method, times, fault)| {
            Op::Fault(method, times, fault)
        }),
        1 => (0..2000u64).prop_map(Op::Slow),
        1 => Just(Op::RenewNonce),
    ];
    let rare = prop_oneof![
        Just(Op::Replace),
        Just(Op::ControlLost),
        Just(Op::Deallocate),
        any::<bool>().prop_map(Op::OtherPassword),
        (which(), any::<bool>()).prop_map(|(peer, refused)| Op::Refuse(peer, refused)),
    ];
    let time = prop_oneof![
        3 => (0..300u64).prop_map(Op::Pass),
        2 => (0..20_000u64).prop_map(Op::Pass),
        1 => (0..400_000u64).prop_map(Op::Pass),
        2 => (-5..5i64).prop_map(Op::PassToDeadline),
    ];
    prop_oneof![8 => controls, 6 => network, 1 => rare, 8 => time]
}

/// What is known of a client from the outside.
#[derive(Default)]
struct Model {
    permits: BTreeSet<IpAddr>,
    channels: BTreeSet<SocketAddr>,
    /// Connections that have neither been bound nor failed, and whether they have been dialed.
    open: BTreeMap<Key, bool>,
    bound: BTreeSet<Key>,
    is_allocated: bool,
    is_deallocating: bool,
    has_ended: bool,
    wants: bool,
    /// How many outputs have been looked at.
    seen: usize,
}

impl Model {
    /// Checks all new outputs.
    fn look(&mut self, pair: &Pair) {
        for (_, output) in &pair.told[self.seen..] {
            let needs_allocation = !matches!(
                output,
                Output::Allocated { .. }
                    | Output::Ended { .. }
                    | Output::WantCredentials { .. }
                    | Output::ChannelClosed { .. }
            );
            assert!(!needs_allocation || self.is_allocated, "{output:?} without an allocation");
            self.look_at(output);
        }
        self.seen = pair.told.len();
        if pair.client.core.parked_until.is_none() {
            self.wants = false;
        }
        assert!(self.bound.len() == pair.client.core.connections.all_bound().len() || self.has_ended);
    }

    fn look_at(&mut self, output: &Output) {
        match output {
            Output::Allocated { .. } => assert!(!std::mem::replace(&mut self.is_allocated, true)),
            Output::ChannelBound { peer, .. } => {
                assert!(!self.is_deallocating && self.channels.contains(peer), "{output:?}");
            }
            Output::Attempt { key, .. } => {
                assert_eq!((self.open.insert(*key, false), self.is_deallocating), (None, false));
            }
            Output::Dial { key } => assert_eq!(self.open.insert(*key, true), Some(false)),
            Output::Bound { key, .. } => {
                assert_eq!(self.open.remove(key), Some(true));
                self.bound.insert(*key);
            }
            Output::ConnectionFailed { key, .. } => assert!(self.open.remove(key).is_some()),
            Output::WantCredentials { .. } => assert!(!std::mem::replace(&mut self.wants, true)),
            Output::Ended { .. } => {
                assert!(self.open.is_empty(), "{:?} were not told", self.open);
                self.has_ended = true;
            }
            Output::Permitted { peers } => {
                let channels: BTreeSet<IpAddr> = self.channels.iter().map(SocketAddr::ip).collect();
                let is_wished = |peer: &IpAddr| self.permits.contains(peer) || channels.contains(peer);
                assert!(!self.is_deallocating && peers.iter().all(is_wished), "{output:?}");
            }
            _ => {}
        }
    }
}

fn fault(which: u8) -> Fault {
    match which {
        0 => Fault::LoseRequest,
        1 => Fault::LoseAnswer,
        2 => Fault::Challenge(401),
        3 => Fault::Challenge(438),
        4 => Fault::ChallengeAgain(438),
        5 => Fault::Refuse(403),
        6 => Fault::Refuse(400),
        7 => Fault::Refuse(508),
        _ => Fault::Change(Box::new(|answer| {
            answer.attributes.pop();
        })),
    }
}

fn apply(pair: &mut Pair, model: &mut Model, op: Op) {
    match op {
        Op::Permit(peers) => {
            let peers: Vec<IpAddr> = peers.into_iter().map(ip).collect();
            model.permits.extend(&peers);
            let granted = pair.act(|core, now| core.permit(now, &peers));
            assert_eq!(granted.is_err(), model.has_ended);
            let granted = granted.unwrap_or_default();
            assert!(
                granted.iter().all(|it| peers.contains(it)) && (granted.is_empty() || model.is_allocated)
            );
        }
        Op::Forbid(peers) => {
            let peers: Vec<IpAddr> = peers.into_iter().map(ip).collect();
            model.permits.retain(|it| !peers.contains(it));
            model.channels.retain(|it| !peers.contains(&it.ip()));
            pair.act(|core, now| core.forbid(now, &peers));
        }
        Op::Bind(which) => {
            if pair.act(|core, now| core.bind_channel(now, peer(which))).is_ok() {
                model.channels.insert(peer(which));
            }
        }
        Op::Connect(which) => {
            let Ok(key) = pair.client.core.connect(pair.now, peer(which)) else { return };
            assert_eq!(model.open.insert(key, false), None);
            pair.settle();
        }
        Op::Accept(key) => pair.act(|core, now| core.accept(now, Key(key))),
        Op::Reject(key) => pair.act(|core, _| core.reject(Key(key))),
        Op::DataFailed(key) => pair.act(|core, _| core.data_failed(Key(key), "broken".into())),
        Op::StreamEnded(key) if model.bound.remove(&Key(key)) => {
            pair.act(|core, _| core.stream_ended(Key(key)));
        }
        Op::StreamEnded(_) => {}
        Op::Data(key, bytes) => pair.data(Key(key), &bytes),
        Op::Attempt(which, is_request) if pair.server.held.is_some() => {
            let class = if is_request { MessageClass::Request } else { MessageClass::Indication };
            let message = pair.server.attempt(peer(which), class);
            pair.message(&message);
        }
        Op::Attempt(..) => {}
        Op::Credentials(which) => {
            let account = which.map(|right| account(if right { "secret" } else { "wrong" }));
            pair.act(|core, now| core.credentials(now, account));
        }
        Op::NoteData(sent, heard) => {
            pair.act(|core, now| core.note_data(sent.then_some(now), heard.then_some(now)));
        }
        Op::Unreachable => pair.act(|core, now| core.unreachable(now, "refused")),
        Op::ControlLost => pair.act(|core, _| core.control_lost(TurnError::Congested)),
        Op::Deallocate => {
            model.is_deallocating = true;
            pair.act(|core, now| core.deallocate(now));
        }
        Op::Pass(time) => pair.run(millis(time)),
        Op::PassToDeadline(off) => {
            let next = pair.client.core.poll_timeout().unwrap_or(pair.now);
            let time = next.saturating_duration_since(pair.now).as_millis() as i64 + off;
            pair.run(millis(time.max(0) as u64));
        }
        op => apply_to_server(pair, op),
    }
}

fn apply_to_server(pair: &mut Pair, op: Op) {
    match op {
        Op::Lose(which) => _ = pair.lose_answer(which),
        Op::Repeat(which) => pair.repeat_answer(which),
        Op::Change(which, at, to) => {
            pair.repeat_answer(which);
            if let Some((None, mut bytes)) = pair.lose_answer(which) {
                let len = bytes.len();
                bytes[at % len] ^= to;
                pair.message(&bytes);
            }
        }
        Op::Garbage(bytes) => _ = pair.message(&bytes),
        Op::Fault(method, times, which) => pair.server.fault(METHODS[method], times, fault(which)),
        Op::Replace => pair.server.replace(),
        Op::RenewNonce => pair.server.renew_nonce(),
        Op::OtherPassword(right) => pair.server.user.1 = if right { "secret" } else { "other" }.into(),
        Op::Refuse(which, true) => _ = pair.server.forbidden.insert(ip(which)),
        Op::Refuse(which, false) => _ = pair.server.forbidden.remove(&ip(which)),
        Op::Slow(delay) => pair.delay = millis(delay),
        op => panic!("{op:?}"),
    }
}

/// The server is as it should be again, and the way to it.
fn mend(pair: &mut Pair) {
    pair.server.mend();
    pair.server.forbidden.clear();
    pair.server.user.1 = "secret".into();
    pair.delay = millis(20);
    for _ in 0..300 {
        pair.run(secs(1));
        if pair.client.core.parked_until.is_some() {
            pair.act(|core, now| core.credentials(now, Some(account("secret"))));
        }
    }
}

/// Nothing is left undone: it has ended, or has all that it was to have.
fn check_well(pair: &Pair, model: &Model) {
    let core = &pair.client.core;
    if model.has_ended {
        return;
    }
    assert!(model.is_allocated && !model.is_deallocating, "neither allocated nor ended");
    let granted: BTreeSet<IpAddr> = core.permissions.all_granted(pair.now).into_iter().collect();
    assert!(granted.is_superset(&model.permits), "{granted:?} of {:?}", model.permits);
    let bound: BTreeSet<SocketAddr> =
        core.channels.all_bound(pair.now).into_iter().map(|(_, peer)| peer).collect();
    assert_eq!(bound, model.channels);
    let held = pair.server.held.as_ref().expect("the server has the allocation");
    assert!(granted.iter().all(|it| held.permissions.get(it).is_some_and(|until| *until > pair.now)));
    for (number, peer) in core.channels.all_bound(pair.now) {
        assert!(held.channels.get(&number).is_some_and(|(to, until)| *to == peer && *until > pair.now));
    }
    assert!(model.open.is_empty(), "{:?} hang", model.open);
}

fn play(reliable: bool, relayed: Relayed, offer: Offer, can_ask: bool, ops: Vec<Op>) {
    let setup = Setup { can_ask, permissions: vec![ip(1)], ..setup(reliable, relayed) };
    let mut pair = Pair::new(setup, Server::new(offer));
    pair.server.is_lenient = true;
    let mut model = Model { permits: BTreeSet::from([ip(1)]), ..Model::default() };
    for op in ops {
        apply(&mut pair, &mut model, op);
        model.look(&pair);
    }
    mend(&mut pair);
    model.look(&pair);
    check_well(&pair, &model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_udp_allocation_survives_any_events_or_ends_once(
        reliable: bool,
        sha256: bool,
        can_ask: bool,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let offer = if sha256 { Offer::Sha256 { anonymous: true } } else { Offer::Sha1 };
        play(reliable, Relayed::Udp, offer, can_ask, ops);
    }

    #[test]
    fn a_tcp_allocation_survives_any_events_or_ends_once(
        can_ask: bool,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        play(true, Relayed::Tcp, Offer::Sha1, can_ask, ops);
    }
}
