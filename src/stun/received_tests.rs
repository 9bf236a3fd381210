use super::super::tests::{
    ID, INTEGRITIES, RFC5769_IPV4, RFC5769_IPV6, RFC5769_LONG_TERM, RFC5769_REQUEST, RFC8489_B1_ERRATUM, hex,
    key, raw_message, seal, their_credentials, their_id, theirs, v4, v6,
};
use super::super::{Attribute, Seal, encode};
use super::*;
use crate::stun::data::data_indication;
use hmac::{Hmac, Mac};
use proptest::prelude::*;
use sha1::Sha1;
use sha2::Sha256;

use turn_server_proto::types::attribute as turn;
use turn_server_proto::types::stun::attribute as stun;
use turn_server_proto::types::stun::attribute::AttributeWrite;
use turn_server_proto::types::stun::message::{MessageClass as TheirClass, MessageWrite, MessageWriteExt};

/// An error response to Allocate with these attributes.
fn error_with(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    raw_message(0x0113, attributes)
}

/// A request of ours, sealed: it has all that integrity needs to be tried on.
fn sealed(integrity: Integrity, algorithm: Algorithm) -> (Vec<u8>, Seal) {
    let seal = seal(integrity, algorithm);
    let attributes = [Attribute::Lifetime(600), Attribute::XorPeerAddress(v4()), Attribute::ConnectionId(7)];
    (encode(Method::REFRESH, Class::Success, ID, &attributes, Some(&seal)).unwrap(), seal)
}

/// The message with an attribute more at its end, and the length that goes with it.
fn appended(bytes: &[u8], kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    raw::put_attribute(&mut bytes, kind, value);
    let len = (bytes.len() - HEADER_LEN) as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// What a reader does with any bytes.
fn read_all(bytes: &[u8]) {
    data_indication(bytes);
    if let Ok(read) = Received::decode(bytes) {
        for (integrity, algorithm, _) in INTEGRITIES {
            read.is_sealed_with(&key(algorithm), integrity);
        }
        let _ = read.nonce.as_deref().map(crate::stun::nonce_features);
        let _ = read.realm.as_deref().map(|realm| Key::long_term("u", realm, "p", Algorithm::Md5));
        let _ = read.realm.as_deref().map(|realm| crate::stun::user_hash("u", realm));
    }
}

fn real_messages() -> Vec<Vec<u8>> {
    let mut messages: Vec<_> =
        [RFC5769_REQUEST, RFC5769_IPV4, RFC5769_IPV6, RFC5769_LONG_TERM, RFC8489_B1_ERRATUM].map(hex).into();
    messages.extend(INTEGRITIES.map(|(integrity, algorithm, _)| sealed(integrity, algorithm).0));
    messages.push(error_with(&[
        (raw::ERROR_CODE, b"\0\0\x04\x26Stale Nonce"),
        (raw::REALM, b"example.org"),
        (raw::NONCE, b"obMatJos2gAAA1"),
        (raw::PASSWORD_ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0]),
        (raw::ALTERNATE_SERVER, &[0, 1, 0x0d, 0x96, 192, 0, 2, 1]),
        (raw::ICMP, &[0, 0, 3, 4, 0, 0, 5, 0x78]),
    ]));
    messages
}

#[test]
fn every_attribute_that_another_implementation_writes_is_read() {
    let (id, algorithm) = (their_id(), stun::PasswordAlgorithmValue::SHA256);
    let attributes: [&dyn AttributeWrite; 12] = [
        &stun::ErrorCode::new(401, "Unauthorized").unwrap(),
        &stun::Realm::new("example.org").unwrap(),
        &stun::Nonce::new("a nonce").unwrap(),
        &stun::PasswordAlgorithms::new(&[algorithm, stun::PasswordAlgorithmValue::MD5]),
        &turn::Lifetime::new(600),
        &turn::XorRelayedAddress::new(v4(), id),
        &stun::XorMappedAddress::new(v6(), id),
        &turn::XorPeerAddress::new(v6(), id),
        &turn::ConnectionId::new(0x0102_0304),
        &stun::AlternateServer::new(v4()),
        &turn::Icmp::new(3, 4, 1400),
        &stun::Software::new("a server").unwrap(),
    ];
    for (integrity, algorithm, their_integrity) in INTEGRITIES {
        let mut message = theirs(TheirClass::Error, 3, &attributes);
        message.add_message_integrity(&their_credentials(), their_integrity).unwrap();
        message.add_fingerprint().unwrap();
        let bytes = message.finish();
        let read = Received::decode(&bytes).unwrap();
        assert!(read.is_sealed_with(&key(algorithm), integrity));
        let expected = Received {
            method: Method::ALLOCATE,
            class: Class::Error,
            id: ID,
            error: Some((401, "Unauthorized".into())),
            realm: Some("example.org".into()),
            nonce: Some("a nonce".into()),
            algorithms: Some((vec![0, 2, 0, 0, 0, 1, 0, 0], vec![Algorithm::Sha256, Algorithm::Md5])),
            lifetime: Some(600),
            xor_relayed: Some(v4()),
            xor_mapped: Some(v6()),
            xor_peer: Some(v6()),
            connection_id: Some(0x0102_0304),
            alternate_server: Some(v4()),
            icmp: Some((3, 4)),
            unknown_required: vec![],
            ..read.clone()
        };
        assert_eq!(read, expected);
    }
}

