use super::*;
use crate::passwords::Kept;

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn session(line: &str) -> Result<SessionConfig, String> {
    let cli = parse(line);
    cli.refuse_what_has_no_meaning()?;
    let plan = match cli.command {
        Command::Listen(listen) => listen.plan(&cli.common, &Kept),
        Command::Connect(connect) => connect.plan(&cli.common, &Kept),
        other => panic!("{other:?}"),
    };
    Ok(plan?.sessions.remove(0))
}

#[test]
fn the_definition_is_sound() {
    <Cli as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn common_flags_mean_the_same_before_and_after_the_subcommand() {
    let flags = "--max-queue-delay 20ms --bind 127.0.0.1 --fwmark 0x10 --congestion bbr --app 127.0.0.1:7";
    let rest = "connect --tcp example.org:1 --udp 127.0.0.1:0";
    let before = session(&format!("actix-relay {flags} {rest}")).unwrap();
    let after = session(&format!("actix-relay {rest} {flags}")).unwrap();
    assert_eq!(before, after);
    assert_eq!(before.max_queue_delay, Duration::from_millis(20));
    assert_eq!(before.fwmark, Some(16));
    assert_eq!(before.app, Some("127.0.0.1:7".parse().unwrap()));
}

#[test]
fn several_addresses_and_networks_are_taken() {
    let line = "actix-relay listen --tcp 127.0.0.1:1 [::1]:2 --allow 10.0.0.0/8 192.0.2.7 \
                --udp-forward 127.0.0.1:53 --max-peers 3";
    let session = session(line).unwrap();
    assert_eq!(session.local_tcp.len(), 2);
    assert_eq!(session.allow, ["10.0.0.0/8".parse().unwrap(), "192.0.2.7/32".parse().unwrap()]);
    assert_eq!(session.max_peers, Some(3));
}

#[test]
fn a_bad_value_is_named_by_its_flag() {
    for (line, expected) in [
        ("listen --tcp 127.0.0.1:1 --udp 127.0.0.1:0 --max-peers 2", "--max-peers is 1 with --udp: "),
        ("connect --tcp a:1 --udp-forward 127.0.0.1:0", "--udp-forward must name"),
        ("connect --tcp a:1 --udp-forward 127.0.0.1:1 --app 127.0.0.1:2", "--app goes with --udp: "),
        ("listen --tcp 127.0.0.1:1 --udp 127.0.0.1:0 --bind 127.0.0.1", "--bind is for outgoing"),
        ("-v connect --tcp a:1 --udp 127.0.0.1:0 -q", "--quiet and --verbose"),
    ] {
        let error = session(&format!("actix-relay {line}")).unwrap_err();
        assert!(error.starts_with(expected), "{line}: {error}");
    }
}

#[test]
fn a_stray_password_is_not_repeated() {
    for (line, expected) in [
        ("turn --user a hunter2 --server turn:h", "unexpected argument '…' found"),
        ("turn a:hunter2", "unexpected argument '…' found"),
        ("turn --password hunter2", "unexpected argument '--password' found"),
        ("turn --pw=hunter2", "unexpected argument '--pw' found"),
        ("turn --peer a:hunter2@h", "invalid value '…' for '--peer <ADDR>': expected IP:PORT"),
        ("listen --tcp turn:a:hunter2@h", "invalid value '…' for '--tcp <ADDR>...'"),
        ("listen --tcp nowhere", "invalid value 'nowhere' for '--tcp <ADDR>...'"),
        ("run a.toml b.toml", "unexpected argument 'b.toml' found"),
    ] {
        let error = Cli::try_parse_from(format!("actix-relay {line}").split(' ')).unwrap_err();
        let message = complaint(&error, line.contains("--user"));
        assert!(message.starts_with(expected), "{line}: {message}");
        assert!(!message.contains("hunter2"), "{line}: {message}");
    }
}

#[test]
fn a_file_is_not_overruled_silently() {
    for flag in ["--bind ::1", "--fwmark 1", "--congestion bbr", "--app 127.0.0.1:1", "--max-queue-delay 1s"]
    {
        for command in ["run", "check"] {
            let error = parse(&format!("actix-relay {flag} {command} a.toml"))
                .refuse_what_has_no_meaning()
                .unwrap_err();
            assert!(error.starts_with(flag.split(' ').next().unwrap()), "{error}");
        }
    }
    let allowed = parse("actix-relay run a.toml --json -v --stats 5 --workers 1");
    assert_eq!(allowed.refuse_what_has_no_meaning(), Ok(()));
}

#[test]
fn one_udp_side_is_needed_and_only_one() {
    for rest in ["", " --udp 127.0.0.1:1 --udp-forward 127.0.0.1:2"] {
        for line in ["listen --tcp 127.0.0.1:1", "connect --tcp a:1"] {
            assert!(Cli::try_parse_from(format!("actix-relay {line}{rest}").split(' ')).is_err());
        }
    }
}
