//! What may stand on the command line, and the configuration it stands for.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use actix_relay::config::{
    ConfigError, HostPort, RelayConfig, Remote, SessionConfig, SupervisorConfig, TurnConfig, TurnListen,
    TurnRemote,
};
use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, Args, Parser, Subcommand};
use ipnet::IpNet;

use super::join_args::{JOIN_EXAMPLES, Join};
use super::plan::{Plan, one_line};
use super::relay_args::{RELAY_EXAMPLES, RelayArgs, in_flags as relay_in_flags};
use super::tls_args::{ClientTlsArgs, ServerTlsArgs};
use super::turn_args::{TURN_EXAMPLES, TURN_TCP_EXAMPLES, Through, Turn, TurnTcp, in_flags as turn_in_flags};
use super::values::{Later, addr, allowed, delay, fwmark, interval, later, workers};
use crate::passwords::Passwords;

const EXAMPLES: &str = "\
Examples:
  A UDP service on this machine, for peers that come by TCP:
    actix-relay listen --tcp 0.0.0.0:4433 --udp-forward 127.0.0.1:51820 --allow 192.0.2.0/24
  Its far side: applications here send to 127.0.0.1:51820 instead:
    actix-relay connect --tcp vpn.example.org:4433 --udp 127.0.0.1:51820
  A UDP peer reached through a TURN server: applications here send to 127.0.0.1:5000 instead:
    actix-relay turn --server turn:turn.example.org --user alice --udp 127.0.0.1:5000 --peer 192.0.2.7:5000
  A relay on a public machine, where sides that can only call out meet:
    actix-relay relay --tcp 0.0.0.0:443 --realm example.org --users /etc/relay-users
  Any number of sessions, TURN clients and relays, described in a file:
    actix-relay check relay.toml && actix-relay run relay.toml --json

Exit codes: 0 told to stop; 1 the start failed, or every session was given up; 2 bad arguments or
configuration; 70 the supervisor itself died (a bug). RUST_LOG selects log lines (on stderr) by module.";

const LISTEN_EXAMPLES: &str = "\
Examples:
  actix-relay listen --tcp 0.0.0.0:4433 --udp-forward 127.0.0.1:51820 --allow 192.0.2.0/24
  actix-relay listen --tcp '[::]:443' --udp-forward 127.0.0.1:53 --max-peers 100
  actix-relay listen --tcp 0.0.0.0:4433 --udp 127.0.0.1:5000 --app 127.0.0.1:5001
  With TLS, and a certificate whose pin is printed:
    actix-relay listen --tcp 0.0.0.0:4433 --udp-forward 127.0.0.1:51820 --tls-self-signed
  At the relayed address of a TURN server, which is printed:
    actix-relay listen --turn turn:turn.example.org --user alice --permit 192.0.2.7 \
        --udp-forward 127.0.0.1:51820";

const CONNECT_EXAMPLES: &str = "\
Examples:
  actix-relay connect --tcp vpn.example.org:4433 --udp 127.0.0.1:51820
  actix-relay connect --tcp vpn.example.org:4433 --udp 127.0.0.1:51820 --fwmark 0x6c --congestion bbr
  actix-relay connect --tcp '[2001:db8::1]:443' --udp-forward 127.0.0.1:53
  With TLS to a server whose certificate this system's authorities vouch for, or whose key has this pin:
    actix-relay connect --tcp vpn.example.org:443 --udp 127.0.0.1:51820 --tls [--tls-pin SHA256]
  Through a TURN server:
    actix-relay connect --turn turn:turn.example.org --user alice --tcp 192.0.2.7:4433 --udp 127.0.0.1:51820";

const FILE_EXAMPLE: &str = r#"Example of a FILE (names of fields as in SessionConfig, TurnConfig and RelayConfig of the crate's documentation):
  [supervisor]                          # may be left out
  workers = 2
  stats_interval = "60s"

  [[session]]
  name = "vpn"
  remote = "vpn.example.org:4433"       # call it; or local_tcp = ["0.0.0.0:4433"] to be called
  local_udp = "127.0.0.1:51820"         # or udp_forward = "127.0.0.1:51820"
  max_queue_delay = "50ms"

  [[turn]]
  name = "game"
  server = "turn:turn.example.org"      # turn:HOST[:PORT][?transport=udp|tcp]
  user = "alice"
  password_file = "/etc/turn-password"  # or password_env = "VARIABLE", or password = "…"
  udp_forward = [{ local_udp = "127.0.0.1:5000", peer = "192.0.2.7:5000" }]

  [[session]]
  name = "vpn through turn"
  remote = { turn = "turn:turn.example.org", user = "alice", password_env = "PW", peer = "192.0.2.7:4433" }
  local_udp = "127.0.0.1:51821"         # to be called: turn_listen = { server = …, permit = ["192.0.2.7"] }

  [[session]]
  name = "vpn through a relay"          # which both sides call
  local_udp = "127.0.0.1:51822"
  [session.remote]
  relay = "relay.example.org:443"
  tls = {}                              # or { ca = "FILE" }, { pin = "SHA256" }; left out: no TLS
  user = "alice"
  password_env = "PW"
  pair = "vpn"                          # the same on both sides
  side = "laptop"                       # another one there

  [[relay]]
  name = "relay"
  local_tcp = ["0.0.0.0:443"]
  realm = "example.org"
  users_file = "/etc/relay-users"       # or users_env, or users = [{ user = "alice", password_env = "PW" }]"#;

