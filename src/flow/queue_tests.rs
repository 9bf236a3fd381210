use super::*;
use crate::datagrams::{BatchBuilder, Framing};
use proptest::prelude::*;

const AGE: Duration = Duration::from_millis(50);

/// An instant to count from: which one does not matter, and a pure file reads no clock.
fn start() -> Instant {
    crate::flow::tests::any_instant()
}

fn batch(datagrams: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::default();
    datagrams.iter().for_each(|datagram| builder.push(datagram, datagram.len()));
    builder.finish()
}

fn all(queue: &mut Queue, now: Instant) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(bytes) = queue.front(now, 1 << 20) {
        out.extend_from_slice(&bytes);
        queue.advance(bytes.len());
    }
    out
}

#[test]
fn what_is_too_old_is_dropped_from_the_head() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Rfc4571, 1 << 20, AGE));
    queue.push(now, batch(&[b"a", b"b"]));
    queue.push(now + AGE / 2, batch(&[b"c"]));
    assert_eq!(all(&mut queue, now + AGE), b"\x00\x01c");
    assert_eq!(queue.take_dropped(), Dropped { expired: 2, ..Dropped::default() });
    assert_eq!(queue.weight(), 0);
}

#[test]
fn what_was_held_keeps_its_longer_age() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Rfc4571, 1 << 20, Duration::from_secs(5)));
    queue.push(now, batch(&[b"held"]));
    queue.set_max_age(AGE);
    queue.push(now, batch(&[b"new"]));
    assert_eq!(all(&mut queue, now + 2 * AGE), b"\x00\x04held");
}

#[test]
fn a_begun_frame_is_finished_however_old() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Rfc4571, 1 << 20, AGE));
    queue.push(now, batch(&[b"aaaa", b"bbbb"]));
    queue.push(now, batch(&[b"cccc"]));
    assert_eq!(queue.advance(3), Finished::default());
    assert_eq!(all(&mut queue, now + AGE), b"aaa");
    assert_eq!(queue.take_dropped().expired, 2);
    assert_eq!(queue.weight(), 0);
}

#[test]
fn what_does_not_fit_is_dropped_from_the_tail() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Rfc4571, 200, AGE));
    queue.push(now, batch(&[b"", b"", b"1234567890", b"x", b""]));
    assert_eq!(queue.weight(), 64 + 64);
    assert_eq!(queue.take_dropped(), Dropped { full: 3, ..Dropped::default() });
    queue.push(now, batch(&[b"12345678"]));
    assert_eq!(queue.weight(), 200);
    assert_eq!(all(&mut queue, now), b"\x00\x00\x00\x00\x00\x0812345678");
}

#[test]
fn a_chunk_holds_whole_frames_up_to_its_size_but_at_least_one() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Rfc4571, 1 << 20, AGE));
    queue.push(now, batch(&[&[1; 10], &[2; 10], &[3; 100]]));
    assert_eq!(queue.front(now, 25).unwrap().len(), 24);
    queue.advance(5);
    assert_eq!(queue.front(now, 25).unwrap().len(), 7 + 12);
    queue.advance(19);
    assert_eq!(queue.front(now, 25).unwrap().len(), 102);
}

#[test]
fn a_new_stream_begins_with_a_whole_frame() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Rfc4571, 1 << 20, AGE));
    queue.push(now, batch(&[b"aaaa", b"bbbb"]));
    queue.advance(1);
    queue.restart();
    assert_eq!(all(&mut queue, now), b"\x00\x04bbbb");
    assert_eq!(queue.take_dropped().cut, 1);
}

fn padded(datagrams: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::with_capacity(Framing::PaddedChannel(0x4000), 0);
    datagrams.iter().for_each(|datagram| builder.push(datagram, datagram.len()));
    builder.finish()
}

#[test]
fn control_goes_before_data_but_not_into_a_begun_frame() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Turn, 1 << 20, AGE));
    queue.push(now, padded(&[b"aaaa", b"bbbb"]));
    queue.front(now, 100).unwrap();
    queue.advance(5);
    queue.push_control(Bytes::from_static(b"one")).unwrap();
    queue.push_control(Bytes::from_static(b"two")).unwrap();
    assert_eq!(queue.front(now, 100).unwrap(), "aaa");
    queue.advance(3);
    assert_eq!(queue.front(now, 100).unwrap(), "one");
    queue.advance(1);
    assert_eq!(all(&mut queue, now), b"netwo\x40\x00\x00\x04bbbb");
    assert!(queue.is_empty());
}

