use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { sessions_per_user: 4, pairs: 3, pairs_across_users: false };

fn newcomer(user: &str, pair: u8, side: &str) -> Newcomer {
    Newcomer { user: user.into(), pair: pair_id(pair), side: side_id(side), instance: Instance([pair; 8]) }
}

fn pair_id(pair: u8) -> PairId {
    PairId::new([pair]).unwrap()
}

fn side_id(side: &str) -> SideId {
    SideId::new(side).unwrap()
}

/// The connections are numbered as they come.
struct House {
    directory: Directory,
    next: u64,
}

impl House {
    fn new(limits: Limits) -> Self {
        Self { directory: Directory::new(limits), next: 0 }
    }

    fn join(&mut self, user: &str, pair: u8, side: &str) -> Result<Joined, Refused> {
        self.next += 1;
        self.directory.join(ConnectionKey(self.next - 1), newcomer(user, pair, side))
    }

    fn leave(&mut self, connection: u64) -> Option<u64> {
        self.directory.leave(ConnectionKey(connection)).map(|peer| peer.0)
    }
}

fn met(pairing: u64, peer: u64, side: &str) -> Met {
    Met { pairing: Pairing(pairing), peer: ConnectionKey(peer), side: side_id(side), user: None }
}

#[test]
fn two_sides_of_one_pair_meet() {
    let mut house = House::new(LIMITS);
    assert_eq!(house.join("u", 1, "a"), Ok(Joined { met: None, orders: vec![] }));
    let orders = vec![(ConnectionKey(0), Order::PeerPresent(met(1, 1, "b")))];
    assert_eq!(house.join("u", 1, "b"), Ok(Joined { met: Some(met(1, 0, "a")), orders }));
    assert_eq!((house.directory.pairs(), house.directory.sides()), (1, 2));
}

#[test]
fn one_that_leaves_parks_the_other_and_the_last_takes_the_pair_along() {
    let mut house = House::new(LIMITS);
    house.join("u", 1, "a").unwrap();
    house.join("u", 1, "b").unwrap();
    assert_eq!(house.leave(0), Some(1));
    assert_eq!(house.leave(0), None);
    let back = house.join("u", 1, "a").unwrap();
    assert_eq!(back.met, Some(met(2, 1, "b")));
    assert_eq!(back.orders, [(ConnectionKey(1), Order::PeerPresent(met(2, 2, "a")))]);
    assert_eq!((house.leave(1), house.leave(2)), (Some(2), None));
    assert_eq!((house.directory.pairs(), house.directory.sides()), (0, 0));
    assert!(house.directory.sessions.is_empty());
}

#[test]
fn a_newer_connection_of_the_same_side_takes_its_place_and_the_peer_hears_both() {
    let mut house = House::new(LIMITS);
    house.join("u", 1, "a").unwrap();
    house.join("u", 1, "b").unwrap();
    let third = house.join("u", 1, "a").unwrap();
    assert_eq!(third.met, Some(met(2, 1, "b")));
    assert_eq!(
        third.orders,
        [
            (ConnectionKey(0), Order::Superseded(Instance([1; 8]))),
            (ConnectionKey(1), Order::PeerGone),
            (ConnectionKey(1), Order::PeerPresent(met(2, 2, "a"))),
        ]
    );
    // The old one's death is no news.
    assert_eq!(house.leave(0), None);
    assert_eq!(house.directory.sides(), 2);
}

#[test]
fn who_takes_a_place_meets_no_limit() {
    let mut house = House::new(Limits { sessions_per_user: 2, pairs: 1, ..LIMITS });
    house.join("u", 1, "a").unwrap();
    house.join("u", 1, "b").unwrap();
    assert_eq!(house.join("u", 1, "c"), Err(Refused::TwoOthers));
    assert!(house.join("u", 1, "b").is_ok());
    assert!(house.join("u", 1, "a").is_ok());
}

#[test]
fn each_refusal_has_its_turn() {
    let mut house = House::new(Limits { sessions_per_user: 2, pairs: 2, ..LIMITS });
    house.join("u", 1, "a").unwrap();
    house.join("u", 2, "a").unwrap();
    assert_eq!(house.join("v", 1, "a"), Err(Refused::NotYours));
    assert_eq!(house.join("v", 1, "b"), Err(Refused::NotYours));
    assert_eq!(house.join("u", 1, "b"), Err(Refused::SessionsUsedUp));
    assert_eq!(house.join("u", 3, "a"), Err(Refused::SessionsUsedUp));
    assert_eq!(house.join("v", 3, "a"), Err(Refused::Full));
    house.leave(0);
    assert!(house.join("v", 1, "b").is_ok());
}

