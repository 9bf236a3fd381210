use super::*;
use crate::datagrams::BatchBuilder;
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
    let (now, mut queue) = (start(), Queue::new(1 << 20, AGE));
    queue.push(now, batch(&[b"a", b"b"]));
    queue.push(now + AGE / 2, batch(&[b"c"]));
    assert_eq!(all(&mut queue, now + AGE), b"\x00\x01c");
    assert_eq!(queue.take_dropped(), Dropped { expired: 2, ..Dropped::default() });
    assert_eq!(queue.weight(), 0);
}

#[test]
fn what_was_held_keeps_its_longer_age() {
    let (now, mut queue) = (start(), Queue::new(1 << 20, Duration::from_secs(5)));
    queue.push(now, batch(&[b"held"]));
    queue.set_max_age(AGE);
    queue.push(now, batch(&[b"new"]));
    assert_eq!(all(&mut queue, now + 2 * AGE), b"\x00\x04held");
}

#[test]
fn a_begun_frame_is_finished_however_old() {
    let (now, mut queue) = (start(), Queue::new(1 << 20, AGE));
    queue.push(now, batch(&[b"aaaa", b"bbbb"]));
    queue.push(now, batch(&[b"cccc"]));
    assert_eq!(queue.advance(3), Finished { datagrams: 0, bytes: 3 });
    assert_eq!(all(&mut queue, now + AGE), b"aaa");
    assert_eq!(queue.take_dropped().expired, 2);
    assert_eq!(queue.weight(), 0);
}

#[test]
fn what_does_not_fit_is_dropped_from_the_tail() {
    let (now, mut queue) = (start(), Queue::new(200, AGE));
    queue.push(now, batch(&[b"", b"", b"1234567890", b"x", b""]));
    assert_eq!(queue.weight(), 64 + 64);
    assert_eq!(queue.take_dropped(), Dropped { full: 3, ..Dropped::default() });
    queue.push(now, batch(&[b"12345678"]));
    assert_eq!(queue.weight(), 200);
    assert_eq!(all(&mut queue, now), b"\x00\x00\x00\x00\x00\x0812345678");
}

#[test]
fn a_chunk_holds_whole_frames_up_to_its_size_but_at_least_one() {
    let (now, mut queue) = (start(), Queue::new(1 << 20, AGE));
    queue.push(now, batch(&[&[1; 10], &[2; 10], &[3; 100]]));
    assert_eq!(queue.front(now, 25).unwrap().len(), 24);
    queue.advance(5);
    assert_eq!(queue.front(now, 25).unwrap().len(), 7 + 12);
    queue.advance(19);
    assert_eq!(queue.front(now, 25).unwrap().len(), 102);
}

#[test]
fn a_new_stream_begins_with_a_whole_frame() {
    let (now, mut queue) = (start(), Queue::new(1 << 20, AGE));
    queue.push(now, batch(&[b"aaaa", b"bbbb"]));
    queue.advance(1);
    queue.restart();
    assert_eq!(all(&mut queue, now), b"\x00\x04bbbb");
    assert_eq!(queue.take_dropped().cut, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<usize>),
    Take(usize, usize),
    Wait(u64),
    Restart,
    MaxAge(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(prop_oneof![Just(0), 1..2000usize], 1..8).prop_map(Step::Push),
        4 => (1..20_000usize, 0..30_000usize).prop_map(|(max, taken)| Step::Take(max, taken)),
        3 => (0..40u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => (1..100u64).prop_map(Step::MaxAge),
    ]
}

proptest! {
    /// Under a virtual clock and any order of events: the bound in bytes holds, nothing older than its limit
    /// is begun, what comes out is whole frames in order, and every datagram is accounted for once.
    #[test]
    fn bounds_hold_and_nothing_is_lost_uncounted(steps in prop::collection::vec(step(), 1..120)) {
        let limit = 8000;
        let (mut now, mut queue) = (start(), Queue::new(limit, AGE));
        let (mut max_age, mut pushed, mut finished) = (AGE, 0u64, 0u64);
        let mut deadlines: Vec<Instant> = Vec::new();
        let mut stream: Vec<u8> = Vec::new();
        let mut dropped = Dropped::default();
        for step in steps {
            match step {
                Step::Push(lens) => {
                    let mut builder = BatchBuilder::default();
                    for len in &lens {
                        let mut datagram = vec![0; *len];
                        let id = (deadlines.len() as u32).to_be_bytes();
                        datagram.iter_mut().zip(id).for_each(|(to, from)| *to = from);
                        deadlines.push(now + max_age);
                        builder.push(&datagram, *len);
                    }
                    pushed += lens.len() as u64;
                    queue.push(now, builder.finish());
                }
                Step::Take(max, taken) => {
                    let begun = queue.begun;
                    if let Some(bytes) = queue.front(now, max) {
                        prop_assert!(bytes.len() <= max.max(2002));
                        let fresh = &bytes[begun..];
                        if let Some(first) = framing::first_datagram(fresh).filter(|first| first.len() >= 4) {
                            let id = u32::from_be_bytes(first[..4].try_into().unwrap());
                            prop_assert!(deadlines[id as usize] > now, "too old");
                        }
                        let taken = taken.min(bytes.len());
                        stream.extend_from_slice(&bytes[..taken]);
                        finished += queue.advance(taken).datagrams;
                    }
                }
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Restart => {
                    queue.restart();
                    let (whole, _) = framing::whole_frames(&stream, usize::MAX);
                    stream.truncate(whole);
                }
                Step::MaxAge(ms) => {
                    max_age = Duration::from_millis(ms);
                    queue.set_max_age(max_age);
                }
            }
            prop_assert!(queue.weight() <= limit);
            let more = queue.take_dropped();
            dropped.expired += more.expired;
            dropped.full += more.full;
            dropped.cut += more.cut;
        }
        let left = queue.clear();
        prop_assert_eq!(pushed, finished + left + dropped.expired + dropped.full + dropped.cut);
        let (whole, count) = framing::whole_frames(&stream, usize::MAX);
        prop_assert_eq!(count, finished);
        prop_assert!(stream.len() - whole < framing::MAX_FRAME_LEN);
    }
}
