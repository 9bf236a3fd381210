//! The flags that name a TURN server, and the commands of its clients.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use actix_relay::config::{
    AddressFamily, ConfigError, RelayedTransport, TcpListen, TurnConfig, TurnServer, TurnTransport, TurnUri,
    UdpForward,
};
use actix_relay::credentials::{Secret, UserPassword};
use clap::{ArgGroup, Args};

use super::args::Common;
use super::plan::Plan;
use super::tls_args::BelieveArgs;
use super::values::{Later, addr, family, later, seconds, secret};
use crate::passwords::Passwords;

/// Asked where `--user` names no password and no other place for it.
const PASSWORD_VARIABLE: &str = "ACTIX_RELAY_TURN_PASSWORD";

pub(super) const TURN_EXAMPLES: &str = "\
Examples:
  actix-relay turn --server turn:turn.example.org --user alice --password-file pw \\
      --udp 127.0.0.1:5000 --peer 192.0.2.7:5000
  ACTIX_RELAY_TURN_PASSWORD=… actix-relay turn --server 'turn:192.0.2.1:3478?transport=tcp' --user alice \\
      --udp 127.0.0.1:5000 --peer 192.0.2.7:5000";

pub(super) const TURN_TCP_EXAMPLES: &str = "\
Examples:
  Connections to port 2222 here go through the server to a peer:
    actix-relay turn-tcp --server turn:turn.example.org --user alice --password-file pw \\
        --connect 192.0.2.7:22 --tcp 127.0.0.1:2222
  A peer's connections to the relayed address, which is printed, come to a service here:
    actix-relay turn-tcp --server turn:turn.example.org --user alice --password-file pw \\
        --accept --permit 192.0.2.7 --tcp-forward 127.0.0.1:22";

/// Who we are to a TURN server.
#[derive(Debug, Args)]
pub(super) struct User {
    /// User name and password, divided at the last colon. Anybody on this machine can read a command line: give
    /// the name alone, and the password by --password-file, --password-env or in the environment variable
    /// ACTIX_RELAY_TURN_PASSWORD
    #[arg(long, help_heading = "TURN credentials", value_name = "NAME[:PASSWORD]", value_parser = secret)]
    user: Option<Secret>,
    /// The password is this file's one line; --user is then the name, colons and all
    #[arg(
        long,
        help_heading = "TURN credentials",
        value_name = "FILE",
        requires = "user",
        conflicts_with = "password_env"
    )]
    password_file: Option<PathBuf>,
    /// The password is the value of this environment variable; --user is then the name, colons and all
    #[arg(long, help_heading = "TURN credentials", value_name = "VAR", requires = "user")]
    password_env: Option<String>,
}

/// The flags of a session that goes through a TURN server.
#[derive(Debug, Args)]
pub(super) struct Through {
    /// A TURN server to go through, over TCP (RFC 6062): turn:HOST[:PORT], or turns:HOST[:PORT] with TLS
    #[arg(long, value_name = "URI", value_parser = later::<TurnUri>)]
    turn: Option<Later<TurnUri>>,
    #[command(flatten)]
    user: User,
    #[command(flatten)]
    believe: BelieveArgs,
    /// Believe successes of Connect and ConnectionBind without integrity, as servers on pion and icey send them
    #[arg(long, requires = "turn")]
    trust_unsealed_bind: bool,
}

/// The server, and what is allocated there.
#[derive(Debug, Args)]
pub(super) struct Allocation {
    /// The TURN server: turn:HOST[:PORT][?transport=udp|tcp], or turns:HOST[:PORT] with TLS over TCP
    #[arg(long, value_name = "URI", value_parser = later::<TurnUri>)]
    server: Later<TurnUri>,
    #[command(flatten)]
    user: User,
    #[command(flatten)]
    believe: BelieveArgs,
    /// Family of the relayed address, ipv4 or ipv6 [default: that of the peer]
    #[arg(long, value_name = "FAMILY", value_parser = family)]
    family: Option<AddressFamily>,
    /// Lifetime to ask for; the server decides [default: the server's]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    lifetime: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Turn {
    #[command(flatten)]
    allocation: Allocation,
    /// Local applications send to this address and are answered from it
    #[arg(long, value_name = "ADDR", value_parser = addr)]
    udp: SocketAddr,
    /// Their datagrams go to this address, from the relayed one
    #[arg(long, value_name = "ADDR", value_parser = addr)]
    peer: SocketAddr,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("way").required(true).args(["connect", "accept"]))]
