//! The seed's `State`, and how the links of a session add up to it.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

/// What a session is doing. The seeds name no values; these are ours, from the worst to the best: a
/// session's state is the best of its links'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionState {
    /// Stopped for good, or given up.
    Closed,
    /// Neither told to connect nor to listen.
    Idle,
    /// A failed connection is about to be tried again.
    Backoff {
        /// When, by this machine's clock; until then the far side is not bothered.
        #[serde(serialize_with = "crate::event::as_rfc3339")]
        until: SystemTime,
    },
    /// Waiting for peers.
    Listening,
    /// A connection is being made.
    Connecting,
    /// At a relay that has let it in, without its peer.
    Waiting,
    /// At least one TCP connection is up; at a relay, the peer is there.
    Connected,
}

impl SessionState {
    /// The better of two: what a session with two links in these states is doing.
    pub(crate) fn best(self, other: Self) -> Self {
        match (self, other) {
            (Self::Backoff { until: a }, Self::Backoff { until: b }) => Self::Backoff { until: a.min(b) },
            _ => self.max(other),
        }
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Backoff { .. } => "waiting to try again",
            Self::Listening => "listening",
            Self::Connecting => "connecting",
            Self::Waiting => "waiting at the relay",
            Self::Connected => "connected",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::SessionState::{Backoff, Closed, Connected, Connecting, Idle, Listening, Waiting};
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_best_link_tells_the_state_and_the_earliest_retry_the_wait() {
        let soon = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(2);
        assert_eq!(Backoff { until: late }.best(Backoff { until: soon }), Backoff { until: soon });
        let order = [Closed, Idle, Backoff { until: soon }, Listening, Connecting, Waiting, Connected];
        for pair in order.windows(2) {
            assert_eq!(pair[0].best(pair[1]), pair[1]);
            assert_eq!(pair[1].best(pair[0]), pair[1]);
        }
    }
}
