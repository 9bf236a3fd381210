//! The core in virtual time: a client whose every output and deadline is checked, and a [`Pair`] of it and a
//! server. The tests stand in the files named below, by theme.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::flow::tests::any_instant;
use crate::stun::{self, Method, TransactionId};
use server::{Asked, Fault, Login as Offer, Server};

#[path = "binding_tests.rs"]
mod binding;
#[path = "hostile_tests.rs"]
mod hostile;
#[path = "login_tests.rs"]
mod login;
#[path = "loss_tests.rs"]
mod loss;
#[path = "many_tests.rs"]
mod many;
#[path = "model_tests.rs"]
mod model;
#[path = "oracle_tests.rs"]
mod oracle;
#[path = "refusal_tests.rs"]
mod refusal;
#[path = "server_tests.rs"]
mod server;
#[path = "simulation_tests.rs"]
mod simulation;
#[path = "stream_simulation_tests.rs"]
mod stream_simulation;
#[path = "timer_tests.rs"]
mod timer;

/// Requests that may be on their way and in line for all that these tests ask for.
const MAX_REQUESTS: usize = 400;
/// Outputs that one input may bring in these tests.
const MAX_OUTPUTS: usize = 400;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn peer(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4000 + u16::from(last)).into()
}

fn ip(last: u8) -> IpAddr {
    peer(last).ip()
}

fn account(password: &str) -> UserPassword {
    UserPassword::new("alice", password)
}

fn ids(seed: u64) -> Ids {
    let mut next = seed << 32;
    Ids::new(move || {
        next += 1;
        let mut id = [0; 12];
        id[4..].copy_from_slice(&next.to_be_bytes());
        TransactionId(id)
    })
}

fn setup(reliable: bool, relayed: Relayed) -> Setup {
    Setup {
        reliable,
        relayed,
        family: None,
        lifetime: None,
        account: Some(account("secret")),
        can_ask: false,
        trust_unsealed_bind: false,
        permissions: Vec::new(),
        channels: Vec::new(),
        first_key: 0,
        ids: ids(1),
    }
}

/// A core that is looked at after everything that happens to it.
struct Checked {
    core: Allocation,
    ended: bool,
}

impl Checked {
    fn new(now: Instant, setup: Setup) -> Self {
        Self { core: Allocation::new(now, setup), ended: false }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.core.handle_timeout(now);
        let next = self.core.poll_timeout();
        assert!(next.is_none_or(|next| next > now), "{next:?} is not after {now:?}");
    }

    /// All outputs. Checks what holds for them and for the state they leave.
    fn outputs(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(output) = self.core.poll_output() {
            assert!(!self.ended, "{output:?} after the end");
            self.ended = matches!(output, Output::Ended { .. });
            outputs.push(output);
        }
        let core = &self.core;
        assert!(outputs.len() <= MAX_OUTPUTS, "{} outputs at once", outputs.len());
        assert_eq!(core.state == State::Ended, self.ended, "an end is told once, at once");
        let (allocates, all) = (Cell::new(0), Cell::new(core.parked.len()));
        core.transactions.has(|request| {
            allocates.set(allocates.get() + usize::from(matches!(request, Request::Allocate { .. })));
            all.set(all.get() + 1);
            false
        });
        let is_parked = |pending: &&Pending| matches!(pending.request, Request::Allocate { .. });
        assert!(allocates.get() + core.parked.iter().filter(is_parked).count() <= 1);
        assert!(all.get() <= MAX_REQUESTS, "{} requests", all.get());
        if self.ended {
            assert_eq!((core.poll_timeout(), all.get()), (None, 0));
            assert!(core.permissions.all_granted(now).is_empty() && core.channels.all_bound(now).is_empty());
            assert!(core.connections.all_bound().is_empty() && core.granted().is_none());
        } else {
            assert!(core.poll_timeout().is_some(), "a core that lives has something to wait for");
        }
        outputs
    }
}

/// A client and a server, with nothing between them but time.
struct Pair {
    client: Checked,
    server: Server,
    start: Instant,
    now: Instant,
    /// What the client put out besides what it sent, with the time since the start.
    told: Vec<(Duration, Output)>,
    /// How long an answer takes.
    delay: Duration,
    /// Data connections come up.
    dials: bool,
    /// What the client sent, by time since the start: also indications.
    sent: Vec<(Duration, Vec<u8>)>,
    /// What the server answered lately, to be repeated by a test.
    answered: Vec<u8>,
    answers: Vec<(Instant, Option<Key>, Vec<u8>)>,
    dialed: Vec<(Instant, Key)>,
    /// What has come on data connections and was not used.
    unused: BTreeMap<Key, Vec<u8>>,
}