pub(super) struct TurnTcp {
    #[command(flatten)]
    allocation: Allocation,
    /// Each connection to --tcp becomes one from the relayed address to this peer, one at a time
    #[arg(long, value_name = "PEER", value_parser = addr, requires = "tcp")]
    connect: Option<SocketAddr>,
    /// Where local applications connect
    #[arg(long, value_name = "ADDR", value_parser = addr, requires = "connect")]
    tcp: Option<SocketAddr>,
    /// Peers' connections to the relayed address come to --tcp-forward
    #[arg(long, requires_all = ["permit", "tcp_forward"])]
    accept: bool,
    /// Who may connect to the relayed address: at most 256 addresses
    #[arg(long, value_name = "IP", num_args = 1.., requires = "accept")]
    permit: Vec<IpAddr>,
    /// The service that peers' connections come to
    #[arg(long, value_name = "ADDR", value_parser = addr, requires = "accept")]
    tcp_forward: Option<SocketAddr>,
    /// Believe successes of Connect and ConnectionBind without integrity, as servers on pion and icey send them
    #[arg(long)]
    trust_unsealed_bind: bool,
}

impl User {
    /// The server with these credentials; `flag` names it.
    fn at(self, flag: &str, uri: Later<TurnUri>, passwords: &dyn Passwords) -> Result<TurnServer, String> {
        let server = TurnServer::new(uri.map_err(|error| format!("{flag}: {error}"))?);
        Ok(match self.credentials(passwords)? {
            Some(credentials) => server.credentials(credentials),
            None => server,
        })
    }

    fn credentials(self, passwords: &dyn Passwords) -> Result<Option<UserPassword>, String> {
        let Some(user) = self.user else { return Ok(None) };
        account(&user, self.password_file, self.password_env, PASSWORD_VARIABLE, passwords).map(Some)
    }
}

/// User name and password; the latter from the named file, the named environment variable, behind the user's last colon
/// or from `variable`.
pub(super) fn account(
    user: &Secret,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    variable: &str,
    passwords: &dyn Passwords,
) -> Result<UserPassword, String> {
    let user = user.expose();
    let password = match (password_file, password_env) {
        (Some(file), _) => passwords.in_file(&file).map_err(|why| format!("--password-file: {why}"))?,
        (None, Some(variable)) => {
            passwords.in_environment(&variable).map_err(|why| format!("--password-env: {why}"))?
        }
        (None, None) if user.contains(':') => {
            return user.parse().map_err(|error: ConfigError| format!("--user: {error}"));
        }
        (None, None) => passwords.in_environment(variable).map_err(|why| {
            let elsewhere = "--password-file, --password-env or --user NAME:PASSWORD";
            format!("--user needs a password: {why}; or give it by {elsewhere}")
        })?,
    };
    Ok(UserPassword::new(user, password))
}

impl Through {
    /// The server, if the session goes through one.
    pub(super) fn server(self, passwords: &dyn Passwords) -> Result<Option<TurnServer>, String> {
        let Some(uri) = self.turn else {
            return match (self.user.user, self.believe.is_given()) {
                (Some(_), _) => Err("--user goes with --turn".to_owned()),
                (None, true) => Err("--tls-ca and --tls-pin go with --turn turns:HOST".to_owned()),
                (None, false) => Ok(None),
            };
        };
        let mut server = self.user.at("--turn", uri, passwords)?;
        server.trust_unsealed_bind = self.trust_unsealed_bind;
        server.tls = self.believe.tls();
        Ok(Some(server))
    }

    /// Whom to believe where no TURN server is gone through.
    pub(super) fn believed_otherwise(&mut self) -> BelieveArgs {
        if self.is_given() { BelieveArgs::default() } else { std::mem::take(&mut self.believe) }
    }

    pub(super) fn is_given(&self) -> bool {
        self.turn.is_some()
    }
}

impl Allocation {
    fn config(
        self,
        name: &str,
        relayed: RelayedTransport,
        passwords: &dyn Passwords,
    ) -> Result<TurnConfig, String> {
        let mut config = TurnConfig::new(name, self.user.at("--server", self.server, passwords)?);
        config.server.tls = self.believe.tls();
        config.relayed = relayed;
        config.family = self.family;
        config.lifetime = self.lifetime;
        Ok(config)
    }
}

