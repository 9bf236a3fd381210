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

    /// Takes out the sources that have been idle for the whole time, and says when to look again. What a
    /// source last did is known to its value alone.
    pub(crate) fn expire(
        &mut self,
        now: Instant,
        last_activity: impl Fn(&T) -> Option<Instant>,
    ) -> (Vec<(K, T)>, Option<Instant>) {
        let idle = self.idle;
        let due = |entry: &Entry<T>| {
            last_activity(&entry.value).map_or(entry.since, |at| at.max(entry.since)) + idle
        };
        let gone =
            self.entries.extract_if(|_, entry| due(entry) <= now).map(|(key, entry)| (key, entry.value));
        let gone = gone.collect();
        (gone, self.entries.values().map(due).min())
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
        assert_eq!(sources.expire(start, |at| Some(*at)), (vec![], Some(start + IDLE)));
        let later = start + IDLE;
        let (gone, next) = sources.expire(later, |at| Some(*at));
        assert_eq!(gone, [(1, start)]);
        assert_eq!(next, Some(start + Duration::from_secs(500)));
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
                let (gone, next) = sources.expire(now, |_: &()| None);
                for (source, ()) in gone {
                    prop_assert!(model.remove(&source).unwrap() + IDLE <= now);
                }
                prop_assert!(model.values().all(|since| *since + IDLE > now));
                prop_assert_eq!(next, model.values().map(|since| *since + IDLE).min());
                if sources.get(&source).is_none() && !sources.is_full() {
                    sources.insert(now, source, ());
                    model.insert(source, now);
                }
                prop_assert!(model.len() <= 8);
            }
        }
    }
}
