//! The threads that sessions run on: actix arbiters, started when needed.

use std::io;
use std::time::Duration;

use actix_rt::{Arbiter, ArbiterHandle};
use tokio::sync::oneshot;

/// Threads that do not end by then are left behind: a resolver that hangs holds one for as long as it likes.
const JOIN_TIMEOUT: Duration = Duration::from_millis(500);

/// At most `limit` arbiters, used in turn.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    limit: usize,
    arbiters: Vec<Arbiter>,
    turn: usize,
}

impl Workers {
    /// With limit 0 there are none: everything runs on the arbiter of whoever asks.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, arbiters: Vec::new(), turn: 0 }
    }

    /// Where the next session is to run.
    pub(crate) fn next(&mut self) -> io::Result<ArbiterHandle> {
        if self.limit == 0 {
            return Arbiter::try_current().ok_or_else(|| io::Error::other("no actix arbiter runs here"));
        }
        if self.arbiters.len() < self.limit {
            self.arbiters.push(Arbiter::try_new()?);
            return Ok(self.arbiters[self.arbiters.len() - 1].handle());
        }
        self.turn = (self.turn + 1) % self.arbiters.len();
        Ok(self.arbiters[self.turn].handle())
    }

    /// All of them, for who spreads its work.
    pub(crate) fn all(&mut self) -> io::Result<Vec<ArbiterHandle>> {
        if self.limit == 0 {
            return Ok(vec![self.next()?]);
        }
        while self.arbiters.len() < self.limit {
            self.arbiters.push(Arbiter::try_new()?);
        }
        Ok(self.arbiters.iter().map(Arbiter::handle).collect())
    }

    /// Ends the threads and waits for them, but not for long. Their actors are to be gone already.
    pub(crate) async fn join(self) {
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        let (done, joined) = oneshot::channel();
        // A thread of its own, not one of the runtime's: the runtime would wait for it when it ends.
        std::thread::spawn(move || {
            for arbiter in self.arbiters {
                let _ = arbiter.join();
            }
            let _ = done.send(());
        });
        let _ = tokio::time::timeout(JOIN_TIMEOUT, joined).await;
    }
}
