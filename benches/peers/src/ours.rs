//! The command of this repository.

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::Outcome;
use crate::client::{Listen, Ready};
use crate::coturn::{PASSWORD, USER};
use crate::tunnel::LOOPBACK;

/// How it is started, and what it says of itself.
pub(crate) fn command(server: &str, peer: SocketAddr) -> Outcome<(Command, Listen)> {
    let mut command = Command::new(program()?);
    command.args(["turn", "--json", "--server", server, "--user", &format!("{USER}:{PASSWORD}")]);
    command.args(["--udp", &LOOPBACK.to_string(), "--peer", &peer.to_string()]);
    let (mut local, mut relayed) = (None, None);
    let listen = move |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        match event["event"].as_str()? {
            "turn_started" => local = address(&event["local_udp"][0]),
            "allocation_created" => relayed = address(&event["relayed"]),
            "channel_bound" => return Some(Ready { local: local?, relayed: relayed? }),
            _ => {}
        }
        None
    };
    Ok((command, Box::new(listen)))
}

/// A field of one of the command's events.
fn address(field: &Value) -> Option<SocketAddr> {
    field.as_str()?.parse().ok()
}

/// The command: the one that `ACTIX_RELAY` names, or a fresh build, once.
pub(crate) fn program() -> Outcome<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(named) = env::var_os("ACTIX_RELAY") {
        return Ok(named.into());
    }
    BUILT.get_or_init(|| build().map_err(|error| error.to_string())).clone().map_err(Into::into)
}

fn build() -> Outcome<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    eprintln!("building the command in {}", root.display());
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--features", "cli", "--bin", "actix-relay"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let mut executables = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    match executables.next_back() {
        Some(program) if built.status.success() => Ok(program),
        _ => Err("the command actix-relay does not build".into()),
    }
}