/// Carries UDP where only TCP gets through: datagrams go in here, through a TCP connection, and out there.
#[derive(Debug, Parser)]
#[command(name = "actix-relay", version, after_help = EXAMPLES, arg_required_else_help = false)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What is accepted before and after the subcommand.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Common options")]
pub(super) struct Common {
    /// Print events as JSON, one object a line, all of them
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Log more (-v info, -vv debug, -vvv trace) and print changes of state too
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// Print and log only what is wrong for good
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Report counters this often, in seconds (or as 500ms, 1m); 0: never
    #[arg(long, global = true, value_name = "SECS", value_parser = interval)]
    stats: Option<Duration>,
    /// Drop a datagram that has waited longer than this for TCP to take it [default: 50ms]
    #[arg(long, global = true, value_name = "DURATION", value_parser = delay)]
    max_queue_delay: Option<Duration>,
    /// Local address of outgoing connections (not with listen, unless through a TURN server)
    #[arg(long, global = true, value_name = "IP")]
    bind: Option<IpAddr>,
    /// SO_MARK of the TCP sockets, and of those to a TURN server, decimal or 0x…: keeps a VPN's tunnel out of the VPN (Linux)
    #[arg(long, global = true, value_name = "N", value_parser = fwmark)]
    fwmark: Option<u32>,
    /// Congestion control of the TCP sockets, such as bbr (Linux)
    #[arg(long, global = true, value_name = "NAME")]
    congestion: Option<String>,
    /// Address of the local application, where the far side speaks first (with --udp)
    #[arg(long, global = true, value_name = "ADDR", value_parser = addr)]
    app: Option<SocketAddr>,
    /// Threads for the sessions, 0 to 256 [default: the number of cores]
    #[arg(long, global = true, value_name = "N", value_parser = workers)]
    workers: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Wait for peers that come by TCP
    #[command(after_help = LISTEN_EXAMPLES)]
    Listen(Listen),
    /// Call a peer by TCP, again and again when the connection is lost
    #[command(after_help = CONNECT_EXAMPLES)]
    Connect(Connect),
    /// Reach a UDP peer through a TURN server
    #[command(after_help = TURN_EXAMPLES)]
    Turn(Turn),
    /// Forward a TCP port through a TURN server, either way (RFC 6062)
    #[command(after_help = TURN_TCP_EXAMPLES)]
    TurnTcp(TurnTcp),
    /// Meet a peer at a relay, where both only call out
    #[command(after_help = JOIN_EXAMPLES)]
    Join(Join),
    /// Join sides that can only call out, two by two
    #[command(after_help = RELAY_EXAMPLES)]
    Relay(RelayArgs),
    /// Run the sessions, TURN clients and relays that a TOML file describes
    #[command(after_help = FILE_EXAMPLE)]
    Run(File),
    /// Say whether a TOML file is fine, or what is wrong with it and where
    #[command(after_help = FILE_EXAMPLE)]
    Check(File),
}

/// The UDP side.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Udp {
    /// Datagrams go to the UDP service at this address, for each peer from a port of its own
    #[arg(long, value_name = "ADDR", value_parser = addr)]
    udp_forward: Option<SocketAddr>,
    /// Local applications send to this address and are answered from it
    #[arg(long, value_name = "ADDR", value_parser = addr)]
    udp: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(super) struct Listen {
    /// Where to wait for peers, as IP:PORT; up to 16 addresses
    #[arg(long, value_name = "ADDR", num_args = 1.., required_unless_present = "turn", value_parser = addr)]
    tcp: Vec<SocketAddr>,
    #[command(flatten)]
    udp: Udp,
    /// Let in only peers from these networks; 0.0.0.0/0 and ::/0 say everybody
    #[arg(long, value_name = "CIDR", num_args = 1.., requires = "tcp", value_parser = allowed)]
    allow: Vec<IpNet>,
    /// How many peers at once [default: 1024 with --udp-forward, 1 with --udp]
    #[arg(long, value_name = "N")]
    max_peers: Option<usize>,
    #[command(flatten)]
    tls: ServerTlsArgs,
    #[command(flatten)]
    through: Through,
    /// Who may come through the TURN server: at most 256 addresses
    #[arg(long, value_name = "IP", num_args = 1.., requires = "turn")]
    permit: Vec<IpAddr>,
}

