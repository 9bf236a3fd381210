//! Whatever bytes come, the readers say so and go on.

use proptest::prelude::*;

use super::super::attributes::{RETRY_AFTER, unknown_required};
use super::tests::{every_message, message, seal};
use super::*;

/// What readers do with any bytes.
fn read_all(bytes: &[u8]) {
    let _ = message_len(bytes);
    let Ok(message) = decode(bytes) else { return };
    let _ = (Join::read(&message), Refresh::read(&message), Granted::read(&message));
    let _ = (Refusal::read(&message), Peer::read(&message), Closing::read(&message));
    let _ = (message.has_sha256(), message.is_sealed_with(&seal().key), unknown_required(&message));
}

#[test]
fn a_stream_is_cut_at_its_messages() {
    for bytes in every_message() {
        for len in 0..bytes.len() {
            let found = message_len(&bytes[..len]).unwrap();
            assert!(found == Some(bytes.len()) || (found.is_none() && len < 8), "{len}");
            assert_eq!(decode(&bytes[..len]).unwrap_err(), ProtocolError::CutShort);
            read_all(&bytes[..len]);
        }
        assert!(decode(&bytes).is_ok());
        assert!(decode(&[&bytes[..], b"\0"].concat()).is_err());
    }
    assert_eq!(message_len(b"\x40\0\xff\xff"), Ok(Some(65_540)));
    assert_eq!(message_len(b"\x4f\xff\0\x01"), Ok(Some(8)));
}

#[test]
fn what_breaks_the_protocol_is_seen_at_once() {
    use ProtocolError::{CutShort, TooLong};
    let not_turn = ProtocolError::NotTurn(NotTurn);
    for (bytes, expected) in [
        (b"\x80".as_slice(), not_turn),
        (b"\xff", not_turn),
        (b"\x50\0", not_turn),
        (b"\x7f\xff\0\0", not_turn),
        (b"\x02\xe1\0\0\x21\x12\xa4\x43", not_turn),
        (b"\x02\xe1\0\x02\x21\x12\xa4\x42", not_turn),
        (b"\x02\xe1\x08\x04\x21\x12\xa4\x42", TooLong),
    ] {
        assert_eq!(message_len(bytes), Err(expected), "{bytes:?}");
    }
    assert_eq!(message_len(b"\x02\xe1\x08\0\x21\x12\xa4\x42"), Ok(Some(MAX_STUN_LEN)));
    // An attribute past the end, also where no attribute counts.
    for (kind, len) in [(RETRY_AFTER, 1), (raw::FINGERPRINT, 8)] {
        let mut bytes = message(Method::JOIN, Class::Request, &[(raw::FINGERPRINT, b""), (kind, b"")]);
        let at = bytes.len() - 1;
        bytes[at] = len;
        assert_eq!(decode(&bytes).unwrap_err(), CutShort);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind in prop::sample::select(vec![[0x02, 0xe1], [0x03, 0xf1], [0x02, 0xf2], [0x02, 0xf3]]),
    ) {
        read_all(&bytes);
        if bytes.len() >= 20 {
            bytes.truncate(bytes.len() & !3);
            let len = (bytes.len() - 20) as u8;
            bytes[..8].copy_from_slice(&[kind[0], kind[1], 0, len, 0x21, 0x12, 0xa4, 0x42]);
            read_all(&bytes);
        }
    }

    #[test]
    fn any_attributes_are_read_without_panic(
        attributes in prop::collection::vec(
            (
                prop_oneof![
                    0x7f00..=0x7f06u16,
                    prop::sample::select(vec![6, 8, 9, 10, 13, 20, 21, 28, 29]),
                    prop::sample::select(vec![0x8002, 0x8003, 0x8023, 0x8028, RETRY_AFTER]),
                    any::<u16>(),
                ],
                prop::collection::vec(any::<u8>(), 0..70),
            ),
            0..12,
        ),
    ) {
        let attributes: Vec<_> = attributes.iter().map(|(kind, value)| (*kind, &value[..])).collect();
        let bytes = message(Method::JOIN, Class::Request, &attributes);
        prop_assert!(decode(&bytes).is_ok());
        read_all(&bytes);
    }

    #[test]
    fn a_changed_message_is_read_without_panic_and_is_not_sealed(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let all = every_message();
        let mut bytes = all[which.index(all.len())].clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        read_all(&bytes);
        prop_assert!(!decode(&bytes).is_ok_and(|message| message.is_sealed_with(&seal().key)));
    }
}
