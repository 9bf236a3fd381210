//! How many connections each thread of a relay serves, so that they are spread evenly.

/// Counts per thread; there is one at the least.
#[derive(Debug)]
pub(crate) struct Load {
    connections: Vec<usize>,
}

impl Load {
    pub(crate) fn new(threads: usize) -> Self {
        Self { connections: vec![0; threads.max(1)] }
    }

    /// A connection has come: gives the thread that serves fewest.
    pub(crate) fn place(&mut self) -> usize {
        let least = self.connections.iter().enumerate().min_by_key(|(_, count)| **count);
        let thread = least.map_or(0, |(thread, _)| thread);
        self.add(thread);
        thread
    }

    /// A connection goes on on another thread.
    pub(crate) fn moves(&mut self, from: usize, to: usize) {
        self.leaves(from);
        self.add(to);
    }

    /// A connection is gone.
    pub(crate) fn leaves(&mut self, thread: usize) {
        if let Some(count) = self.connections.get_mut(thread) {
            *count = count.saturating_sub(1);
        }
    }

    fn add(&mut self, thread: usize) {
        if let Some(count) = self.connections.get_mut(thread) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_come_one_after_the_other_are_spread_over_all_threads() {
        let mut load = Load::new(2);
        let pairs: Vec<_> = (0..8)
            .map(|_| {
                let first = load.place();
                let second = load.place();
                // It goes to its peer's thread.
                load.moves(second, first);
                first
            })
            .collect();
        assert_eq!(pairs.iter().filter(|thread| **thread == 0).count(), 4, "{pairs:?}");
    }

    #[test]
    fn who_is_gone_makes_room() {
        let mut load = Load::new(3);
        assert_eq!([load.place(), load.place(), load.place()], [0, 1, 2]);
        load.leaves(1);
        assert_eq!([load.place(), load.place()], [1, 0]);
        load.leaves(9);
        assert_eq!(Load::new(0).place(), 0);
    }
}
