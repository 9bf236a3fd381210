//! What a side that waits for its peer costs the relay.

use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::child::Child;
use crate::report::{Aim, Target, print_table};
use crate::{Outcome, Plan, crowd};

/// For allocators and timers to come to rest.
const REST: Duration = Duration::from_secs(1);

const MAX_KIB: f64 = 6.0;

/// Descriptors that are not of sides.
const OTHER_DESCRIPTORS: u64 = 200;

pub(crate) fn run(plan: &Plan) -> Outcome<Vec<Aim>> {
    eprintln!("memory: {} waiting sides", plan.waiting);
    allow_descriptors(plan.waiting as u64 + OTHER_DESCRIPTORS)?;
    let mut relay = Child::start("relay", &[])?;
    thread::sleep(REST);
    let before = relay.memory()?.now;
    let mut sides = crowd::join(relay.addr(), 0, plan.waiting, 1)?;
    thread::sleep(REST);
    relay.check()?;
    let after = relay.memory()?.now;
    let mut closed = 0;
    for side in &mut sides {
        closed += usize::from(!side.is_open()?);
    }
    if closed > 0 {
        return Err(format!("{closed} of {} waiting sides were disconnected", plan.waiting).into());
    }

    let each = after.saturating_sub(before) as f64 / plan.waiting as f64;
    let row = vec![
        "plain".into(),
        plan.waiting.to_string(),
        format!("{:.1}", before as f64 / 1024.0),
        format!("{:.1}", after as f64 / 1024.0),
        format!("{each:.1}"),
    ];
    let note =
        "RSS of the relay process, before and after the sides joined; each waits for a peer of its own.";
    let head = ["relay", "waiting sides", "before (MiB)", "after (MiB)", "per side (KiB)"];
    print_table("Memory per waiting side", note, &head, &[row]);
    let what = "memory per waiting side, plain, KiB".into();
    Ok(vec![Aim { what, measured: each, target: Target::AtMost(MAX_KIB) }])
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
