//! A flow carries datagrams one way, from UDP to a stream: one lock around a bounded queue.
//!
//! The UDP side pushes batches and never waits; the stream's writer takes bytes when its socket takes them.
//! No mailbox lies between: a mailbox blocked by a full TCP socket would no longer hear `Disconnect`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::counters::{DropReason, LiveCounters};
use crate::datagrams::Batch;
use crate::relay::directory::Pairing;
pub(crate) use queue::ControlFull;
use queue::{Protocol, Queue};

mod queue;

/// Bounded in bytes and age, see [`Queue`]; one writer takes from it at a time.
#[derive(Debug)]
pub(crate) struct Flow {
    inner: Mutex<Inner>,
    counters: Arc<LiveCounters>,
}

#[derive(Debug)]
struct Inner {
    queue: Queue,
    /// Woken when there is something to be written.
    writer: Option<Waker>,
    /// Towards a side of a relay's pair: whose data comes in, and who waits for the queue to be shorter.
    pairing: Option<Pairing>,
    reader: Option<Waker>,
    /// Bytes that the stream has taken so far.
    taken: u64,
}

impl Flow {
    /// For RFC 4571 frames.
    pub(crate) fn new(max_bytes: usize, max_age: Duration, counters: Arc<LiveCounters>) -> Self {
        Self::of(Protocol::Rfc4571, max_bytes, max_age, counters)
    }

    /// For padded ChannelData messages and STUN messages.
    pub(crate) fn turn(max_bytes: usize, max_age: Duration, counters: Arc<LiveCounters>) -> Self {
        Self::of(Protocol::Turn, max_bytes, max_age, counters)
    }

    fn of(protocol: Protocol, max_bytes: usize, max_age: Duration, counters: Arc<LiveCounters>) -> Self {
        let queue = Queue::new(protocol, max_bytes, max_age);
        Self {
            inner: Mutex::new(Inner { queue, writer: None, pairing: None, reader: None, taken: 0 }),
            counters,
        }
    }

    /// Appends a batch as far as it fits, and wakes the writer if the queue was empty.
    pub(crate) fn push(&self, now: Instant, batch: Batch) {
        self.fill(|queue| {
            queue.push(now, batch);
            self.count_dropped(queue);
        });
    }

    /// Appends a control message, which goes before all data but never into a begun frame, and wakes the writer if
    /// the queue was empty.
    ///
    /// # Errors
    /// The stream has not taken 64 KiB of them: the message is not queued.
    pub(crate) fn push_control(&self, message: Bytes) -> Result<(), ControlFull> {
        self.fill(|queue| queue.push_control(message))
    }

    /// Two sides of a relay's pair have met, and this flow leads to one of them: what it held is dropped, and data of
    /// this pairing comes in from now on, but does not go out before [`admit`](Self::admit).
    pub(crate) fn meet(&self, pairing: Pairing) {
        self.change_pairing(Some(pairing));
    }

    /// The same two are to begin anew: what this flow held is dropped, and waits for [`admit`](Self::admit) again. Nothing
    /// happens if they have parted.
    pub(crate) fn meet_again(&self, pairing: Pairing) {
        let mut inner = self.lock();
        if inner.pairing == Some(pairing) {
            inner.queue.drop_data();
            inner.queue.hold(true);
            self.count_dropped(&mut inner.queue);
        }
    }

    /// They have parted: what it held is dropped, and no data comes in. A frame once begun is finished.
    pub(crate) fn part(&self) {
        self.change_pairing(None);
    }

    fn change_pairing(&self, pairing: Option<Pairing>) {
        let mut inner = self.lock();
        inner.pairing = pairing;
        inner.queue.drop_data();
        inner.queue.hold(true);
        self.count_dropped(&mut inner.queue);
    }

    /// The side has been told of this meeting, which may be over already: its data may go out.
    pub(crate) fn admit(&self, pairing: Pairing) {
        let mut inner = self.lock();
        if inner.pairing == Some(pairing) {
            inner.queue.hold(false);
            wake(inner);
        }
    }

    /// Appends a batch as far as it fits, if the two that it goes between are still together.
    pub(crate) fn push_of(&self, pairing: Pairing, now: Instant, batch: Batch) {
        let mut inner = self.lock();
        if inner.pairing != Some(pairing) {
            return self.counters.dropped(DropReason::NoPeer, batch.datagrams);
        }
        inner.queue.push(now, batch);
        self.count_dropped(&mut inner.queue);
        wake(inner);
    }

    /// Waits while the queue is long: more than a quarter of what it may hold.
    pub(crate) fn poll_short(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if !inner.queue.is_long() {
            return Poll::Ready(());
        }
        note(&mut inner.reader, cx);
        Poll::Pending
    }

