//! TURN's ChannelData (RFC 8656 §12.4): before each datagram a channel number and its length, 16 bits each, big
//! endian; and how a TURN stream, where STUN messages stand between them, is cut into messages.
//!
//! Over UDP a message is a UDP datagram of its own. In a stream it is padded with zeros to a multiple of 4; the
//! length does not count them. Nothing here allocates, and any bytes may be given to it.

use std::iter::{self, Peekable};

use bytes::BufMut;

use super::framing::Run;

/// Bytes in front of each datagram.
pub(crate) const HEADER_LEN: usize = 4;

/// The longest message of a TURN stream: STUN's header and the longest length that is a multiple of 4.
pub(crate) const MAX_MESSAGE_LEN: usize = STUN_HEADER_LEN + 0xfffc;

const STUN_HEADER_LEN: usize = 20;
/// Bytes 4 to 7 of every STUN message (RFC 8489 §5).
const MAGIC_COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();

/// Bytes that begin neither a STUN nor a ChannelData message: the rest of the stream cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a STUN message nor ChannelData")]
pub(crate) struct NotTurn;

/// Whether a channel may have this number; the other numbers that begin with the bits 01 are reserved.
pub(crate) fn is_channel(number: u16) -> bool {
    (0x4000..=0x4fff).contains(&number)
}

/// Appends `datagram` as a message for UDP. UDP delivers at most 65,527 bytes, so the length fits 16 bits.
///
/// # Panics
/// With more than 65,535 bytes: no caller can have received that.
pub(crate) fn put_message(to: &mut impl BufMut, channel: u16, datagram: &[u8]) {
    debug_assert!(is_channel(channel), "{channel:#06x} is no channel");
    to.put_u16(channel);
    to.put_u16(u16::try_from(datagram.len()).expect("UDP delivers at most 65,527 bytes"));
    to.put_slice(datagram);
}

/// Appends `datagram` as a message for a stream: [`put_message`] with its padding.
pub(crate) fn put_padded(to: &mut impl BufMut, channel: u16, datagram: &[u8]) {
    put_message(to, channel, datagram);
    to.put_bytes(0, padding(datagram.len()));
}

/// The zeros behind a datagram of `len` bytes in a stream.
pub(crate) fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

/// Channel and payload of the ChannelData message at the beginning of `bytes`, if all of it is there. What
/// stands behind it, in a UDP datagram, is padding.
pub(crate) fn parse(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let [channel, len] = halves(*header);
    let payload = rest.get(..usize::from(len))?;
    is_channel(channel).then_some((channel, payload))
}

