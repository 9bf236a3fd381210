//! How many sides a relay joins per second.

use std::thread;
use std::time::{Duration, Instant};

use crate::hop::{Hop, Kind};
use crate::report::{Aim, print_table};
use crate::stats::median;
use crate::{Outcome, Plan, crowd};

/// So that the relay need not wait for one of them.
const CROWDS: usize = 2;

/// For what has left to be gone.
const REST: Duration = Duration::from_millis(300);

struct Round {
    per_second: f64,
    cpu_micros: f64,
}

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    let rows: Outcome<Vec<_>> =
        [Kind::Relay, Kind::RelayTls].into_iter().map(|kind| row(plan, kind)).collect();
    let note = format!(
        "Two sides of each pair, from connecting to the second Join's success, by {CROWDS} threads beside the relay; \
         medians of {} × {} joins. CPU is the relay process's.",
        plan.join_rounds, plan.joins,
    );
    print_table("Joins", &note, &["relay", "joins (1/s)", "CPU per join (µs)"], &rows?);
    Ok(Vec::new())
}

fn row(plan: &Plan, kind: Kind) -> Outcome<Vec<String>> {
    let mut relay = Hop::start(kind)?;
    let mut rounds = Vec::new();
    for number in 0..=plan.join_rounds {
        eprintln!("joins: {kind}, round {number} of {}", plan.join_rounds);
        let round = round(&mut relay, number, plan.joins / CROWDS)?;
        // The first warms up.
        if number > 0 {
            rounds.push(round);
        }
        thread::sleep(REST);
    }
    Ok(vec![
        kind.to_string(),
        format!("{:.0}", median(rounds.iter().map(|round| round.per_second))),
        format!("{:.0}", median(rounds.iter().map(|round| round.cpu_micros))),
    ])
}

/// All have left at its end.
fn round(relay: &mut Hop, number: usize, of_each: usize) -> Outcome<Round> {
    let before = relay.cpu_time()?;
    let start = Instant::now();
    let crowds: Vec<_> = (0..CROWDS)
        .map(|crowd| {
            let (gate, number) = (relay.gate(), (number * CROWDS + crowd) as u64);
            thread::spawn(move || crowd::join(&gate, number, of_each, 2))
        })
        .collect();
    let mut sides = Vec::new();
    for crowd in crowds {
        sides.extend(crowd.join().map_err(|_| "a crowd of the bench panicked")??);
    }
    let elapsed = start.elapsed();
    relay.check()?;
    let cpu = relay.cpu_time()? - before;
    Ok(Round {
        per_second: sides.len() as f64 / elapsed.as_secs_f64(),
        cpu_micros: cpu.as_secs_f64() * 1e6 / sides.len() as f64,
    })
}
