//! Datagrams in full flow: throughput, CPU per byte, loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::hop::{Hop, Kind};
use crate::report::{Aim, Target, print_table};
use crate::side::{Side, put_datagram};
use crate::stats::median;
use crate::{Outcome, Plan};

const SIZE: usize = 1200;

/// Datagrams of one write: a session writes at most 16 KiB at once when it is in full flow.
const BATCH: usize = 13;

const WARM_UP: Duration = Duration::from_millis(400);

/// After so long without a datagram a round is over.
const QUIET: Duration = Duration::from_millis(250);

/// How often a sender that may not send looks; it must not compete with the hop for the CPU.
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

/// Without any progress for so long, what is outstanding counts as lost.
const LOST_TIMEOUT: Duration = Duration::from_millis(100);

const MIN_RATE_RATIO: f64 = 0.9;
const MAX_CPU_RATIO: f64 = 1.2;

/// How many pairs at once, each in one direction, and how much each may have under way.
struct Case {
    name: &'static str,
    kind: Kind,
    pairs: usize,
    /// Datagrams; `None` is as much as TCP takes.
    window: Option<u64>,
    has_aims: bool,
}

const CASES: [Case; 4] = [
    Case { name: "1 pair", kind: Kind::Relay, pairs: 1, window: None, has_aims: true },
    Case { name: "1 pair, 1 MB under way", kind: Kind::Relay, pairs: 1, window: Some(832), has_aims: false },
    Case { name: "8 pairs", kind: Kind::Relay, pairs: 8, window: None, has_aims: false },
    Case { name: "1 pair, TLS", kind: Kind::RelayTls, pairs: 1, window: None, has_aims: false },
];

struct Round {
    sent: u64,
    received: u64,
    /// Of the process, for each byte delivered.
    cpu_nanos: f64,
    /// Gbit of datagrams per second.
    rate: f64,
}

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    let mut rows = Vec::new();
    let mut aims = Vec::new();
    for case in CASES {
        eprintln!("flow: {}", case.name);
        let rounds = measure(plan, &case)?;
        let cpu = median(rounds.iter().map(|(ours, proxy)| ours.cpu_nanos / proxy.cpu_nanos));
        let rate = median(rounds.iter().map(|(ours, proxy)| ours.rate / proxy.rate));
        rows.push(row(case.name, rate, cpu, &rounds));
        if case.has_aims {
            let aim = |what: &str, measured, target| Aim { what: what.into(), measured, target };
            aims.push(aim("throughput, plain, of the proxy's", rate, Target::AtLeast(MIN_RATE_RATIO)));
            aims.push(aim("CPU per byte, plain, of the proxy's", cpu, Target::AtMost(MAX_CPU_RATIO)));
        }
    }
    let note = format!(
        "{SIZE}-byte datagrams one way, {BATCH} per write; what arrives counts. The proxy has no TLS. CPU is the hop's process's; medians \
         of {} × {:?}, ratios of pairs of rounds.",
        plan.flow_rounds, plan.flow_round,
    );
    let head = [
        "flow",
        "relay (Gbit/s)",
        "proxy (Gbit/s)",
        "rate ratio",
        "CPU relay (ns/byte)",
        "CPU proxy (ns/byte)",
        "CPU ratio",
        "loss relay",
    ];
    print_table("Full flow", &note, &head, &rows);
    Ok(aims)
}

/// Pairs of rounds, ours and the proxy's, taken in turn.
fn measure(plan: &Plan, case: &Case) -> Outcome<Vec<(Round, Round)>> {
    let mut ours = Lane::start(case.kind, case)?;
    let mut proxy = Lane::start(Kind::Proxy, case)?;
    (0..plan.flow_rounds).map(|_| Ok((ours.round(plan.flow_round)?, proxy.round(plan.flow_round)?))).collect()
}

fn row(name: &str, rate: f64, cpu: f64, rounds: &[(Round, Round)]) -> Vec<String> {
    let ours = |value: fn(&Round) -> f64| median(rounds.iter().map(|(ours, _)| value(ours)));
    let proxy = |value: fn(&Round) -> f64| median(rounds.iter().map(|(_, proxy)| value(proxy)));
    let (sent, received) = rounds.iter().fold((0, 0), |(s, r), (ours, _)| (s + ours.sent, r + ours.received));
    vec![
        name.to_owned(),
        format!("{:.2}", ours(|round| round.rate)),
        format!("{:.2}", proxy(|round| round.rate)),
        format!("{rate:.2}"),
        format!("{:.3}", ours(|round| round.cpu_nanos)),
        format!("{:.3}", proxy(|round| round.cpu_nanos)),
        format!("{cpu:.2}"),
        format!("{:.2} %", (sent - received) as f64 * 100.0 / sent.max(1) as f64),
    ]
}

