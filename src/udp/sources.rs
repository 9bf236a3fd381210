//! Which UDP source is served by what: bounded, and forgotten when idle.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// At most `limit` sources, each with a value of type `T`.
#[derive(Debug)]
pub(crate) struct Sources<K, T> {
    entries: HashMap<K, Entry<T>>,
    limit: usize,
    idle: Duration,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    since: Instant,
}

impl<K: Eq + Hash + Copy, T> Sources<K, T> {
    pub(crate) fn new(limit: usize, idle: Duration) -> Self {
        Self { entries: HashMap::new(), limit, idle }
    }

    pub(crate) fn get(&self, source: &K) -> Option<&T> {
        self.entries.get(source).map(|entry| &entry.value)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.limit
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Adds a source; the caller has seen that there is room.
    pub(crate) fn insert(&mut self, now: Instant, source: K, value: T) {
        debug_assert!(!self.is_full());
        self.entries.insert(source, Entry { value, since: now });
    }

    /// Takes a source out.
    pub(crate) fn remove(&mut self, source: &K) -> Option<T> {
        self.entries.remove(source).map(|entry| entry.value)
    }

    /// Some source, the only one where the limit is 1.
    pub(crate) fn any(&self) -> Option<K> {
        self.entries.keys().next().copied()
    }

    /// Takes out the sources that have been idle for the whole time. What a source last did is known to its
    /// value alone.
    pub(crate) fn expire(
        &mut self,
        now: Instant,
        last_activity: impl Fn(&T) -> Option<Instant>,
    ) -> Vec<(K, T)> {
        let idle = self.idle;
        let gone = self.entries.extract_if(|_, entry| entry.due(idle, &last_activity) <= now);
        gone.map(|(key, entry)| (key, entry.value)).collect()
    }

    /// When to look for idle ones again.
    pub(crate) fn next_due(&self, last_activity: impl Fn(&T) -> Option<Instant>) -> Option<Instant> {
        self.entries.values().map(|entry| entry.due(self.idle, &last_activity)).min()
    }
}

impl<T> Entry<T> {
    fn due(&self, idle: Duration, last_activity: &impl Fn(&T) -> Option<Instant>) -> Instant {
        last_activity(&self.value).map_or(self.since, |at| at.max(self.since)) + idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: Duration = Duration::from_secs(300);

    #[test]
    fn an_active_source_stays_an_idle_one_goes_on_time() {
        let start = crate::flow::tests::any_instant();
        let mut sources = Sources::new(2, IDLE);
        sources.insert(start, 1, start);
        sources.insert(start, 2, start + Duration::from_secs(200));
        assert!(sources.is_full());
        assert_eq!(sources.expire(start, |at| Some(*at)), []);
        assert_eq!(sources.next_due(|at| Some(*at)), Some(start + IDLE));
        assert_eq!(sources.expire(start + IDLE, |at| Some(*at)), [(1, start)]);
        assert_eq!(sources.next_due(|at| Some(*at)), Some(start + Duration::from_secs(500)));
        assert_eq!(sources.get(&1), None);
        assert_eq!(sources.any(), Some(2));
    }

    proptest! {
        #[test]
        fn nothing_is_forgotten_early_or_kept_late(
            steps in prop::collection::vec((0..20u8, 0..200u64), 1..200),
        ) {
            let mut now = crate::flow::tests::any_instant();
            let mut sources = Sources::new(8, IDLE);
            let mut model: HashMap<u8, Instant> = HashMap::new();
            for (source, wait) in steps {
                now += Duration::from_secs(wait);
                for (source, ()) in sources.expire(now, |_: &()| None) {
                    prop_assert!(model.remove(&source).unwrap() + IDLE <= now);
                }
                prop_assert!(model.values().all(|since| *since + IDLE > now));
                prop_assert_eq!(sources.next_due(|_| None), model.values().map(|since| *since + IDLE).min());
                if sources.get(&source).is_none() && !sources.is_full() {
                    sources.insert(now, source, ());
                    model.insert(source, now);
                }
                prop_assert!(model.len() <= 8);
            }
        }
    }
}