#[test]
fn control_does_not_age_is_bounded_and_goes_with_its_stream() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Turn, 200, AGE));
    queue.push_control(Bytes::new()).unwrap();
    assert!(queue.is_empty());
    queue.push_control(Bytes::from(vec![1; MAX_CONTROL_LEN - 1])).unwrap();
    assert_eq!(queue.push_control(Bytes::from_static(b"22")), Err(ControlFull));
    queue.push_control(Bytes::from_static(b"3")).unwrap();
    queue.front(now + 2 * AGE, 100).unwrap();
    queue.advance(2);
    queue.push_control(Bytes::from_static(b"44")).unwrap();
    queue.push(now, padded(&[b"data"]));
    queue.restart();
    assert_eq!(all(&mut queue, now), b"\x40\x00\x00\x04data");
    assert_eq!(queue.take_dropped(), Dropped::default());
}

#[test]
fn a_stun_message_that_carries_data_is_offered_whole_however_long() {
    let mut message = vec![0x00, 0x16];
    message.extend(20_000_u16.to_be_bytes());
    message.extend(0x2112_a442_u32.to_be_bytes());
    message.resize(20 + 20_000, 9);
    let mut queue = Queue::new(Protocol::Turn, 1 << 20, AGE);
    for _ in 0..2 {
        queue.push(start(), Batch { frames: message.clone().into(), datagrams: 1, payload: 19_968 });
    }
    assert_eq!(queue.front(start(), 16 << 10).unwrap().len(), message.len());
    // Taken in part it is finished before anything else.
    queue.advance(5_000);
    queue.push_control(Bytes::from_static(b"\0\x01\0\0\x21\x12\xa4\x42............")).unwrap();
    assert_eq!(queue.front(start(), 16 << 10).unwrap().len(), message.len() - 5_000);
    queue.advance(message.len() - 5_000);
    assert_eq!(queue.front(start(), 16 << 10).unwrap().len(), 20, "control comes first");
}

#[test]
fn nothing_stays_due_once_what_is_too_old_has_gone() {
    let now = start();
    let mut queue = Queue::new(Protocol::Rfc4571, 1 << 20, AGE);
    assert_eq!(queue.next_expiry(), None);
    queue.push(now, batch(&[b"begun", b"old"]));
    assert_eq!(queue.next_expiry(), Some(now + AGE));
    // A frame that the stream has begun to take is finished, what is behind it is dropped.
    queue.front(now, 1 << 20).unwrap();
    queue.advance(3);
    assert_eq!(queue.next_expiry(), Some(now + AGE));
    queue.expire(now + AGE);
    assert_eq!((queue.next_expiry(), queue.take_dropped().expired), (None, 1));
    queue.push(now + AGE, batch(&[b"new"]));
    assert_eq!(queue.next_expiry(), Some(now + 2 * AGE));
    // What the stream has been offered it may yet take.
    queue.front(now + AGE, 1 << 20).unwrap();
    queue.drop_data();
    assert_eq!(queue.next_expiry(), None);
    queue.advance(0);
    queue.expire(now + 2 * AGE);
    assert_eq!(queue.next_expiry(), None);
}

#[test]
fn an_empty_queue_owns_little_whatever_it_has_held() {
    let mut queue = Queue::new(Protocol::Rfc4571, 1 << 30, AGE);
    let now = start();
    for how in 0..3 {
        (0..10_000).for_each(|_| queue.push(now, batch(&[b""])));
        match how {
            0 => _ = all(&mut queue, now),
            1 => queue.expire(now + AGE),
            _ => queue.drop_data(),
        }
        assert!(queue.is_empty() && queue.entries.capacity() <= KEPT_CAPACITY, "{how}");
    }
}

#[test]
fn padding_is_no_payload() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Turn, 1 << 20, AGE));
    queue.push(now, padded(&[b"a", b"", b"ccccc"]));
    let mut finished = Vec::new();
    for taken in [7, 1, 4, 11] {
        queue.front(now, 100).unwrap();
        finished.push(queue.advance(taken));
    }
    let one = |bytes| Finished { datagrams: 1, bytes };
    assert_eq!(finished, [Finished::default(), one(1), one(0), Finished::default()]);
    queue.restart();
    assert_eq!((queue.weight(), queue.is_empty()), (0, true));
}

