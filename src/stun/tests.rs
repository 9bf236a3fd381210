use super::*;
use turn_server_proto::types::attribute as turn;
use turn_server_proto::types::stun::attribute as stun;
use turn_server_proto::types::stun::attribute::{Attribute as _, AttributeStaticType, AttributeWrite};
use turn_server_proto::types::stun::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass as TheirClass,
    MessageIntegrityCredentials, MessageType, MessageWrite, MessageWriteExt, MessageWriteVec,
    Method as TheirMethod, TransactionId as TheirId,
};

pub(super) const ID: TransactionId = TransactionId(*b"abcdefghijkl");
pub(super) const INTEGRITIES: [(Integrity, Algorithm, IntegrityAlgorithm); 2] = [
    (Integrity::Sha1, Algorithm::Md5, IntegrityAlgorithm::Sha1),
    (Integrity::Sha256, Algorithm::Sha256, IntegrityAlgorithm::Sha256),
];

pub(super) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.chars().filter_map(|c| Some(c.to_digit(16)? as u8)).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

pub(super) fn v4() -> SocketAddr {
    "192.0.2.1:32853".parse().unwrap()
}

pub(super) fn v6() -> SocketAddr {
    "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap()
}

pub(super) fn their_id() -> TheirId {
    u128::from_be_bytes(*b"\0\0\0\0abcdefghijkl").into()
}

pub(super) fn key(algorithm: Algorithm) -> Key {
    Key::long_term("alice", "example.org", "secret", algorithm).unwrap()
}

pub(super) fn their_credentials() -> MessageIntegrityCredentials {
    LongTermKeyCredentials::new("alice".into(), "secret".into(), "example.org".into()).into()
}

pub(super) fn seal(integrity: Integrity, algorithm: Algorithm) -> Seal {
    Seal {
        user: User::Name("alice".into()),
        realm: "example.org".into(),
        nonce: "obMatJos2gAAAnonce".into(),
        algorithms: Some((vec![0, 2, 0, 0, 0, 1, 0, 0], algorithm)),
        integrity,
        key: key(algorithm),
    }
}

/// A message as stun-types writes it.
pub(super) fn theirs(class: TheirClass, method: u16, attributes: &[&dyn AttributeWrite]) -> MessageWriteVec {
    let kind = MessageType::from_class_method(class, TheirMethod::new(method));
    let mut message = Message::builder(kind, their_id(), MessageWriteVec::new());
    attributes.iter().for_each(|attribute| message.add_attribute(*attribute).unwrap());
    message
}

/// A message with these attributes, whatever is in them.
pub(super) fn raw_message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    attributes.iter().for_each(|(kind, value)| raw::put_attribute(&mut body, *kind, value));
    let mut bytes = Vec::new();
    raw::put_header(&mut bytes, kind, body.len() as u16, ID);
    bytes.extend(body);
    bytes
}

pub(super) const RFC5769_REQUEST: &str =
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74
    002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5
    b2d3f249c1b571a280280004e57a3bcf";
pub(super) const RFC5769_IPV4: &str =
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f722000200008
    0001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
pub(super) const RFC5769_IPV6: &str =
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f722000200014
    0002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";
pub(super) const RFC5769_LONG_TERM: &str =
    "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382
    afe382b900000015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72
    670000080014f67024656dd64a3e02b8e0712e85c9a28ca89666";
/// RFC 8489 B.1 as far as the integrity, with the length that its attributes make: 0x88.
const RFC8489_B1: &str = "000100882112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bda952c6780417da0f24
    819415569e60b205c46e41407f1704001500296f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c3946
    53547679363473410000000014000b6578616d706c652e6f726700";
/// What its erratum 6268 makes of it.
pub(super) const RFC8489_B1_ERRATUM: &str =
    "000100902112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bda952c67804
    17da0f24819415569e60b205c46e41407f1704001500296f624d61744a6f733241414143662f2f3439396b39353464364f4c3334
    6f4c394653547679363473410000000014000b6578616d706c652e6f726700001d000400020000001c0020b5c7bf005b6c52a21c
    51c5e892f81924136296cb927c43149309278cc6518e65";
const MATRIX: &str = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";

fn matrix_key(algorithm: Algorithm) -> Key {
    Key::long_term(MATRIX, "example.org", "TheMatrIX", algorithm).unwrap()
}

