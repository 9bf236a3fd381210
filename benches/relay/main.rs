//! `cargo bench --bench relay`: the TCP relay beside a plain TCP proxy, measured in one go.
//!
//! Each runs as a process of its own on loopback; rounds alternate. The bench starts itself again for those
//! processes, and is itself the sides of the pairs. It prints Markdown on stdout and progress on stderr; nothing is
//! asserted.
//!
//! `cargo bench --bench relay -- [--quick] [flow] [rtt] [age] [memory] [joins]`

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, process, thread};

mod age;
mod crowd;
mod flow;
mod hop;
mod joins;
mod memory;
mod ours;
mod plain;
mod role;
mod rtt;
mod side;
mod stun;
mod tls;

#[path = "../tunnel/child.rs"]
mod child;
#[path = "../tunnel/machine.rs"]
mod machine;
#[path = "../tunnel/parent.rs"]
mod parent;
#[allow(
    dead_code,
    reason = "here the limit of descriptors is raised, and the peak of memory is not looked at"
)]
#[path = "../tunnel/proc.rs"]
mod proc;
#[path = "../tunnel/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "the tunnel's bench has more kinds of aims")]
#[path = "../tunnel/report.rs"]
mod report;
#[path = "../tunnel/stats.rs"]
mod stats;

/// What the modules of the tunnel's bench look for.
mod tunnel {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    /// Any port of the loopback interface.
    pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
}

/// Any failure ends its part of the bench, with one line.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A measured part: prints its table and says how its aims fared.
type Part = fn(&Plan) -> Outcome<Vec<report::Aim>>;

const PARTS: [(&str, Part); 5] = [
    ("flow", flow::run),
    ("rtt", rtt::run),
    ("age", age::run),
    ("memory", memory::run),
    ("joins", joins::run),
];

/// Long past any real run; the children end with this process.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(900);

/// How much of everything.
pub(crate) struct Plan {
    pub(crate) flow_rounds: usize,
    pub(crate) flow_round: Duration,
    pub(crate) rtt_rounds: usize,
    pub(crate) rtt_trips: usize,
    pub(crate) age_rounds: usize,
    pub(crate) age_round: Duration,
    pub(crate) waiting: usize,
    pub(crate) join_rounds: usize,
    /// Joins of one round.
    pub(crate) joins: usize,
}

impl Plan {
    fn full() -> Self {
        Self {
            flow_rounds: 7,
            flow_round: Duration::from_secs(2),
            rtt_rounds: 15,
            rtt_trips: 1_000,
            age_rounds: 2,
            age_round: Duration::from_secs(10),
            waiting: 5_000,
            join_rounds: 5,
            joins: 2_000,
        }
    }

    fn quick() -> Self {
        Self {
            flow_rounds: 3,
            flow_round: Duration::from_millis(500),
            rtt_rounds: 3,
            rtt_trips: 400,
            age_rounds: 1,
            age_round: Duration::from_secs(4),
            waiting: 5_000,
            join_rounds: 3,
            joins: 640,
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(ended) = role::run(&args) {
        return exit_code(&ended);
    }
    // `cargo test --all-targets` runs this program too, without `--bench`: it has nothing to test.
    if !args.iter().any(|arg| arg == "--bench") {
        println!("nothing measured: run me as `cargo bench --bench relay`");
        return ExitCode::SUCCESS;
    }
    exit_code(&measure(&args))
}

fn exit_code(ended: &Outcome<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &[String]) -> Outcome<()> {
    let mut plan = Plan::full();
    let mut wanted = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--bench" => {}
            "--quick" => plan = Plan::quick(),
            name if PARTS.iter().any(|(part, _)| *part == name) => wanted.push(name),
            other => {
                return Err(format!("'{other}' is none of --quick, flow, rtt, age, memory, joins").into());
            }
        }
    }
    thread::spawn(|| {
        thread::sleep(WATCHDOG_TIMEOUT);
        eprintln!("the bench hangs: given up after {WATCHDOG_TIMEOUT:?}");
        process::exit(1);
    });

    println!("{}\n", machine::describe());
    let mut aims = Vec::new();
    let mut failed = Vec::new();
    for (name, part) in PARTS {
        if !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        match part(&plan) {
            Ok(of_part) => aims.extend(of_part),
            Err(error) => {
                println!("{name}: not measured: {error}\n");
                failed.push(name);
            }
        }
    }
    report::print_aims(&aims);
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join(", ")).into()) }
}