/// The length of the first message in a TURN stream, padding included, as soon as so much of it is there that
/// this is known.
///
/// # Errors
/// The bytes begin neither message: the first two bits are 1x or the channel is above 0x4fff (reserved, RFC 8656
/// §12), or a STUN message lacks the magic cookie or has a length that is no multiple of 4 (RFC 8489 §5).
pub(crate) fn message_len(bytes: &[u8]) -> Result<Option<usize>, NotTurn> {
    match bytes.first() {
        None => return Ok(None),
        Some(0x00..=0x4f) => {}
        Some(_) => return Err(NotTurn),
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let [first, len] = halves(*header);
    let len = usize::from(len);
    if is_channel(first) {
        return Ok(Some(HEADER_LEN + len + padding(len)));
    }
    match rest.first_chunk() {
        None => Ok(None),
        Some(&MAGIC_COOKIE) if len % 4 == 0 => Ok(Some(STUN_HEADER_LEN + len)),
        Some(_) => Err(NotTurn),
    }
}

fn halves([a, b, c, d]: [u8; HEADER_LEN]) -> [u16; 2] {
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// The payloads of the whole ChannelData messages at the beginning of a stream's bytes that are of one channel.
#[derive(Clone, Debug)]
pub(crate) struct Payloads<'b> {
    bytes: &'b [u8],
    channel: u16,
    used: usize,
}

impl<'b> Payloads<'b> {
    pub(crate) fn new(bytes: &'b [u8], channel: u16) -> Self {
        Self { bytes, channel, used: 0 }
    }

    /// The length of the messages taken so far, padding included.
    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

impl<'b> Iterator for Payloads<'b> {
    type Item = &'b [u8];

    fn next(&mut self) -> Option<&'b [u8]> {
        let rest = &self.bytes[self.used..];
        let (_, payload) = parse(rest).filter(|(channel, _)| *channel == self.channel)?;
        let len = HEADER_LEN + payload.len() + padding(payload.len());
        if len > rest.len() {
            return None;
        }
        self.used += len;
        Some(payload)
    }
}

/// Takes the UDP datagrams in front that are ChannelData of one channel, and gives their payloads.
pub(crate) fn payloads_of<'a, 'b: 'a>(
    datagrams: &'a mut Peekable<impl Iterator<Item = &'b [u8]>>,
    channel: u16,
) -> impl Iterator<Item = &'b [u8]> + 'a {
    iter::from_fn(move || {
        let is_of_channel = |datagram: &&[u8]| parse(datagram).is_some_and(|(number, _)| number == channel);
        parse(datagrams.next_if(is_of_channel)?).map(|(_, payload)| payload)
    })
}

/// How many whole messages stand at the beginning of `bytes`, which hold unpadded ChannelData only.
pub(crate) fn count(mut bytes: &[u8]) -> u64 {
    let mut count = 0;
    while let Some((_, payload)) = parse(bytes) {
        bytes = &bytes[HEADER_LEN + payload.len()..];
        count += 1;
    }
    count
}

