//! TCP allocations against another author's server: connections in both directions, with early data, broken data
//! connections, and a control connection that is lost now and then.

use super::oracle::{Oracle, Sent, listening};
use super::*;
use turn_server_proto::types::TransportType;

/// A data connection, from its dialing.
struct Data {
    key: Key,
    address: SocketAddr,
    /// What came and was not used; once it is bound, the peer's bytes.
    unused: Vec<u8>,
    /// Whose bytes these are.
    peer: Option<SocketAddr>,
    until: Option<Instant>,
}

/// What is to happen at a time.
enum Event {
    ToServer(Sent),
    ToClient(Sent),
    Dialed(Key, bool),
    Decided(Key, bool),
    /// A peer speaks on the connection that the server made to it.
    Early(SocketAddr, SocketAddr),
}

struct World {
    rng: fastrand::Rng,
    start: Instant,
    now: Instant,
    server: Oracle,
    client: Checked,
    control: SocketAddr,
    relayed: Option<SocketAddr>,
    events: Vec<(Instant, u64, Event)>,
    /// Of each stream: when its last bytes arrive. They do not overtake each other.
    busy: BTreeMap<(SocketAddr, SocketAddr), Instant>,
    data: Vec<Data>,
    next_port: u16,
    next_event: u64,
    /// Since when connections are neither bound nor failed.
    open: BTreeMap<Key, Instant>,
    bound: usize,
    failed: Vec<TurnError>,
    lives: usize,
}

/// What peers send first, and what they send back.
const EARLY: &[u8] = b"\x01\x0bearly, before anybody asked";
const HELLO: &[u8] = b"hello, peer";
const BACK: &[u8] = b"and back";

impl World {
    fn new(seed: u64) -> Self {
        let start = any_instant();
        let mut rng = fastrand::Rng::with_seed(seed);
        let client = Checked::new(start, Self::setup(rng.u64(..), 0));
        let mut world = Self {
            rng,
            start,
            now: start,
            server: Oracle::new(start, TransportType::Tcp, secs(100)),
            client,
            control: ([203, 0, 113, 1], 2000).into(),
            relayed: None,
            events: Vec::new(),
            busy: BTreeMap::new(),
            data: Vec::new(),
            next_port: 10_000,
            next_event: 0,
            open: BTreeMap::new(),
            bound: 0,
            failed: Vec::new(),
            lives: 1,
        };
        world.settle();
        world
    }

    fn setup(seed: u64, first_key: u64) -> Setup {
        let permissions = (1..=8).map(ip).collect();
        Setup { permissions, first_key, ids: ids(seed), ..setup(true, Relayed::Tcp) }
    }

    /// The control connection is lost, the server's knowledge with it; a new life begins.
    fn lose_control(&mut self) {
        self.client.core.control_lost(TurnError::ControlLost { why: "reset".into() });
        self.settle();
        let first_key = self.client.core.connections().next_key();
        self.server.replace();
        self.events.clear();
        self.data.clear();
        self.relayed = None;
        self.control.set_port(self.control.port() + 1);
        self.client = Checked::new(self.now, Self::setup(self.rng.u64(..), first_key));
        self.lives += 1;
        self.settle();
    }

    fn later(&mut self, delay: Duration, event: Event) {
        self.next_event += 1;
        self.events.push((self.now + delay, self.next_event, event));
    }

    fn send(&mut self, sent: Sent) {
        let path = (sent.from, sent.to);
        let at = (self.now + millis(self.rng.u64(1..40))).max(*self.busy.get(&path).unwrap_or(&self.now));
        self.busy.insert(path, at);
        let is_up = sent.to == listening() || sent.to.ip() == listening().ip();
        let event = if is_up { Event::ToServer(sent) } else { Event::ToClient(sent) };
        self.later(at - self.now, event);
    }

    /// What the server sent: to the client, or to a peer, which answers.
    fn sent_by_server(&mut self, all: Vec<Sent>) {
        for sent in all {
            if sent.to.ip() == self.control.ip() {
                self.send(sent);
            } else if !sent.bytes.is_empty() {
                assert_eq!(sent.bytes, HELLO, "what the client sent");
                self.send(Sent { from: sent.to, to: sent.from, bytes: BACK.to_vec() });
            }
        }
        for (relayed, peer) in std::mem::take(&mut self.server.connected) {
            let delay = millis(self.rng.u64(0..100));
            self.later(delay, Event::Early(relayed, peer));
        }
    }

    fn settle(&mut self) {
        for output in self.client.outputs(self.now) {
            match output {
                Output::Send(bytes) => self.send(Sent { from: self.control, to: listening(), bytes }),
                Output::SendData { key, bytes } => {
                    let from = self.data.iter().find(|data| data.key == key).unwrap().address;
                    self.send(Sent { from, to: listening(), bytes });
                }
                Output::Allocated { relayed, .. } => self.relayed = Some(relayed),
                Output::Attempt { key, .. } => {
                    self.open.insert(key, self.now);
                    let (delay, is_accepted) = (millis(self.rng.u64(0..6000)), self.rng.u8(0..5) > 0);
                    self.later(delay, Event::Decided(key, is_accepted));
                }
                Output::Dial { key } => {
                    let (delay, fate) = (millis(self.rng.u64(5..3000)), self.rng.u8(0..20));
                    if fate > 0 {
                        self.later(delay, Event::Dialed(key, fate > 1));
                    }
                }
                Output::Bound { key, peer, .. } => self.on_bound(key, peer),
                Output::ConnectionFailed { key, error, .. } => {
                    self.open.remove(&key).expect("it was open");
                    self.data.retain(|data| data.key != key);
                    self.failed.push(error);
                }
                _ => {}
            }
        }
    }