#[test]
fn a_changed_bit_breaks_the_seal_wherever_it_is() {
    for (integrity, algorithm, _) in INTEGRITIES {
        let (bytes, seal) = sealed(integrity, algorithm);
        assert!(Received::decode(&bytes).unwrap().is_sealed_with(&seal.key, integrity));
        let bytes = appended(&bytes, raw::FINGERPRINT, &[1, 2, 3, 4]);
        let is_sealed = |bytes: &[u8]| {
            Received::decode(bytes).is_ok_and(|read| read.is_sealed_with(&seal.key, integrity))
        };
        assert!(is_sealed(&bytes));
        for bit in 0..(bytes.len() - 8) * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 0x80 >> (bit % 8);
            assert!(!is_sealed(&changed), "{integrity:?} {bit}");
        }
        for bit in (bytes.len() - 4) * 8..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 0x80 >> (bit % 8);
            assert!(is_sealed(&changed), "{integrity:?} {bit}");
        }
    }
}

#[test]
fn another_key_another_integrity_and_none_do_not_seal() {
    for (integrity, algorithm, _) in INTEGRITIES {
        let (bytes, seal) = sealed(integrity, algorithm);
        let read = Received::decode(&bytes).unwrap();
        assert!(!read.is_sealed_with(&Key::long_term("alice", "r", "p", algorithm).unwrap(), integrity));
        let other = if integrity == Integrity::Sha1 { Integrity::Sha256 } else { Integrity::Sha1 };
        assert!(!read.is_sealed_with(&seal.key, other));
        let bytes = encode(Method::REFRESH, Class::Success, ID, &[], None).unwrap();
        assert!(!Received::decode(&bytes).unwrap().is_sealed_with(&seal.key, integrity));
    }
}

#[test]
fn nothing_behind_the_integrity_counts() {
    for (integrity, algorithm, _) in INTEGRITIES {
        let (bytes, seal) = sealed(integrity, algorithm);
        let read = Received::decode(&bytes).unwrap();
        let bare = encode(Method::REFRESH, Class::Success, ID, &[], None).unwrap();
        let bare = appended(&bare, raw::MESSAGE_INTEGRITY, &[0; 20]);
        let read_bare = Received::decode(&bare).unwrap();
        for (kind, value) in [
            (raw::ERROR_CODE, b"\0\0\x04\x26".as_slice()),
            (raw::ERROR_CODE, b""),
            (raw::REALM, b"other"),
            (raw::REALM, b"\xff"),
            (raw::NONCE, b"other"),
            (raw::PASSWORD_ALGORITHMS, b"\0\x01\0\0"),
            (raw::LIFETIME, b"\0\0\0\x01"),
            (raw::LIFETIME, b""),
            (raw::XOR_RELAYED_ADDRESS, b"\0\x01\0\x01\x01\x02\x03\x04"),
            (raw::XOR_MAPPED_ADDRESS, b"\0\x01\0\x01\x01\x02\x03\x04"),
            (raw::XOR_PEER_ADDRESS, b"\0\x01\0\x01\x01\x02\x03\x04"),
            (raw::XOR_PEER_ADDRESS, b"\0\x03"),
            (raw::CONNECTION_ID, b"\0\0\0\x09"),
            (raw::CONNECTION_ID, b"\0\0\0"),
            (raw::ALTERNATE_SERVER, b"\0\x01\0\x01\x01\x02\x03\x04"),
            (raw::ICMP, b"\0\0\x03\x03\0\0\0\0"),
            (0x7f00, b""),
        ] {
            let bytes = appended(&bytes, kind, value);
            let more = Received::decode(&bytes).unwrap();
            assert!(more.is_sealed_with(&seal.key, integrity), "{kind:#x}");
            assert_eq!(Received { bytes: read.bytes, ..more }, read, "{kind:#x}");
            let bare = appended(&bare, kind, value);
            let more = Received::decode(&bare).unwrap();
            assert_eq!(Received { bytes: read_bare.bytes, ..more }, read_bare, "{kind:#x}");
        }
    }
}