/// The longest run of messages at the beginning of `bytes`, which hold unpadded ChannelData only; `None` if there
/// is not one whole message. Its sizes are those of the messages, headers included.
pub(crate) fn first_run(bytes: &[u8], max_segments: usize) -> Option<Run> {
    let message_len = |at: usize| parse(&bytes[at..]).map(|(_, payload)| HEADER_LEN + payload.len());
    let mut run = Run::new(message_len(0)?);
    while message_len(run.bytes).is_some_and(|len| run.join(len, max_segments)) {}
    Some(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message of a TURN stream.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Message {
        Stun(Vec<u8>),
        Data(u16, Vec<u8>),
    }

    fn stun(fill: u8, words: usize) -> Message {
        let mut bytes = vec![0x01, 0x01];
        bytes.put_u16(u16::try_from(4 * words).unwrap());
        bytes.put_slice(&MAGIC_COOKIE);
        bytes.resize(STUN_HEADER_LEN + 4 * words, fill);
        Message::Stun(bytes)
    }

    fn stream(messages: &[Message]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            match message {
                Message::Stun(message) => bytes.put_slice(message),
                Message::Data(channel, datagram) => put_padded(&mut bytes, *channel, datagram),
            }
        }
        bytes
    }

    /// What a reader of the stream does: whole messages only, the rest stays.
    fn take_messages(rest: &mut Vec<u8>, messages: &mut Vec<Message>) {
        let mut used = 0;
        while let Some(len) = message_len(&rest[used..]).unwrap()
            && len <= rest.len() - used
        {
            let message = &rest[used..used + len];
            match parse(message) {
                None => messages.push(Message::Stun(message.to_vec())),
                Some((channel, _)) => {
                    let mut payloads = Payloads::new(&rest[used..], channel);
                    messages.extend(payloads.by_ref().map(|data| Message::Data(channel, data.to_vec())));
                    used += payloads.used();
                    continue;
                }
            }
            used += len;
        }
        rest.drain(..used);
    }

    fn messages() -> impl Strategy<Value = Vec<Message>> {
        let len = prop_oneof![Just(0), Just(1200), 0..3000usize, Just(65_507), Just(65_535)];
        let data = (0x4000..0x4003u16, len, any::<u8>())
            .prop_map(|(channel, len, fill)| Message::Data(channel, vec![fill; len]));
        let stun =
            (any::<u8>(), prop_oneof![0..40usize, Just(0xfffc / 4)]).prop_map(|(fill, n)| stun(fill, n));
        prop::collection::vec(prop_oneof![3 => data, 1 => stun], 0..12)
    }

    #[test]
    fn a_message_is_channel_then_length_then_payload() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, 0x4001, b"abcde");
        assert_eq!(bytes, b"\x40\x01\x00\x05abcde");
        bytes.clear();
        put_padded(&mut bytes, 0x4fff, b"abcde");
        assert_eq!(bytes, b"\x4f\xff\x00\x05abcde\0\0\0");
        assert_eq!(parse(&bytes), Some((0x4fff, &b"abcde"[..])));
        assert_eq!(message_len(&bytes), Ok(Some(12)));
    }

    #[test]
    fn what_is_not_all_there_or_of_no_channel_is_not_parsed() {
        assert_eq!(parse(b"\x40\x00\x00\x01"), None);
        assert_eq!(parse(b"\x40\x00\x00"), None);
        assert_eq!(parse(b"\x50\x00\x00\x00"), None);
        assert_eq!(parse(b"\x3f\xff\x00\x00"), None);
        assert_eq!(parse(b"\x40\x00\x00\x00"), Some((0x4000, &b""[..])));
    }

    #[test]
    fn a_stream_that_is_not_turn_is_seen_at_its_first_bytes() {
        for not_turn in [
            &b"\x50"[..],
            b"\x80\x00",
            b"\xff",
            b"\x01\x01\x00\x00HTTP",
            b"\x01\x01\x00\x02\x21\x12\xa4\x42",
            b"\x01\x01\x00\x00\x21\x12\xa4\x43",
        ] {
            assert_eq!(message_len(not_turn), Err(NotTurn), "{not_turn:x?}");
        }
        for unknown in [&b""[..], b"\x40", b"\x40\x00\x00", b"\x00", b"\x01\x01\x00\x02\x21\x12\xa4"] {
            assert_eq!(message_len(unknown), Ok(None), "{unknown:x?}");
        }
        assert_eq!(message_len(b"\x01\x01\xff\xfc\x21\x12\xa4\x42"), Ok(Some(MAX_MESSAGE_LEN)));
        assert_eq!(message_len(b"\x40\x00\xff\xff"), Ok(Some(65_540)));
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_messages() {
        let sent = [
            Message::Data(0x4000, b"x".to_vec()),
            Message::Data(0x4000, b"four".to_vec()),
            stun(7, 3),
            Message::Data(0x4fff, Vec::new()),
            Message::Data(0x4001, vec![9; 258]),
            stun(0, 0),
        ];
        let bytes = stream(&sent);
        for cut in 0..=bytes.len() {
            let (mut rest, mut received) = (Vec::new(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                rest.extend_from_slice(part);
                take_messages(&mut rest, &mut received);
            }
            assert!(rest.is_empty(), "cut at {cut}");
            assert_eq!(received, sent, "cut at {cut}");
        }
    }

    #[test]
    fn the_datagrams_of_one_channel_are_taken_together() {
        let mut datagrams = [Vec::new(), Vec::new(), Vec::new(), b"\x01\x01stun".to_vec()];
        put_padded(&mut datagrams[0], 0x4000, b"a");
        put_message(&mut datagrams[1], 0x4000, b"b");
        put_message(&mut datagrams[2], 0x4001, b"c");
        let mut datagrams = datagrams.iter().map(Vec::as_slice).peekable();
        assert_eq!(payloads_of(&mut datagrams, 0x4000).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(payloads_of(&mut datagrams, 0x4001).collect::<Vec<_>>(), [b"c"]);
        assert_eq!(payloads_of(&mut datagrams, 0x4001).count(), 0);
        assert_eq!(datagrams.next(), Some(&b"\x01\x01stun"[..]));
    }

    #[test]
    fn a_run_counts_its_headers() {
        let mut bytes = Vec::new();
        [1448, 1448, 1447, 1447].iter().for_each(|len| put_message(&mut bytes, 0x4000, &vec![1; *len]));
        assert_eq!((count(&bytes), count(&bytes[1..]), count(b"")), (4, 0, 0));
        assert_eq!(first_run(&bytes, 64), Some(Run { segment: 1452, count: 3, bytes: 1452 * 2 + 1451 }));
        bytes.clear();
        [1449, 1449].iter().for_each(|len| put_message(&mut bytes, 0x4000, &vec![1; *len]));
        assert_eq!(first_run(&bytes, 64).unwrap().count, 1);
        bytes.clear();
        (0..3).for_each(|_| put_message(&mut bytes, 0x4000, b""));
        assert_eq!(first_run(&bytes, 64), Some(Run { segment: 4, count: 3, bytes: 12 }));
        assert_eq!(first_run(&bytes[..3], 64), None);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_in_any_pieces(
            sent in messages(),
            pieces in prop::collection::vec(prop_oneof![1..40usize, 1000..70_000usize], 1..40),
        ) {
            let bytes = stream(&sent);
            let (mut at, mut rest, mut received) = (0, Vec::new(), Vec::new());
            let mut pieces = pieces.into_iter().cycle();
            while at < bytes.len() {
                let end = (at + pieces.next().unwrap()).min(bytes.len());
                rest.extend_from_slice(&bytes[at..end]);
                at = end;
                take_messages(&mut rest, &mut received);
                prop_assert!(rest.len() < MAX_MESSAGE_LEN);
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn a_stream_of_one_byte_at_a_time_gives_the_same_messages(
            sent in prop::collection::vec((0x4000..0x5000u16, 0..9usize), 1..8),
        ) {
            let sent: Vec<_> = sent
                .into_iter()
                .map(|(channel, len)| if len == 0 { stun(1, 2) } else { Message::Data(channel, vec![2; len]) })
                .collect();
            let (mut rest, mut received) = (Vec::new(), Vec::new());
            for byte in stream(&sent) {
                rest.push(byte);
                take_messages(&mut rest, &mut received);
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn runs_hold_every_message_and_keep_the_limits(
            lens in prop::collection::vec(prop_oneof![Just(0), Just(1200), Just(1448), 0..2000usize], 1..200),
            segments in 1..70usize,
        ) {
            let mut bytes = Vec::new();
            lens.iter().for_each(|len| put_message(&mut bytes, 0x4000, &vec![3; *len]));
            let (mut at, mut count) = (0, 0);
            while let Some(run) = first_run(&bytes[at..], segments) {
                prop_assert!(run.count <= segments.min(64));
                prop_assert!(run.count == 1 || (run.bytes <= 65_000 && run.segment <= 1452));
                for message in bytes[at..at + run.bytes].chunks(run.segment) {
                    prop_assert_eq!(message.len(), HEADER_LEN + lens[count]);
                    prop_assert_eq!(parse(message).map(|(_, payload)| payload.len()), Some(lens[count]));
                    count += 1;
                }
                at += run.bytes;
            }
            prop_assert_eq!((at, count), (bytes.len(), lens.len()));
        }

        #[test]
        fn any_bytes_are_a_message_the_beginning_of_one_or_no_turn(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(Some(len)) = message_len(&bytes) {
                prop_assert!((HEADER_LEN..=MAX_MESSAGE_LEN).contains(&len));
                prop_assert_eq!(len % 4, 0);
            }
            let _ = (parse(&bytes), first_run(&bytes, 64));
            let _ = Payloads::new(&bytes, 0x4000).count();
        }
    }
}
