//! Machines within this one: Linux network namespaces that belong to threads and vanish with them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. It lives as long as these values and the sockets made in it.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    /// # Errors
    /// Why this machine lets nobody make one; the test is to say so and to be skipped.
    pub fn new() -> Result<Self, String> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("unshare(CLONE_NEWNET): {error}"))?;
            run("ip", "link set lo up")?;
            File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())
        });
        made.join().unwrap().map(|file| Self(Arc::new(file)))
    }

    /// For commands of other namespaces.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs `work` on a thread of its own in this namespace: its sockets, threads and commands stay in it.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = self.0.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    fn ip(&self, arguments: &'static str) -> Result<(), String> {
        self.spawn(move || run("ip", arguments)).join().unwrap()
    }
}

/// Runs a command where this thread lives.
pub fn run(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Two machines joined by a cable with MTU 1500: 10.7.0.1 and 10.7.0.2, fd07::1 and fd07::2.
pub struct Cable {
    pub left: Namespace,
    pub right: Namespace,
}

impl Cable {
    /// # Errors
    /// Why this machine does not let it be made.
    pub fn new() -> Result<Self, String> {
        let (left, right) = (Namespace::new()?, Namespace::new()?);
        let add = format!(
            "link add cable mtu 1500 type veth peer name cable mtu 1500 netns {}",
            right.path().display()
        );
        left.spawn(move || run("ip", &add)).join().unwrap()?;
        for command in
            ["addr add 10.7.0.1/24 dev cable", "addr add fd07::1/64 dev cable nodad", "link set cable up"]
        {
            left.ip(command)?;
        }
        for command in
            ["addr add 10.7.0.2/24 dev cable", "addr add fd07::2/64 dev cable nodad", "link set cable up"]
        {
            right.ip(command)?;
        }
        Ok(Self { left, right })
    }

    /// The network swallows what either machine sends: each believes the other at a wrong hardware address.
    pub fn swallow(&self) {
        self.left.ip("neigh replace 10.7.0.2 dev cable lladdr 02:00:00:00:00:0b nud permanent").unwrap();
        self.right.ip("neigh replace 10.7.0.1 dev cable lladdr 02:00:00:00:00:0a nud permanent").unwrap();
    }

    /// The network is back.
    pub fn carry(&self) {
        self.left.ip("neigh del 10.7.0.2 dev cable").unwrap();
        self.right.ip("neigh del 10.7.0.1 dev cable").unwrap();
    }
}

/// Says on stderr, past the test harness' capture, that a test did not run.
pub fn skipped(test: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