#[test]
fn both_integrities_may_stand_there_in_their_order() {
    let seal = seal(Integrity::Sha1, Algorithm::Md5);
    let (bytes, _) = sealed(Integrity::Sha1, Algorithm::Md5);
    // Between the two stands what does not count, but is sealed by the second.
    let bytes = appended(&bytes, raw::CONNECTION_ID, &[9, 9, 9, 9]);
    let mac = seal.key.mac::<Hmac<Sha256>>(&bytes).finalize().into_bytes();
    let both = appended(&bytes, raw::MESSAGE_INTEGRITY_SHA256, &mac);
    let read = Received::decode(&both).unwrap();
    assert!(read.is_sealed_with(&seal.key, Integrity::Sha1));
    assert!(read.is_sealed_with(&seal.key, Integrity::Sha256));
    assert_eq!(read.connection_id, Some(7));

    for first in [raw::MESSAGE_INTEGRITY_SHA256, raw::FINGERPRINT] {
        let bytes =
            appended(&encode(Method::REFRESH, Class::Success, ID, &[], None).unwrap(), first, &[0; 32]);
        let mac = seal.key.mac::<Hmac<Sha1>>(&bytes).finalize().into_bytes();
        let late = appended(&bytes, raw::MESSAGE_INTEGRITY, &mac);
        assert!(!Received::decode(&late).unwrap().is_sealed_with(&seal.key, Integrity::Sha1), "{first:#x}");
    }
}

#[test]
fn a_cut_sha256_does_not_seal() {
    let (bytes, seal) = sealed(Integrity::Sha256, Algorithm::Sha256);
    let start = bytes.len() - 36;
    for len in [0, 4, 16, 20, 28] {
        let before = raw_message(0x0104, &[(raw::LIFETIME, &[0, 0, 2, 88])]);
        let whole: [u8; 32] = seal.key.mac::<Hmac<Sha256>>(&before).finalize().into_bytes().into();
        let full = appended(&before, raw::MESSAGE_INTEGRITY_SHA256, &whole);
        assert!(Received::decode(&full).unwrap().is_sealed_with(&seal.key, Integrity::Sha256));
        let cut = appended(&before, raw::MESSAGE_INTEGRITY_SHA256, &whole[..len]);
        assert!(!Received::decode(&cut).unwrap().is_sealed_with(&seal.key, Integrity::Sha256), "{len}");
    }
    // Nor does one whose own length says less, though all bytes are there.
    let mut shorter = bytes.clone();
    shorter[start + 3] = 16;
    shorter[start + 20..start + 24].copy_from_slice(&[0x80, 0x22, 0, 12]);
    assert!(!Received::decode(&shorter).unwrap().is_sealed_with(&seal.key, Integrity::Sha256));
}

#[test]
fn a_reason_is_text_that_can_be_printed() {
    let long = "\u{e9}".repeat(300);
    for (value, number, reason) in [
        (b"\0\0\x04\x01Unauthorized\0\0\0\0".as_slice(), 401, "Unauthorized"),
        (b"\xff\xff\xfc\x26", 438, ""),
        (b"\0\0\x05\x08no \x1b[31mport\r\n\0\0", 508, "no [31mport"),
        (b"\0\0\x03\0\xffx", 300, "\u{fffd}x"),
        (&[b"\0\0\x04\x57", long.as_bytes()].concat(), 487, &long[..256]),
    ] {
        let bytes = error_with(&[(raw::ERROR_CODE, value)]);
        assert_eq!(Received::decode(&bytes).unwrap().error, Some((number, reason.into())));
    }
}