#[test]
fn the_short_term_vectors_of_rfc_5769_are_read() {
    let key = Key(b"VOkJxbRl1RmTxUk/WvJxBt".to_vec());
    let other = Key(b"VOkJxbRl1RmTxUk/WvJxBT".to_vec());
    for (vector, class, mapped) in [
        (RFC5769_REQUEST, Class::Request, None),
        (RFC5769_IPV4, Class::Success, Some(v4())),
        (RFC5769_IPV6, Class::Success, Some(v6())),
    ] {
        let bytes = hex(vector);
        let read = Received::decode(&bytes).unwrap();
        assert_eq!((read.method, read.class, read.xor_mapped), (Method::BINDING, class, mapped));
        assert_eq!(read.id.0, *hex("b7e7a701bc34d686fa87dfae"));
        // ICE is not ours: its PRIORITY is comprehension-required, ICE-CONTROLLED is not.
        let unknown = if class == Class::Request { vec![0x0024] } else { vec![] };
        assert_eq!(read.unknown_required, unknown);
        assert!(read.is_sealed_with(&key, Integrity::Sha1));
        assert!(!read.is_sealed_with(&other, Integrity::Sha1));
        assert!(!read.is_sealed_with(&key, Integrity::Sha256));
    }
}

#[test]
fn the_long_term_vector_of_rfc_5769_is_read_and_written() {
    let bytes = hex(RFC5769_LONG_TERM);
    let read = Received::decode(&bytes).unwrap();
    let (realm, nonce) = (read.realm.clone().unwrap(), read.nonce.clone().unwrap());
    assert_eq!((realm.as_str(), nonce.as_str()), ("example.org", "f//499k954d6OL34oL9FSTvy64sA"));
    let key = matrix_key(Algorithm::Md5);
    assert!(read.is_sealed_with(&key, Integrity::Sha1));
    assert!(!read.is_sealed_with(&matrix_key(Algorithm::Sha256), Integrity::Sha1));

    // Ours has REALM before NONCE, and so another HMAC.
    let user = User::Name(MATRIX.into());
    let seal = Seal { user, realm, nonce, algorithms: None, integrity: Integrity::Sha1, key };
    let written = encode(Method::BINDING, Class::Request, read.id, &[], Some(&seal)).unwrap();
    assert_eq!((&written[..44], written.len()), (&bytes[..44], bytes.len()));
    assert_eq!((&written[44..60], &written[60..92]), (&bytes[76..92], &bytes[44..76]));
    assert!(Received::decode(&written).unwrap().is_sealed_with(&seal.key, Integrity::Sha1));
}

#[test]
fn the_vector_of_rfc_8489_is_read_with_and_without_its_erratum() {
    for (algorithm, mac) in [
        (Algorithm::Sha256, "234112fbd4e27f983eb4032836f998216f5b23f8d927753fbc4f882bfbdf0dec"),
        (Algorithm::Md5, "fd8c273860d2e18ebca4c89b6973befa7ee8ecc69e9642db326fab65a0b955ba"),
    ] {
        let bytes = [hex(RFC8489_B1), hex("001c0020"), hex(mac)].concat();
        let read = Received::decode(&bytes).unwrap();
        assert!(read.is_sealed_with(&matrix_key(algorithm), Integrity::Sha256), "{algorithm:?}");
    }
    let bytes = hex(RFC8489_B1_ERRATUM);
    let read = Received::decode(&bytes).unwrap();
    assert!(read.is_sealed_with(&matrix_key(Algorithm::Sha256), Integrity::Sha256));
    assert!(!read.is_sealed_with(&matrix_key(Algorithm::Md5), Integrity::Sha256));
    assert_eq!(read.nonce.as_deref(), Some("obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"));
    assert_eq!(user_hash(MATRIX, "example.org").unwrap(), *hex(RFC8489_B1_ERRATUM).get(24..56).unwrap());
}

