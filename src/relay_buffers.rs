//! What the runs of a relay's pairs are copied into. Large buffers that come and go would be given back to the system each
//! time, and be filled with zeros again; a thread keeps some.

use std::cell::RefCell;

use bytes::Bytes;

/// What a buffer holds: one large read, and the beginning of a message before it.
const BUFFER_LEN: usize = 80 << 10;
/// A shorter run gets memory of its own, so that what is queued does not hold much more than it weighs.
const MIN_LEN: usize = BUFFER_LEN / 2;
/// Buffers that a thread keeps: 1.25 MiB.
const MAX_SPARE: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// One that goes back to the thread on which its last user is done with it.
struct Buffer(Vec<u8>);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that ends keeps nothing.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MAX_SPARE {
                spare.push(buffer);
            }
        });
    }
}

/// A copy of these bytes.
pub(crate) fn copied(bytes: &[u8]) -> Bytes {
    if !(MIN_LEN..=BUFFER_LEN).contains(&bytes.len()) {
        return Bytes::copy_from_slice(bytes);
    }
    let spare = SPARE.with_borrow_mut(Vec::pop);
    let mut buffer = spare.unwrap_or_else(|| Vec::with_capacity(BUFFER_LEN));
    buffer.clear();
    buffer.extend_from_slice(bytes);
    Bytes::from_owner(Buffer(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    #[test]
    fn a_copy_is_the_same_and_its_buffer_is_used_again() {
        for len in [0, 1, MIN_LEN - 1, MIN_LEN, BUFFER_LEN, BUFFER_LEN + 1] {
            let bytes: Vec<_> = (0..len).map(|at| at as u8).collect();
            assert_eq!(copied(&bytes), bytes);
        }
        assert_eq!(spare(), 1);
        let first = copied(&[7; MIN_LEN]);
        let rest = first.slice(1000..);
        drop(first);
        assert_eq!((spare(), &rest[..]), (0, &[7; MIN_LEN - 1000][..]));
        drop(rest);
        assert_eq!(spare(), 1);
    }

    #[test]
    fn a_thread_keeps_a_few() {
        let many: Vec<_> = (0..2 * MAX_SPARE).map(|_| copied(&[7; BUFFER_LEN])).collect();
        drop(many);
        assert_eq!(spare(), MAX_SPARE);
        assert!(SPARE.with_borrow(|spare| spare.iter().all(|buffer| buffer.capacity() == BUFFER_LEN)));
    }
}
