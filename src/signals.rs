//! The signals that tell the program to stop, or to go on with new certificates.

use std::io;
use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT (Ctrl-C) and, where nobody has asked for it to be ignored, SIGHUP.
#[derive(Debug)]
pub(crate) struct Signals {
    ends: Vec<Signal>,
    /// Caught and forgotten.
    _hangup: Option<Signal>,
}

impl Signals {
    /// To be called in a tokio runtime. From now on the signals no longer end the program by themselves. Where
    /// certificates from files are shown, SIGHUP says by custom that these have changed: it does not end the program
    /// then, and has nothing to do, for they are looked at before each connection, once a second at most.
    pub(crate) fn new(shows_files: bool) -> io::Result<Self> {
        let mut kinds = vec![SignalKind::terminate(), SignalKind::interrupt()];
        if !shows_files && !is_ignored(SignalKind::hangup()) {
            kinds.push(SignalKind::hangup());
        }
        let hangup = if shows_files { Some(signal(SignalKind::hangup())?) } else { None };
        Ok(Self { ends: kinds.into_iter().map(signal).collect::<io::Result<_>>()?, _hangup: hangup })
    }

    /// The next signal.
    pub(crate) async fn recv(&mut self) {
        poll_fn(|cx| self.poll_recv(cx)).await;
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Not all of them at once: a second signal must not hide behind the first.
        let came = self.ends.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
        if came { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Whether the program was started with this signal ignored, as `nohup` does. Where the system does not say
/// so in /proc, no.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
