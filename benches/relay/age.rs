//! The age of what arrives when four times as much is offered as the far side's path carries.

use std::net::Shutdown;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::hop::{Hop, Kind};
use crate::report::{Aim, Target, print_table};
use crate::side::{DATA_HEADER_LEN, Side, put_datagram};
use crate::stats::{median, percentile};
use crate::{Outcome, Plan, proxy};

const KINDS: [Kind; 3] = [Kind::Relay, Kind::RelayTls, Kind::Proxy];

const SIZE: usize = 1200;

/// 40 Mbit/s.
const OFFERED_PER_SECOND: f64 = 40e6 / 8.0 / SIZE as f64;

const BURST_INTERVAL: Duration = Duration::from_millis(1);

/// Datagrams of one write; more are due only after the sender was held up.
const BURST_MAX: u64 = 13;

/// Not counted: queues fill.
const SETTLE: Duration = Duration::from_secs(2);

const READ_TIMEOUT: Duration = Duration::from_millis(500);

const MAX_AGE_P99_MILLIS: f64 = 250.0;

/// One round: ages in milliseconds, the share in percent of the path.
struct Round {
    p50: f64,
    p99: f64,
    share: f64,
}

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    let mut of_kinds = KINDS.map(|kind| (kind, Vec::new()));
    for number in 1..=plan.age_rounds {
        for (kind, rounds) in &mut of_kinds {
            eprintln!("age: {kind}, round {number} of {}", plan.age_rounds);
            rounds.push(round(*kind, plan.age_round)?);
        }
    }
    let note = format!(
        "40 Mbit/s of {SIZE}-byte datagrams offered, 10 Mbit/s with 20 ms each way between the hop and the far side; \
         a sender that TCP holds up skips what is due; medians of {} × {:?}, after the first {SETTLE:?}.",
        plan.age_rounds, plan.age_round,
    );
    let head = ["hop", "age p50 (ms)", "age p99 (ms)", "share of the path"];
    print_table(
        "Age under overload",
        &note,
        &head,
        &of_kinds.each_ref().map(|(kind, rounds)| row(*kind, rounds)),
    );
    let aim = |(kind, rounds): &(Kind, Vec<Round>)| Aim {
        what: format!("age p99 under overload of a {kind}, ms"),
        measured: median(rounds.iter().map(|round| round.p99)),
        target: Target::AtMost(MAX_AGE_P99_MILLIS),
    };
    Ok(of_kinds.iter().filter(|(kind, _)| *kind != Kind::Proxy).map(aim).collect())
}

fn row(kind: Kind, rounds: &[Round]) -> Vec<String> {
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    vec![
        kind.to_string(),
        format!("{:.0}", of(|round| round.p50)),
        format!("{:.0}", of(|round| round.p99)),
        format!("{:.1} %", of(|round| round.share)),
    ]
}

fn round(kind: Kind, length: Duration) -> Outcome<Round> {
    let mut hop = Hop::start_slow(kind)?;
    let (near, mut far) = hop.pair()?;
    far.enlarge();
    let (near_stream, far_stream) = (near.stream()?, far.stream()?);
    // The sender writes its clock into each datagram, the receiver reads the same one.
    let epoch = Instant::now();
    let sender = thread::spawn(move || offer(near, epoch, length));
    let receiver: JoinHandle<Outcome<Vec<Arrival>>> = thread::spawn(move || receive(far, epoch, length));
    let arrivals = receiver.join().map_err(|_| "the receiver of the bench panicked")??;
    hop.check()?;
    // A sender that is held up writes still, and gets an error now.
    let _ = (near_stream.shutdown(Shutdown::Both), far_stream.shutdown(Shutdown::Both));
    let _ = sender.join().map_err(|_| "the sender of the bench panicked")?;

    let counted = SETTLE..length;
    let mut ages: Vec<f64> = arrivals
        .iter()
        .filter(|arrival| counted.contains(&arrival.at))
        .map(|arrival| arrival.age.as_secs_f64() * 1e3)
        .collect();
    if ages.is_empty() {
        return Err(format!("{kind}: nothing arrived after the first {SETTLE:?}").into());
    }
    let messages = ages.len() as f64 * (DATA_HEADER_LEN + SIZE) as f64;
    let capacity = f64::from(proxy::RATE) * (length - SETTLE).as_secs_f64();
    Ok(Round {
        p50: percentile(&mut ages, 50),
        p99: percentile(&mut ages, 99),
        share: messages * 100.0 / capacity,
    })
}

/// Sends at a steady pace; what cannot be sent when it is due, for TCP takes no more, is not sent at all. Ends when the
/// connection does.
fn offer(mut side: Side, epoch: Instant, length: Duration) -> Outcome<()> {
    let mut passed = 0;
    let mut bytes = Vec::new();
    while epoch.elapsed() < length {
        let due = (epoch.elapsed().as_secs_f64() * OFFERED_PER_SECOND) as u64;
        bytes.clear();
        for _ in 0..BURST_MAX.min(due - passed) {
            put_datagram(&mut bytes, SIZE, u64::try_from(epoch.elapsed().as_nanos())?)?;
        }
        side.send(&bytes)?;
        passed = due;
        thread::sleep(BURST_INTERVAL);
    }
    Ok(())
}

/// Since the epoch.
struct Arrival {
    at: Duration,
    age: Duration,
}

fn receive(mut side: Side, epoch: Instant, length: Duration) -> Outcome<Vec<Arrival>> {
    let mut arrivals = Vec::new();
    let mut damaged = 0;
    while epoch.elapsed() < length {
        side.take_datagrams(READ_TIMEOUT, |datagram| {
            let at = epoch.elapsed();
            let due = datagram.first_chunk().map(|due| Duration::from_nanos(u64::from_be_bytes(*due)));
            match due.and_then(|due| at.checked_sub(due)) {
                Some(age) if datagram.len() == SIZE => arrivals.push(Arrival { at, age }),
                _ => damaged += 1,
            }
        })?;
    }
    if damaged > 0 { Err(format!("{damaged} datagrams were damaged").into()) } else { Ok(arrivals) }
}
