//! The command `join`: a session that meets its peer at a relay.

use std::path::PathBuf;
use std::time::Duration;

use actix_relay::config::{HostPort, RelayRemote, SessionConfig};
use actix_relay::credentials::Secret;
use clap::Args;

use super::args::{Common, Udp};
use super::plan::Plan;
use super::tls_args::{BelieveArgs, ClientTlsArgs};
use super::turn_args::account;
use super::values::{Later, delay, later, secret};
use crate::passwords::Passwords;

/// Asked where `--user` names no password and no other place for it.
const PASSWORD_VARIABLE: &str = "ACTIX_RELAY_PASSWORD";

pub(super) const JOIN_EXAMPLES: &str = "\
Examples:
  A UDP service on this machine, which can only call out:
    actix-relay join --relay relay.example.org:443 --tls --user alice --password-file pw \\
        --pair vpn --side office --udp-forward 127.0.0.1:51820
  Its far side: applications here send to 127.0.0.1:51820 instead:
    actix-relay join --relay relay.example.org:443 --tls --user alice --password-file pw \\
        --pair vpn --side laptop --udp 127.0.0.1:51820
A side that comes with the name of one that is there takes its place.";

#[derive(Debug, Args)]
pub(super) struct Join {
    /// The relay, as HOST:PORT; a name is resolved again for each attempt
    #[arg(long, value_name = "HOST:PORT", value_parser = later::<HostPort>)]
    relay: Later<HostPort>,
    /// User name and password, divided at the last colon. Anybody on this machine can read a command line: give
    /// the name alone, and the password by --password-file, --password-env or in the environment variable
    /// ACTIX_RELAY_PASSWORD
    #[arg(long, help_heading = "Who we are", value_name = "NAME[:PASSWORD]", value_parser = secret)]
    user: Secret,
    /// The password is this file's one line; --user is then the name, colons and all
    #[arg(long, help_heading = "Who we are", value_name = "FILE", conflicts_with = "password_env")]
    password_file: Option<PathBuf>,
    /// The password is the value of this environment variable; --user is then the name, colons and all
    #[arg(long, help_heading = "Who we are", value_name = "VAR")]
    password_env: Option<String>,
    /// What both sides have in common, and no others: any text. The relay is told a hash of it
    #[arg(long, help_heading = "Who we are", value_name = "ID", value_parser = secret)]
    pair: Secret,
    /// Names this side, differently from the other
    #[arg(long, help_heading = "Who we are", value_name = "NAME")]
    side: String,
    #[command(flatten)]
    udp: Udp,
    /// How many applications may send at once, each over a channel of its own, here and at the far side [default: 64]
    #[arg(long, value_name = "N")]
    max_sources: Option<usize>,
    /// Forget an application that has been silent for this long [default: 300s]
    #[arg(long, value_name = "DURATION", value_parser = delay, conflicts_with = "udp_forward")]
    source_idle: Option<Duration>,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[command(flatten)]
    believe: BelieveArgs,
}

impl Join {
    pub(super) fn plan(self, common: &Common, passwords: &dyn Passwords) -> Result<Plan, String> {
        let relay = self.relay.map_err(|error| format!("--relay: {error}"))?;
        let account =
            account(&self.user, self.password_file, self.password_env, PASSWORD_VARIABLE, passwords)?;
        let mut remote = RelayRemote::new(relay, account, self.pair, self.side);
        remote.tls = self.tls.tls(self.believe)?;
        let mut session = SessionConfig::connect("join", remote);
        session.max_sources = self.max_sources.unwrap_or(session.max_sources);
        session.source_idle = self.source_idle.unwrap_or(session.source_idle);
        common.plan(session, &self.udp)
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use crate::passwords::Kept;
    use actix_relay::config::Remote;
    use actix_relay::credentials::UserPassword;
    use clap::Parser;

    fn session(line: &str) -> Result<SessionConfig, String> {
        let line = format!("actix-relay join --relay r.example:443 --pair p --side a {line}");
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        cli.refuse_what_has_no_meaning()?;
        let Command::Join(join) = cli.command else { panic!("{line}") };
        Ok(join.plan(&cli.common, &Kept)?.sessions.remove(0))
    }

    fn remote(line: &str) -> RelayRemote {
        match session(line).unwrap_or_else(|error| panic!("{line}: {error}")).remote {
            Some(Remote::Relay(remote)) => *remote,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_session_at_a_relay_is_described_by_flags() {
        let expected = RelayRemote::new(
            "r.example:443".parse().unwrap(),
            UserPassword::new("alice", "hunter2"),
            "p",
            "a",
        );
        assert_eq!(remote("--user alice:hunter2 --udp 127.0.0.1:1"), expected);
        for (password, value) in
            [("--password-file pw", "of the file"), ("--password-env PW", "of the environment")]
        {
            let given = remote(&format!("--user 17:alice {password} --udp 127.0.0.1:1"));
            assert_eq!(given.credentials, UserPassword::new("17:alice", value));
        }
        let over_tls = remote("--user a:b --tls --tls-ca ca.pem --udp-forward 127.0.0.1:1");
        assert_eq!(over_tls.tls.and_then(|tls| tls.ca), Some("ca.pem".into()));
        let session =
            session("--user a:b --udp 127.0.0.1:1 --max-sources 3 --source-idle 9s --app 127.0.0.1:2");
        let session = session.unwrap();
        assert_eq!((session.max_sources, session.source_idle), (3, Duration::from_secs(9)));
        assert!(session.app.is_some());
    }

    #[test]
    fn what_is_wrong_is_said_without_a_secret() {
        for (line, expected) in [
            ("--user alice --udp 127.0.0.1:1", "--user needs a password: ACTIX_RELAY_PASSWORD is not set"),
            ("--user alice: --udp 127.0.0.1:1", "--user: expected NAME:PASSWORD"),
            ("--user a:hunter2", "the following required arguments"),
            (
                "--user a:hunter2 --udp 127.0.0.1:1 --tls-ca x",
                "--tls-ca, --tls-pin and --tls-client-cert go with",
            ),
            ("--user a:hunter2 --udp 127.0.0.1:1 --relay x", "cannot be used multiple times"),
            ("--user a:hunter2 --udp-forward 127.0.0.1:0", "--udp-forward must name"),
        ] {
            let error = session(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
            assert!(!error.contains("hunter2"), "{line}: {error}");
        }
        let line = "actix-relay join --relay a:hunter2@r --user a:b --pair p --side a --udp 127.0.0.1:1";
        let Command::Join(join) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!() };
        let error = join.plan(&Common::default(), &Kept).unwrap_err();
        assert!(error.starts_with("--relay: ") && !error.contains("hunter2"), "{error}");
        let line = "actix-relay join --relay r:1 --user a:b --pair p --udp 127.0.0.1:1 --side";
        let Command::Join(join) = Cli::try_parse_from(line.split(' ').chain([""])).unwrap().command else {
            panic!()
        };
        let error = join.plan(&Common::default(), &Kept).unwrap_err();
        assert_eq!(error, "--side must have 1 to 64 bytes, none of them a control character");
    }
}
