//! The signals that tell the program to stop, or to read its files again.

use std::io;
use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT (Ctrl-C) and, where it means that and nobody has asked for it to be ignored, SIGHUP.
#[derive(Debug)]
pub(crate) struct Signals {
    ends: Vec<Signal>,
}

/// SIGHUP, where it means that files have changed.
#[derive(Debug)]
pub(crate) struct Hangups(Option<Signal>);

impl Hangups {
    /// The next one; `None` where none is to come.
    pub(crate) async fn recv(&mut self) -> Option<()> {
        self.0.as_mut()?.recv().await
    }
}

impl Signals {
    /// To be called in a tokio runtime. From now on the signals no longer end the program by themselves. Where files
    /// are read again, SIGHUP says by custom that these have changed, and does not end the program.
    pub(crate) fn new(reads_again: bool) -> io::Result<(Self, Hangups)> {
        let mut kinds = vec![SignalKind::terminate(), SignalKind::interrupt()];
        if !reads_again && !is_ignored(SignalKind::hangup()) {
            kinds.push(SignalKind::hangup());
        }
        let hangup = if reads_again { Some(signal(SignalKind::hangup())?) } else { None };
        Ok((Self { ends: kinds.into_iter().map(signal).collect::<io::Result<_>>()? }, Hangups(hangup)))
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