#[derive(Debug, Args)]
pub(super) struct Connect {
    /// Whom to call, as HOST:PORT; a name is resolved again for each attempt. With --turn the peer's IP:PORT, as
    /// the server sees it
    #[arg(long, value_name = "HOST:PORT", value_parser = later::<HostPort>)]
    tcp: Later<HostPort>,
    #[command(flatten)]
    udp: Udp,
    /// How many applications may send at once, each over a connection of its own [default: 64]
    #[arg(long, value_name = "N", conflicts_with_all = ["udp_forward", "turn"])]
    max_sources: Option<usize>,
    /// Forget an application that has been silent for this long [default: 300s]
    #[arg(long, value_name = "DURATION", value_parser = delay, conflicts_with_all = ["udp_forward", "turn"])]
    source_idle: Option<Duration>,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[command(flatten)]
    through: Through,
}

#[derive(Debug, Args)]
pub(super) struct File {
    /// The TOML file
    pub(super) file: PathBuf,
}

impl Cli {
    /// Refuses what would be ignored otherwise.
    pub(super) fn refuse_what_has_no_meaning(&self) -> Result<(), String> {
        if self.common.quiet && self.common.verbose > 0 {
            return Err("--quiet and --verbose exclude each other".into());
        }
        match (&self.command, &self.common) {
            (Command::Listen(listen), Common { bind: Some(_), .. }) if !listen.through.is_given() => {
                Err("--bind is for outgoing connections, listen makes none: --tcp says where it listens"
                    .into())
            }
            (Command::Listen(listen), _) if listen.through.is_given() && listen.tls.is_given() => {
                Err("listen speaks TLS to those who come to --tcp, not to those who come by --turn: one or \
                     the other"
                    .into())
            }
            (Command::Relay(_), Common { bind: Some(_), .. }) => {
                Err("--bind is for outgoing connections, relay makes none: --tcp says where it listens"
                    .into())
            }
            (Command::Turn(_) | Command::TurnTcp(_) | Command::Relay(_), Common { app: Some(_), .. }) => {
                Err("--app goes with listen, connect and join".into())
            }
            (Command::TurnTcp(_), Common { max_queue_delay: Some(_), .. }) => {
                Err("--max-queue-delay is for datagrams, turn-tcp carries none".into())
            }
            (Command::Run(_), common) => common.refuse_flags_of_a_session("run"),
            (Command::Check(_), common) => common.refuse_flags_of_a_session("check"),
            _ => Ok(()),
        }
    }
}

impl Common {
    pub(super) fn has_congestion(&self) -> bool {
        self.congestion.is_some()
    }

    fn refuse_flags_of_a_session(&self, command: &str) -> Result<(), String> {
        let given = [
            ("--max-queue-delay", self.max_queue_delay.is_some()),
            ("--bind", self.bind.is_some()),
            ("--fwmark", self.fwmark.is_some()),
            ("--congestion", self.congestion.is_some()),
            ("--app", self.app.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                let field = field_of(flag);
                Err(format!("{flag} goes with the other commands; {command} takes {field} from its FILE"))
            }
            None => Ok(()),
        }
    }

    fn apply_to_session(&self, config: &mut SessionConfig) {
        config.max_queue_delay = self.max_queue_delay.unwrap_or(config.max_queue_delay);
        config.bind = self.bind;
        config.fwmark = self.fwmark;
        config.congestion.clone_from(&self.congestion);
        config.app = self.app;
    }

    pub(super) fn apply_to_supervisor(&self, config: &mut SupervisorConfig) {
        config.workers = self.workers.unwrap_or(config.workers);
        config.stats_interval = self.stats.unwrap_or(config.stats_interval);
    }

