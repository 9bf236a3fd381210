//! `cargo bench --bench tunnel`: this crate beside a plain tunnel, measured in one go.
//!
//! Both run as two processes, near and far, on loopback; rounds alternate. The bench starts itself again for
//! those processes. It prints Markdown on stdout and progress on stderr; nothing is asserted.
//!
//! `cargo bench --bench tunnel -- [--quick] [cpu] [rtt] [age] [memory]`

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, process, thread};

mod age;
mod baseline;
mod child;
mod cpu;
mod machine;
mod memory;
mod ours;
mod parent;
mod proc;
mod proxy;
mod report;
mod role;
mod rtt;
mod sender;
mod sink;
mod stats;
mod tunnel;

/// Any failure ends its part of the bench, with one line.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A measured part: prints its table and says how its aims fared.
type Part = fn(&Plan) -> Outcome<Vec<report::Aim>>;

const PARTS: [(&str, Part); 4] =
    [("cpu", cpu::run), ("rtt", rtt::run), ("age", age::run), ("memory", memory::run)];

/// Long past any real run; the children end with this process.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(900);

/// How much of everything.
pub(crate) struct Plan {
    pub(crate) cpu_rounds: usize,
    pub(crate) cpu_round: Duration,
    pub(crate) rtt_rounds: usize,
    pub(crate) rtt_trips: usize,
    pub(crate) age_rounds: usize,
    pub(crate) age_round: Duration,
    pub(crate) peers: usize,
}

impl Plan {
    fn full() -> Self {
        Self {
            cpu_rounds: 5,
            cpu_round: Duration::from_secs(2),
            rtt_rounds: 15,
            rtt_trips: 1_200,
            age_rounds: 2,
            age_round: Duration::from_secs(10),
            peers: 1_000,
        }
    }

    fn quick() -> Self {
        Self {
            cpu_rounds: 3,
            cpu_round: Duration::from_millis(400),
            rtt_rounds: 5,
            rtt_trips: 500,
            age_rounds: 1,
            age_round: Duration::from_secs(5),
            peers: 1_000,
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
        println!("nothing measured: run me as `cargo bench --bench tunnel`");
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
            other => return Err(format!("'{other}' is none of --quick, cpu, rtt, age, memory").into()),
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
