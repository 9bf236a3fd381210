//! The child's side: which end of which tunnel this process is.

use std::net::SocketAddr;

use crate::{Outcome, baseline, ours, parent};

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
    parent::exit_with_it();
    match role {
        "baseline-near" => baseline::near(tcp, udp, udp_buffer),
        "baseline-far" => baseline::far(tcp, udp),
        "ours-near" => ours::near(tcp, udp),
        _ => ours::far(tcp, udp),
    }
}
