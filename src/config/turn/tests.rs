use super::super::TurnUri;
use super::*;
use crate::credentials::UserPassword;

fn server() -> TurnServer {
    let uri: TurnUri = "turn:192.0.2.1".parse().unwrap();
    TurnServer::new(uri).credentials(UserPassword::new("alice", "hunter2"))
}

fn udp() -> TurnConfig {
    let mut config = TurnConfig::new("a", server());
    config.udp_forward = vec![UdpForward { local_udp: addr("127.0.0.1:0"), peer: addr("192.0.2.9:5") }];
    config
}

fn tcp() -> TurnConfig {
    let mut config = TurnConfig::tcp("a", server());
    config.tcp_listen = vec![TcpListen { local_tcp: addr("127.0.0.1:0"), peer: addr("192.0.2.9:5") }];
    config.tcp_forward = Some(addr("127.0.0.1:22"));
    config
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn the_defaults_are_valid() {
    for config in [TurnConfig::new("a", server()), TurnConfig::tcp("a", server()), udp(), tcp()] {
        assert_eq!(config.validate(), Ok(()));
    }
}

/// How to spoil a configuration, and what is then said.
type Spoilt = (fn() -> TurnConfig, fn(&mut TurnConfig), &'static str);

#[test]
fn what_is_wrong_is_said_with_its_field() {
    let spoilt: &[Spoilt] = &[
        (udp, |c| c.name = "".into(), "name must have 1 to 64"),
        (udp, |c| c.name = "supervisor".into(), "name must not be"),
        (udp, |c| c.server.uri.port = 0, "server must have a host"),
        (
            tcp,
            |c| c.server.uri.transport = Some(super::super::TurnTransport::Udp),
            "server must be spoken to over TCP",
        ),
        (
            udp,
            |c| c.server.credentials = Some(UserPassword::new("alice", "").into()),
            "server needs a password",
        ),
        (udp, |c| c.server.credentials = Some(UserPassword::new("", "p").into()), "server needs a user name"),
        (udp, |c| c.lifetime = Some(Duration::ZERO), "lifetime must be"),
        (udp, |c| c.lifetime = Some(Duration::from_millis(1500)), "lifetime must be"),
        (udp, |c| c.lifetime = Some(Duration::from_secs(86_401)), "lifetime must be"),
        (udp, |c| c.permit = vec!["192.0.2.2".parse().unwrap(); 257], "permit may hold at most 256"),
        (udp, |c| c.permit = vec!["0.0.0.0".parse().unwrap()], "permit must name an address"),
        (udp, |c| c.permit = vec!["::ffff:192.0.2.2".parse().unwrap()], "permit must not have an IPv4"),
        (udp, |c| c.permit = vec!["2001:db8::1".parse().unwrap()], "permit has a peer of another family"),
        (udp, |c| c.family = Some(AddressFamily::Ipv6), "udp_forward and family differ"),
        (udp, |c| c.relayed = RelayedTransport::Tcp, "udp_forward needs a UDP allocation"),
        (udp, |c| c.udp_forward[0].peer.set_port(0), "udp_forward must name peers"),
        (udp, |c| c.udp_forward[0].peer = addr("[fe80::1%1]:1"), "udp_forward must name peers"),
        (udp, |c| c.udp_forward.push(c.udp_forward[0]), "udp_forward names a peer twice"),
        (udp, |c| c.udp_forward = many(65), "udp_forward may hold at most 64"),
        (udp, |c| c.tcp_forward = Some(addr("127.0.0.1:1")), "tcp_forward needs a TCP allocation"),
        (tcp, |c| c.relayed = RelayedTransport::Udp, "tcp_listen needs a TCP allocation"),
        (tcp, |c| c.tcp_listen = vec![c.tcp_listen[0]; 17], "tcp_listen may hold at most 16"),
        (tcp, |c| c.tcp_listen.push(c.tcp_listen[0]), "tcp_listen names a peer twice"),
        (tcp, |c| c.tcp_forward = Some(addr("127.0.0.1:0")), "tcp_forward must name"),
        (udp, |c| c.bind = Some("::1".parse().unwrap()), "bind and the TURN server"),
        (udp, |c| c.congestion = Some(String::new()), "congestion must have"),
        (udp, |c| c.queue_bytes = 1, "queue_bytes must be"),
        (udp, |c| c.max_queue_delay = Duration::ZERO, "max_queue_delay must be"),
        (udp, |c| c.connect_hold = Duration::ZERO, "connect_hold must be"),
        (udp, |c| c.connect_timeout = Duration::from_secs(86_401), "connect_timeout must be"),
    ];
    for (make, spoil, expected) in spoilt {
        let mut config = make();
        spoil(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.starts_with(&format!("turn '{}': ", config.name)), "{error}");
    }
}

fn many(count: u16) -> Vec<UdpForward> {
    let forward = |port| UdpForward { local_udp: addr("127.0.0.1:0"), peer: ([192, 0, 2, 9], port).into() };
    (1..=count).map(forward).collect()
}

#[test]
fn a_local_port_is_one_peer_s_unless_the_system_chooses() {
    let mut config = udp();
    config.udp_forward = many(64);
    assert_eq!(config.validate(), Ok(()));
    config.udp_forward[0].local_udp.set_port(1);
    config.udp_forward[1].local_udp.set_port(1);
    assert!(config.validate().unwrap_err().to_string().contains("udp_forward names a local address twice"));
}

#[test]
fn the_family_is_that_of_the_peers() {
    let mut config = TurnConfig::new("a", server());
    assert_eq!(config.address_family(), AddressFamily::Ipv4);
    config.permit = vec!["2001:db8::1".parse().unwrap()];
    assert_eq!(config.address_family(), AddressFamily::Ipv6);
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn a_table_is_read_flat_and_written_without_the_password() {
    let text = r#"{ "name": "a", "server": "turn:example.org?transport=tcp", "user": "alice",
        "password": "hunter2", "lifetime": "10m", "max_queue_delay": "20ms", "permit": ["192.0.2.2"],
        "udp_forward": [{ "local_udp": "127.0.0.1:5000", "peer": "192.0.2.9:5" }] }"#;
    let config: TurnConfig = serde_json::from_str(text).unwrap();
    let mut expected = TurnConfig::new("a", server());
    expected.server.uri = "turn:example.org?transport=tcp".parse().unwrap();
    expected.lifetime = Some(Duration::from_secs(600));
    expected.max_queue_delay = Duration::from_millis(20);
    expected.permit = vec!["192.0.2.2".parse().unwrap()];
    expected.udp_forward = vec![UdpForward { local_udp: addr("127.0.0.1:5000"), peer: addr("192.0.2.9:5") }];
    assert_eq!(config, expected);
    let written = serde_json::to_string(&config).unwrap();
    assert!(
        written.contains(r#""server":"turn:example.org:3478?transport=tcp","user":"alice""#),
        "{written}"
    );
    assert!(!format!("{written} {config:?}").contains("hunter2"), "{written}");
}

#[test]
fn a_server_with_tls_may_be_believed_by_other_means_than_the_system_s() {
    let text = r#"{ "name": "a", "server": "turns:example.org", "tls": { "ca": "ca.pem" } }"#;
    let config: TurnConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.server.tls.ca, Some("ca.pem".into()));
    assert_eq!(config.validate(), Ok(()));
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<TurnConfig>(&written).unwrap(), config);
    let plain: TurnConfig = serde_json::from_str(&text.replace("turns:", "turn:")).unwrap();
    let error = plain.validate().unwrap_err().to_string();
    assert!(error.contains("server speaks TLS only where its URI begins with turns:"), "{error}");
}

#[test]
fn a_table_with_a_mistake_is_refused() {
    for (rest, expected) in [
        (r#""user": "alice""#, "password is missing"),
        (r#""password": "hunter2""#, "user is missing"),
        (r#""password": 4711"#, "a password must be a text"),
        (r#""passwort": "hunter2""#, "unknown field"),
        (r#""relayed": "sctp""#, "unknown variant"),
        (
            r#""udp_forward": [{ "local_udp": "127.0.0.1:1", "peer": "192.0.2.9:5", "x": 1 }]"#,
            "unknown field",
        ),
    ] {
        let text = format!(r#"{{ "name": "a", "server": "turn:h", {rest} }}"#);
        let error = serde_json::from_str::<TurnConfig>(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{rest}: {error}");
        assert!(!error.contains("hunter2") && !error.contains("4711"), "{error}");
    }
}
