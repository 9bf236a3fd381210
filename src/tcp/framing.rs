//! RFC 4571 framing: before each datagram its length, 16 bits, big endian.
//!
//! Every length is legal. Length 0, the RFC's null packet, is an empty datagram. Nothing here allocates,
//! and nothing can fail: any bytes are frames, or the beginning of one.

use bytes::BufMut;

/// Bytes in front of each datagram.
pub(crate) const HEADER_LEN: usize = 2;

/// The longest frame: header and 65,535 bytes.
pub(crate) const MAX_FRAME_LEN: usize = HEADER_LEN + 0xffff;

/// A GSO segment must fit the path's MTU, or the whole run fails: 1500 less the IPv6 and UDP headers, rounded
/// down to what an IPv6 tunnel leaves.
const MAX_SEGMENT: usize = 1452;
/// What Linux takes in one GSO call (`UDP_MAX_SEGMENTS` of older kernels).
const MAX_RUN_SEGMENTS: usize = 64;
/// What fits in one IP packet before it is segmented.
const MAX_RUN_BYTES: usize = 65_000;

/// Appends `datagram`, framed. UDP delivers at most 65,527 bytes, so the length fits 16 bits.
///
/// # Panics
/// With more than 65,535 bytes: no caller can have received that.
pub(crate) fn put_frame(to: &mut impl BufMut, datagram: &[u8]) {
    to.put_u16(u16::try_from(datagram.len()).expect("UDP delivers at most 65,527 bytes"));
    to.put_slice(datagram);
}

/// The length of the first frame, header included, as soon as its header is there.
pub(crate) fn frame_len(bytes: &[u8]) -> Option<usize> {
    let (header, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
    Some(HEADER_LEN + usize::from(u16::from_be_bytes(*header)))
}

/// The first datagram, if all of it is there. Its frame is `HEADER_LEN` longer.
pub(crate) fn first_datagram(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(HEADER_LEN..frame_len(bytes)?)
}

/// The length of the whole frames at the beginning of `bytes` that fit `max` together, but at least the first
/// frame's, whatever `max` is; and how many they are. (0, 0) if there is not one whole frame.
pub(crate) fn whole_frames(bytes: &[u8], max: usize) -> (usize, u64) {
    let (mut len, mut count) = (0, 0);
    while let Some(datagram) = first_datagram(&bytes[len..]) {
        let next = len + HEADER_LEN + datagram.len();
        if count > 0 && next > max {
            break;
        }
        len = next;
        count += 1;
    }
    (len, count)
}

/// Datagrams that one system call can send (UDP GSO): all of one size, only the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The size of each datagram but the last.
    pub(crate) segment: usize,
    /// How many datagrams.
    pub(crate) count: usize,
    /// Their bytes as they go out.
    pub(crate) bytes: usize,
}

impl Run {
    /// Of one datagram.
    pub(crate) fn new(len: usize) -> Self {
        Self { segment: len, count: 1, bytes: len }
    }

    /// Adds a datagram of `len` bytes if the run may go on with it, of at most `max_segments` in all; says
    /// whether it did.
    pub(crate) fn join(&mut self, len: usize, max_segments: usize) -> bool {
        let is_open = self.bytes == self.segment * self.count && self.segment <= MAX_SEGMENT;
        let fits = (1..=self.segment).contains(&len) && self.bytes + len <= MAX_RUN_BYTES;
        let joins = is_open && fits && self.count < max_segments.min(MAX_RUN_SEGMENTS);
        if joins {
            self.count += 1;
            self.bytes += len;
        }
        joins
    }

    /// The length of the frames of the run's datagrams.
    pub(crate) fn frames_len(self) -> usize {
        self.bytes + self.count * HEADER_LEN
    }

    /// The datagrams, which stand in `bytes` as frames.
    pub(crate) fn datagrams(self, mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        (0..self.count).map_while(move |_| {
            let datagram = first_datagram(bytes)?;
            bytes = &bytes[HEADER_LEN + datagram.len()..];
            Some(datagram)
        })
    }
}

