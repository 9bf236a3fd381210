//! What waits for a stream to take it: bounded in bytes and in age. `wire.md`, "Queues".
//!
//! A TURN stream carries control messages too. They have a queue of their own, which goes before the data but never
//! into a begun frame.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use crate::datagrams::Batch;
use crate::tcp::{channel_data, framing};

/// Each frame weighs this much more than its bytes on the stream, so that empty datagrams weigh too: 64 with
/// the header of RFC 4571.
const FRAME_WEIGHT: usize = 64 - framing::HEADER_LEN;

/// An empty queue keeps room for so many batches: one that idles owns little.
const KEPT_CAPACITY: usize = 64;

/// Control messages that wait hold at most so many bytes: hundreds of requests.
const MAX_CONTROL_LEN: usize = 64 << 10;

/// What the frames of a queue are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Rfc4571,
    /// Padded ChannelData messages (RFC 8656 §12.5).
    Turn,
}

impl Protocol {
    /// The length of the whole first frame, and that of its payload.
    fn first_frame(self, bytes: &[u8]) -> Option<(usize, usize)> {
        match self {
            Self::Rfc4571 => {
                let payload = framing::first_datagram(bytes)?.len();
                Some((framing::HEADER_LEN + payload, payload))
            }
            Self::Turn => {
                if let Some((_, payload)) = channel_data::parse(bytes) {
                    let len = payload.len();
                    return Some((channel_data::HEADER_LEN + len + channel_data::padding(len), len));
                }
                // A Send indication: what it carries only its batch knows.
                let len = channel_data::message_len(bytes).ok()??;
                (len <= bytes.len()).then_some((len, 0))
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    batch: Batch,
    /// `None`: it is to be dropped as soon as the stream does not hold it.
    expires: Option<Instant>,
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| expires <= now)
    }
}

/// Datagrams dropped since they were last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) expired: u64,
    pub(crate) full: u64,
    pub(crate) cut: u64,
}

/// Datagrams that [`Queue::advance`] finished, and their payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
}

/// A control message that was not taken: too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream has not taken {MAX_CONTROL_LEN} bytes of control messages")]
pub(crate) struct ControlFull;

/// A frame of which the stream has taken a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Begun {
    /// Its bytes that are left; 0: there is no such frame.
    left: usize,
    /// All of its payload.
    payload: u64,
}

/// Which queue's head is being offered to the stream: it must stay as it is until `advance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    Nothing,
    Data,
    Control,
}

/// A queue of framed datagrams. What is too old is dropped from its head, what does not fit from its tail.
/// A frame of which the stream has taken a part is finished, however old it gets.
#[derive(Debug)]
pub(crate) struct Queue {
    protocol: Protocol,
    entries: VecDeque<Entry>,
    /// Of all entries, at most `max_weight` plus what one begun frame weighs.
    weight: usize,
    max_weight: usize,
    max_age: Duration,
    /// The head's first frame.
    begun: Begun,
    lent: Lent,
    /// Data may come in but not go out, but for the rest of a begun frame.
    held: bool,
    dropped: Dropped,
    /// Whole messages, but for the first if the stream has taken a part of it.
    control: VecDeque<Bytes>,
    control_len: usize,
}

impl Queue {
    pub(crate) fn new(protocol: Protocol, max_weight: usize, max_age: Duration) -> Self {
        Self {
            protocol,
            entries: VecDeque::new(),
            weight: 0,
            max_weight,
            max_age,
            begun: Begun::default(),
            lent: Lent::Nothing,
            held: false,
            dropped: Dropped::default(),
            control: VecDeque::new(),
            control_len: 0,
        }
    }

    /// The age limit of what is pushed from now on; what is queued keeps the one it came with.
    pub(crate) fn set_max_age(&mut self, max_age: Duration) {
        self.max_age = max_age;
    }