#[test]
fn a_malformed_attribute_that_matters_is_an_error() {
    let long = [b'x'; MAX_TEXT_LEN + 1];
    for (kind, value) in [
        (raw::ERROR_CODE, b"\0\0\x04".as_slice()),
        (raw::ERROR_CODE, b"\0\0\x02\x01"),
        (raw::ERROR_CODE, b"\0\0\x07\x01"),
        (raw::ERROR_CODE, b"\0\0\x04\x64"),
        (raw::REALM, b"\xff"),
        (raw::REALM, &long),
        (raw::NONCE, b"\xc3"),
        (raw::NONCE, &long),
        (raw::CONNECTION_ID, b"\0\0\0"),
        (raw::CONNECTION_ID, b"\0\0\0\0\0"),
        (raw::LIFETIME, b"\0\0\0"),
        (raw::XOR_PEER_ADDRESS, b"\0\x01\0\x01\x01\x02\x03"),
        (raw::XOR_RELAYED_ADDRESS, b"\0\x02\0\x01\x01\x02\x03\x04"),
        (raw::XOR_MAPPED_ADDRESS, b"\0\x07\0\x01\x01\x02\x03\x04"),
    ] {
        assert!(Received::decode(&error_with(&[(kind, value)])).is_err(), "{kind:#x} {value:?}");
    }
    assert!(Received::decode(&error_with(&[(raw::NONCE, &long[1..])])).is_ok());
}

#[test]
fn what_nobody_needs_may_be_malformed() {
    let long = [0; MAX_ALGORITHMS_LEN + 4];
    let bytes = error_with(&[
        (0x8022, b"\xff\xfe"),
        (0x8000, b""),
        (raw::ICMP, b"\0\0"),
        (raw::ALTERNATE_SERVER, b"\0\x09\0\x01\x01\x02\x03\x04"),
        (raw::PASSWORD_ALGORITHMS, b"\0\x02\0\x09"),
        (raw::PASSWORD_ALGORITHMS, &long),
        // Known, but not for us: USERNAME, UNKNOWN-ATTRIBUTES, DATA, EVEN-PORT.
        (0x0006, b"\xff"),
        (0x000a, b"\0"),
        (0x0013, b"data"),
        (0x0018, b""),
        (raw::ERROR_CODE, b"\0\0\x04\x01"),
    ]);
    let read = Received::decode(&bytes).unwrap();
    let expected = Received { error: Some((401, String::new())), ..Received::new(0x0113, &bytes) };
    assert_eq!(read, expected);
}

#[test]
fn the_first_of_several_counts() {
    let address = |last| [0, 1, 0, 80, 192, 0, 2, last];
    let bytes = error_with(&[
        (raw::REALM, b"first"),
        (raw::REALM, b"second"),
        (raw::ALTERNATE_SERVER, &address(1)),
        (raw::ALTERNATE_SERVER, &address(2)),
        (raw::LIFETIME, &[0, 0, 0, 1]),
        (raw::LIFETIME, &[0, 0, 0, 2]),
        (raw::CONNECTION_ID, &[0, 0, 0, 1]),
        (raw::CONNECTION_ID, &[0, 0, 0, 2]),
    ]);
    let read = Received::decode(&bytes).unwrap();
    assert_eq!(read.realm.as_deref(), Some("first"));
    assert_eq!(read.alternate_server, Some("192.0.2.1:80".parse().unwrap()));
    assert_eq!((read.lifetime, read.connection_id), (Some(1), Some(1)));
}

#[test]
fn unknown_are_those_that_stun_rs_does_not_know_either() {
    for kind in 0..0x8000 {
        let bytes = error_with(&[(kind, b"")]);
        let read = Received::decode(&bytes);
        let is_unknown = read.as_ref().is_ok_and(|read| read.unknown_required == [kind]);
        assert!(is_unknown || read.is_err() || read.unwrap().unknown_required.is_empty());
        let theirs = MessageDecoder::default()
            .decode(&bytes)
            .is_ok_and(|(message, _)| matches!(message.attributes(), [StunAttribute::Unknown(_)]));
        assert_eq!(is_unknown, theirs && kind != raw::CONNECTION_ID, "{kind:#x}");
    }
}

#[test]
fn a_message_cut_at_any_byte_is_none() {
    for bytes in real_messages() {
        assert!(Received::decode(&bytes).is_ok());
        for len in 0..bytes.len() {
            assert!(Received::decode(&bytes[..len]).is_err(), "{len}");
            // Also where its length says so.
            let Some(rest) = len.checked_sub(HEADER_LEN) else { continue };
            let mut mended = bytes[..len].to_vec();
            mended[2..4].copy_from_slice(&(rest as u16).to_be_bytes());
            read_all(&mended);
        }
        assert!(Received::decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Received::decode(&[&bytes[..], &[0; 4]].concat()).is_err());
    }
}