#[test]
fn another_implementation_reads_every_attribute_that_is_written() {
    let attributes = [
        Attribute::RequestedTransport(Relayed::Udp),
        Attribute::RequestedAddressFamily(Family::V6),
        Attribute::Lifetime(777),
        Attribute::XorPeerAddress(v4()),
        Attribute::XorPeerAddress(v6()),
        Attribute::ChannelNumber(0x4abc),
        Attribute::ConnectionId(0xdead_beef),
    ];
    let bytes = encode(Method::ALLOCATE, Class::Request, ID, &attributes, None).unwrap();
    let message = Message::from_bytes(&bytes).unwrap();
    assert_eq!(message.transaction_id(), their_id());
    assert_eq!(message.attribute::<turn::RequestedTransport>().unwrap().protocol(), 17);
    let family = message.attribute::<turn::RequestedAddressFamily>().unwrap().family();
    assert_eq!(family, turn_server_proto::types::AddressFamily::IPV6);
    assert_eq!(message.attribute::<turn::Lifetime>().unwrap().seconds(), 777);
    let peer = |nth| message.nth_attribute::<turn::XorPeerAddress>(nth).unwrap().addr(their_id());
    assert_eq!((peer(0), peer(1)), (v4(), v6()));
    assert_eq!(message.attribute::<turn::ChannelNumber>().unwrap().channel(), 0x4abc);
    assert_eq!(message.attribute::<turn::ConnectionId>().unwrap().id(), 0xdead_beef);
    assert_eq!(message.iter_attributes().count(), attributes.len());

    let tcp = [Attribute::RequestedTransport(Relayed::Tcp), Attribute::RequestedAddressFamily(Family::V4)];
    let bytes = encode(Method::ALLOCATE, Class::Request, ID, &tcp, None).unwrap();
    let message = Message::from_bytes(&bytes).unwrap();
    assert_eq!(message.attribute::<turn::RequestedTransport>().unwrap().protocol(), 6);
    let family = message.attribute::<turn::RequestedAddressFamily>().unwrap().family();
    assert_eq!(family, turn_server_proto::types::AddressFamily::IPV4);
}

#[test]
fn every_method_and_class_is_written_and_read() {
    for method in (0x1..=0xcu16).chain([0x0f1, 0x0f2, 0x0f3, 0x7ff, 0x800, 0xfff]) {
        for (class, their_class) in [
            (Class::Request, TheirClass::Request),
            (Class::Indication, TheirClass::Indication),
            (Class::Success, TheirClass::Success),
            (Class::Error, TheirClass::Error),
        ] {
            let bytes = encode(Method(method), class, ID, &[], None).unwrap();
            assert_eq!(bytes, theirs(their_class, method, &[]).finish());
            assert_eq!(Draft::new(Method(method), class, ID).unsealed(), bytes);
            let read = Received::decode(&bytes).unwrap();
            assert_eq!((read.method, read.class, read.id), (Method(method), class, ID));
        }
    }
    assert!(encode(Method(0x1000), Class::Request, ID, &[], None).is_err());
    let attempt = encode(Method::CONNECTION_ATTEMPT, Class::Indication, ID, &[], None).unwrap();
    assert_eq!(attempt[..2], [0x00, 0x1c]);
}

#[test]
fn another_implementation_accepts_what_is_sealed() {
    for (integrity, algorithm, theirs) in INTEGRITIES {
        let seal = seal(integrity, algorithm);
        let bytes =
            encode(Method::REFRESH, Class::Request, ID, &[Attribute::Lifetime(0)], Some(&seal)).unwrap();
        let message = Message::from_bytes(&bytes).unwrap();
        assert_eq!(message.validate_integrity(&their_credentials()).unwrap(), theirs);
        let kinds: Vec<u16> =
            message.iter_attributes().map(|(_, attribute)| attribute.get_type().value()).collect();
        let last = if integrity == Integrity::Sha1 { 0x0008 } else { 0x001c };
        assert_eq!(kinds, [0x000d, 0x0006, 0x0014, 0x0015, 0x8002, 0x001d, last]);
        assert_eq!(message.attribute::<stun::Username>().unwrap().username(), "alice");
        assert_eq!(message.attribute::<stun::Realm>().unwrap().realm(), seal.realm);
        assert_eq!(message.attribute::<stun::Nonce>().unwrap().nonce(), seal.nonce);
        let chosen = message.attribute::<stun::PasswordAlgorithm>().unwrap().algorithm();
        assert_eq!(chosen.as_integrity(), theirs);
        assert_eq!(message.attribute::<stun::PasswordAlgorithms>().unwrap().algorithms().len(), 2);
    }
}

