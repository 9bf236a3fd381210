//! Runs of ChannelData messages (RFC 8656 §12.4), which a relay passes on as they stand.

use crate::tcp::channel_data::{HEADER_LEN, padding, parse};

/// Whole ChannelData messages, padding included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Their bytes.
    pub(crate) len: usize,
    pub(crate) datagrams: u64,
    /// The bytes of the datagrams alone.
    pub(crate) payload: u64,
}

/// The longest run at the beginning of `bytes`, of datagrams of at most `max` bytes each; empty if there is none.
pub(crate) fn first_run(bytes: &[u8], max: usize) -> Run {
    let mut run = Run::default();
    while let Some(len) = first_payload(&bytes[run.len..]).filter(|len| *len <= max) {
        run.len += HEADER_LEN + len + padding(len);
        run.datagrams += 1;
        run.payload += len as u64;
    }
    run
}

/// How many ChannelData messages stand in `rest`, the beginning of one that is cut included.
pub(crate) fn begun(rest: &[u8]) -> u64 {
    let run = first_run(rest, usize::MAX);
    run.datagrams + u64::from(is_data(&rest[run.len..]))
}

/// Whether a ChannelData message begins here.
pub(crate) fn is_data(rest: &[u8]) -> bool {
    matches!(rest.first(), Some(0x40..=0x4f))
}

/// The length of the first message's datagram, if it is ChannelData and all of it is there, with its padding.
fn first_payload(bytes: &[u8]) -> Option<usize> {
    let (_, payload) = parse(bytes)?;
    let len = payload.len();
    (HEADER_LEN + len + padding(len) <= bytes.len()).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::channel_data::put_padded;

    fn data(lens: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        lens.iter().for_each(|len| put_padded(&mut bytes, 0x4000, &vec![7; *len]));
        bytes
    }

    #[test]
    fn a_run_ends_with_the_last_whole_message() {
        let bytes = data(&[5, 0, 1200]);
        assert_eq!(first_run(&bytes, 65_527), Run { len: bytes.len(), datagrams: 3, payload: 1205 });
        for cut in 17..bytes.len() {
            assert_eq!(first_run(&bytes[..cut], 65_527), Run { len: 16, datagrams: 2, payload: 5 });
            assert_eq!(begun(&bytes[..cut]), 3);
        }
        // Without its padding a message is not whole.
        assert_eq!(first_run(&bytes[..9], 65_527), Run::default());
        assert_eq!((begun(&bytes[..9]), begun(&bytes[..1]), begun(b"")), (1, 1, 0));
    }

    #[test]
    fn a_run_ends_before_a_stun_message_and_before_what_is_too_long() {
        let mut bytes = data(&[4, 65_527]);
        let whole = bytes.len();
        bytes.extend_from_slice(b"\x01\x01\x00\x00\x21\x12\xa4\x42 a STUN id..");
        assert_eq!(first_run(&bytes, 65_527).len, whole);
        assert_eq!(first_run(&bytes, 65_526), Run { len: 8, datagrams: 1, payload: 4 });
        assert_eq!(first_run(&bytes[whole..], 65_527), Run::default());
        assert_eq!(begun(&bytes[whole..]), 0);
    }
}