#[test]
fn what_is_taken_to_go_another_way_is_whole() {
    let (now, mut queue) = (start(), Queue::new(Protocol::Rfc4571, 1 << 20, AGE));
    queue.push(now, batch(&[b"old"]));
    queue.push(now + AGE, batch(&[b"aaaa", b"bb"]));
    queue.front(now + AGE, 100).unwrap();
    queue.advance(1);
    assert_eq!(queue.take(now + AGE), [batch(&[b"bb"])]);
    assert_eq!(queue.take_dropped(), Dropped { expired: 1, cut: 1, ..Dropped::default() });
    assert_eq!((queue.weight(), queue.is_empty()), (0, true));
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<usize>),
    Control(usize),
    /// The last: whether the data is dropped while the stream takes it.
    Take(usize, usize, bool),
    Part,
    Hold(bool),
    Wait(u64),
    Restart,
    MaxAge(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(prop_oneof![Just(0), 1..2000usize], 1..8).prop_map(Step::Push),
        2 => (0..60usize).prop_map(Step::Control),
        4 => (1..20_000usize, 0..30_000usize, prop::bool::weighted(0.1))
            .prop_map(|(max, taken, parts)| Step::Take(max, taken, parts)),
        1 => Just(Step::Part),
        1 => any::<bool>().prop_map(Step::Hold),
        3 => (0..40u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => (1..100u64).prop_map(Step::MaxAge),
    ]
}

/// What the far side of the stream has got, and what it is still to get.
struct Model {
    protocol: Protocol,
    queue: Queue,
    now: Instant,
    max_age: Duration,
    /// Of each datagram ever pushed.
    deadlines: Vec<Instant>,
    /// Those before this one are not to be begun any more.
    parted: usize,
    held: bool,
    stream: Vec<u8>,
    /// Bytes of the whole messages at the beginning of `stream`.
    whole: usize,
    received: Finished,
    /// Control messages that wait, or are cut.
    control: VecDeque<Bytes>,
    finished: Finished,
    dropped: Dropped,
}

impl Model {
    fn new(protocol: Protocol, limit: usize) -> Self {
        Self {
            protocol,
            queue: Queue::new(protocol, limit, AGE),
            now: start(),
            max_age: AGE,
            deadlines: Vec::new(),
            parted: 0,
            held: false,
            stream: Vec::new(),
            whole: 0,
            received: Finished::default(),
            control: VecDeque::new(),
            finished: Finished::default(),
            dropped: Dropped::default(),
        }
    }

    fn push(&mut self, lens: &[usize]) {
        let framing = match self.protocol {
            Protocol::Rfc4571 => Framing::Rfc4571,
            Protocol::Turn => Framing::PaddedChannel(0x4000),
        };
        let mut builder = BatchBuilder::with_capacity(framing, 0);
        for len in lens {
            let mut datagram = vec![0; *len];
            let id = (self.deadlines.len() as u32).to_be_bytes();
            datagram.iter_mut().zip(id).for_each(|(to, from)| *to = from);
            self.deadlines.push(self.now + self.max_age);
            builder.push(&datagram, *len);
        }
        self.queue.push(self.now, builder.finish());
    }

    /// RFC 4571 knows no control messages.
    fn push_control(&mut self, words: usize) {
        if self.protocol == Protocol::Turn {
            let mut message = b"\x01\x01\x00\x00\x21\x12\xa4\x42".to_vec();
            message[3] = (4 * words) as u8;
            message.resize(20 + 4 * words, self.control.len() as u8);
            let message = Bytes::from(message);
            self.queue.push_control(message.clone()).unwrap();
            self.control.push_back(message);
        }
    }

    fn part(&mut self) {
        self.queue.drop_data();
        self.parted = self.deadlines.len();
    }

