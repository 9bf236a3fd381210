//! How many requests may be under way, so that a server that refuses hears few.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// CreatePermission and ChannelBind under way at a time; further ones wait. A refused one counts for
/// [`REFUSED_INTERVAL`] more, unless one is granted after it: a server that refuses all of them hears so many in any
/// ten seconds, however many there are. So six refusals in a row hold up the others, by [`Rank`].
pub(crate) const MAX_IN_FLIGHT: usize = 6;
/// So long counts what was refused.
pub(crate) const REFUSED_INTERVAL: Duration = Duration::from_secs(10);

/// Which of those that wait goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// The server wants it to be sealed anew; or there is never more than one of its kind.
    Again,
    /// It prolongs what is there.
    Kept,
    /// It was part of a request for several, which was refused.
    Single,
    New,
    /// It was refused before.
    Refused,
}

/// See [`MAX_IN_FLIGHT`].
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When requests were refused since the last one was granted; the latest [`MAX_IN_FLIGHT`] of them.
    refused: VecDeque<Instant>,
    /// A request was challenged, and none has been answered since: one alone tries the new nonce.
    is_challenged: bool,
}

impl Pace {
    fn limit(&self) -> usize {
        if self.is_challenged { 1 } else { MAX_IN_FLIGHT }
    }

    /// Whether one more may be sent, with so many under way.
    pub(crate) fn has_room(&self, now: Instant, under_way: usize) -> bool {
        let refused = self.refused.iter().filter(|at| **at + REFUSED_INTERVAL > now).count();
        under_way + refused < self.limit()
    }

    /// When one more may be sent, with so many under way; `None` if that is now, or not before an answer comes.
    pub(crate) fn room_at(&self, under_way: usize) -> Option<Instant> {
        let free = self.limit().checked_sub(under_way).filter(|free| *free > 0)?;
        let last = self.refused.len().checked_sub(free)?;
        self.refused.get(last).map(|at| *at + REFUSED_INTERVAL)
    }

    pub(crate) fn granted(&mut self) {
        self.refused.clear();
    }

    /// The server has accepted a nonce, whatever else it answered.
    pub(crate) fn nonce_is_good(&mut self) {
        self.is_challenged = false;
    }

    pub(crate) fn refused(&mut self, now: Instant) {
        if self.refused.len() == MAX_IN_FLIGHT {
            self.refused.pop_front();
        }
        self.refused.push_back(now);
    }

    /// The server wants a request to be sealed anew. That its nonce has expired is no refusal; that the new one has
    /// too is.
    pub(crate) fn challenged(&mut self, now: Instant, is_first: bool) {
        self.is_challenged = true;
        if !is_first {
            self.refused(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::any_instant;

    #[test]
    fn what_was_refused_counts_as_under_way_for_ten_seconds() {
        let (start, mut pace) = (any_instant(), Pace::default());
        let second = Duration::from_secs(1);
        assert!(pace.has_room(start, MAX_IN_FLIGHT - 1) && !pace.has_room(start, MAX_IN_FLIGHT));
        (0..6).for_each(|at| pace.refused(start + at * second));
        assert!(!pace.has_room(start + 9 * second, 0) && pace.has_room(start + 10 * second, 0));
        assert_eq!(pace.room_at(0), Some(start + 10 * second));
        assert_eq!(pace.room_at(2), Some(start + 12 * second));
        assert!(
            !pace.has_room(start + 12 * second - second / 10, 2) && pace.has_room(start + 12 * second, 2)
        );
        assert_eq!(pace.room_at(MAX_IN_FLIGHT), None, "an answer must come first");
        pace.refused(start + 6 * second);
        assert_eq!(pace.room_at(0), Some(start + 11 * second), "the oldest no longer counts");
        pace.granted();
        assert!(pace.has_room(start, 5) && pace.room_at(5).is_none());
    }

    #[test]
    fn a_new_nonce_is_tried_by_one_request() {
        let (start, mut pace) = (any_instant(), Pace::default());
        pace.challenged(start, true);
        assert!(pace.has_room(start, 0) && !pace.has_room(start, 1));
        pace.challenged(start, false);
        assert!(!pace.has_room(start, 0));
        assert_eq!(pace.room_at(0), Some(start + REFUSED_INTERVAL));
        pace.nonce_is_good();
        assert!(pace.has_room(start, MAX_IN_FLIGHT - 2) && !pace.has_room(start, MAX_IN_FLIGHT - 1));
        pace.granted();
        assert!(pace.has_room(start, MAX_IN_FLIGHT - 1));
    }
}
