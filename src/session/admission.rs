//! Who may take the one place of a session with `max_peers = 1`.

use std::time::{Duration, Instant};

/// A connection that has been silent for this long may be replaced: its peer is perhaps gone, and a new
/// connection perhaps the same peer again.
pub(crate) const SILENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection that has the place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incumbent {
    /// When it was made or accepted.
    pub(crate) since: Instant,
    /// When bytes last came over it.
    pub(crate) heard: Option<Instant>,
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The place is free.
    Admit,
    /// The incumbent is ended for it.
    Replace,
    /// It waits in the lobby, until this instant at the earliest.
    Wait(Instant),
}

/// Decides about a newcomer that came at `came`. A connection that never sent anything gives way at once to one
/// that came after it.
pub(crate) fn admit(now: Instant, came: Instant, incumbent: Option<Incumbent>) -> Admission {
    let Some(Incumbent { since, heard }) = incumbent else { return Admission::Admit };
    match heard {
        None if came > since => Admission::Replace,
        None => Admission::Wait(came + SILENT_TIMEOUT),
        Some(heard) if now >= heard + SILENT_TIMEOUT => Admission::Replace,
        Some(heard) => Admission::Wait(heard + SILENT_TIMEOUT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_active_incumbent_stays_a_silent_one_goes() {
        let since = crate::flow::tests::any_instant();
        let heard = since + Duration::from_secs(60);
        let incumbent = |heard| Some(Incumbent { since, heard });
        let came = heard;
        assert_eq!(admit(heard, came, None), Admission::Admit);
        assert_eq!(admit(heard, came, incumbent(None)), Admission::Replace);
        let free = heard + SILENT_TIMEOUT;
        assert_eq!(admit(heard, came, incumbent(Some(heard))), Admission::Wait(free));
        assert_eq!(admit(free, came, incumbent(Some(heard))), Admission::Replace);
        // One that was there before the silent incumbent does not replace it.
        assert!(matches!(admit(heard, since, incumbent(None)), Admission::Wait(_)));
    }
}
