//! What stands between the two sides of a pair: a relay, a proxy, or nothing.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::Outcome;
use crate::child::Child;
use crate::proc::Memory;
use crate::proxy::Proxy;
use crate::side::{Gate, Side};
use crate::tls::Certificate;
use crate::tunnel::LOOPBACK;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ours.
    Relay,
    /// Ours, with TLS on both sides.
    RelayTls,
    /// The baseline.
    Proxy,
    /// No hop at all.
    Direct,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::RelayTls => "relay, TLS",
            Self::Proxy => "proxy",
            Self::Direct => "direct",
        })
    }
}

/// A process, where there is one, and the pairs through it.
pub(crate) struct Hop {
    child: Option<Child>,
    /// Where the far side of a proxy, or of nothing, is called.
    listener: TcpListener,
    /// Where the near side calls.
    near: Gate,
    /// Where the far side calls, of a relay.
    far: Option<Gate>,
    /// On the way to the far side.
    _slow: Option<Proxy>,
    pairs: u64,
    _certificate: Option<Certificate>,
}

impl Hop {
    pub(crate) fn start(kind: Kind) -> Outcome<Self> {
        Self::start_before(kind, |to| Ok((to, None)))
    }

    /// The far side is reached through a slow path.
    pub(crate) fn start_slow(kind: Kind) -> Outcome<Self> {
        Self::start_before(kind, |to| {
            let slow = Proxy::start(to)?;
            Ok((slow.addr(), Some(slow)))
        })
    }

    /// `path` is given an address and answers where to call instead.
    fn start_before(
        kind: Kind,
        path: impl FnOnce(SocketAddr) -> Outcome<(SocketAddr, Option<Proxy>)>,
    ) -> Outcome<Self> {
        let listener = TcpListener::bind(LOOPBACK)?;
        let target = listener.local_addr()?;
        let certificate = if kind == Kind::RelayTls { Some(Certificate::issue()?) } else { None };
        let tls = certificate.as_ref().map(Certificate::believer);
        let plain = |addr| Gate { addr, tls: None };
        let (child, near, far, slow);
        match kind {
            Kind::Relay | Kind::RelayTls => {
                let files = certificate.as_ref().map_or(Vec::new(), |files| files.files().to_vec());
                let relay = Child::start("relay", &files)?;
                near = Gate { addr: relay.addr(), tls: tls.clone() };
                let (addr, on_the_way) = path(near.addr)?;
                (child, far, slow) = (Some(relay), Some(Gate { addr, tls }), on_the_way);
            }
            Kind::Proxy => {
                let (addr, on_the_way) = path(target)?;
                let proxy = Child::start("proxy", &[addr.to_string()])?;
                near = plain(proxy.addr());
                (child, far, slow) = (Some(proxy), None, on_the_way);
            }
            Kind::Direct => {
                let (addr, on_the_way) = path(target)?;
                (child, near, far, slow) = (None, plain(addr), None, on_the_way);
            }
        }
        Ok(Self { child, listener, near, far, _slow: slow, pairs: 0, _certificate: certificate })
    }

    /// The two sides of one more pair, ready for datagrams.
    pub(crate) fn pair(&mut self) -> Outcome<(Side, Side)> {
        self.pairs += 1;
        let mut near = self.near.connect()?;
        let Some(far) = &self.far else {
            return Ok((near, Side::over(self.listener.accept()?.0, None)?));
        };
        let mut far = far.connect()?;
        let pair = self.pairs.to_be_bytes();
        for (side, name) in [(&mut near, "near"), (&mut far, "far")] {
            side.ask()?;
            side.join(&pair, name)?;
            side.joined()?;
        }
        near.wait_for_peer()?;
        far.wait_for_peer()?;
        Ok((near, far))
    }

    /// Where sides of their own are made.
    pub(crate) fn gate(&self) -> Gate {
        self.near.clone()
    }

    pub(crate) fn memory(&self) -> Outcome<Memory> {
        self.child.as_ref().map_or(Ok(Memory::default()), Child::memory)
    }

    /// Whether sides must give signs of life.
    pub(crate) fn is_relay(&self) -> bool {
        self.far.is_some()
    }

    /// User and system time of the process.
    pub(crate) fn cpu_time(&self) -> Outcome<Duration> {
        self.child.as_ref().map_or(Ok(Duration::ZERO), Child::cpu_time)
    }

    /// An error if the process has ended.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        self.child.as_mut().map_or(Ok(()), Child::check)
    }
}