#[test]
fn a_user_hash_takes_the_place_of_the_user_name() {
    let hash = user_hash("alice", "example.org").unwrap();
    assert_eq!(hash, stun::Userhash::compute("alice", "example.org"));
    let seal = Seal { user: User::Hash(hash), ..seal(Integrity::Sha256, Algorithm::Sha256) };
    let bytes = encode(Method::ALLOCATE, Class::Request, ID, &[], Some(&seal)).unwrap();
    let message = Message::from_bytes(&bytes).unwrap();
    assert_eq!(message.attribute::<stun::Userhash>().unwrap().hash(), &hash);
    assert!(!message.has_attribute(stun::Username::TYPE));
    assert!(message.validate_integrity(&their_credentials()).is_ok());
}

#[test]
fn what_the_server_sent_goes_back_as_it_was() {
    let realm = " \u{e9}xample \"quoted\" \\ ";
    let nonce = "\u{1F980} \t a\0b ".to_owned() + &"n".repeat(740);
    let algorithms = hex("0009000301020300000200000001000199eeeeee");
    let attributes =
        [(0x0014, realm.as_bytes()), (0x0015, nonce.as_bytes()), (raw::PASSWORD_ALGORITHMS, &algorithms)];
    let bytes = raw_message(0x0113, &attributes);
    let read = Received::decode(&bytes).unwrap();
    // MD5 with a parameter is not the MD5 that is known.
    assert_eq!(read.algorithms, Some((algorithms.clone(), vec![Algorithm::Sha256])));
    let seal = Seal {
        realm: read.realm.unwrap(),
        nonce: read.nonce.unwrap(),
        algorithms: read.algorithms.map(|(raw, known)| (raw, known[0])),
        ..seal(Integrity::Sha256, Algorithm::Sha256)
    };
    let sent = encode(Method::ALLOCATE, Class::Request, ID, &[], Some(&seal)).unwrap();
    let message = Message::from_bytes(&sent).unwrap();
    for (kind, value) in attributes {
        assert_eq!(&*message.raw_attribute(kind.into()).unwrap().value, value, "{kind:#x}");
    }
}

#[test]
fn no_secret_is_printed() {
    let seal = seal(Integrity::Sha1, Algorithm::Md5);
    let printed = format!("{seal:?} {:?}", seal.key);
    assert!(printed.contains("alice") && printed.contains("obMatJos2gAAAnonce"));
    assert!(printed.ends_with("Key(..)"));
    let key = format!("{:?}", seal.key.0);
    assert!(!printed.contains(&key[1..20]), "{printed}");
    // What a password has in it is not told by the error either.
    let error = Key::long_term("alice", "example.org", "p\u{7}w", Algorithm::Md5).unwrap_err();
    let printed = format!("{error} {error:?}");
    assert!(printed.contains("the password cannot be used"));
    assert!(!printed.contains("\\u{7}") && !printed.contains("0007"), "{printed}");
}

#[test]
fn what_cannot_be_sent_is_an_error() {
    let seal = seal(Integrity::Sha1, Algorithm::Md5);
    let encode = |seal: Seal| encode(Method::ALLOCATE, Class::Request, ID, &[], Some(&seal));
    let named = |name: &str| encode(Seal { user: User::Name(name.into()), ..seal.clone() });
    assert!(named(&"u".repeat(508)).is_ok());
    assert_eq!(
        named(&"u".repeat(509)).unwrap_err().to_string(),
        "the user name cannot be used with STUN: it is longer than 508 bytes"
    );
    assert!(named("").is_err() && named("a\nb").is_err());
    assert!(encode(Seal { realm: "r".repeat(764), ..seal.clone() }).is_err());
    assert!(encode(Seal { nonce: "n".repeat(764), ..seal.clone() }).is_err());
    assert!(encode(Seal { algorithms: Some((vec![0; 260], Algorithm::Md5)), ..seal.clone() }).is_err());
}

#[test]
fn the_most_that_fits_is_sent_and_more_is_an_error() {
    let full = Seal {
        user: User::Name("u".repeat(508)),
        realm: "r".repeat(763),
        nonce: "n".repeat(763),
        algorithms: Some((vec![0; 256], Algorithm::Sha256)),
        ..seal(Integrity::Sha256, Algorithm::Sha256)
    };
    let mut peers = vec![Attribute::XorPeerAddress(v6()); 1000];
    let encode = |peers: &[_]| encode(Method::CREATE_PERMISSION, Class::Request, ID, peers, Some(&full));
    let bytes = encode(&peers).unwrap();
    assert!(Received::decode(&bytes).unwrap().is_sealed_with(&full.key, Integrity::Sha256));
    peers.push(Attribute::Lifetime(1));
    assert!(encode(&peers).is_err());
}