/// One hop with its pairs.
struct Lane {
    hop: Hop,
    pairs: Vec<(Side, Side)>,
    window: Option<u64>,
    /// The number of the next round, which stands in each of its datagrams.
    number: u64,
}

impl Lane {
    fn start(kind: Kind, case: &Case) -> Outcome<Self> {
        let mut hop = Hop::start(kind)?;
        let mut pairs = Vec::new();
        for _ in 0..case.pairs {
            let (near, mut far) = hop.pair()?;
            far.enlarge();
            pairs.push((near, far));
        }
        let mut lane = Self { hop, pairs, window: case.window, number: 0 };
        lane.round(WARM_UP)?;
        Ok(lane)
    }

    fn round(&mut self, length: Duration) -> Outcome<Round> {
        if self.hop.is_relay() {
            for (near, far) in &mut self.pairs {
                near.ping()?;
                far.ping()?;
            }
        }
        let before = self.hop.cpu_time()?;
        let start = Instant::now();
        let round = FlowRound { number: self.number, end: start + length, window: self.window };
        self.number += 1;
        let flows: Vec<Flow> = self.pairs.drain(..).map(|pair| Flow::start(pair, round)).collect();
        let (mut sent, mut received, mut last) = (0, 0, start);
        for flow in flows {
            let ended = flow.finish()?;
            sent += ended.sent;
            received += ended.received;
            last = last.max(ended.last);
            self.pairs.push(ended.pair);
        }
        self.hop.check()?;
        let cpu = self.hop.cpu_time()? - before;
        if received == 0 || received > sent {
            return Err(format!("{sent} datagrams were sent, {received} came").into());
        }
        let bytes = (received * SIZE as u64) as f64;
        Ok(Round {
            sent,
            received,
            cpu_nanos: cpu.as_secs_f64() * 1e9 / bytes,
            rate: bytes * 8.0 / 1e9 / last.duration_since(start).as_secs_f64(),
        })
    }
}

/// What a flow is told.
#[derive(Clone, Copy)]
struct FlowRound {
    number: u64,
    end: Instant,
    window: Option<u64>,
}

/// One round of one pair: a thread that sends, one that receives.
struct Flow {
    sender: JoinHandle<Outcome<(Side, u64)>>,
    receiver: JoinHandle<Outcome<(Side, Instant)>>,
    received: Arc<AtomicU64>,
}

struct Ended {
    pair: (Side, Side),
    sent: u64,
    received: u64,
    /// When the last datagram came.
    last: Instant,
}

impl Flow {
    fn start((near, far): (Side, Side), round: FlowRound) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let (of_sender, of_receiver) = (received.clone(), received.clone());
        let sender = thread::spawn(move || send(near, round, &of_sender));
        let receiver = thread::spawn(move || receive(far, round, &of_receiver));
        Self { sender, receiver, received }
    }

    fn finish(self) -> Outcome<Ended> {
        let (near, sent) = self.sender.join().map_err(|_| "a sender of the bench panicked")??;
        let (far, last) = self.receiver.join().map_err(|_| "a receiver of the bench panicked")??;
        Ok(Ended { pair: (near, far), sent, received: self.received.load(Ordering::Acquire), last })
    }
}

/// Sends until the end, with at most a window of datagrams under way.
fn send(mut side: Side, round: FlowRound, received: &AtomicU64) -> Outcome<(Side, u64)> {
    let mut batch = Vec::new();
    for _ in 0..BATCH {
        put_datagram(&mut batch, SIZE, round.number)?;
    }
    let (mut sent, mut written_off, mut seen, mut progress) = (0, 0, 0, Instant::now());
    while Instant::now() < round.end {
        if let Some(window) = round.window {
            let received = received.load(Ordering::Acquire);
            if received != seen {
                (seen, progress) = (received, Instant::now());
            }
            if sent - received.max(written_off) + BATCH as u64 > window {
                if progress.elapsed() > LOST_TIMEOUT {
                    written_off = sent;
                }
                thread::sleep(LOOK_INTERVAL);
                continue;
            }
        }
        side.send(&batch)?;
        sent += BATCH as u64;
    }
    Ok((side, sent))
}

/// Counts what comes of this round, until the end and for a quiet moment longer.
fn receive(mut side: Side, round: FlowRound, received: &AtomicU64) -> Outcome<(Side, Instant)> {
    let number = round.number.to_be_bytes();
    let mut last = Instant::now();
    loop {
        let mut datagrams = 0;
        let any = side.take_datagrams(QUIET, |datagram| {
            datagrams += u64::from(datagram.len() == SIZE && datagram.starts_with(&number));
        })?;
        if datagrams > 0 {
            last = Instant::now();
            received.fetch_add(datagrams, Ordering::Release);
        } else if !any && Instant::now() > round.end {
            return Ok((side, last));
        }
    }
}