#[test]
fn pairs_across_users_name_the_user_and_keep_each_side_its_owner_s() {
    let mut house = House::new(Limits { pairs_across_users: true, ..LIMITS });
    house.join("u", 1, "a").unwrap();
    assert_eq!(house.join("v", 1, "a"), Err(Refused::NotYours));
    let met = house.join("v", 1, "b").unwrap().met.unwrap();
    assert_eq!(met.user.as_deref(), Some("u"));
    assert_eq!(house.join("w", 1, "c"), Err(Refused::TwoOthers));
}

/// A flat list of who is here, in which everything is looked up anew.
#[derive(Default)]
struct Model {
    here: Vec<(ConnectionKey, Newcomer)>,
    /// Whom each connection has been told of.
    sees: HashMap<ConnectionKey, (ConnectionKey, Pairing)>,
}

impl Model {
    fn refusal(&self, limits: Limits, who: &Newcomer) -> Option<Refused> {
        let in_pair = || self.here.iter().map(|(_, other)| other).filter(|other| other.pair == who.pair);
        let is_of_other = |other: &Newcomer| *other.user != *who.user;
        let pairs: std::collections::HashSet<_> = self.here.iter().map(|(_, other)| &other.pair).collect();
        let sessions = self.here.iter().filter(|(_, other)| other.user == who.user).count();
        let across = limits.pairs_across_users;
        if in_pair().any(|other| is_of_other(other) && (!across || other.side == who.side)) {
            Some(Refused::NotYours)
        } else if in_pair().any(|other| other.side == who.side) {
            None
        } else if in_pair().count() == 2 {
            Some(Refused::TwoOthers)
        } else if sessions >= limits.sessions_per_user {
            Some(Refused::SessionsUsedUp)
        } else if in_pair().count() == 0 && pairs.len() >= limits.pairs {
            Some(Refused::Full)
        } else {
            None
        }
    }

    fn obey(&mut self, connection: ConnectionKey, order: &Order) {
        match order {
            Order::Superseded(_) => {
                self.sees.remove(&connection);
            }
            Order::PeerGone => assert!(self.sees.remove(&connection).is_some(), "it had no peer"),
            Order::PeerPresent(met) => {
                let before = self.sees.insert(connection, (met.peer, met.pairing));
                assert_eq!(before, None, "it has a peer already");
            }
        }
    }

    fn check(&self, directory: &Directory) {
        for (connection, who) in &self.here {
            let peer = self.here.iter().find(|(other, at)| at.pair == who.pair && other != connection);
            let seen = self.sees.get(connection).copied();
            assert_eq!(seen.map(|(peer, _)| peer), peer.map(|(peer, _)| *peer));
            if let Some((peer, pairing)) = seen {
                assert_eq!(self.sees.get(&peer), Some(&(*connection, pairing)));
            }
            assert_eq!(directory.pair_of(*connection), Some(&who.pair));
        }
        let pairs: std::collections::HashSet<_> = self.here.iter().map(|(_, other)| &other.pair).collect();
        assert_eq!((directory.pairs(), directory.sides()), (pairs.len(), self.here.len()));
        assert_eq!(self.sees.keys().filter(|key| directory.pair_of(**key).is_none()).count(), 0);
        assert_eq!(directory.sessions.values().sum::<usize>(), self.here.len());
    }
}

proptest! {
    #[test]
    fn the_directory_does_what_a_list_would(
        across in any::<bool>(),
        steps in prop::collection::vec((0..3u8, 0..3usize, 0..4u8, 0..3usize, 0..60u64), 1..200),
    ) {
        let limits = Limits { pairs_across_users: across, ..LIMITS };
        let mut directory = Directory::new(limits);
        let (mut model, mut last, mut next) = (Model::default(), Pairing(0), 0);
        for (what, user, pair, side, which) in steps {
            if what == 0 {
                let gone = ConnectionKey(which);
                model.here.retain(|(key, _)| *key != gone);
                let peer = model.sees.remove(&gone).map(|(peer, _)| peer);
                prop_assert_eq!(directory.leave(gone), peer);
                peer.into_iter().for_each(|peer| model.obey(peer, &Order::PeerGone));
            } else {
                let who = newcomer(["u", "v", "w"][user], pair, ["a", "b", "c"][side]);
                let connection = ConnectionKey(next);
                next += 1;
                let refusal = model.refusal(limits, &who);
                match directory.join(connection, who.clone()) {
                    Err(refused) => prop_assert_eq!(Some(refused), refusal),
                    Ok(Joined { met, orders }) => {
                        prop_assert_eq!(refusal, None);
                        model.here.retain(|(_, other)| (&other.pair, &other.side) != (&who.pair, &who.side));
                        model.here.push((connection, who));
                        orders.iter().for_each(|(to, order)| model.obey(*to, order));
                        if let Some(met) = met {
                            prop_assert!(met.pairing > last, "pairings are never used again");
                            prop_assert_eq!(met.user.is_some(), across);
                            last = met.pairing;
                            model.obey(connection, &Order::PeerPresent(met));
                        }
                    }
                }
            }
            model.check(&directory);
        }
    }
}