    /// With `parts`, the data is dropped while the stream holds a part of it.
    fn take(&mut self, max: usize, taken: usize, parts: bool) -> Result<bool, TestCaseError> {
        let begun = self.queue.begun.left;
        let Some(bytes) = self.queue.front(self.now, max) else { return Ok(false) };
        prop_assert!(bytes.len() <= max.max(2004));
        match self.control.front() {
            Some(_) if begun > 0 => prop_assert_eq!(bytes.len(), begun, "behind a begun frame"),
            Some(message) => prop_assert!(message.ends_with(&bytes), "control goes first"),
            None => {
                prop_assert!(!self.held || bytes.len() == begun, "it is held");
                if let Some(first) =
                    first_payload(self.protocol, &bytes[begun..]).filter(|data| data.len() >= 4)
                {
                    let id = u32::from_be_bytes(first[..4].try_into().unwrap());
                    prop_assert!(self.deadlines[id as usize] > self.now, "too old");
                    prop_assert!(id as usize >= self.parted, "dropped before");
                }
            }
        }
        let taken = taken.min(bytes.len());
        self.stream.extend_from_slice(&bytes[..taken]);
        if parts {
            self.part();
        }
        let finished = self.queue.advance(taken);
        self.finished.datagrams += finished.datagrams;
        self.finished.bytes += finished.bytes;
        self.receive()?;
        Ok(true)
    }

    /// The far side cuts its stream into messages.
    fn receive(&mut self) -> Result<(), TestCaseError> {
        while let Some(len) = self.first_len()
            && let Some(message) = self.stream.get(self.whole..self.whole + len)
        {
            if let Some(data) = first_payload(self.protocol, message) {
                self.received.datagrams += 1;
                self.received.bytes += data.len() as u64;
            } else {
                let control = self.control.pop_front();
                prop_assert_eq!(control.as_deref(), Some(message), "lost, cut or out of order");
            }
            self.whole += len;
        }
        Ok(())
    }

    fn first_len(&self) -> Option<usize> {
        let rest = &self.stream[self.whole..];
        match self.protocol {
            Protocol::Rfc4571 => framing::frame_len(rest),
            Protocol::Turn => channel_data::message_len(rest).unwrap(),
        }
    }

    fn count_dropped(&mut self) {
        let more = self.queue.take_dropped();
        self.dropped.expired += more.expired;
        self.dropped.full += more.full;
        self.dropped.cut += more.cut;
    }
}

fn first_payload(protocol: Protocol, bytes: &[u8]) -> Option<&[u8]> {
    match protocol {
        Protocol::Rfc4571 => framing::first_datagram(bytes),
        Protocol::Turn => channel_data::parse(bytes).map(|(_, payload)| payload),
    }
}

proptest! {
    /// Under a virtual clock and any order of events: the bound in bytes holds, nothing older than its limit
    /// is begun, what comes out is whole frames in order, and every datagram is accounted for once. Control messages
    /// come out in order, before all data but never inside a frame, and are lost only with their stream.
    #[test]
    fn bounds_hold_and_nothing_is_lost_uncounted(
        protocol in prop_oneof![Just(Protocol::Rfc4571), Just(Protocol::Turn)],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let limit = 8000;
        let mut model = Model::new(protocol, limit);
        for step in steps {
            match step {
                Step::Push(lens) => model.push(&lens),
                Step::Control(words) => model.push_control(words),
                Step::Take(max, taken, parts) => {
                    model.take(max, taken, parts)?;
                }
                Step::Part => model.part(),
                Step::Hold(held) => {
                    model.held = held;
                    model.queue.hold(held);
                }
                Step::Wait(ms) => model.now += Duration::from_millis(ms),
                Step::Restart => {
                    model.queue.restart();
                    model.stream.truncate(model.whole);
                    model.control.clear();
                }
                Step::MaxAge(ms) => {
                    model.max_age = Duration::from_millis(ms);
                    model.queue.set_max_age(model.max_age);
                }
            }
            prop_assert!(model.queue.weight() <= limit);
            model.count_dropped();
        }
        model.held = false;
        model.queue.hold(false);
        while model.take(20_000, usize::MAX, false)? {}
        model.count_dropped();
        prop_assert!(model.queue.is_empty() && model.queue.weight() == 0);
        prop_assert!(model.control.is_empty());
        prop_assert_eq!(model.whole, model.stream.len());
        prop_assert_eq!(model.received, model.finished);
        let Dropped { expired, full, cut } = model.dropped;
        prop_assert_eq!(model.deadlines.len() as u64, model.finished.datagrams + expired + full + cut);
    }
}