    /// While it is held, data may come in but not go out; control messages may.
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.control.is_empty()
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
            let pushed = batch.datagrams;
            batch = self.fitting(&batch, room);
            self.dropped.full += pushed - batch.datagrams;
        }
        if batch.datagrams > 0 {
            self.weight += weight(batch.frames.len(), batch.datagrams);
            self.entries.push_back(Entry { batch, expires: Some(now + self.max_age) });
        }
    }

    /// The first datagrams that together weigh `room` at most.
    fn fitting(&self, batch: &Batch, room: usize) -> Batch {
        let (mut len, mut datagrams, mut payload) = (0, 0, 0);
        while let Some((frame, bytes)) = self.protocol.first_frame(&batch.frames[len..])
            && weight(len + frame, datagrams + 1) <= room
        {
            len += frame;
            datagrams += 1;
            payload += bytes as u64;
        }
        Batch { frames: first(&batch.frames, len), datagrams, payload }
    }

    /// Takes a whole control message. It goes out before all data, but for a begun frame; it does not age.
    ///
    /// # Errors
    /// More than 64 KiB would wait.
    pub(crate) fn push_control(&mut self, message: Bytes) -> Result<(), ControlFull> {
        if self.control_len + message.len() > MAX_CONTROL_LEN {
            return Err(ControlFull);
        }
        // An empty write would look like the stream's end.
        if !message.is_empty() {
            self.control_len += message.len();
            self.control.push_back(message);
        }
        Ok(())
    }

    pub(crate) fn control_len(&self) -> usize {
        self.control_len
    }

    /// Whether it holds more than a quarter of what it may: somebody reads faster than another takes.
    pub(crate) fn is_long(&self) -> bool {
        self.weight > self.max_weight / 4
    }

    /// Drops what is too old.
    pub(crate) fn expire(&mut self, now: Instant) {
        let is_lent = self.lent == Lent::Data;
        let mut first = usize::from(is_lent);
        if self.begun.left > 0 && !is_lent {
            if self.entries.front().is_some_and(|head| head.is_over(now)) {
                self.dropped.expired += self.keep_begun_only();
            }
            first = 1;
        }
        while self.entries.get(first).is_some_and(|entry| entry.is_over(now)) {
            if let Some(Entry { batch, .. }) = self.entries.remove(first) {
                self.weight -= weight(batch.frames.len(), batch.datagrams);
                self.dropped.expired += batch.datagrams;
            }
        }
        self.tidy();
    }

    /// When [`expire`](Self::expire) has something to drop, if nothing is pushed or taken until then.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let is_kept = self.lent == Lent::Data
            || self.begun.left > 0 && self.entries.front().is_some_and(|head| head.batch.datagrams == 1);
        self.entries.get(usize::from(is_kept))?.expires
    }

    fn tidy(&mut self) {
        if self.entries.is_empty() && self.entries.capacity() > KEPT_CAPACITY {
            self.entries = VecDeque::new();
        }
    }

    /// Drops the head's frames behind the begun one, and says how many they were.
    fn keep_begun_only(&mut self) -> u64 {
        let Begun { left, payload } = self.begun;
        let Some(Entry { batch, .. }) = self.entries.front_mut() else { return 0 };
        let dropped = batch.datagrams - 1;
        self.weight -= weight(batch.frames.len() - left, dropped);
        *batch = Batch { frames: first(&batch.frames, left), datagrams: 1, payload };
        dropped
    }

    /// Drops all data that the stream has not begun to take.
    pub(crate) fn drop_data(&mut self) {
        let keeps_head = self.lent == Lent::Data || self.begun.left > 0;
        while self.entries.len() > usize::from(keeps_head)
            && let Some(Entry { batch, .. }) = self.entries.pop_back()
        {
            self.weight -= weight(batch.frames.len(), batch.datagrams);
            self.dropped.cut += batch.datagrams;
        }
        if self.lent == Lent::Data {
            // How much of it the stream takes, `advance` will say.
            if let Some(head) = self.entries.front_mut() {
                head.expires = None;
            }
        } else if keeps_head {
            self.dropped.cut += self.keep_begun_only();
        }
        self.tidy();
    }

    /// The next bytes for the stream: a control message, or whole frames of one batch, `max` bytes at most unless
    /// the first frame alone is longer. They stay as they are until [`advance`](Self::advance) says how many were
    /// taken.
    pub(crate) fn front(&mut self, now: Instant, max: usize) -> Option<Bytes> {
        self.expire(now);
        let begun = self.begun.left;
        if let Some(message) = self.control.front().filter(|_| begun == 0) {
            self.lent = Lent::Control;
            return Some(message.clone());
        }
        if self.held || !self.control.is_empty() {
            let head = self.entries.front().filter(|_| begun > 0)?;
            self.lent = Lent::Data;
            return Some(head.batch.frames.slice(..begun));
        }
        let frames = &self.entries.front()?.batch.frames;
        self.lent = Lent::Data;
        if frames.len() <= max {
            return Some(frames.clone());
        }
        let mut len = begun;
        while let Some((frame, _)) = self.protocol.first_frame(&frames[len..])
            && (len == 0 || len + frame <= max)
        {
            len += frame;
        }
        Some(frames.slice(..len))
    }

    /// The stream has taken `taken` bytes, perhaps none, of what [`front`](Self::front) gave.
    pub(crate) fn advance(&mut self, taken: usize) -> Finished {
        if std::mem::replace(&mut self.lent, Lent::Nothing) == Lent::Control {
            self.advance_control(taken);
            return Finished::default();
        }
        let Some(Entry { batch, .. }) = self.entries.front_mut() else { return Finished::default() };
        let (finished, begun) = if taken == batch.frames.len() {
            (Finished { datagrams: batch.datagrams, bytes: batch.payload }, Begun::default())
        } else {
            count_finished(self.protocol, &batch.frames, self.begun, taken)
        };
        self.weight -= weight(taken, finished.datagrams);
        self.begun = begun;
        batch.frames.advance(taken);
        batch.datagrams -= finished.datagrams;
        batch.payload -= finished.bytes;
        if batch.frames.is_empty() {
            self.entries.pop_front();
            self.tidy();
        }
        finished
    }

    fn advance_control(&mut self, taken: usize) {
        let Some(message) = self.control.front_mut() else { return };
        message.advance(taken);
        self.control_len -= taken;
        if message.is_empty() {
            self.control.pop_front();
        }
    }

    /// The stream is gone. The data that waits may go over the next one, but for the frame that was cut in the
    /// middle. Control messages are for one stream only.
    pub(crate) fn restart(&mut self) {
        self.lent = Lent::Nothing;
        self.control.clear();
        self.control_len = 0;
        let cut = std::mem::take(&mut self.begun);
        if cut.left == 0 {
            return;
        }
        self.dropped.cut += 1;
        self.weight -= weight(cut.left, 1);
        if let Some(Entry { batch, .. }) = self.entries.front_mut() {
            batch.frames.advance(cut.left);
            batch.datagrams -= 1;
            batch.payload -= cut.payload;
            if batch.frames.is_empty() {
                self.entries.pop_front();
            }
        }
    }

    /// Gives all that waits, whole datagrams only, to go another way.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<Batch> {
        self.restart();
        self.expire(now);
        self.weight = 0;
        self.entries.drain(..).map(|entry| entry.batch).collect()
    }

    /// Drops all that waits, and says how many datagrams that was.
    pub(crate) fn clear(&mut self) -> u64 {
        self.begun = Begun::default();
        self.lent = Lent::Nothing;
        self.weight = 0;
        self.control.clear();
        self.control_len = 0;
        self.entries.drain(..).map(|entry| entry.batch.datagrams).sum()
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

/// The datagrams whose frames end within the first `taken` bytes, and what is left of the frame that is cut. The
/// first frame may be a begun one.
fn count_finished(protocol: Protocol, frames: &[u8], begun: Begun, taken: usize) -> (Finished, Begun) {
    if taken < begun.left {
        return (Finished::default(), Begun { left: begun.left - taken, ..begun });
    }
    let mut finished = Finished { datagrams: u64::from(begun.left > 0), bytes: begun.payload };
    let mut end = begun.left;
    while end < taken {
        // Whole frames follow a begun one.
        let (frame, payload) = protocol.first_frame(&frames[end..]).unwrap_or((frames.len() - end, 0));
        if end + frame > taken {
            return (finished, Begun { left: end + frame - taken, payload: payload as u64 });
        }
        end += frame;
        finished.datagrams += 1;
        finished.bytes += payload as u64;
    }
    (finished, Begun::default())
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
