use super::*;

fn app() -> SessionConfig {
    SessionConfig::new("a").local_udp("127.0.0.1:0".parse().unwrap())
}

#[test]
fn a_host_and_port_is_read_and_written_back() {
    for text in ["example.org:443", "192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%eth0]:7"] {
        assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
    }
}

#[test]
fn a_bad_host_and_port_is_refused() {
    for text in ["", "host", "host:", ":443", "host:0", "host:65536", "::1:80", "[::1:80", "[x]:80", "a b:1"]
    {
        assert!(text.parse::<HostPort>().is_err(), "{text}");
    }
}

#[test]
fn exactly_one_local_side_is_needed() {
    assert!(SessionConfig::new("a").validate().is_err());
    assert!(app().validate().is_ok());
    assert!(app().udp_forward("127.0.0.1:9".parse().unwrap()).validate().is_err());
}

#[test]
fn limits_name_the_field() {
    let mut config = app();
    config.max_peers = Some(2);
    assert!(config.validate().unwrap_err().to_string().contains("max_peers"));
    config.max_peers = None;
    config.queue_bytes = 1;
    assert!(config.validate().unwrap_err().to_string().contains("queue_bytes"));
    config.queue_bytes = 1 << 20;
    config.connect_hold = Duration::ZERO;
    assert!(config.validate().unwrap_err().to_string().contains("connect_hold"));
}

#[test]
fn one_peer_by_default_with_an_application_many_with_a_service() {
    assert_eq!(app().peer_limit(), 1);
    let service = SessionConfig::new("s").udp_forward("127.0.0.1:9".parse().unwrap());
    assert_eq!(service.peer_limit(), DEFAULT_MAX_PEERS);
}

#[test]
fn an_application_is_of_its_socket_s_family() {
    let mut config = SessionConfig::new("a").local_udp("[::]:0".parse().unwrap());
    config.app = Some("127.0.0.1:9".parse().unwrap());
    assert!(config.validate().is_ok());
    assert_eq!(config.application(), Some("[::ffff:127.0.0.1]:9".parse().unwrap()));
    config.local_udp = Some("[::1]:0".parse().unwrap());
    assert!(config.validate().unwrap_err().to_string().contains("app"));
}

#[test]
fn a_remote_that_can_never_be_reached_is_refused() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = SessionConfig::connect("a", nowhere).local_udp("127.0.0.1:0".parse().unwrap());
    assert!(config.validate().unwrap_err().to_string().contains("remote"));
    let mut config = SessionConfig::connect("a", SocketAddr::from(([127, 0, 0, 1], 9)));
    config.local_udp = Some("127.0.0.1:0".parse().unwrap());
    config.bind = Some("::1".parse().unwrap());
    assert!(config.validate().unwrap_err().to_string().contains("bind"));
}

#[test]
fn a_supervisor_s_values_have_limits() {
    let mut config = SupervisorConfig::default();
    assert!(config.validate().is_ok());
    config.panic_window = Duration::MAX;
    assert!(config.validate().is_ok());
    config.backoff_min = Duration::ZERO;
    assert!(config.validate().unwrap_err().to_string().contains("backoff_min"));
}
