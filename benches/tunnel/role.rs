//! The child's side: which end of which tunnel this process is.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::{process, thread};

use crate::{Outcome, baseline, ours};

/// Plays the role named by the hidden first argument; `None` if there is none, so this is the bench itself.
pub(crate) fn run(args: &[String]) -> Option<Outcome<()>> {
    let role = args.first()?.as_str();
    if !matches!(role, "baseline-near" | "baseline-far" | "ours-near" | "ours-far") {
        return None;
    }
    Some(play(role, &args[1..]))
}

fn play(role: &str, args: &[String]) -> Outcome<()> {
    let [tcp, udp, udp_buffer] = args else { return Err(format!("{role} TCP UDP UDP_BUFFER").into()) };
    let (tcp, udp): (SocketAddr, SocketAddr) = (tcp.parse()?, udp.parse()?);
    let udp_buffer = udp_buffer.parse()?;
    exit_with_parent();
    match role {
        "baseline-near" => baseline::near(tcp, udp, udp_buffer),
        "baseline-far" => baseline::far(tcp, udp),
        "ours-near" => ours::near(tcp, udp),
        _ => ours::far(tcp, udp),
    }
}

/// Tells the bench where this end listens.
pub(crate) fn announce(addr: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "ready {addr}")?;
    stdout.flush()
}

/// However the bench ends, its end of our stdin is closed then.
fn exit_with_parent() {
    thread::spawn(|| {
        let mut byte = [0];
        while let Ok(1) = io::stdin().read(&mut byte) {}
        process::exit(0);
    });
}
