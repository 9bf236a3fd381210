//! CPU of the client per datagram, datagrams per second, loss.

use crate::client::{Kind, Transport};
use crate::coturn::Coturn;
use crate::lane::{Case, Direction, Lane, Round};
use crate::report::{Aim, Target, print_aims, print_table};
use crate::sender::Pattern;
use crate::stats::median;
use crate::{Outcome, Plan, ours};

const SIZE: usize = 1200;

/// What a sketch of ours needed, of the better other client's CPU.
fn aim(case: Case) -> Option<f64> {
    match (case.transport, case.direction, case.pattern.batch) {
        (Transport::Udp, Direction::Up, 1) => Some(0.8),
        (Transport::Udp, Direction::Up, _) => Some(0.4),
        (Transport::Udp, Direction::Down, 1) => Some(0.6),
        (Transport::Udp, Direction::Down, _) => Some(0.5),
        (Transport::Tcp, Direction::Down, _) => Some(0.3),
        _ => None,
    }
}

pub(crate) fn run(plan: &Plan) -> Outcome<()> {
    let mut kinds = Kind::ALL.to_vec();
    if !plan.with_ours {
        kinds.retain(|kind| *kind != Kind::Ours);
    } else {
        // Built before anything is measured.
        ours::program()?;
    }
    let server = Coturn::start();
    let mut aims = Vec::new();
    for transport in &plan.transports {
        let kinds: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.speaks(*transport)).collect();
        aims.extend(table(plan, *transport, &kinds, &server)?);
    }
    print_aims(&aims);
    Ok(())
}

/// Measures and prints all cases of one transport.
fn table(plan: &Plan, transport: Transport, kinds: &[Kind], server: &Coturn) -> Outcome<Vec<Aim>> {
    let (mut rows, mut aims) = (Vec::new(), Vec::new());
    for direction in [Direction::Up, Direction::Down, Direction::Echo] {
        for batch in [1, 16] {
            let case = Case { transport, direction, pattern: Pattern { size: SIZE, batch } };
            let name = match batch {
                1 => format!("{direction}, one by one"),
                batch => format!("{direction}, GSO {batch}"),
            };
            eprintln!("{transport}: {name}");
            let measured = measure(plan, case, kinds, server)?;
            let ratio = ratio_to_better(kinds, &measured);
            rows.push(row(&name, ratio, &measured));
            if let (Some(measured), Some(limit)) = (ratio, aim(case)) {
                let what = format!("CPU per datagram, {transport}, {name}, of the better other client's");
                aims.push(Aim { what, measured, target: Target::AtMost(limit) });
            }
        }
    }
    let note = format!(
        "{SIZE} bytes; user and system time of the client process for each datagram that arrived (echo: that came \
         back); medians of {} × {:?}; the ratio is that of pairs of rounds with the better other client.",
        plan.rounds, plan.round,
    );
    let names = || kinds.iter().map(|kind| kind.name());
    let head: Vec<String> = ["datagrams".to_owned()]
        .into_iter()
        .chain(names().map(|name| format!("{name} (µs)")))
        .chain(kinds.contains(&Kind::Ours).then(|| "ratio".to_owned()))
        .chain(names().map(|name| format!("{name} (1/s)")))
        .chain(names().map(|name| format!("{name} loss")))
        .collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let title =
        format!("CPU per datagram of TURN clients, {} to the server", transport.to_string().to_uppercase());
    print_table(&title, &note, &head, &rows);
    Ok(aims)
}

/// For each client its rounds; one round of each in turn.
fn measure(plan: &Plan, case: Case, kinds: &[Kind], server: &Coturn) -> Outcome<Vec<Vec<Round>>> {
    let start =
        |kind: &Kind| Lane::start(*kind, case, server).map_err(|error| format!("{}: {error}", kind.name()));
    let mut lanes = kinds.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    let mut measured: Vec<Vec<Round>> = kinds.iter().map(|_| Vec::new()).collect();
    for _ in 0..plan.rounds {
        for (lane, rounds) in lanes.iter_mut().zip(&mut measured) {
            rounds.push(lane.round(plan.round)?);
        }
    }
    Ok(measured)
}

fn cpu(rounds: &[Round]) -> f64 {
    median(rounds.iter().map(|round| round.cpu_micros))
}

/// Ours stands first; `None` where it is not measured.
fn ratio_to_better(kinds: &[Kind], measured: &[Vec<Round>]) -> Option<f64> {
    let (ours, others) = measured.split_first()?;
    let better = others.iter().min_by(|a, b| cpu(a).total_cmp(&cpu(b)))?;
    let pairs = ours.iter().zip(better).map(|(ours, other)| ours.cpu_micros / other.cpu_micros);
    (kinds.first() == Some(&Kind::Ours)).then(|| median(pairs))
}

fn row(name: &str, ratio: Option<f64>, measured: &[Vec<Round>]) -> Vec<String> {
    let rate = |rounds: &Vec<Round>| median(rounds.iter().map(|round| round.per_second));
    [name.to_owned()]
        .into_iter()
        .chain(measured.iter().map(|rounds| format!("{:.2}", cpu(rounds))))
        .chain(ratio.map(|ratio| format!("{ratio:.2}")))
        .chain(measured.iter().map(|rounds| format!("{:.0}", rate(rounds))))
        .chain(measured.iter().map(|rounds| loss(rounds)))
        .collect()
}

fn loss(rounds: &[Round]) -> String {
    let sent: u64 = rounds.iter().map(|round| round.sent).sum();
    let received: u64 = rounds.iter().map(|round| round.received).sum();
    format!("{:.2} %", (sent - received) as f64 * 100.0 / sent.max(1) as f64)
}
