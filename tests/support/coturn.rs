//! Debian's coturn on loopback: each instance with ports, a folder and a log of its own. It knows nothing of the
//! other helpers and of tokio, so that `benches/peers` can use it too.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs, reason = "each user takes its part")]

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Whom a server knows unless it is told otherwise.
pub const USER: &str = "user";
pub const PASSWORD: &str = "password";
pub const REALM: &str = "example.org";

/// A server takes about 50 ms; a machine that is busy compiling may take longer.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long one question of whether it is ready may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(20);

/// Every server has a block of ports of its own, below those that the system hands out.
const BLOCKS: RangeInclusive<u16> = 0..=119;
const BLOCK_LEN: u16 = 100;
const FIRST_PORT: u16 = 20_000;
/// Of each block.
const RELAY_PORTS: u16 = BLOCK_LEN - 2;

/// STUN's Binding request without attributes.
const BINDING: [u8; 20] = *b"\x00\x01\x00\x00\x21\x12\xa4\x42is it ready?";

/// What a server shall be like.
pub struct CoturnBuilder {
    ip: IpAddr,
    relay_ips: Vec<IpAddr>,
    users: Vec<(String, String)>,
    asks_who: bool,
    realm: String,
    relay_ports: u16,
    args: Vec<String>,
}

impl CoturnBuilder {
    /// Listens and relays at this address instead of 127.0.0.1: another one of loopback, or `::1`.
    pub fn ip(mut self, ip: impl Into<IpAddr>) -> Self {
        self.ip = ip.into();
        self
    }

    /// Relays at this address too, such as `::1` for the IPv6 allocations of IPv4 clients.
    pub fn relay_ip(mut self, ip: impl Into<IpAddr>) -> Self {
        self.relay_ips.push(ip.into());
        self
    }

    /// Knows this user; with the first one named, [`USER`] is no longer known.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.into(), password.into()));
        self
    }

    /// Serves everybody.
    pub fn no_auth(mut self) -> Self {
        self.asks_who = false;
        self
    }

    pub fn realm(mut self, realm: &str) -> Self {
        self.realm = realm.into();
        self
    }

    /// Has only so many relayed addresses: with a single one a restarted server gives the same again.
    pub fn relay_ports(mut self, count: u16) -> Self {
        assert!((1..=RELAY_PORTS).contains(&count));
        self.relay_ports = count;
        self
    }

    /// Any argument of `turnserver`; a value goes behind an equals sign.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Coturn {
        let ports = Ports::reserve(self.ip, self.relay_ports);
        let dir = tempfile::Builder::new().prefix("coturn").tempdir().unwrap();
        let args = self.into_args(&ports, &dir);
        let probes = Probes { udp: !has(&args, "--no-udp"), tcp: !has(&args, "--no-tcp") };
        let addr = ports.listening;
        let process = spawn(&args, &dir.path().join("turn.log"));
        let mut server = Coturn { addr, args, probes, process, dir, ports };
        server.wait_until_ready();
        server
    }

    fn into_args(self, ports: &Ports, dir: &TempDir) -> Vec<String> {
        let in_dir = |name: &str| dir.path().join(name).display().to_string();
        let mut args: Vec<String> = ["-n", "--no-cli", "--no-rfc5780", "--no-tls", "--no-dtls"]
            .into_iter()
            .chain(["--allow-loopback-peers", "--simple-log", "--log-file=stdout", "-m", "1"])
            .map(Into::into)
            .collect();
        args.push(format!("--listening-ip={}", self.ip));
        args.push(format!("--listening-port={}", ports.listening.port()));
        for ip in [self.ip].iter().chain(&self.relay_ips) {
            args.push(format!("--relay-ip={ip}"));
        }
        args.push(format!("--min-port={}", ports.relay.start()));
        args.push(format!("--max-port={}", ports.relay.end()));
        args.push(format!("--userdb={}", in_dir("turndb")));
        args.push(format!("--pidfile={}", in_dir("pid")));
        args.push(format!("--realm={}", self.realm));
        if self.asks_who {
            args.push("--lt-cred-mech".into());
            let mut users = self.users;
            if users.is_empty() {
                users.push((USER.into(), PASSWORD.into()));
            }
            args.extend(users.iter().map(|(name, password)| format!("--user={name}:{password}")));
        } else {
            args.push("--no-auth".into());
        }
        // What is asked for last wins; TLS is off unless a certificate is given.
        if self.args.iter().any(|arg| arg.starts_with("--cert")) {
            args.retain(|arg| !matches!(arg.as_str(), "--no-tls" | "--no-dtls"));
            // Else it would be one for all servers; coturn tells TLS from TCP by the first bytes.
            args.push(format!("--tls-listening-port={}", ports.listening.port()));
        }
        args.extend(self.args);
        args
    }
}

fn has(args: &[String], wanted: &str) -> bool {
    args.iter().any(|arg| arg == wanted)
}