impl Pair {
    fn new(setup: Setup, server: Server) -> Self {
        let now = any_instant();
        Self {
            client: Checked::new(now, setup),
            server,
            start: now,
            now,
            told: Vec::new(),
            delay: millis(20),
            dials: true,
            sent: Vec::new(),
            answered: Vec::new(),
            answers: Vec::new(),
            dialed: Vec::new(),
            unused: BTreeMap::new(),
        }
    }

    /// A UDP allocation over UDP, not yet asked for.
    fn udp() -> Self {
        Self::new(setup(false, Relayed::Udp), Server::new(Offer::Sha1))
    }

    /// A TCP allocation.
    fn tcp() -> Self {
        Self::new(setup(true, Relayed::Tcp), Server::new(Offer::Sha1))
    }

    /// The same once it is granted, with nothing told and nothing logged.
    fn allocated(mut self) -> Self {
        self.run(secs(1));
        assert!(self.client.core.granted().is_some(), "{:?}", self.told);
        self.forget();
        self
    }

    fn forget(&mut self) {
        self.told.clear();
        self.sent.clear();
        self.server.log.clear();
    }

    /// Does something to the core, and what follows from it.
    fn act<T>(&mut self, act: impl FnOnce(&mut Allocation, Instant) -> T) -> T {
        let result = act(&mut self.client.core, self.now);
        self.settle();
        result
    }

