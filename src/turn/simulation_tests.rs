//! Hours of virtual time against another author's server, over a way that loses, repeats, delays and reorders;
//! the server is replaced, and what is wished for changes. Each seed is one story, always the same but for what
//! that server draws at random.

use std::collections::BTreeSet;

use super::oracle::{Oracle, Sent, listening};
use super::*;
use turn_server_proto::types::TransportType;

/// How bad the way is. Probabilities in percent, times in milliseconds.
#[derive(Clone, Copy)]
struct Way {
    loss: u32,
    repeated: u32,
    delay: u64,
    jitter: u64,
}

const GOOD: Way = Way { loss: 0, repeated: 0, delay: 20, jitter: 0 };

struct World {
    rng: fastrand::Rng,
    way: Way,
    start: Instant,
    now: Instant,
    server: Oracle,
    client: Option<Checked>,
    /// The client's port, another one in each life.
    port: u16,
    /// The relayed address, and which server gave it.
    relayed: Option<(SocketAddr, u32)>,
    wire: Vec<(Instant, Sent)>,
    again: Option<Instant>,
    ends: Vec<TurnError>,
    permits: BTreeSet<IpAddr>,
    channels: BTreeSet<SocketAddr>,
    /// Since when nothing is wished of these.
    forbidden: BTreeMap<IpAddr, Instant>,
    /// When requests were sent lately.
    requests: VecDeque<Instant>,
    replaced: Option<Instant>,
}

impl World {
    fn new(seed: u64, way: Way) -> Self {
        let start = any_instant();
        let mut world = Self {
            rng: fastrand::Rng::with_seed(seed),
            way,
            start,
            now: start,
            server: Oracle::new(start, TransportType::Udp, secs(100)),
            client: None,
            port: 5000,
            relayed: None,
            wire: Vec::new(),
            again: None,
            ends: Vec::new(),
            permits: BTreeSet::new(),
            channels: BTreeSet::new(),
            forbidden: BTreeMap::new(),
            requests: VecDeque::new(),
            replaced: None,
        };
        world.begin();
        world
    }

    fn address(&self) -> SocketAddr {
        ([203, 0, 113, 1], self.port).into()
    }

    /// A new life with what is wished for.
    fn begin(&mut self) {
        self.port += 1;
        let setup = Setup {
            permissions: self.permits.iter().copied().collect(),
            channels: self.channels.iter().copied().collect(),
            ids: ids(self.rng.u64(..)),
            ..setup(false, Relayed::Udp)
        };
        self.client = Some(Checked::new(self.now, setup));
        self.settle();
    }

    fn send(&mut self, sent: Sent) {
        let is_lost = self.rng.u32(0..100) < self.way.loss;
        let copies = if is_lost { 0 } else { 1 + u32::from(self.rng.u32(0..100) < self.way.repeated) };
        for _ in 0..copies {
            let delay = self.way.delay + self.rng.u64(0..=self.way.jitter);
            self.wire.push((self.now + millis(delay), sent.clone()));
        }
    }

    fn settle(&mut self) {
        let Some(client) = &mut self.client else { return };
        for output in client.outputs(self.now) {
            match output {
                Output::Send(bytes) => {
                    self.requests.push_back(self.now);
                    self.send(Sent { from: self.address(), to: listening(), bytes });
                }
                Output::Allocated { relayed, mapped, .. } => {
                    assert_eq!(mapped, self.address());
                    self.relayed = Some((relayed, self.server.generation));
                    if let Some(since) = self.replaced.take() {
                        assert!(self.now - since < secs(60), "{:?} without the server", self.now - since);
                    }
                }
                Output::ChannelBound { peer, .. } => assert!(self.channels.contains(&peer)),
                Output::Ended { error } => {
                    let wait = if error.is_refusal() { secs(10) } else { secs(1) };
                    self.again = (error != TurnError::Told).then_some(self.now + wait);
                    self.ends.push(error);
                    (self.client, self.relayed) = (None, None);
                    return;
                }
                _ => {}
            }
        }
        while self.requests.front().is_some_and(|at| *at + secs(10) < self.now) {
            self.requests.pop_front();
        }
        assert!(self.requests.len() < 60, "{} requests in ten seconds", self.requests.len());
    }

