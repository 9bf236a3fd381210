//! The command `relay`, and where it finds who may join.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix_relay::config::{ConfigError, RelayConfig};
use actix_relay::credentials::{Secret, UserPassword};
use clap::{ArgGroup, Args};
use ipnet::IpNet;

use super::args::Common;
use super::plan::Plan;
use super::tls_args::ServerTlsArgs;
use super::values::{addr, allowed, seconds, secret};
use crate::passwords::Passwords;

pub(super) const RELAY_EXAMPLES: &str = "\
Examples:
  actix-relay relay --tcp 0.0.0.0:443 --realm example.org --users /etc/relay-users \
      --tls-cert cert.pem --tls-key key.pem
  RELAY_USERS='alice:…' actix-relay relay --tcp '[::]:443' --realm example.org --users-env RELAY_USERS
A FILE of users has a line NAME:PASSWORD for each; empty lines and those that begin with # are passed over. Passwords
should be random, of 128 bits: head -c 16 /dev/urandom | base64. Whoever has the shared key makes short-lived
credentials for anybody: user name EXPIRY:NAME (EXPIRY in seconds since 1970), and as password the base64 of
HMAC-SHA1(key, user name).";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("accounts").required(true).multiple(true)
    .args(["user", "users", "users_env", "shared_key_file", "shared_key_env"]))]
pub(super) struct RelayArgs {
    /// Where sides connect to, as IP:PORT; up to 16 addresses
    #[arg(long, value_name = "ADDR", num_args = 1.., required = true, value_parser = addr)]
    tcp: Vec<SocketAddr>,
    /// Names this relay to its users: part of every key. Another one later makes every password another
    #[arg(long, value_name = "REALM")]
    realm: String,
    /// Who may join; may be given several times. Anybody on this machine can read a command line: better use --users
    #[arg(long, help_heading = "Who may join", value_name = "NAME:PASSWORD", value_parser = secret)]
    user: Vec<Secret>,
    /// A file with a line NAME:PASSWORD for each user
    #[arg(long, help_heading = "Who may join", value_name = "FILE")]
    users: Option<PathBuf>,
    /// An environment variable with such lines
    #[arg(long, help_heading = "Who may join", value_name = "VAR")]
    users_env: Option<String>,
    /// A file with one line: the key of short-lived credentials
    #[arg(long, help_heading = "Who may join", value_name = "FILE", conflicts_with = "shared_key_env")]
    shared_key_file: Option<PathBuf>,
    /// An environment variable with that key
    #[arg(long, help_heading = "Who may join", value_name = "VAR")]
    shared_key_env: Option<String>,
    /// The two sides of a pair may be different users
    #[arg(long, help_heading = "Who may join")]
    pairs_across_users: bool,
    /// Proxies in front of the relay: each connection from there must begin with a PROXY header that says who calls
    #[arg(long, value_name = "CIDR", num_args = 1.., value_parser = allowed)]
    proxy_protocol: Vec<IpNet>,
    #[command(flatten)]
    tls: ServerTlsArgs,
    /// Connections that have not joined, in all; past it the oldest of the busiest address goes [default: 4096]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    max_unjoined: Option<usize>,
    /// Connections that have not joined, from one IPv4 address or IPv6 /64 [default: 64]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    max_unjoined_per_address: Option<usize>,
    /// Sides of one user at once [default: 1024]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    max_sessions_per_user: Option<usize>,
    /// Pairs at once, those with one side included [default: 65536]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    max_pairs: Option<usize>,
    /// How long a side may ask to wait for its peer; it may ask again [default: 1h]
    #[arg(long, help_heading = "Limits", value_name = "SECS", value_parser = seconds)]
    max_lifetime: Option<Duration>,
    /// Bytes a second that one pair may send, both sides together, at least 65536 [default: no limit]
    #[arg(long, help_heading = "Limits", value_name = "BYTES")]
    max_rate: Option<u64>,
    /// The longest datagram that is forwarded, in bytes [default: 65527]
    #[arg(long, help_heading = "Limits", value_name = "BYTES")]
    max_datagram: Option<usize>,
}

impl RelayArgs {
    pub(super) fn plan(self, common: &Common, passwords: &dyn Passwords) -> Result<Plan, String> {
        let first = self.tcp.first().copied().ok_or("--tcp must name an address")?;
        let mut config = RelayConfig::new("relay", first, self.realm);
        config.local_tcp = self.tcp;
        config.users = users(self.user.iter().map(Secret::expose)).map_err(|why| format!("--user: {why}"))?;
        if let Some(file) = &self.users {
            let more = users_in_file(passwords, file).map_err(|why| format!("--users: {why}"))?;
            config.users.extend(more);
        }
        if let Some(variable) = &self.users_env {
            let more =
                users_in_environment(passwords, variable).map_err(|why| format!("--users-env: {why}"))?;
            config.users.extend(more);
        }
        config.shared_key = match (&self.shared_key_file, &self.shared_key_env) {
            (Some(file), _) => {
                Some(passwords.in_file(file).map_err(|why| format!("--shared-key-file: {why}"))?)
            }
            (None, Some(variable)) => {
                Some(passwords.in_environment(variable).map_err(|why| format!("--shared-key-env: {why}"))?)
            }
            (None, None) => None,
        };
        config.tls = self.tls.tls()?;
        config.pairs_across_users = self.pairs_across_users;
        config.proxy_protocol = self.proxy_protocol;
        config.max_unjoined = self.max_unjoined.unwrap_or(config.max_unjoined);
        let per_address = self.max_unjoined_per_address;
        config.max_unjoined_per_address = per_address.unwrap_or(config.max_unjoined_per_address);
        config.max_sessions_per_user = self.max_sessions_per_user.unwrap_or(config.max_sessions_per_user);
        config.max_pairs = self.max_pairs.unwrap_or(config.max_pairs);
        config.max_lifetime = self.max_lifetime.unwrap_or(config.max_lifetime);
        config.max_rate = self.max_rate;
        config.max_datagram = self.max_datagram.unwrap_or(config.max_datagram);
        let accounts_in_file = self.users.is_some() || self.shared_key_file.is_some();
        Ok(Plan { accounts_in_file, ..common.plan_relay(config)? })
    }
}

