//! The built command as a process: what it prints, and what its tests need around it. Without tokio.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;

/// What closing in order may take.
pub const CLOSING: Duration = Duration::from_secs(2);
pub const ANY: &str = "127.0.0.1:0";
/// How the datagrams of [`carried_again`] begin.
const AGAIN: &[u8] = b"again ";

/// A running command; killed when the test is over, however it ends.
pub struct Relay {
    pub child: Child,
    pub stdout: Receiver<String>,
    pub stderr: Receiver<String>,
    printed: Arc<Mutex<String>>,
}

/// How it ended, with what had not been read before.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
    /// All of both, from the beginning.
    pub printed: String,
}

impl Relay {
    pub fn start(args: &str) -> Self {
        Self::start_with(args.split_whitespace(), Stdio::piped())
    }

    pub fn start_with<'a>(args: impl Iterator<Item = &'a str>, stdout: impl Into<Stdio>) -> Self {
        Self::of(program().args(args).stdout(stdout))
    }

    pub fn of(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().map_or_else(|| channel().1, |pipe| lines_of(pipe, &printed));
        let stderr = lines_of(child.stderr.take().unwrap(), &printed);
        Self { child, stdout, stderr, printed }
    }

    /// The next line on stdout with this in it.
    pub fn line(&self, with: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.stdout.recv_timeout(left).unwrap_or_else(|_| panic!("no line with '{with}'"));
            if line.contains(with) {
                return line;
            }
        }
    }

    /// The next event of this kind; needs `--json`.
    pub fn event(&self, kind: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.stdout.recv_timeout(left).unwrap_or_else(|_| panic!("no event {kind}"));
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if event["event"] == kind {
                return event;
            }
        }
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let (stdout, stderr) = (rest(&self.stdout, deadline), rest(&self.stderr, deadline));
        let printed = self.printed.lock().unwrap().clone();
        Ended { code: self.child.wait().unwrap().code(), stdout, stderr, printed }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command without arguments, and without what the environment of the tests would tell it.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_actix-relay"));
    command.env_remove("RUST_LOG").env_remove("ACTIX_RELAY_TURN_PASSWORD");
    command.env_remove("ACTIX_RELAY_PASSWORD");
    command
}

fn lines_of(pipe: impl Read + Send + 'static, printed: &Arc<Mutex<String>>) -> Receiver<String> {
    let (tell, lines) = channel();
    let printed = printed.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            eprintln!("| {line}");
            printed.lock().unwrap().extend([line.as_str(), "\n"]);
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// What is still written until the end.
fn rest(lines: &Receiver<String>, deadline: Instant) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => all.push(line),
            Err(RecvTimeoutError::Disconnected) => return all,
            Err(RecvTimeoutError::Timeout) => panic!("it did not end"),
        }
    }
}

/// A command that ends by itself.
pub fn run(args: &str) -> Ended {
    Relay::start(args).end()
}

/// It said nothing but one line, on stderr, with all of these in it.
pub fn assert_one_error(args: &str, code: i32, named: &[&str]) {
    let ended = run(args);
    assert_eq!(ended.code, Some(code), "{args}");
    assert_eq!(ended.stderr.len(), 1, "{args}: {:?}", ended.stderr);
    assert!(ended.stderr[0].starts_with("error: "), "{args}: {:?}", ended.stderr);
    for name in named {
        assert!(ended.stderr[0].contains(name), "{args}: {name} is not in {:?}", ended.stderr);
    }
}

pub fn addr(value: &Value) -> SocketAddr {
    value.as_str().unwrap_or_else(|| panic!("no address: {value}")).parse().unwrap()
}

/// A UDP service that answers each datagram with itself.
pub fn echo() -> SocketAddr {
    let socket = UdpSocket::bind(ANY).unwrap();
    let addr = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    addr
}

pub fn application() -> UdpSocket {
    let socket = UdpSocket::bind(ANY).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// One datagram there and back; late answers to [`carried_again`] are passed over.
pub fn assert_carried(app: &UdpSocket, near: SocketAddr, datagram: &[u8]) {
    let mut buffer = vec![0; 1 << 16];
    app.send_to(datagram, near).unwrap();
    let answer = loop {
        let (len, from) = app.recv_from(&mut buffer).expect("no answer");
        assert_eq!(from, near);
        if !buffer[..len].starts_with(AGAIN) {
            break &buffer[..len];
        }
    };
    assert_eq!(answer, datagram);
}

/// Sends until an answer has come: something on the way has just come back.
pub fn carried_again(app: &UdpSocket, near: SocketAddr) {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let began = Instant::now();
    // Late answers to an earlier call do not count.
    let datagram = [AGAIN, CALLS.fetch_add(1, Relaxed).to_string().as_bytes()].concat();
    let mut buffer = [0; 64];
    app.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    loop {
        assert!(began.elapsed() < PATIENCE, "no answer came");
        app.send_to(&datagram, near).unwrap();
        if let Ok((len, from)) = app.recv_from(&mut buffer)
            && from == near
            && buffer[..len] == datagram
        {
            break;
        }
    }
    eprintln!("an answer after {:?}", began.elapsed());
    app.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// A TCP address that nobody has at the moment.
pub fn free_port() -> SocketAddr {
    TcpListener::bind(ANY).unwrap().local_addr().unwrap()
}

pub fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}