    fn arrive(&mut self, sent: &Sent) {
        if sent.to == listening() {
            for answer in self.server.receive(self.now, sent) {
                self.send(answer);
            }
        } else if sent.to == self.address()
            && let Some(client) = &mut self.client
        {
            if sent.bytes[0] < 0x40 && !client.core.handle_message(self.now, &sent.bytes) {
                let now = self.now;
                // A Data indication, or what is none of ours.
                let is_data = sent.bytes[..2] == [0x00, 0x17];
                client.core.note_data(None, is_data.then_some(now));
            } else if sent.bytes[0] >= 0x40 {
                client.core.note_data(None, Some(self.now));
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let arriving = self.wire.iter().map(|(at, _)| *at).min();
            let due = self.client.as_ref().and_then(|client| client.core.poll_timeout());
            let next = [arriving, due, self.again].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            if let Some(which) = self.wire.iter().position(|(at, _)| *at <= self.now) {
                let (_, sent) = self.wire.swap_remove(which);
                self.arrive(&sent);
            } else if self.again.is_some_and(|at| at <= self.now) {
                self.again = None;
                self.begin();
            } else if let Some(client) = &mut self.client {
                client.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = until;
        self.server.poll(until);
        self.check();
    }

    /// What the server does with a datagram of this peer's; it does not matter to anybody.
    fn relayed_from(&mut self, peer: SocketAddr) -> Option<Sent> {
        let (relayed, _) = self.relayed?;
        self.server.receive(self.now, &Sent { from: peer, to: relayed, bytes: b"x".to_vec() }).pop()
    }

    /// What the client believes to be there is there, and what was long forbidden is not.
    fn check(&mut self) {
        let Some((_, generation)) = self.relayed.filter(|(_, it)| *it == self.server.generation) else {
            return;
        };
        let Some(client) = &self.client else { return };
        // An answer may have taken so long: the server's time began earlier.
        let soon = self.now + millis(3000);
        let granted = client.core.permissions.all_granted(soon);
        let bound = client.core.channels.all_bound(soon);
        for ip in granted {
            let to = self.relayed_from((ip, 9).into()).map(|sent| sent.to);
            assert_eq!(to, Some(self.address()), "{ip} is not permitted by server {generation}");
        }
        for (number, peer) in bound {
            let bytes = self.relayed_from(peer).map(|sent| sent.bytes).unwrap_or_default();
            let is_bound = bytes.get(..2) == Some(&number.to_be_bytes()[..]);
            assert!(is_bound, "the channel to {peer} is not bound by server {generation}");
        }
        let long_ago = |since: &Instant| *since + secs(350) < self.now;
        let forbidden: Vec<IpAddr> =
            self.forbidden.iter().filter(|(_, since)| long_ago(since)).map(|(ip, _)| *ip).collect();
        for ip in forbidden {
            assert!(self.relayed_from((ip, 9).into()).is_none(), "{ip} is still permitted");
        }
    }

    /// Something that an application may want.
    fn wish(&mut self) {
        let (now, last) = (self.now, self.rng.u8(1..=12));
        let is_ended = self.rng.bool();
        let client = self.client.as_mut().map(|client| &mut client.core);
        match self.rng.u8(0..4) {
            0 => {
                self.permits.insert(ip(last));
                self.forbidden.remove(&ip(last));
                client.map(|core| core.permit(now, &[ip(last)]).unwrap());
            }
            1 => {
                self.channels.insert(peer(last));
                self.forbidden.remove(&ip(last));
                client.map(|core| core.bind_channel(now, peer(last)).unwrap());
            }
            2 if is_ended => {
                self.permits.remove(&ip(last));
                self.channels.remove(&peer(last));
                self.forbidden.insert(ip(last), now);
                if let Some(core) = client {
                    core.forbid(now, &[ip(last)]);
                }
            }
            _ => {}
        }
        self.settle();
    }

    /// A peer says something, and the client something to a peer.
    fn talk(&mut self) {
        let Some(client) = &mut self.client else { return };
        let Some((number, to)) = client.core.channels.all_bound(self.now).pop() else { return };
        client.core.note_data(Some(self.now), None);
        let bytes = [&number.to_be_bytes()[..], b"\0\x04ping"].concat();
        let sent = Sent { from: self.address(), to: listening(), bytes };
        for relayed in self.server.receive(self.now, &sent) {
            assert_eq!((relayed.to, &relayed.bytes[..]), (to, &b"ping"[..]));
            let back = Sent { from: to, to: relayed.from, bytes: b"pong".to_vec() };
            for answer in self.server.receive(self.now, &back) {
                self.send(answer);
            }
        }
        self.settle();
    }

    /// All that is wished for is there.
    fn is_well(&self) -> bool {
        let Some(client) = &self.client else { return false };
        let granted = client.core.permissions.all_granted(self.now);
        let bound = client.core.channels.all_bound(self.now);
        self.permits.iter().all(|ip| granted.contains(ip))
            && bound.iter().map(|(_, peer)| *peer).eq(self.channels.iter().copied())
            && self.relayed.is_some_and(|(_, generation)| generation == self.server.generation)
    }

    /// Peace: then all is there, is deleted when told, and nothing is left on the server for longer than it was
    /// granted.
    fn finish(&mut self) {
        self.way = GOOD;
        self.run(secs(120));
        assert!(self.is_well(), "{:?}", self.ends);
        let (relayed, _) = self.relayed.unwrap();
        let now = self.now;
        self.client.as_mut().unwrap().core.deallocate(now);
        self.settle();
        self.run(secs(2));
        assert_eq!(self.ends.last(), Some(&TurnError::Told));
        assert!(!self.server.relayed.contains(&relayed));
        self.run(secs(601));
        assert!(self.server.relayed.is_empty(), "{:?} were left behind", self.server.relayed);
    }
}

/// An hour or so; the server is replaced each so many seconds.
fn story(seed: u64, way: Way, replacements: Option<u64>) -> World {
    let mut world = World::new(seed, way);
    let mut next = replacements.map(|every| world.now + secs(every));
    while world.now - world.start < secs(3000) {
        world.wish();
        for _ in 0..world.rng.u8(1..8) {
            world.talk();
            world.run(millis(1500));
        }
        if next.is_some_and(|at| at <= world.now) && world.replaced.is_none() {
            next = replacements.map(|every| world.now + secs(every));
            world.server.replace();
            world.replaced = world.relayed.map(|_| world.now);
        }
    }
    world.finish();
    world
}

#[test]
fn over_a_good_way_an_allocation_lives_for_ever() {
    for seed in 0..2 {
        let world = story(seed, GOOD, None);
        assert_eq!(world.ends, [TurnError::Told], "seed {seed}");
    }
}

#[test]
fn over_a_bad_way_all_is_kept() {
    for seed in 10..14 {
        let loss = 5 * (seed as u32 % 4);
        let world = story(seed, Way { loss, repeated: 10, delay: 5, jitter: 400 }, None);
        // What may end it: an answer to Allocate was lost, and this server refuses the same request repeated.
        assert!(world.ends.len() <= 3, "seed {seed}: {:?}", world.ends);
    }
}

#[test]
fn a_server_that_is_replaced_now_and_then_is_followed() {
    for seed in 20..23 {
        let world = story(seed, Way { loss: 3, repeated: 3, delay: 30, jitter: 60 }, Some(200));
        assert!(world.ends.len() >= 10, "seed {seed}: {:?}", world.ends);
        let is_expected = |end: &TurnError| !end.is_refusal() || end.to_string().contains("437");
        assert!(world.ends.iter().all(is_expected), "seed {seed}: {:?}", world.ends);
    }
}
