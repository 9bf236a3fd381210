//! A client under test: a process, started, waited for until it has its allocation, never left behind.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::coturn::Coturn;
use crate::{Outcome, ours, proc, role};

const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is kept of a client's stderr.
const STDERR_BYTES: usize = 4096;

/// Between client and server.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Ours,
    /// The crate `turn` of webrtc-rs.
    Webrtc,
    /// `turn-client-proto` with tokio's sockets.
    Plain,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Webrtc, Self::Plain];

    /// As the tables say it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Webrtc => "turn",
            Self::Plain => "turn-client-proto",
        }
    }

    pub(crate) fn speaks(self, transport: Transport) -> bool {
        self != Self::Webrtc || transport == Transport::Udp
    }
}

/// Where a client is reached.
#[derive(Clone, Copy)]
pub(crate) struct Ready {
    /// By its application.
    pub(crate) local: SocketAddr,
    /// By its peer.
    pub(crate) relayed: SocketAddr,
}

/// Reads a client's stdout line by line, until it knows all.
pub(crate) type Listen = Box<dyn FnMut(&str) -> Option<Ready> + Send>;

/// Ends when dropped.
pub(crate) struct Client {
    name: &'static str,
    process: Child,
    stderr: Option<JoinHandle<String>>,
}

impl Client {
    pub(crate) fn start(
        kind: Kind,
        transport: Transport,
        server: &Coturn,
        peer: SocketAddr,
    ) -> Outcome<(Self, Ready)> {
        let (mut command, mut listen) = match kind {
            Kind::Ours => ours::command(&server.uri(&transport.to_string()), peer)?,
            Kind::Webrtc => role::command("webrtc", transport, server.addr(), peer)?,
            Kind::Plain => role::command("plain", transport, server.addr(), peer)?,
        };
        let mut client = Self::spawn(kind.name(), &mut command)?;
        let stdout = client.process.stdout.take().expect("stdout is piped");
        let (told, heard) = mpsc::channel();
        thread::spawn(move || {
            // To the end, so that the client never blocks on a full pipe.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(ready) = listen(&line) {
                    // Nobody listens any more once the deadline has passed.
                    let _ = told.send(ready);
                }
            }
        });
        match heard.recv_timeout(READY_TIMEOUT) {
            Ok(ready) => Ok((client, ready)),
            Err(RecvTimeoutError::Timeout) => Err(client.obituary("was not ready in 10 s")),
            Err(RecvTimeoutError::Disconnected) => Err(client.obituary("ended before it was ready")),
        }
    }

    fn spawn(name: &'static str, command: &mut Command) -> Outcome<Self> {
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stderr = process.stderr.take().expect("stderr is piped");
        Ok(Self { name, process, stderr: Some(thread::spawn(move || last_words(stderr))) })
    }

    /// User and system time so far.
    pub(crate) fn cpu_time(&self) -> Outcome<Duration> {
        proc::cpu_time(self.process.id())
    }

    /// An error, with its last words, if it is no longer there.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.obituary(&format!("ended with {status}"))),
        }
    }

    fn obituary(&mut self, how: &str) -> Box<dyn std::error::Error + Send + Sync> {
        self.end();
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let stderr = if stderr.is_empty() { "(empty)" } else { stderr.trim() };
        format!("{} {how}; its stderr: {stderr}", self.name).into()
    }

    fn end(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads to the end, and keeps the last part.
fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..len]);
        kept.drain(..kept.len().saturating_sub(STDERR_BYTES));
    }
    String::from_utf8_lossy(&kept).into_owned()
}
