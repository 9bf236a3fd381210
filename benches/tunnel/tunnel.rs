//! A tunnel under test: its two processes.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::Outcome;
use crate::child::Child;
use crate::proc::Memory;

/// Asked for by whoever must not lose a burst; the system clips it to `rmem_max`.
pub(crate) const LARGE_BUFFER: usize = 4 << 20;

/// Any port of the loopback interface.
pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Ours,
    Baseline,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "ours",
            Self::Baseline => "baseline",
        })
    }
}

/// The receive buffer of the baseline's near UDP socket; ours always chooses its own.
#[derive(Clone, Copy)]
pub(crate) enum BaselineBuffer {
    /// What it takes not to lose datagrams, as the cost of one is to be measured.
    Large,
    /// What a simple tunnel has: a large one would only make the age of its datagrams worse.
    System,
}

/// A far process in front of a service.
pub(crate) fn start_far(kind: Kind, service: SocketAddr) -> Outcome<Child> {
    let args = [LOOPBACK.to_string(), service.to_string(), "0".into()];
    Child::start(&format!("{kind}-far"), &args)
}

/// A near process that calls `tcp`.
pub(crate) fn start_near(kind: Kind, tcp: SocketAddr, buffer: BaselineBuffer) -> Outcome<Child> {
    let buffer = match buffer {
        BaselineBuffer::Large => LARGE_BUFFER,
        BaselineBuffer::System => 0,
    };
    Child::start(&format!("{kind}-near"), &[tcp.to_string(), LOOPBACK.to_string(), buffer.to_string()])
}

/// Two processes, joined by TCP.
pub(crate) struct Tunnel {
    near: Child,
    far: Child,
}

impl Tunnel {
    pub(crate) fn start(kind: Kind, service: SocketAddr, buffer: BaselineBuffer) -> Outcome<Self> {
        Self::start_through(kind, service, buffer, Ok)
    }

    /// `path` is given the far end's address and answers where the near end shall call instead.
    pub(crate) fn start_through(
        kind: Kind,
        service: SocketAddr,
        buffer: BaselineBuffer,
        path: impl FnOnce(SocketAddr) -> Outcome<SocketAddr>,
    ) -> Outcome<Self> {
        let far = start_far(kind, service)?;
        let near = start_near(kind, path(far.addr())?, buffer)?;
        Ok(Self { near, far })
    }

    /// Where the application sends to.
    pub(crate) fn entry(&self) -> SocketAddr {
        self.near.addr()
    }

    /// User and system time of both processes.
    pub(crate) fn cpu_time(&self) -> Outcome<Duration> {
        Ok(self.near.cpu_time()? + self.far.cpu_time()?)
    }

    pub(crate) fn near_memory(&self) -> Outcome<Memory> {
        self.near.memory()
    }

    /// An error if one of the two has ended.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        self.near.check()?;
        self.far.check()
    }
}