#[test]
fn what_is_not_stun_is_refused() {
    let bytes = encode(Method::BINDING, Class::Success, ID, &[], None).unwrap();
    for (at, bit) in [(0, 0x80), (0, 0x40), (4, 1), (7, 0x80), (3, 1), (3, 4)] {
        let mut other = bytes.clone();
        other[at] ^= bit;
        assert!(Received::decode(&other).is_err(), "{at} {bit}");
    }
}

#[test]
fn thousands_of_attributes_are_read() {
    let list: Vec<u8> = (0..32_000u16).flat_map(u16::to_be_bytes).collect();
    let many: Vec<(u16, &[u8])> = (0..16_000).map(|kind| (kind, b"".as_slice())).collect();
    let many: Vec<(u16, &[u8])> =
        many.into_iter().filter(|(kind, _)| !raw::is_known_or_optional(*kind)).collect();
    assert!(Received::decode(&error_with(&[(0x000a, &list)])).is_ok());
    assert_eq!(Received::decode(&error_with(&many)).unwrap().unknown_required.len(), many.len());
}

#[test]
fn an_integrity_without_bytes_at_the_end_of_the_longest_message_is_none() {
    let mut bytes = vec![0x01, 0x04];
    bytes.extend(0xfffc_u16.to_be_bytes());
    bytes.extend(0x2112_a442_u32.to_be_bytes());
    bytes.extend([7; 12]);
    for (kind, integrity) in [(0x0008_u16, Integrity::Sha1), (0x001c, Integrity::Sha256)] {
        let mut bytes = bytes.clone();
        // An optional attribute that fills the message but for the header of the integrity.
        bytes.extend(0x8077_u16.to_be_bytes());
        bytes.extend((0xfffc_u16 - 8).to_be_bytes());
        bytes.resize(20 + 0xfffc - 4, 0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 0]);
        let (_, algorithm, _) = INTEGRITIES[0];
        if let Ok(read) = Received::decode(&bytes) {
            assert!(!read.is_sealed_with(&seal(integrity, algorithm).key, integrity));
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        if let Some(len) = bytes.len().checked_sub(HEADER_LEN) {
            let len = len / 4 * 4;
            bytes.truncate(HEADER_LEN + len);
            bytes[0] &= 0x3f;
            bytes[2..8].copy_from_slice(&[(len >> 8) as u8, len as u8, 0x21, 0x12, 0xa4, 0x42]);
            read_all(&bytes);
        }
    }

    #[test]
    fn any_attributes_are_read_without_panic(
        attributes in prop::collection::vec(
            (
                prop_oneof![0..0x30u16, 0x8000..0x8030u16, any::<u16>()],
                prop::collection::vec(any::<u8>(), 0..40),
            ),
            0..12,
        ),
    ) {
        let attributes: Vec<(u16, &[u8])> =
            attributes.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
        read_all(&error_with(&attributes));
        read_all(&raw_message(0x0017, &attributes));
    }

    #[test]
    fn changed_messages_are_read_without_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = which.get(&real_messages()).clone();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        read_all(&bytes);
    }

    #[test]
    fn what_is_written_is_read(
        seconds in any::<u32>(),
        connection in any::<u32>(),
        id in any::<[u8; 12]>(),
        ip in prop_oneof![
            any::<[u8; 4]>().prop_map(std::net::IpAddr::from),
            any::<[u8; 16]>().prop_map(std::net::IpAddr::from),
        ],
        port in any::<u16>(),
    ) {
        let (id, peer) = (TransactionId(id), SocketAddr::new(ip, port));
        let attributes = [
            Attribute::Lifetime(seconds),
            Attribute::XorPeerAddress(peer),
            Attribute::ConnectionId(connection),
        ];
        for (integrity, algorithm, _) in INTEGRITIES {
            let seal = seal(integrity, algorithm);
            let bytes = encode(Method::CONNECT, Class::Request, id, &attributes, Some(&seal)).unwrap();
            let read = Received::decode(&bytes).unwrap();
            prop_assert_eq!(read.id, id);
            prop_assert_eq!((read.lifetime, read.xor_peer), (Some(seconds), Some(peer)));
            prop_assert_eq!(read.connection_id, Some(connection));
            prop_assert_eq!((read.realm.as_ref(), read.nonce.as_ref()), (Some(&seal.realm), Some(&seal.nonce)));
            prop_assert!(read.is_sealed_with(&seal.key, integrity));
        }
    }
}
