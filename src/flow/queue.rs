//! What waits for a stream to take it: bounded in bytes and in age. `wire.md`, "Queues".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use crate::datagrams::Batch;
use crate::tcp::framing;

/// Each frame weighs this much more than its bytes on the stream, so that empty datagrams weigh too: 64 with
/// its header.
const FRAME_WEIGHT: usize = 64 - framing::HEADER_LEN;

#[derive(Debug)]
struct Entry {
    frames: Bytes,
    datagrams: u64,
    expires: Instant,
}

/// Datagrams dropped since they were last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) expired: u64,
    pub(crate) full: u64,
    pub(crate) cut: u64,
}

/// What [`Queue::advance`] finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
}

/// A queue of framed datagrams. What is too old is dropped from its head, what does not fit from its tail.
/// A frame of which the stream has taken a part is finished, however old it gets.
#[derive(Debug)]
pub(crate) struct Queue {
    entries: VecDeque<Entry>,
    /// Of all entries, at most `max_weight` plus what one begun frame weighs.
    weight: usize,
    max_weight: usize,
    max_age: Duration,
    /// Bytes left of the head's first frame, if the stream has taken a part of it.
    begun: usize,
    /// The head is being offered to the stream and must stay as it is until `advance`.
    lent: bool,
    dropped: Dropped,
}

impl Queue {
    pub(crate) fn new(max_weight: usize, max_age: Duration) -> Self {
        Self {
            entries: VecDeque::new(),
            weight: 0,
            max_weight,
            max_age,
            begun: 0,
            lent: false,
            dropped: Dropped::default(),
        }
    }

    /// The age limit of what is pushed from now on; what is queued keeps the one it came with.
    pub(crate) fn set_max_age(&mut self, max_age: Duration) {
        self.max_age = max_age;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[cfg(test)]
    fn weight(&self) -> usize {
        self.weight
    }

    /// Takes the batch's datagrams as far as they fit, after what is too old has gone.
    pub(crate) fn push(&mut self, now: Instant, mut batch: Batch) {
        self.expire(now);
        let room = self.max_weight.saturating_sub(self.weight);
        if weight(batch.frames.len(), batch.datagrams) > room {
            let (len, count) = fitting(&batch.frames, room);
            self.dropped.full += batch.datagrams - count;
            batch.frames = first(&batch.frames, len);
            batch.datagrams = count;
        }
        if batch.datagrams > 0 {
            self.weight += weight(batch.frames.len(), batch.datagrams);
            let Batch { frames, datagrams } = batch;
            self.entries.push_back(Entry { frames, datagrams, expires: now + self.max_age });
        }
    }

    /// Drops what is too old.
    pub(crate) fn expire(&mut self, now: Instant) {
        let mut first = usize::from(self.lent);
        if self.begun > 0 && !self.lent {
            if self.entries.front().is_some_and(|head| head.expires <= now) {
                self.keep_begun_only();
            }
            first = 1;
        }
        while self.entries.get(first).is_some_and(|entry| entry.expires <= now) {
            if let Some(entry) = self.entries.remove(first) {
                self.weight -= weight(entry.frames.len(), entry.datagrams);
                self.dropped.expired += entry.datagrams;
            }
        }
    }

    fn keep_begun_only(&mut self) {
        if let Some(head) = self.entries.front_mut() {
            self.weight -= weight(head.frames.len() - self.begun, head.datagrams - 1);
            self.dropped.expired += head.datagrams - 1;
            head.frames = first(&head.frames, self.begun);
            head.datagrams = 1;
        }
    }

    /// The next bytes for the stream: whole frames of one batch, `max` bytes at most, unless the first frame
    /// alone is longer. They stay as they are until [`advance`](Self::advance) says how many were taken.
    pub(crate) fn front(&mut self, now: Instant, max: usize) -> Option<Bytes> {
        self.expire(now);
        let head = self.entries.front()?;
        self.lent = true;
        if head.frames.len() <= max {
            return Some(head.frames.clone());
        }
        let (len, _) = framing::whole_frames(&head.frames[self.begun..], max.saturating_sub(self.begun));
        let len = if self.begun > 0 && self.begun + len > max { self.begun } else { self.begun + len };
        Some(head.frames.slice(..len))
    }

    /// The stream has taken `taken` bytes, perhaps none, of what [`front`](Self::front) gave.
    pub(crate) fn advance(&mut self, taken: usize) -> Finished {
        self.lent = false;
        let Some(head) = self.entries.front_mut() else { return Finished::default() };
        let (datagrams, begun) = if taken == head.frames.len() {
            (head.datagrams, 0)
        } else {
            count_finished(&head.frames, self.begun, taken)
        };
        self.weight -= weight(taken, datagrams);
        head.frames.advance(taken);
        head.datagrams -= datagrams;
        self.begun = begun;
        if head.frames.is_empty() {
            self.entries.pop_front();
        }
        Finished { datagrams, bytes: taken as u64 }
    }

    /// The stream is gone. What waits may go over the next one, but for the frame that was cut in the middle.
    pub(crate) fn restart(&mut self) {
        self.lent = false;
        let cut = std::mem::take(&mut self.begun);
        if cut == 0 {
            return;
        }
        self.dropped.cut += 1;
        self.weight -= weight(cut, 1);
        if let Some(head) = self.entries.front_mut() {
            head.frames.advance(cut);
            head.datagrams -= 1;
            if head.frames.is_empty() {
                self.entries.pop_front();
            }
        }
    }

    /// Drops all that waits, and says how many datagrams that was.
    pub(crate) fn clear(&mut self) -> u64 {
        self.begun = 0;
        self.lent = false;
        self.weight = 0;
        self.entries.drain(..).map(|entry| entry.datagrams).sum()
    }

    /// What was dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }
}

fn weight(bytes: usize, datagrams: u64) -> usize {
    bytes + FRAME_WEIGHT * usize::try_from(datagrams).unwrap_or(usize::MAX / FRAME_WEIGHT)
}

/// The first `len` bytes; copied where they are few, so that what is queued does not hold much more memory than
/// it weighs.
fn first(frames: &Bytes, len: usize) -> Bytes {
    if len < frames.len() / 2 { Bytes::copy_from_slice(&frames[..len]) } else { frames.slice(..len) }
}

/// Length and number of the first frames that together weigh `room` at most.
fn fitting(frames: &[u8], room: usize) -> (usize, u64) {
    let (mut len, mut count) = (0, 0);
    while let Some(frame) = framing::frame_len(&frames[len..]) {
        if weight(len + frame, count + 1) > room {
            break;
        }
        len += frame;
        count += 1;
    }
    (len, count)
}

/// How many frames end within the first `taken` bytes, and how many bytes are left of the one that is cut.
/// Of the first frame `begun` bytes are left, if that is not 0.
fn count_finished(frames: &[u8], begun: usize, taken: usize) -> (u64, usize) {
    if taken < begun {
        return (0, begun - taken);
    }
    let mut count = u64::from(begun > 0);
    let mut end = begun;
    while end < taken {
        // Whole frames follow a begun one, so the header is there.
        let frame = framing::frame_len(&frames[end..]).unwrap_or(frames.len() - end);
        if end + frame > taken {
            return (count, end + frame - taken);
        }
        end += frame;
        count += 1;
    }
    (count, 0)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
