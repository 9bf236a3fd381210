//! `cargo bench --manifest-path benches/peers/Cargo.toml`: this crate's TURN client beside two others.
//!
//! Each is a process that forwards a local UDP port to a peer through one coturn on loopback, over a channel. Rounds
//! alternate between the clients. The bench starts itself again for the others; ours is the command `actix-relay`,
//! built here first, or the one that `ACTIX_RELAY` names. It prints Markdown on stdout and progress on stderr;
//! nothing is asserted.
//!
//! `cargo bench --manifest-path benches/peers/Cargo.toml -- [--quick] [--without-ours] [udp] [tcp]`

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, process, thread};

mod client;
mod cpu;
mod echo;
mod lane;
mod ours;
mod plain;
mod role;
mod webrtc;

#[path = "../../../tests/support/coturn.rs"]
mod coturn;
#[path = "../../tunnel/machine.rs"]
mod machine;
#[allow(dead_code, reason = "the tunnel's bench measures memory too")]
#[path = "../../tunnel/proc.rs"]
mod proc;
#[allow(dead_code, reason = "the tunnel's bench has more kinds of aims")]
#[path = "../../tunnel/report.rs"]
mod report;
#[allow(dead_code, reason = "here all sockets are given")]
#[path = "../../tunnel/sender.rs"]
mod sender;
#[allow(dead_code, reason = "here all sockets are given")]
#[path = "../../tunnel/sink.rs"]
mod sink;
#[allow(dead_code, reason = "the tunnel's bench has percentiles too")]
#[path = "../../tunnel/stats.rs"]
mod stats;

/// What the sender and the sink of the tunnel's bench look for.
mod tunnel {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    /// Asked for by whoever must not lose a burst; the system clips it to `rmem_max`.
    pub(crate) const LARGE_BUFFER: usize = 4 << 20;

    /// Any port of the loopback interface.
    pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
}

/// Any failure ends its part of the bench, with one line.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Long past any real run; the children end with this process.
const WATCHDOG_TIMEOUT: Duration = Duration::from_secs(900);

/// How much of everything.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) round: Duration,
    pub(crate) transports: Vec<client::Transport>,
    pub(crate) with_ours: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let ended = role::run(&args).unwrap_or_else(|| measure(&args));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &[String]) -> Outcome<()> {
    let mut plan =
        Plan { rounds: 5, round: Duration::from_millis(1_200), transports: Vec::new(), with_ours: true };
    for arg in args {
        match arg.as_str() {
            "--bench" => {}
            "--quick" => (plan.rounds, plan.round) = (3, Duration::from_millis(300)),
            "--without-ours" => plan.with_ours = false,
            "udp" => plan.transports.push(client::Transport::Udp),
            "tcp" => plan.transports.push(client::Transport::Tcp),
            other => {
                return Err(format!("'{other}' is none of --quick, --without-ours, udp, tcp").into());
            }
        }
    }
    if plan.transports.is_empty() {
        plan.transports = vec![client::Transport::Udp, client::Transport::Tcp];
    }
    thread::spawn(|| {
        thread::sleep(WATCHDOG_TIMEOUT);
        eprintln!("the bench hangs: given up after {WATCHDOG_TIMEOUT:?}");
        process::exit(1);
    });
    println!("{}\n", machine::describe());
    cpu::run(&plan)
}
