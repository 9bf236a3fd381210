//! A child process: started, waited for until it is ready, never left behind.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{self, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::Outcome;
use crate::proc::{self, Memory};

const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is kept of a child's stderr.
const STDERR_BYTES: usize = 4096;

/// One end of a tunnel. It ends when this is dropped, or, its stdin closed, when the bench dies.
pub(crate) struct Child {
    role: String,
    process: process::Child,
    stderr: Option<JoinHandle<String>>,
    addr: SocketAddr,
}

impl Child {
    /// Starts this program again in `role` and waits until it says where it is bound.
    pub(crate) fn start(role: &str, args: &[String]) -> Outcome<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg(role)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().expect("stdout is piped");
        let stderr = process.stderr.take().expect("stderr is piped");
        let (told, ready) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(addr) = line.strip_prefix("ready ") {
                    // Nobody listens any more once the deadline has passed.
                    let _ = told.send(addr.parse());
                }
            }
        });
        let stderr = Some(thread::spawn(move || last_words(stderr)));
        let addr = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut child = Self { role: role.to_owned(), process, stderr, addr };
        match ready.recv_timeout(READY_TIMEOUT) {
            Ok(Ok(addr)) => child.addr = addr,
            Ok(Err(error)) => return Err(child.obituary(&format!("gave no address: {error}"))),
            Err(RecvTimeoutError::Timeout) => return Err(child.obituary("was not ready in 10 s")),
            Err(RecvTimeoutError::Disconnected) => return Err(child.obituary("ended before it was ready")),
        }
        Ok(child)
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn cpu_time(&self) -> Outcome<Duration> {
        proc::cpu_time(self.process.id())
    }

    pub(crate) fn memory(&self) -> Outcome<Memory> {
        proc::memory(self.process.id())
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
        format!(
            "{} {how}; its stderr: {}",
            self.role,
            if stderr.is_empty() { "(empty)" } else { stderr.trim() }
        )
        .into()
    }

    fn end(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads to the end, so that the child never blocks on a full pipe, and keeps the last part.
fn last_words(mut stderr: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = stderr.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..len]);
        kept.drain(..kept.len().saturating_sub(STDERR_BYTES));
    }
    String::from_utf8_lossy(&kept).into_owned()
}