    /// How many bytes the stream has taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.lock().taken
    }

    fn fill<R>(&self, push: impl FnOnce(&mut Queue) -> R) -> R {
        let mut inner = self.lock();
        let result = push(&mut inner.queue);
        wake(inner);
        result
    }

    /// The next control message or whole frames, at most `max` bytes of them unless one alone is longer. Waits
    /// while there are none. To be followed by [`advance`](Self::advance), with 0 if the stream took nothing.
    pub(crate) fn poll_front(&self, cx: &mut Context<'_>, now: Instant, max: usize) -> Poll<Bytes> {
        let mut inner = self.lock();
        let front = inner.queue.front(now, max);
        self.count_dropped(&mut inner.queue);
        match front {
            Some(bytes) => Poll::Ready(bytes),
            None => {
                note(&mut inner.writer, cx);
                Poll::Pending
            }
        }
    }

    /// The stream took `taken` bytes of the front. Counts the datagrams that are now complete.
    pub(crate) fn advance(&self, taken: usize) {
        let mut inner = self.lock();
        let finished = inner.queue.advance(taken);
        inner.taken += taken as u64;
        let reader = if inner.queue.is_long() { None } else { inner.reader.take() };
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
        if finished.datagrams > 0 {
            self.counters.sent_to_tcp(finished.datagrams, finished.bytes);
        }
    }

    /// The bytes of control messages that wait.
    pub(crate) fn control_len(&self) -> usize {
        self.lock().queue.control_len()
    }

    /// Nothing is waiting.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    /// The age limit of what comes from now on.
    pub(crate) fn set_max_age(&self, max_age: Duration) {
        self.lock().queue.set_max_age(max_age);
    }

    /// The stream is gone; the next one begins with a whole frame, and without the control messages of this one.
    pub(crate) fn restart(&self) {
        let mut inner = self.lock();
        inner.queue.restart();
        inner.writer = None;
        self.count_dropped(&mut inner.queue);
    }

    /// Gives the datagrams that wait, to go another way; they are not counted as sent.
    pub(crate) fn take(&self, now: Instant) -> Vec<Batch> {
        let mut inner = self.lock();
        let batches = inner.queue.take(now);
        self.count_dropped(&mut inner.queue);
        batches
    }

    /// Nobody will take from this flow any more.
    pub(crate) fn close(&self) {
        let left = self.lock().queue.clear();
        self.counters.dropped(DropReason::ConnectionLost, left);
    }

    /// Drops what is too old; says when something else will be. Where nothing will, whoever polls is woken when something
    /// comes, as by [`poll_front`](Self::poll_front), which it may not have got to.
    pub(crate) fn poll_expiry(&self, cx: &mut Context<'_>, now: Instant) -> Poll<Instant> {
        let mut inner = self.lock();
        inner.queue.expire(now);
        self.count_dropped(&mut inner.queue);
        match inner.queue.next_expiry() {
            Some(due) => Poll::Ready(due),
            None => {
                note(&mut inner.writer, cx);
                Poll::Pending
            }
        }
    }

    /// Counts what has become too old since the last push, so that statistics are up to date.
    pub(crate) fn expire(&self, now: Instant) {
        let mut inner = self.lock();
        inner.queue.expire(now);
        self.count_dropped(&mut inner.queue);
    }

    fn count_dropped(&self, queue: &mut Queue) {
        let dropped = queue.take_dropped();
        self.counters.dropped(DropReason::Expired, dropped.expired);
        self.counters.dropped(DropReason::QueueFull, dropped.full);
        self.counters.dropped(DropReason::ConnectionLost, dropped.cut);
    }

    /// A panic elsewhere must not end this flow: the queue is valid between any two of its methods.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever polls is to be woken.