impl Turn {
    pub(super) fn plan(self, common: &Common, passwords: &dyn Passwords) -> Result<Plan, String> {
        let mut config = self.allocation.config("turn", RelayedTransport::Udp, passwords)?;
        config.udp_forward = vec![UdpForward { local_udp: self.udp, peer: self.peer }];
        let over = config.server.uri.transport_for(config.relayed).map_err(|error| error.to_string())?;
        if over == TurnTransport::Udp && common.has_congestion() {
            return Err("--congestion is for TCP: this server is spoken to over UDP".to_owned());
        }
        common.plan_turn(config)
    }
}

impl TurnTcp {
    pub(super) fn plan(self, common: &Common, passwords: &dyn Passwords) -> Result<Plan, String> {
        let mut config = self.allocation.config("turn-tcp", RelayedTransport::Tcp, passwords)?;
        config.server.trust_unsealed_bind = self.trust_unsealed_bind;
        let listen = self.tcp.zip(self.connect).map(|(local_tcp, peer)| TcpListen { local_tcp, peer });
        config.tcp_listen.extend(listen);
        config.permit = self.permit;
        config.tcp_forward = self.tcp_forward;
        common.plan_turn(config)
    }
}

/// A complaint about a [`TurnConfig`] in the words of the command line.
pub(super) fn in_flags(error: &ConfigError) -> String {
    let ConfigError::InvalidTurn { field, why, .. } = error else { return error.to_string() };
    let flag = match *field {
        "udp_forward" => "--peer".to_owned(),
        "tcp_listen" => "--connect".to_owned(),
        other => format!("--{}", other.replace('_', "-")),
    };
    format!("{flag} {}", why.replace("and family differ", "and --family differ"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::passwords::Kept;
    use actix_relay::config::{Remote, SessionConfig, TurnListen, TurnRemote};
    use clap::Parser;

    fn plan(line: &str) -> Result<Plan, String> {
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        assert!(!format!("{cli:?}").contains("hunter2"), "{cli:?}");
        cli.refuse_what_has_no_meaning()?;
        match cli.command {
            Command::Turn(turn) => turn.plan(&cli.common, &Kept),
            Command::TurnTcp(turn) => turn.plan(&cli.common, &Kept),
            Command::Listen(listen) => listen.plan(&cli.common, &Kept),
            Command::Connect(connect) => connect.plan(&cli.common, &Kept),
            other => panic!("{other:?}"),
        }
    }

    fn turn(line: &str) -> TurnConfig {
        let mut plan = plan(&format!("actix-relay {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!((plan.sessions.len(), plan.turns.len()), (0, 1));
        plan.turns.remove(0)
    }

    fn session(line: &str) -> SessionConfig {
        let mut plan = plan(&format!("actix-relay {line}")).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!((plan.sessions.len(), plan.turns.len()), (1, 0));
        plan.sessions.remove(0)
    }

    fn server(user: &str, password: &str) -> TurnServer {
        TurnServer::new("turn:h".parse().unwrap()).credentials(UserPassword::new(user, password))
    }

    #[test]
    fn a_udp_allocation_is_described_by_flags() {
        let config = turn(
            "turn --server turn:h?transport=tcp --user alice:hunter2 --udp 127.0.0.1:1 --peer 192.0.2.1:2 \
             --family ipv4 --lifetime 600 --max-queue-delay 20ms --bind 127.0.0.1 --fwmark 7 --congestion bbr",
        );
        let mut expected = TurnConfig::new("turn", server("alice", "hunter2"));
        expected.server.uri.transport = Some(TurnTransport::Tcp);
        expected.udp_forward =
            vec![UdpForward { local_udp: addr("127.0.0.1:1").unwrap(), peer: addr("192.0.2.1:2").unwrap() }];
        expected.family = Some(AddressFamily::Ipv4);
        expected.lifetime = Some(Duration::from_secs(600));
        expected.max_queue_delay = Duration::from_millis(20);
        expected.bind = Some("127.0.0.1".parse().unwrap());
        expected.fwmark = Some(7);
        expected.congestion = Some("bbr".to_owned());
        assert_eq!(config, expected);
    }

    #[test]
    fn a_tcp_port_is_forwarded_either_way() {
        let out = turn("turn-tcp --server turn:h --user a:b --connect 192.0.2.1:22 --tcp 127.0.0.1:2222");
        let mut expected = TurnConfig::tcp("turn-tcp", server("a", "b"));
        expected.tcp_listen = vec![TcpListen {
            local_tcp: addr("127.0.0.1:2222").unwrap(),
            peer: addr("192.0.2.1:22").unwrap(),
        }];
        assert_eq!(out, expected);
        let back = turn(
            "turn-tcp --server turn:h --user a:b --accept --permit 2001:db8::1 2001:db8::2 \
             --tcp-forward 127.0.0.1:22 --trust-unsealed-bind",
        );
        assert_eq!((back.permit.len(), back.tcp_forward), (2, Some(addr("127.0.0.1:22").unwrap())));
        assert_eq!((back.address_family(), back.server.trust_unsealed_bind), (AddressFamily::Ipv6, true));
    }

    #[test]
    fn a_session_goes_through_a_server() {
        let called = session("connect --turn turn:h --user a:b --tcp [2001:db8::1]:5 --udp 127.0.0.1:0");
        let remote = TurnRemote::new(server("a", "b"), addr("[2001:db8::1]:5").unwrap());
        assert_eq!(called.remote, Some(Remote::from(remote)));
        let line = "listen --turn turn:h --user a:b --permit 192.0.2.1 --udp-forward 127.0.0.1:1";
        let reached = session(&format!("{line} --bind 127.0.0.1"));
        let listen = TurnListen::new(server("a", "b"), vec!["192.0.2.1".parse().unwrap()]);
        assert_eq!((reached.turn_listen, reached.local_tcp), (Some(listen), vec![]));
        assert_eq!(session(&format!("{line} --tcp 127.0.0.1:1")).local_tcp.len(), 1);
    }

    #[test]
    fn who_is_believed_is_said_of_the_server_that_is_spoken_to_with_tls() {
        let ca = |server: &TurnServer| server.tls.ca.clone();
        let rest = "--user a:b --tls-ca ca.pem --udp 127.0.0.1:1";
        let client = turn(&format!("turn --server turns:h {rest} --peer 192.0.2.1:2")).server;
        assert_eq!((ca(&client), client.uri.port), (Some("ca.pem".into()), 5349));
        let through = session(&format!("connect --turn turns:h {rest} --tcp 192.0.2.1:5"));
        let Some(Remote::Turn(remote)) = through.remote else { panic!("{through:?}") };
        assert_eq!((ca(&remote.server), through.tls), (Some("ca.pem".into()), None));
        let direct = session("connect --tcp h:1 --udp 127.0.0.1:1 --tls --tls-ca ca.pem");
        assert_eq!(direct.tls.and_then(|tls| tls.ca), Some("ca.pem".into()));
        for (line, expected) in [
            (
                "turn --server turn:h --udp 127.0.0.1:1 --peer 192.0.2.1:2",
                "--server speaks TLS only where its URI begins with turns:",
            ),
            (
                "connect --tcp a:1 --udp 127.0.0.1:1",
                "--tls-ca, --tls-pin and --tls-client-cert go with --tls",
            ),
            (
                "listen --tcp 127.0.0.1:1 --udp 127.0.0.1:1",
                "--tls-ca and --tls-pin go with --turn turns:HOST",
            ),
        ] {
            assert_eq!(plan(&format!("actix-relay {line} --tls-ca ca.pem")).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_password_comes_from_where_the_flags_say() {
        let line = "turn --server turn:h --udp 127.0.0.1:1 --peer 192.0.2.1:2";
        for (user, expected) in [
            ("", None),
            ("--user 17:alice:hunter2", Some(("17:alice", "hunter2"))),
            ("--user 17:alice --password-file pw", Some(("17:alice", "of the file"))),
            ("--user 17:alice --password-env PW", Some(("17:alice", "of the environment"))),
        ] {
            let expected = match expected {
                Some((user, password)) => server(user, password),
                None => TurnServer::new("turn:h".parse().unwrap()),
            };
            assert_eq!(turn(&format!("{line} {user}")).server, expected, "{user}");
        }
        let error = plan(&format!("actix-relay {line} --user alice")).unwrap_err();
        assert!(
            error.starts_with("--user needs a password: ACTIX_RELAY_TURN_PASSWORD is not set"),
            "{error}"
        );
    }

    #[test]
    fn a_mistake_is_said_in_flags_and_without_a_password() {
        let udp = "--udp 127.0.0.1:1";
        let turn = format!("turn --server turn:h {udp} --peer 192.0.2.1:2");
        let tcp = "turn-tcp --server turn:h --user a:hunter2";
        let connect = format!("connect {udp} --turn turn:h --user a:hunter2");
        let listen = format!("listen {udp} --turn turn:h --user a:hunter2");
        for (line, expected) in [
            (format!("turn --server stun:h {udp} --peer 192.0.2.1:2"), "--server: 'stun:h' is not the URI"),
            (format!("turn --server turn:a:hunter2@h {udp} --peer 192.0.2.1:2"), "--server: '…@h' is not"),
            (format!("{turn} --user :hunter2"), "--user: expected NAME:PASSWORD: needs a user name"),
            (format!("{turn} --user a:"), "--user: expected NAME:PASSWORD: needs a password"),
            (format!("{turn} --user a --password-file x"), "--password-file: no such file"),
            (format!("{turn} --user a --password-env X"), "--password-env: X is not set"),
            (
                format!("{turn} --user a --password-env X --password-file x"),
                "error: the argument '--password-",
            ),
            (format!("{turn} --password-file pw"), "error: the following required"),
            (format!("{turn} --family ipv6"), "--peer and --family differ"),
            (format!("{turn} --family ipx"), "error: invalid value 'ipx'"),
            (format!("{turn} --lifetime 1500ms"), "--lifetime must be 1s to 1day"),
            (format!("{turn} --congestion bbr"), "--congestion is for TCP"),
            (format!("{turn} --app 127.0.0.1:1"), "--app goes with listen, connect and join"),
            (format!("turn --server turn:h {udp} --peer 0.0.0.0:1"), "--peer must name peers"),
            (tcp.to_owned(), "error: the following required arguments"),
            (format!("{tcp} --connect 192.0.2.1:1"), "error: the following required arguments"),
            (format!("{tcp} --accept --tcp-forward 127.0.0.1:1"), "error: the following required arguments"),
            (format!("{tcp} --accept --permit 0.0.0.0 --tcp-forward 127.0.0.1:1"), "--permit must name an"),
            (format!("{tcp} --accept --permit ::1 --tcp-forward 127.0.0.1:0"), "--tcp-forward must name"),
            (format!("{tcp} --connect 192.0.2.1:0 --tcp 127.0.0.1:1"), "--connect must name peers"),
            (format!("{tcp} --connect 192.0.2.1:1 --tcp 127.0.0.1:1 --accept"), "error: the argument"),
            (
                format!("{tcp} --connect 192.0.2.1:1 --tcp 127.0.0.1:1 --max-queue-delay 1s"),
                "--max-queue-delay is for datagrams",
            ),
            (
                "turn-tcp --server turn:h?transport=udp --connect 192.0.2.1:1 --tcp 127.0.0.1:1".into(),
                "--server must be spoken to over TCP",
            ),
            (format!("{connect} --tcp example.org:1"), "--tcp must be IP:PORT with --turn"),
            (format!("{connect} --tcp turn:a:hunter2@h"), "--tcp: '…@h' is not a host and port"),
            (format!("{connect} --tcp [::ffff:192.0.2.1]:1"), "--tcp must not have an IPv4 address"),
            (
                format!("{connect} --tcp 192.0.2.1:1 --max-sources 2"),
                "error: the argument '--turn <URI>' cannot",
            ),
            (format!("connect {udp} --tcp a:1 --user a:hunter2"), "--user goes with --turn"),
            (format!("connect {udp} --tcp 192.0.2.1:1 --turn turn:h?transport=udp"), "--turn must be spoken"),
            (listen.clone(), "--permit must name 1 to 256 peers"),
            (format!("{listen} --permit ::1 --allow ::/0"), "error: the following required arguments"),
            (format!("{listen} --permit ::1 127.0.0.1"), "--permit must name peers of one family"),
            (format!("listen {udp} --tcp 127.0.0.1:1 --permit ::1"), "error: the following required"),
            (
                format!("listen {udp} --tcp 127.0.0.1:1 --trust-unsealed-bind"),
                "error: the following required",
            ),
        ] {
            let error =
                plan(&format!("actix-relay {line}")).map(|plan| panic!("{line}: {plan:?}")).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
            assert!(!error.contains("hunter2"), "{line}: {error}");
        }
    }
}