/// A running server. It ends when this is dropped.
pub struct Coturn {
    addr: SocketAddr,
    args: Vec<String>,
    probes: Probes,
    process: Child,
    dir: TempDir,
    ports: Ports,
}

impl Coturn {
    /// One that knows [`USER`] with [`PASSWORD`].
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> CoturnBuilder {
        CoturnBuilder {
            ip: Ipv4Addr::LOCALHOST.into(),
            relay_ips: Vec::new(),
            users: Vec::new(),
            asks_who: true,
            realm: REALM.into(),
            relay_ports: RELAY_PORTS,
            args: Vec::new(),
        }
    }

    /// Where it listens: the same port for UDP and TCP.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URI (RFC 7065), for `transport` "udp", "tcp" or "tls".
    pub fn uri(&self, transport: &str) -> String {
        match transport {
            "tls" => format!("turns:{}", self.addr),
            transport => format!("turn:{}?transport={transport}", self.addr),
        }
    }

    /// Where its relayed addresses are.
    pub fn relay_ports(&self) -> RangeInclusive<u16> {
        self.ports.relay.clone()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it at once, as a crash would; all its sockets are closed by the system.
    pub fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again at the same address, with an empty memory, killing it first if need be.
    pub fn restart(&mut self) {
        self.kill();
        self.process = spawn(&self.args, &self.log_path());
        self.wait_until_ready();
    }

    /// Makes it silent: its sockets stay open, nothing is answered and no ICMP comes back.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        // Its threads stop one after the other.
        while !self.is_stopped() {
            thread::yield_now();
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat"))).all(|stat| {
            // Behind the name, which stands in parentheses.
            stat.is_ok_and(|stat| {
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
            })
        })
    }

    /// Lets it go on, with what came meanwhile.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// All that it has logged so far, over restarts too.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("turn.log")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap_or_else(|error| panic!("coturn is gone: {error}\n{}", self.log()));
    }

    fn wait_until_ready(&mut self) {
        let began = Instant::now();
        while !self.probes.are_answered(self.addr) {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("coturn ended with {status}; its log:\n{}", self.log());
            }
            let waited = began.elapsed();
            assert!(waited < READY_TIMEOUT, "coturn is silent after {waited:?}; its log:\n{}", self.log());
        }
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("the log of coturn at {}:\n{}", self.addr, self.log());
        }
    }
}

fn spawn(args: &[String], log: &PathBuf) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
    let started = Command::new("turnserver")
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    match started {
        Ok(process) => process,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("the TURN server coturn is missing: `tests/run` installs it (Debian's package `coturn`)")
        }
        Err(error) => panic!("`turnserver` does not start: {error}"),
    }
}

/// A block of ports that no other server has: one to listen at, the rest for relayed addresses.
struct Ports {
    listening: SocketAddr,
    relay: RangeInclusive<u16>,
    /// The block's first port, bound as long as the block is ours; the system lets nobody else bind it.
    _lock: UdpSocket,
}

impl Ports {
    fn reserve(ip: IpAddr, relay_ports: u16) -> Self {
        let blocks = *BLOCKS.end() + 1;
        // Where the search begins only saves time.
        let start = (std::process::id() % u32::from(blocks)) as u16;
        for number in BLOCKS {
            let first = FIRST_PORT + (start + number) % blocks * BLOCK_LEN;
            let Ok(lock) = UdpSocket::bind((Ipv4Addr::LOCALHOST, first)) else { continue };
            let listening = SocketAddr::new(ip, first + 1);
            if UdpSocket::bind(listening).is_ok() && TcpListener::bind(listening).is_ok() {
                return Self { listening, relay: first + 2..=first + 1 + relay_ports, _lock: lock };
            }
        }
        panic!("{blocks} TURN servers at once, or no ports free at {ip}")
    }
}

/// What must be answered before a server counts as ready.
struct Probes {
    udp: bool,
    tcp: bool,
}

impl Probes {
    /// Takes [`PROBE_TIMEOUT`] or less for each.
    fn are_answered(&self, addr: SocketAddr) -> bool {
        (!self.udp || answers_udp(addr)) && (!self.tcp || answers_tcp(addr))
    }
}

fn answers_udp(addr: SocketAddr) -> bool {
    let socket = UdpSocket::bind((addr.ip(), 0)).unwrap();
    socket.set_read_timeout(Some(PROBE_TIMEOUT)).unwrap();
    let asked = socket.connect(addr).and_then(|()| socket.send(&BINDING));
    asked.is_ok() && socket.recv(&mut [0; 1500]).is_ok() || wait()
}

fn answers_tcp(addr: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&addr, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(&BINDING)?;
        stream.read_exact(&mut [0; 20])
    };
    ask().is_ok() || wait()
}

/// A refusal comes at once.
fn wait() -> bool {
    thread::sleep(Duration::from_millis(2));
    false
}
