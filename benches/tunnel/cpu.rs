//! CPU per datagram, datagrams per second, loss.

use std::time::Duration;

use crate::report::{Aim, Target, print_table};
use crate::sender::{Pattern, Sender};
use crate::sink::Sink;
use crate::stats::median;
use crate::tunnel::{BaselineBuffer, Kind, Tunnel};
use crate::{Outcome, Plan};

const WARM_UP: Duration = Duration::from_millis(400);

/// What is sent, and the aim for the ratio of CPU per datagram.
const CASES: [(Pattern, Option<f64>); 4] = [
    (Pattern { size: 1200, batch: 1 }, Some(0.40)),
    (Pattern { size: 1200, batch: 16 }, Some(0.12)),
    (Pattern { size: 148, batch: 1 }, None),
    (Pattern { size: 148, batch: 16 }, Some(0.06)),
];

/// One tunnel with its application and its service; the tunnel goes first when dropped, for a service that is
/// gone answers with ICMP errors.
struct Lane {
    tunnel: Tunnel,
    sender: Sender,
    sink: Sink,
}

struct Round {
    sent: u64,
    received: u64,
    cpu_micros: f64,
    per_second: f64,
}

impl Lane {
    fn start(kind: Kind, pattern: Pattern) -> Outcome<Self> {
        let sink = Sink::start(pattern.size)?;
        let tunnel = Tunnel::start(kind, sink.addr(), BaselineBuffer::Large)?;
        let sender = Sender::new(tunnel.entry(), pattern)?;
        let mut lane = Self { tunnel, sender, sink };
        lane.round(WARM_UP)?;
        Ok(lane)
    }

    fn round(&mut self, length: Duration) -> Outcome<Round> {
        let before = self.tunnel.cpu_time()?;
        let sent = self.sender.run(&self.sink, length)?;
        self.tunnel.check()?;
        let cpu = self.tunnel.cpu_time()? - before;
        if sent.received == 0 {
            return Err("no datagram came through".into());
        }
        if sent.received > sent.sent {
            return Err(format!("{} datagrams were sent, {} came", sent.sent, sent.received).into());
        }
        Ok(Round {
            sent: sent.sent,
            received: sent.received,
            cpu_micros: cpu.as_secs_f64() * 1e6 / sent.received as f64,
            per_second: sent.received as f64 / sent.elapsed.as_secs_f64(),
        })
    }
}

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    let mut rows = Vec::new();
    let mut aims = Vec::new();
    for (pattern, limit) in CASES {
        let name = match pattern.batch {
            1 => format!("{} bytes, one by one", pattern.size),
            batch => format!("{} bytes, GSO {batch}", pattern.size),
        };
        eprintln!("cpu: {name}");
        let pairs = measure(plan, pattern)?;
        let ratio = median(pairs.iter().map(|(ours, base)| ours.cpu_micros / base.cpu_micros));
        rows.push(row(&name, ratio, &pairs));
        if let Some(limit) = limit {
            let what = format!("CPU per datagram, {name}, of the baseline's");
            aims.push(Aim { what, measured: ratio, target: Target::AtMost(limit) });
        }
    }
    let note = format!(
        "User and system time of both tunnel processes; medians of {} × {:?}, ratios of pairs of rounds.",
        plan.cpu_rounds, plan.cpu_round,
    );
    let head = [
        "datagrams",
        "CPU ours (µs)",
        "CPU baseline (µs)",
        "CPU ratio",
        "ours (1/s)",
        "baseline (1/s)",
        "rate ratio",
        "loss ours",
        "loss baseline",
    ];
    print_table("CPU per datagram", &note, &head, &rows);
    Ok(aims)
}

/// Pairs of rounds, ours and the baseline's, taken in turn.
fn measure(plan: &Plan, pattern: Pattern) -> Outcome<Vec<(Round, Round)>> {
    let mut ours = Lane::start(Kind::Ours, pattern)?;
    let mut baseline = Lane::start(Kind::Baseline, pattern)?;
    (0..plan.cpu_rounds).map(|_| Ok((ours.round(plan.cpu_round)?, baseline.round(plan.cpu_round)?))).collect()
}

fn row(name: &str, ratio: f64, pairs: &[(Round, Round)]) -> Vec<String> {
    let ours = || pairs.iter().map(|(ours, _)| ours);
    let baseline = || pairs.iter().map(|(_, baseline)| baseline);
    let rate_ratio = median(pairs.iter().map(|(ours, baseline)| ours.per_second / baseline.per_second));
    vec![
        name.to_owned(),
        format!("{:.2}", median(ours().map(|round| round.cpu_micros))),
        format!("{:.2}", median(baseline().map(|round| round.cpu_micros))),
        format!("{ratio:.3}"),
        format!("{:.0}", median(ours().map(|round| round.per_second))),
        format!("{:.0}", median(baseline().map(|round| round.per_second))),
        format!("{rate_ratio:.2}"),
        loss(ours()),
        loss(baseline()),
    ]
}

fn loss<'a>(rounds: impl Iterator<Item = &'a Round>) -> String {
    let (sent, received) = rounds.fold((0, 0), |(s, r), round| (s + round.sent, r + round.received));
    format!("{:.2} %", (sent - received) as f64 * 100.0 / sent.max(1) as f64)
}
