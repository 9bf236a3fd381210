//! What a side that waits for its peer costs the relay.

use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::hop::{Hop, Kind};
use crate::report::{Aim, Target, print_table};
use crate::{Outcome, Plan, crowd};

/// For allocators and timers to come to rest.
const REST: Duration = Duration::from_secs(1);

/// With what each may cost at most, KiB.
const CASES: [(Kind, f64); 2] = [(Kind::Relay, 6.0), (Kind::RelayTls, 30.0)];

/// Descriptors that are not of sides.
const OTHER_DESCRIPTORS: u64 = 200;

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    allow_descriptors(plan.waiting as u64 + OTHER_DESCRIPTORS)?;
    let mut rows = Vec::new();
    let mut aims = Vec::new();
    for (kind, max) in CASES {
        eprintln!("memory: {kind}, {} waiting sides", plan.waiting);
        let (before, after) = measure(kind, plan.waiting)?;
        let each = after.saturating_sub(before) as f64 / plan.waiting as f64;
        rows.push(vec![
            kind.to_string(),
            plan.waiting.to_string(),
            format!("{:.1}", before as f64 / 1024.0),
            format!("{:.1}", after as f64 / 1024.0),
            format!("{each:.1}"),
        ]);
        let what = format!("memory per waiting side of a {kind}, KiB");
        aims.push(Aim { what, measured: each, target: Target::AtMost(max) });
    }
    let note =
        "RSS of the relay process, before and after the sides joined; each waits for a peer of its own.";
    let head = ["relay", "waiting sides", "before (MiB)", "after (MiB)", "per side (KiB)"];
    print_table("Memory per waiting side", note, &head, &rows);
    Ok(aims)
}

/// Resident memory in KiB, without them and with them.
fn measure(kind: Kind, waiting: usize) -> Outcome<(u64, u64)> {
    let mut relay = Hop::start(kind)?;
    thread::sleep(REST);
    let before = relay.memory()?.now;
    let mut sides = crowd::join(&relay.gate(), 0, waiting, 1)?;
    thread::sleep(REST);
    relay.check()?;
    let after = relay.memory()?.now;
    let mut closed = 0;
    for side in &mut sides {
        closed += usize::from(!side.is_open()?);
    }
    if closed > 0 {
        Err(format!("{closed} of {waiting} waiting sides were disconnected").into())
    } else {
        Ok((before, after))
    }
}

/// Raises the limit of descriptors of this process and the children to come, where it is lower.
fn allow_descriptors(needed: u64) -> Outcome<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        return Err(format!("needs {needed} descriptors: `ulimit -Hn` allows {:?}", limit.maximum).into());
    }
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(needed);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}