    fn on_bound(&mut self, key: Key, peer: SocketAddr) {
        self.open.remove(&key).expect("it was open");
        self.bound += 1;
        let until = self.now + secs(self.rng.u64(1..60));
        let data = self.data.iter_mut().find(|data| data.key == key).unwrap();
        (data.peer, data.until) = (Some(peer), Some(until));
        let from = data.address;
        self.send(Sent { from, to: listening(), bytes: HELLO.to_vec() });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToServer(sent) => {
                let answers = self.server.receive(self.now, &sent);
                self.sent_by_server(answers);
            }
            Event::ToClient(sent) if sent.to == self.control => {
                self.client.core.handle_message(self.now, &sent.bytes);
            }
            Event::ToClient(sent) => self.data_came(&sent),
            Event::Decided(key, true) => self.client.core.accept(self.now, key),
            Event::Decided(key, false) => self.client.core.reject(key),
            Event::Dialed(key, false) => self.client.core.data_failed(key, "refused".into()),
            Event::Dialed(key, true) => {
                let address = ([203, 0, 113, 1], self.next_port).into();
                self.next_port += 1;
                self.data.push(Data { key, address, unused: Vec::new(), peer: None, until: None });
                self.client.core.data_opened(self.now, key);
            }
            Event::Early(from, to) => {
                self.send(Sent { from: to, to: from, bytes: EARLY.to_vec() });
            }
        }
        self.settle();
    }

    /// Bytes on a data connection, in pieces of any size.
    fn data_came(&mut self, sent: &Sent) {
        let mut rest = &sent.bytes[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(self.rng.usize(1..=rest.len()));
            rest = behind;
            let Some(data) = self.data.iter_mut().find(|data| data.address == sent.to) else { return };
            data.unused.extend_from_slice(piece);
            if data.peer.is_none() {
                let used = self.client.core.handle_data(self.now, data.key, &data.unused);
                data.unused.drain(..used);
                self.settle();
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let event = self.events.iter().enumerate().min_by_key(|(_, (at, nth, _))| (*at, *nth));
            let event = event.map(|(which, (at, ..))| (which, *at));
            let due = self.client.core.poll_timeout();
            let next = [event.map(|(_, at)| at), due].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            match event {
                Some((which, at)) if at <= self.now => {
                    let (_, _, event) = self.events.swap_remove(which);
                    self.happen(event);
                }
                _ => self.client.handle_timeout(self.now),
            }
            self.settle();
        }
        self.now = until;
        let sent = self.server.poll(until);
        self.sent_by_server(sent);
        self.close_old();
        for (key, since) in &self.open {
            assert!(until < *since + secs(90), "{key:?} hangs");
        }
    }

    /// Streams that have been used long enough end, with all their bytes.
    fn close_old(&mut self) {
        let now = self.now;
        let old = self.data.extract_if(.., |data| data.until.is_some_and(|until| until <= now));
        for data in old.collect::<Vec<_>>() {
            // A peer that we connected to may speak after it heard us.
            let is_all = data.unused == [EARLY, BACK].concat() || data.unused == [BACK, EARLY].concat();
            assert!(is_all, "{:?}", String::from_utf8_lossy(&data.unused));
            self.client.core.stream_ended(data.key);
            self.send(Sent { from: data.address, to: listening(), bytes: Vec::new() });
        }
        self.settle();
    }

    /// Somebody wants to connect.
    fn want(&mut self) {
        let Some(relayed) = self.relayed else { return };
        self.next_port += 1;
        let peer = SocketAddr::new(ip(self.rng.u8(1..=8)), self.next_port);
        match self.rng.u8(0..5) {
            0 | 1 => {
                if self.rng.u8(0..6) == 0 {
                    self.server.unreachable.insert(peer);
                }
                if let Ok(key) = self.client.core.connect(self.now, peer) {
                    self.open.insert(key, self.now);
                }
            }
            2 | 3 => self.send(Sent { from: peer, to: relayed, bytes: EARLY.to_vec() }),
            _ => {}
        }
        self.settle();
    }
}

#[test]
fn connections_come_and_go_with_all_their_bytes() {
    for seed in 0..3 {
        let mut world = World::new(seed);
        while world.now - world.start < secs(900) {
            for _ in 0..world.rng.u8(0..4) {
                world.want();
            }
            let time = millis(world.rng.u64(0..4000));
            world.run(time);
            if world.rng.u16(0..200) == 0 {
                world.lose_control();
            }
        }
        assert!(world.bound > 100, "seed {seed}: {}", world.bound);
        for error in &world.failed {
            let expected = matches!(
                error,
                TurnError::NotAccepted
                    | TurnError::ControlLost { .. }
                    | TurnError::DataConnection { .. }
                    | TurnError::Refused { code: 447, .. }
            );
            assert!(expected, "seed {seed}: {error}");
        }
        world.run(secs(100));
        assert!(world.open.is_empty(), "seed {seed}: {:?}", world.open);
        world.client.core.deallocate(world.now);
        world.settle();
        world.run(secs(2));
        assert!(world.server.relayed.is_empty(), "seed {seed}");
    }
}