    /// The plan of one session whose fields were given as flags.
    pub(super) fn plan(&self, mut session: SessionConfig, udp: &Udp) -> Result<Plan, String> {
        session.local_udp = udp.udp;
        session.udp_forward = udp.udp_forward;
        self.apply_to_session(&mut session);
        session.validate().map_err(|error| in_flags(&error))?;
        let mut supervisor = SupervisorConfig::default();
        self.apply_to_supervisor(&mut supervisor);
        Ok(Plan { sessions: vec![session], supervisor, ..Plan::default() })
    }

    /// The plan of one TURN client whose fields were given as flags.
    pub(super) fn plan_turn(&self, mut turn: TurnConfig) -> Result<Plan, String> {
        turn.max_queue_delay = self.max_queue_delay.unwrap_or(turn.max_queue_delay);
        turn.bind = self.bind;
        turn.fwmark = self.fwmark;
        turn.congestion.clone_from(&self.congestion);
        turn.validate().map_err(|error| turn_in_flags(&error))?;
        let mut supervisor = SupervisorConfig::default();
        self.apply_to_supervisor(&mut supervisor);
        Ok(Plan { turns: vec![turn], supervisor, ..Plan::default() })
    }

    /// The plan of one relay whose fields were given as flags.
    pub(super) fn plan_relay(&self, mut relay: RelayConfig) -> Result<Plan, String> {
        relay.max_queue_delay = self.max_queue_delay.unwrap_or(relay.max_queue_delay);
        relay.fwmark = self.fwmark;
        relay.congestion.clone_from(&self.congestion);
        relay.validate().map_err(|error| relay_in_flags(&error))?;
        let mut supervisor = SupervisorConfig::default();
        self.apply_to_supervisor(&mut supervisor);
        Ok(Plan { relays: vec![relay], supervisor, ..Plan::default() })
    }
}

impl Listen {
    pub(super) fn plan(self, common: &Common, passwords: &dyn Passwords) -> Result<Plan, String> {
        let mut session = SessionConfig::new("listen");
        session.local_tcp = self.tcp;
        session.allow = self.allow;
        session.max_peers = self.max_peers;
        session.listen_tls = self.tls.tls()?;
        let server = self.through.server(passwords)?;
        session.turn_listen = server.map(|server| TurnListen::new(server, self.permit));
        common.plan(session, &self.udp)
    }
}

impl Connect {
    pub(super) fn plan(mut self, common: &Common, passwords: &dyn Passwords) -> Result<Plan, String> {
        let believe = self.through.believed_otherwise();
        let to = self.tcp.map_err(|error| format!("--tcp: {error}"))?;
        let remote = match self.through.server(passwords)? {
            None => Remote::Direct(to),
            Some(server) => {
                let peer = to.to_string().parse();
                let peer = peer.map_err(|_| "--tcp must be IP:PORT with --turn, which is told no names")?;
                TurnRemote::new(server, peer).into()
            }
        };
        let mut session = SessionConfig::connect("connect", remote);
        session.tls = self.tls.tls(believe)?;
        session.max_sources = self.max_sources.unwrap_or(session.max_sources);
        session.source_idle = self.source_idle.unwrap_or(session.source_idle);
        common.plan(session, &self.udp)
    }
}

/// The first paragraph of clap's message, without its usage, and without a word that may be a password which went
/// astray: clap repeats what it does not know.
pub(super) fn complaint(error: &clap::Error, with_user: bool) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let mut message = one_line(first.strip_prefix("error: ").unwrap_or(first));
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) if !word.starts_with('-') => Some(word.as_str()),
        _ => None,
    };
    let stray = said(ContextKind::InvalidArg).filter(|word| with_user || word.contains([':', '@']));
    let value = said(ContextKind::InvalidValue).filter(|word| word.contains('@'));
    for word in stray.into_iter().chain(value) {
        message = message.replace(word, "…");
    }
    message
}

fn field_of(flag: &str) -> String {
    flag.trim_start_matches('-').replace('-', "_")
}

/// The same complaint in the words of the command line.
fn in_flags(error: &ConfigError) -> String {
    let ConfigError::Invalid { field, why, .. } = error else { return error.to_string() };
    let flag = match *field {
        "local_tcp" | "remote.peer" => "--tcp".to_owned(),
        "remote.turn" | "turn_listen.server" => "--turn".to_owned(),
        "turn_listen.permit" => "--permit".to_owned(),
        "remote.relay" | "remote.pair" | "remote.side" | "remote.user" | "remote.tls" => {
            field.replace("remote.", "--")
        }
        "local_udp" => "--udp".to_owned(),
        other => format!("--{}", other.replace('_', "-")),
    };
    format!("{flag} {}", why.replace("local_udp", "--udp").replace("udp_forward", "--udp-forward"))
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