    /// Hands over what was put out.
    fn settle(&mut self) {
        for output in self.client.outputs(self.now) {
            let since = self.now - self.start;
            match output {
                Output::Send(bytes) => {
                    let answer = self.server.receive(self.now, &bytes, true);
                    self.sent.push((since, bytes));
                    self.answers.extend(answer.map(|answer| (self.now + self.delay, None, answer)));
                }
                Output::SendData { key, bytes } => {
                    let answer = self.server.receive(self.now, &bytes, false);
                    self.answers.extend(answer.map(|answer| (self.now + self.delay, Some(key), answer)));
                }
                Output::Dial { key } => {
                    self.told.push((since, output));
                    self.dialed.extend(self.dials.then_some((self.now + self.delay, key)));
                }
                output => self.told.push((since, output)),
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let answers = self.answers.iter().map(|(at, ..)| *at);
        let dialed = self.dialed.iter().map(|(at, _)| *at);
        answers.chain(dialed).chain(self.client.core.poll_timeout()).min()
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        while let Some(next) = self.next().filter(|next| *next <= until) {
            self.now = self.now.max(next);
            if let Some(due) = self.answers.iter().position(|(at, ..)| *at <= self.now) {
                let (_, key, bytes) = self.answers.remove(due);
                self.answered = bytes.clone();
                match key {
                    None => _ = self.client.core.handle_message(self.now, &bytes),
                    Some(key) => self.data(key, &bytes),
                }
            } else if let Some(due) = self.dialed.iter().position(|(at, _)| *at <= self.now) {
                let (_, key) = self.dialed.remove(due);
                self.client.core.data_opened(self.now, key);
            } else {
                self.client.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = until;
    }

    /// Bytes on a data connection.
    fn data(&mut self, key: Key, bytes: &[u8]) {
        let unused = self.unused.entry(key).or_default();
        unused.extend_from_slice(bytes);
        let used = self.client.core.handle_data(self.now, key, unused);
        unused.drain(..used);
        self.settle();
    }

    /// The answer that is on its way.
    fn pending_answer(&self) -> Option<Vec<u8>> {
        self.answers.first().map(|(_, _, bytes)| bytes.clone())
    }

    /// Takes the next answer out, to be given by the test.
    fn take_answer(&mut self) -> Option<Vec<u8>> {
        self.lose_answer(0).map(|(_, bytes)| bytes)
    }

    fn lose_answer(&mut self, which: usize) -> Option<(Option<Key>, Vec<u8>)> {
        let (_, key, bytes) = (which < self.answers.len()).then(|| self.answers.remove(which))?;
        Some((key, bytes))
    }

    /// An answer comes once more, later; streams do not do that.
    fn repeat_answer(&mut self, which: usize) {
        if let Some((at, None, bytes)) = self.answers.get(which).cloned() {
            self.answers.insert(which, (at + millis(7), None, bytes));
        }
    }

    /// A message from the server, and whether it had an effect.
    fn message(&mut self, bytes: &[u8]) -> bool {
        self.act(|core, now| core.handle_message(now, bytes))
    }

    /// What has been told, without the times.
    fn told(&self) -> Vec<Output> {
        self.told.iter().map(|(_, output)| output.clone()).collect()
    }

    /// When it ended, and why.
    fn end(&self) -> Option<(Duration, TurnError)> {
        self.told.iter().find_map(|(at, output)| match output {
            Output::Ended { error } => Some((*at, error.clone())),
            _ => None,
        })
    }

    fn error(&self) -> String {
        self.end().expect("it ended").1.to_string()
    }

    /// When requests of a method were sent, in milliseconds since the start.
    fn asked(&self, method: Method) -> Vec<u128> {
        let asked = self.server.log.iter().filter(|asked| asked.method() == method);
        asked.map(|asked| (asked.at - self.start).as_millis()).collect()
    }
}

/// The most requests that came within this time.
fn busiest(pair: &Pair, time: Duration) -> usize {
    let log = &pair.server.log;
    let within = |first: &Asked| log.iter().filter(|it| it.at >= first.at && it.at < first.at + time).count();
    log.iter().map(within).max().unwrap_or(0)
}

/// The requests of a control connection, and the one of a data connection.
const METHODS: [Method; 6] = [
    Method::ALLOCATE,
    Method::REFRESH,
    Method::CREATE_PERMISSION,
    Method::CHANNEL_BIND,
    Method::CONNECT,
    Method::CONNECTION_BIND,
];

/// A pair that has not yet asked for this.
fn before(method: Method, offer: Offer) -> Pair {
    match method {
        Method::ALLOCATE => Pair::new(setup(false, Relayed::Udp), Server::new(offer)),
        Method::CONNECT | Method::CONNECTION_BIND => {
            Pair::new(setup(true, Relayed::Tcp), Server::new(offer)).allocated()
        }
        _ => Pair::new(setup(false, Relayed::Udp), Server::new(offer)).allocated(),
    }
}

/// Makes it ask.
fn ask(pair: &mut Pair, method: Method) {
    pair.act(|core, now| match method {
        Method::REFRESH => {
            core.probe(now);
            core.pump(now);
        }
        Method::CREATE_PERMISSION => assert_eq!(core.permit(now, &[ip(1)]), Ok(vec![])),
        Method::CHANNEL_BIND => assert_eq!(core.bind_channel(now, peer(1)), Ok(None)),
        Method::CONNECT | Method::CONNECTION_BIND => _ = core.connect(now, peer(1)).unwrap(),
        _ => {}
    });
}

/// Whether it has what it asked for.
fn is_done(pair: &Pair, method: Method) -> bool {
    let told = pair.told();
    let core = &pair.client.core;
    match method {
        Method::ALLOCATE => matches!(told[..], [Output::Allocated { .. }]),
        Method::REFRESH => told.is_empty() && core.granted().is_some_and(|granted| granted.refresh.is_some()),
        Method::CREATE_PERMISSION => told == [Output::Permitted { peers: vec![ip(1)] }],
        Method::CHANNEL_BIND => told.contains(&Output::ChannelBound { channel: 0x4000, peer: peer(1) }),
        Method::CONNECT => matches!(told[..], [Output::Dial { .. }, ..]),
        _ => matches!(told[..], [Output::Dial { .. }, Output::Bound { connection: 100, .. }]),
    }
}

/// Why it has not, where that was told and the allocation is still there; for Allocate, why it ended.
fn failure(pair: &Pair, method: Method) -> Option<TurnError> {
    let failed = pair.told.iter().find_map(|(_, output)| match output {
        Output::Ended { error } if method == Method::ALLOCATE => Some(error.clone()),
        Output::RefreshFailed { error } if method == Method::REFRESH => Some(error.clone()),
        Output::PermissionsFailed { error, .. } if method == Method::CREATE_PERMISSION => Some(error.clone()),
        Output::ChannelFailed { error, .. } if method == Method::CHANNEL_BIND => Some(error.clone()),
        Output::ConnectionFailed { error, .. } => Some(error.clone()),
        _ => None,
    });
    failed.filter(|_| method == Method::ALLOCATE || pair.client.core.granted().is_some())
}

#[test]
fn an_allocation_is_made_and_kept() {
    let mut pair = Pair::udp();
    pair.run(secs(1));
    assert_eq!(
        pair.told(),
        [Output::Allocated { relayed: server::relayed(), mapped: server::mapped(), lifetime: secs(600) }]
    );
    assert_eq!(pair.asked(Method::ALLOCATE), [0, 20]);
    pair.run(secs(36_000));
    assert_eq!(pair.told.len(), 1);
}