fn note(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

/// Wakes the writer, which waits only while there is nothing to be written.
fn wake(mut inner: MutexGuard<'_, Inner>) {
    let writer = inner.writer.take();
    drop(inner);
    if let Some(writer) = writer {
        writer.wake();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::datagrams::{BatchBuilder, Framing};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::Wake;

    /// For the tests of pure files, which read no clock.
    pub(crate) fn any_instant() -> Instant {
        Instant::now()
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn batch(datagram: &[u8]) -> Batch {
        let mut builder = BatchBuilder::default();
        builder.push(datagram, datagram.len());
        builder.finish()
    }

    #[test]
    fn the_writer_is_woken_once_when_the_queue_fills() {
        let counters = Arc::new(LiveCounters::default());
        let flow = Flow::new(1 << 16, Duration::from_secs(1), counters.clone());
        let (wakes, now) = (Arc::new(Wakes::default()), any_instant());
        let waker = Waker::from(wakes.clone());
        let cx = &mut Context::from_waker(&waker);
        assert!(flow.poll_front(cx, now, 100).is_pending());
        flow.push(now, batch(b"one"));
        flow.push(now, batch(b"two"));
        assert_eq!(wakes.0.load(SeqCst), 1);
        for _ in 0..2 {
            let Poll::Ready(bytes) = flow.poll_front(cx, now, 100) else { panic!("a frame waits") };
            flow.advance(bytes.len());
        }
        assert!(flow.is_empty());
        let sent = counters.snapshot().to_tcp;
        assert_eq!((sent.datagrams, sent.bytes), (2, 6));
    }

    #[test]
    fn a_control_message_wakes_the_writer_goes_first_and_counts_as_no_datagram() {
        let counters = Arc::new(LiveCounters::default());
        let flow = Flow::turn(1 << 16, Duration::from_secs(1), counters.clone());
        let (wakes, now) = (Arc::new(Wakes::default()), any_instant());
        let waker = Waker::from(wakes.clone());
        let cx = &mut Context::from_waker(&waker);
        assert!(flow.poll_front(cx, now, 100).is_pending());
        flow.push_control(Bytes::from_static(b"refresh")).unwrap();
        let mut builder = BatchBuilder::with_capacity(Framing::PaddedChannel(0x4000), 0);
        builder.push(b"datagrams", 8);
        flow.push(now, builder.finish());
        assert_eq!(wakes.0.load(SeqCst), 1);
        let mut out = Vec::new();
        while let Poll::Ready(bytes) = flow.poll_front(cx, now, 1 << 16) {
            out.extend_from_slice(&bytes[..bytes.len().min(5)]);
            flow.advance(bytes.len().min(5));
        }
        assert_eq!(out, b"refresh\x40\x00\x00\x08datagram\x40\x00\x00\x01s\0\0\0");
        let sent = counters.snapshot().to_tcp;
        assert_eq!((sent.datagrams, sent.bytes), (2, 9));
    }

    #[test]
    fn what_is_taken_from_a_flow_is_not_counted_as_sent() {
        let counters = Arc::new(LiveCounters::default());
        let flow = Flow::new(1 << 16, Duration::from_secs(1), counters.clone());
        let now = any_instant();
        flow.push(now, batch(b"too old"));
        flow.push(now + Duration::from_secs(1), batch(b"held"));
        assert_eq!(flow.take(now + Duration::from_secs(1)), [batch(b"held")]);
        assert!(flow.is_empty());
        assert_eq!(counters.snapshot().to_tcp.datagrams, 0);
        assert_eq!(counters.snapshot().drops.expired, 1);
    }

    #[test]
    fn only_data_of_the_present_pairing_goes_out_and_only_when_the_side_knows() {
        let counters = Arc::new(LiveCounters::default());
        let flow = Flow::turn(1 << 16, Duration::from_secs(1), counters.clone());
        let (wakes, now) = (Arc::new(Wakes::default()), any_instant());
        let waker = Waker::from(wakes.clone());
        let cx = &mut Context::from_waker(&waker);
        let data = |text: &[u8]| {
            let mut builder = BatchBuilder::with_capacity(Framing::PaddedChannel(0x4000), 0);
            builder.push(text, text.len());
            builder.finish()
        };
        flow.push_of(Pairing(1), now, data(b"early"));
        flow.meet(Pairing(1));
        flow.push_of(Pairing(1), now, data(b"held"));
        assert!(flow.poll_front(cx, now, 100).is_pending());
        flow.admit(Pairing(1));
        assert_eq!(wakes.0.load(SeqCst), 1);
        let Poll::Ready(front) = flow.poll_front(cx, now, 100) else { panic!("it waits") };
        assert_eq!(front, b"\x40\x00\x00\x04held"[..]);
        // The stream holds it, and takes a part, while the peer changes.
        flow.meet(Pairing(2));
        flow.push_of(Pairing(1), now, data(b"late"));
        flow.push_of(Pairing(2), now, data(b"new"));
        flow.admit(Pairing(1));
        flow.advance(5);
        flow.push_control(Bytes::from_static(b"Peer 1")).unwrap();
        let Poll::Ready(rest) = flow.poll_front(cx, now, 100) else { panic!("it was begun") };
        assert_eq!(rest, b"eld"[..]);
        flow.advance(3);
        let Poll::Ready(told) = flow.poll_front(cx, now, 100) else { panic!("it is told") };
        assert_eq!(told, b"Peer 1"[..]);
        flow.advance(told.len());
        assert!(flow.poll_front(cx, now, 100).is_pending());
        flow.admit(Pairing(2));
        let Poll::Ready(front) = flow.poll_front(cx, now, 100) else { panic!("it waits") };
        assert_eq!(front, b"\x40\x00\x00\x03new\0"[..]);
        let drops = counters.snapshot().drops;
        assert_eq!((drops.no_peer, drops.total()), (2, 2));
    }

    #[test]
    fn what_a_closed_flow_held_is_counted() {
        let counters = Arc::new(LiveCounters::default());
        let flow = Flow::new(1 << 16, Duration::from_secs(1), counters.clone());
        flow.push(any_instant(), batch(b"one"));
        flow.close();
        assert_eq!(counters.snapshot().drops.connection_lost, 1);
    }
}