/// The longest run at the beginning of `bytes`, of at most `max_segments` datagrams; `None` if there is not
/// one whole frame.
pub(crate) fn first_run(bytes: &[u8], max_segments: usize) -> Option<Run> {
    let mut run = Run::new(first_datagram(bytes)?.len());
    while first_datagram(&bytes[run.frames_len()..]).is_some_and(|next| run.join(next.len(), max_segments)) {}
    Some(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(datagrams: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        datagrams.iter().for_each(|datagram| put_frame(&mut bytes, datagram));
        bytes
    }

    fn datagrams() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let len = prop_oneof![Just(0), Just(148), Just(1200), 0..3000usize, Just(65_507), Just(65_535)];
        prop::collection::vec((len, any::<u8>()).prop_map(|(len, fill)| vec![fill; len]), 0..12)
    }

    #[test]
    fn a_frame_is_length_then_payload() {
        assert_eq!(framed(&[b"abc".to_vec(), Vec::new()]), b"\x00\x03abc\x00\x00");
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_datagrams() {
        let sent = [b"".to_vec(), b"x".to_vec(), vec![7; 300], b"".to_vec(), vec![9; 257]];
        let bytes = framed(&sent);
        for cut in 0..=bytes.len() {
            let mut received = Vec::new();
            let mut rest = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                rest.extend_from_slice(part);
                while let Some(run) = first_run(&rest, 64) {
                    received.extend(run.datagrams(&rest).map(<[u8]>::to_vec));
                    rest.drain(..run.frames_len());
                }
            }
            assert!(rest.is_empty());
            assert_eq!(received, sent, "cut at {cut}");
        }
    }

    #[test]
    fn a_run_ends_with_its_first_shorter_datagram() {
        let bytes = framed(&[vec![1; 10], vec![2; 10], vec![3; 4], vec![4; 4]]);
        assert_eq!(first_run(&bytes, 64), Some(Run { segment: 10, count: 3, bytes: 24 }));
    }

    #[test]
    fn empty_and_large_datagrams_travel_alone() {
        let bytes = framed(&[vec![], vec![], vec![1; 10]]);
        assert_eq!(first_run(&bytes, 64), Some(Run { segment: 0, count: 1, bytes: 0 }));
        let bytes = framed(&[vec![1; 1453], vec![1; 1453]]);
        assert_eq!(first_run(&bytes, 64).unwrap().count, 1);
        let bytes = framed(&[vec![1; 10], vec![], vec![1; 10]]);
        assert_eq!(first_run(&bytes, 64).unwrap().count, 1);
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_in_any_pieces(
            sent in datagrams(),
            pieces in prop::collection::vec(prop_oneof![1..40usize, 1000..70_000usize], 1..40),
            segments in 1..70usize,
        ) {
            let bytes = framed(&sent);
            let (mut at, mut rest, mut received) = (0, Vec::new(), Vec::new());
            let mut pieces = pieces.into_iter().cycle();
            while at < bytes.len() {
                let end = (at + pieces.next().unwrap()).min(bytes.len());
                rest.extend_from_slice(&bytes[at..end]);
                at = end;
                let mut used = 0;
                while let Some(run) = first_run(&rest[used..], segments) {
                    prop_assert!(run.count <= segments.min(64));
                    prop_assert!(run.count == 1 || run.bytes <= MAX_RUN_BYTES);
                    received.extend(run.datagrams(&rest[used..]).map(<[u8]>::to_vec));
                    used += run.frames_len();
                }
                rest.drain(..used);
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn whole_frames_never_cut_one(sent in datagrams(), max in 0..200_000usize) {
            let bytes = framed(&sent);
            let (len, count) = whole_frames(&bytes, max);
            prop_assert_eq!(len, framed(&sent[..count as usize]).len());
            prop_assert!(len <= max || count == 1);
            prop_assert_eq!(count == 0, sent.is_empty());
        }
    }
}