/// The users of these lines; what is wrong is said without repeating any of it.
fn users<'t>(lines: impl Iterator<Item = &'t str>) -> Result<Vec<UserPassword>, String> {
    let is_user = |line: &&str| !line.is_empty() && !line.starts_with('#');
    lines
        .filter(is_user)
        .enumerate()
        .map(|(index, line)| match line.split_once(':') {
            // No name has a colon here, but a password may.
            Some((user, password)) => Ok(UserPassword::new(user, password)),
            None => Err(format!("user {} has no colon: expected NAME:PASSWORD", index + 1)),
        })
        .collect()
}

/// The users that a file names, a line each.
pub(super) fn users_in_file(passwords: &dyn Passwords, file: &Path) -> Result<Vec<UserPassword>, String> {
    users(passwords.lines_in_file(file)?.expose().lines())
}

/// The users that an environment variable names, a line each.
pub(super) fn users_in_environment(
    passwords: &dyn Passwords,
    variable: &str,
) -> Result<Vec<UserPassword>, String> {
    users(passwords.lines_in_environment(variable)?.expose().lines())
}

/// A complaint about a [`RelayConfig`] in the words of the command line.
pub(super) fn in_flags(error: &ConfigError) -> String {
    let ConfigError::InvalidRelay { field, why, .. } = error else { return error.to_string() };
    let flag = match *field {
        "local_tcp" => "--tcp".to_owned(),
        other => format!("--{}", other.replace('_', "-")),
    };
    format!("{flag} {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::passwords::Kept;
    use actix_relay::config::ServerTls;
    use clap::Parser;

    fn plan(line: &str) -> Result<RelayConfig, String> {
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        assert!(!format!("{cli:?}").contains("hunter2"), "{cli:?}");
        cli.refuse_what_has_no_meaning()?;
        let Command::Relay(relay) = cli.command else { panic!("{:?}", cli.command) };
        relay.plan(&cli.common, &Kept).map(|mut plan| plan.relays.remove(0))
    }

    fn relay(rest: &str) -> Result<RelayConfig, String> {
        plan(&format!("actix-relay relay --tcp 127.0.0.1:0 --realm r {rest}"))
    }

    #[test]
    fn a_relay_is_described_by_flags() {
        let config = relay(
            "--user alice:hunter2 --user bob:with:colon --pairs-across-users --max-unjoined 10 \
             --max-unjoined-per-address 2 --max-sessions-per-user 3 --max-pairs 4 --max-lifetime 60 \
             --max-datagram 1500 --max-rate 1000000 --max-queue-delay 20ms --congestion bbr --fwmark 7 \
             --proxy-protocol 192.0.2.1 2001:db8::/32",
        )
        .unwrap();
        let mut expected = RelayConfig::new("relay", addr("127.0.0.1:0").unwrap(), "r")
            .user(UserPassword::new("alice", "hunter2"))
            .user(UserPassword::new("bob", "with:colon"));
        expected.pairs_across_users = true;
        expected.proxy_protocol = vec!["192.0.2.1/32".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        (expected.max_unjoined, expected.max_unjoined_per_address) = (10, 2);
        (expected.max_sessions_per_user, expected.max_pairs, expected.max_datagram) = (3, 4, 1500);
        expected.max_rate = Some(1_000_000);
        expected.max_lifetime = Duration::from_secs(60);
        expected.max_queue_delay = Duration::from_millis(20);
        (expected.congestion, expected.fwmark) = (Some("bbr".to_owned()), Some(7));
        assert_eq!(config, expected);
    }

    #[test]
    fn tls_is_as_with_listen() {
        let config = relay("--users users --tls-cert c --tls-key k").unwrap();
        assert_eq!(config.tls, Some(ServerTls::files("c", "k")));
        assert!(relay("--users users --tls-cert c").unwrap_err().contains("--tls-key"));
    }

    #[test]
    fn users_and_the_key_come_from_where_the_flags_say() {
        let two = [UserPassword::new("alice", "of the lines"), UserPassword::new("bob", "too")];
        assert_eq!(relay("--users users").unwrap().users, two);
        assert_eq!(relay("--users-env USERS").unwrap().users, two);
        assert_eq!(relay("--shared-key-file pw").unwrap().shared_key, Some("of the file".into()));
        assert_eq!(relay("--shared-key-env PW").unwrap().shared_key, Some("of the environment".into()));
    }

    #[test]
    fn a_mistake_is_said_in_flags_and_without_a_password() {
        for (rest, expected) in [
            ("", "the following required arguments were not provided"),
            ("--user hunter2", "--user: user 1 has no colon"),
            ("--user a:hunter2 --user a:hunter2", "--users must not name a user twice"),
            ("--users nowhere", "--users: no such file"),
            ("--shared-key-env NOWHERE", "--shared-key-env: NOWHERE is not set"),
            ("--user a:hunter2 --proxy-protocol here", "expected a network such as"),
            ("--user a:hunter2 --max-pairs 0", "--max-pairs must be"),
            ("--user a:hunter2 --bind 127.0.0.1", "--bind is for outgoing connections"),
            ("--user a:hunter2 --app 127.0.0.1:1", "--app goes with listen, connect and join"),
        ] {
            let error = relay(rest).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{rest}: {error}");
        }
    }
}
