//! Whether the server is still there, and still knows the allocation: what is sent to find out, and what is
//! concluded.

use std::time::{Duration, Instant};

use super::allocation::{Allocation, State};
use super::error::TurnError;
use super::transactions::{Pending, Request};
use crate::stun::{self, Class, Method};

/// How often it is looked whether the server is still there.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Data goes out and nothing has come back for this long: the server is asked by Refresh. Where it knows us all the
/// same, for the peer may have nothing to say, twice as long is waited the next time …
pub(super) const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(3);
/// … and at most so long, until data comes again.
const MAX_UNANSWERED_TIMEOUT: Duration = Duration::from_secs(15);
/// Nothing at all has come for this long: the same.
const SILENT_TIMEOUT: Duration = Duration::from_secs(25);
/// Over UDP something is sent this often, for the NATs on the way (RFC 8656 §3.2: their bindings may be short).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// ICMP errors count once in this time, for one datagram may cause several …
const UNREACHABLE_INTERVAL: Duration = Duration::from_millis(300);
/// … and so many of them, with no answer in between, end the allocation.
const MAX_UNREACHABLE: u32 = 3;

impl Allocation {
    /// When data was last sent to and received from the server, which the shell does by itself.
    pub(crate) fn note_data(&mut self, sent: Option<Instant>, heard: Option<Instant>) {
        self.data_sent = self.data_sent.max(sent);
        self.sent = self.sent.max(sent.unwrap_or(self.sent));
        if heard > Some(self.heard) {
            self.patience = UNANSWERED_TIMEOUT;
        }
        self.heard = self.heard.max(heard.unwrap_or(self.heard));
    }

    /// ICMP says that nobody is there. Told at most once for each datagram sent.
    pub(crate) fn unreachable(&mut self, now: Instant, why: &str) {
        let (count, last) = self.unreachable;
        if self.state == State::Ended || last.is_some_and(|last| now < last + UNREACHABLE_INTERVAL) {
            return;
        }
        let count = if last.is_some_and(|last| self.heard > last) { 1 } else { count + 1 };
        self.unreachable = (count, Some(now));
        if count >= MAX_UNREACHABLE {
            self.end(TurnError::Unreachable { why: why.to_owned() });
        } else {
            self.probe(now);
            self.pump(now);
        }
    }

    /// Asks the server whether it still knows the allocation.
    pub(super) fn probe(&mut self, now: Instant) {
        let is_refresh = |request: &Request| matches!(request, Request::Refresh { .. });
        let is_parked = self.parked.iter().any(|pending| is_refresh(&pending.request));
        if let State::Allocated(granted) = &mut self.state
            && !is_parked
            && !self.transactions.has(is_refresh)
        {
            granted.refresh = None;
            self.transactions.ask(now, Request::Refresh { lifetime: self.lifetime.unwrap_or(600) });
        }
    }

    /// Looks at times whether the server should be asked, or the NATs on the way reminded of us.
    pub(super) fn check(&mut self, now: Instant) {
        if self.next_check > now {
            return;
        }
        self.next_check = now + CHECK_INTERVAL;
        let unanswered = self.data_sent.is_some_and(|sent| sent > self.heard);
        if unanswered && now >= self.heard + self.patience {
            self.patience = (self.patience * 2).min(MAX_UNANSWERED_TIMEOUT);
            self.probe(now);
        } else if now >= self.heard + SILENT_TIMEOUT {
            self.probe(now);
        } else if !self.reliable && now >= self.sent + KEEP_ALIVE_INTERVAL {
            let id = self.ids.next();
            let bytes = stun::encode(Method::BINDING, Class::Indication, id, &[], None);
            self.send(now, bytes.expect("an indication without attributes can be written"));
        }
    }

    /// Whether the server has answered others while it left this without an answer. A peer that does not answer
    /// may keep a Connect waiting.
    pub(super) fn is_alive(&self, unanswered: &Pending) -> bool {
        matches!(unanswered.request, Request::Connect { .. })
            || self.heard > unanswered.sent
            || (self.heard > unanswered.began && !self.transactions.is_repeating(self.heard))
    }
}
