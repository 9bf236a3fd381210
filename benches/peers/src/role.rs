//! The child's side: which client this process is.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::{env, process, thread};

use crate::client::{Listen, Ready, Transport};
use crate::{Outcome, plain, webrtc};

/// How this program is started to be another client.
pub(crate) fn command(
    role: &str,
    transport: Transport,
    server: SocketAddr,
    peer: SocketAddr,
) -> Outcome<(Command, Listen)> {
    let mut command = Command::new(env::current_exe()?);
    command.args([role, &transport.to_string(), &server.to_string(), &peer.to_string()]);
    Ok((command, Box::new(heard)))
}

/// The opposite of [`announce`].
fn heard(line: &str) -> Option<Ready> {
    let (local, relayed) = line.strip_prefix("ready ")?.split_once(' ')?;
    Some(Ready { local: local.parse().ok()?, relayed: relayed.parse().ok()? })
}

/// Tells the bench where this client is reached.
pub(crate) fn announce(ready: Ready) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "ready {} {}", ready.local, ready.relayed)?;
    stdout.flush()
}

/// Plays the role named by the hidden first argument; `None` if there is none, so this is the bench itself.
pub(crate) fn run(args: &[String]) -> Option<Outcome<()>> {
    let role = args.first()?.as_str();
    matches!(role, "webrtc" | "plain").then(|| play(role, &args[1..]))
}

fn play(role: &str, args: &[String]) -> Outcome<()> {
    let [transport, server, peer] = args else {
        return Err(format!("{role} TRANSPORT SERVER PEER").into());
    };
    let (server, peer) = (server.parse()?, peer.parse()?);
    // However the bench ends, its end of our stdin is closed then.
    thread::spawn(|| {
        let mut byte = [0];
        while let Ok(1) = io::stdin().read(&mut byte) {}
        process::exit(0);
    });
    match (role, transport.as_str()) {
        ("webrtc", "udp") => webrtc::run(server, peer),
        ("plain", "udp") => plain::run_udp(server, peer),
        ("plain", "tcp") => plain::run_tcp(server, peer),
        _ => Err(format!("{role} has no {transport}").into()),
    }
}
