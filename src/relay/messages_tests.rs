use super::super::attributes::{RETRY_AFTER, unknown_required};
use super::*;
use crate::credentials::UserPassword;

pub(super) const ID: TransactionId = TransactionId(*b"abcdefghijkl");
const COOKIE_AND_ID: &[u8] = b"\x21\x12\xa4\x42abcdefghijkl";

fn challenge() -> Challenge {
    Challenge::new("example.org", "obMatJos2gAAA1")
}

pub(super) fn seal() -> Seal {
    challenge().seal(&UserPassword::new("alice", "secret")).unwrap()
}

fn pair() -> PairId {
    PairId::new(*b"pair!").unwrap()
}

fn side(text: &str) -> SideId {
    SideId::new(text).unwrap()
}

fn join() -> Join {
    Join { pair: pair(), side: side("left"), instance: Instance(*b"12345678"), lifetime: Some(600) }
}

fn retry_after() -> Option<Duration> {
    Some(Duration::from_millis(1500))
}

fn refusals() -> Vec<Refusal> {
    let server = "192.0.2.1:443".parse().unwrap();
    let alternate = |domain: Option<&str>| Alternate { server, domain: domain.map(str::to_owned) };
    let mut all: Vec<_> = [400, 403, 409, 437, 441, 486].map(Refusal::new).into();
    all.extend([401, 438].map(|code| Refusal { challenge: Some(challenge()), ..Refusal::new(code) }));
    all.push(Refusal { unknown: vec![0x7f09, 0x0033, 0x7f0a], ..Refusal::new(420) });
    all.push(Refusal { retry_after: retry_after(), ..Refusal::new(508) });
    all.push(Refusal { alternate: Some(alternate(None)), ..Refusal::new(300) });
    all.push(Refusal { alternate: Some(alternate(Some("other.example"))), ..Refusal::new(300) });
    all
}

/// A message of every kind.
pub(super) fn every_message() -> Vec<Vec<u8>> {
    let granted = Granted { lifetime: 600, peer: PeerStatus::Present };
    let peer = Peer {
        status: PeerStatus::Present,
        side: Some(side("right")),
        user: Some("bob".into()),
        retry_after: retry_after(),
    };
    let closing = Closing { instance: Some(Instance([7; 8])), ..Closing::new(Reason::Superseded) };
    let mut all = vec![
        Join::encode_first(ID),
        join().encode(ID, &seal()).unwrap(),
        Refresh { lifetime: Some(0) }.encode(ID, &seal()).unwrap(),
        granted.encode(Method::JOIN, ID, &seal().key),
        peer.encode(ID),
        closing.encode(ID),
        ping(ID),
        pong(ID, "[2001:db8::1]:443".parse().unwrap()),
    ];
    all.extend(refusals().iter().map(|it| it.encode(Method::JOIN, ID, Some(&seal().key))));
    all
}

/// A message with these attributes, whatever is in them.
pub(super) fn message(method: Method, class: Class, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let draft = Draft::new(method, class, ID);
    attributes.iter().fold(draft, |draft, (kind, value)| draft.with(*kind, value)).unsealed()
}

#[test]
fn the_first_join_tells_nothing() {
    let bytes = Join::encode_first(ID);
    assert_eq!(bytes, [b"\x02\xe1\0\0".as_slice(), COOKIE_AND_ID].concat());
}

#[test]
fn a_join_is_on_the_wire_as_it_is_fixed() {
    let bytes = join().encode(ID, &seal()).unwrap();
    let expected = [
        b"\x02\xe1\0\x8c".as_slice(),
        COOKIE_AND_ID,
        b"\x7f\x01\0\x05pair!\0\0\0",
        b"\x7f\x02\0\x04left",
        b"\x7f\x05\0\x0812345678",
        b"\0\x0d\0\x04\0\0\x02\x58",
        b"\0\x06\0\x05alice\0\0\0",
        b"\0\x14\0\x0bexample.org\0",
        b"\0\x15\0\x0eobMatJos2gAAA1\0\0",
        b"\x80\x02\0\x04\0\x02\0\0",
        b"\0\x1d\0\x04\0\x02\0\0",
        b"\0\x1c\0\x20",
    ]
    .concat();
    assert_eq!((&bytes[..expected.len()], bytes.len()), (&expected[..], expected.len() + 32));
    let message = decode(&bytes).unwrap();
    assert!(message.has_sha256() && message.is_sealed_with(&seal().key));
    assert_eq!((message.method, message.class, message.id), (Method::JOIN, Class::Request, ID));
    assert_eq!(Join::read(&message), Ok(join()));
    let bytes = Join { lifetime: None, ..join() }.encode(ID, &seal()).unwrap();
    assert_eq!(Join::read(&decode(&bytes).unwrap()).unwrap().lifetime, None);
}

#[test]
fn a_refresh_is_read_as_it_was_written() {
    for (lifetime, attribute) in [(Some(0), b"\0\x0d\0\x04\0\0\0\0".as_slice()), (None, b"\0\x06\0\x05")] {
        let bytes = Refresh { lifetime }.encode(ID, &seal()).unwrap();
        assert_eq!((&bytes[..2], &bytes[20..20 + attribute.len()]), (b"\0\x04".as_slice(), attribute));
        let message = decode(&bytes).unwrap();
        assert_eq!(Refresh::read(&message), Ok(Refresh { lifetime }));
        assert!(message.is_sealed_with(&seal().key));
    }
}

#[test]
fn a_success_is_on_the_wire_as_it_is_fixed() {
    for (method, kind) in [(Method::JOIN, b"\x03\xe1"), (Method::REFRESH, b"\x01\x04")] {
        for (peer, number) in [(PeerStatus::Absent, 0), (PeerStatus::Present, 1), (PeerStatus::Gone, 2)] {
            let granted = Granted { lifetime: 600, peer };
            let bytes = granted.encode(method, ID, &seal().key);
            let expected = [
                kind.as_slice(),
                b"\0\x34",
                COOKIE_AND_ID,
                b"\0\x0d\0\x04\0\0\x02\x58",
                &[0x7f, 0x03, 0, 4, 0, 0, 0, number],
                b"\0\x1c\0\x20",
            ]
            .concat();
            assert_eq!((&bytes[..expected.len()], bytes.len()), (&expected[..], expected.len() + 32));
            let message = decode(&bytes).unwrap();
            assert_eq!(Granted::read(&message), Ok(granted));
            assert!(message.is_sealed_with(&seal().key));
        }
    }
}

#[test]
fn a_challenge_is_on_the_wire_as_it_is_fixed() {
    let refusal = Refusal { challenge: Some(challenge()), ..Refusal::new(401) };
    let expected = [
        b"\x03\xf1\0\x44".as_slice(),
        COOKIE_AND_ID,
        b"\0\x09\0\x13\0\0\x04\x01Unauthenticated\0",
        b"\0\x14\0\x0bexample.org\0",
        b"\0\x15\0\x0eobMatJos2gAAA1\0\0",
        b"\x80\x02\0\x04\0\x02\0\0",
    ];
    assert_eq!(refusal.encode(Method::JOIN, ID, None), expected.concat());
}

#[test]
fn every_refusal_is_read_as_it_was_written() {
    for refusal in refusals() {
        let bytes = refusal.encode(Method::REFRESH, ID, Some(&seal().key));
        let message = decode(&bytes).unwrap();
        assert_eq!(Refusal::read(&message).as_ref(), Ok(&refusal));
        assert!(message.is_sealed_with(&seal().key) && !refusal.phrase().is_empty());
        let bytes = refusal.encode(Method::REFRESH, ID, None);
        assert!(!decode(&bytes).unwrap().has_sha256());
        assert_eq!(Refusal::read(&decode(&bytes).unwrap()), Ok(refusal));
    }
}

#[test]
fn a_peer_is_on_the_wire_as_it_is_fixed() {
    let (side, user) = (Some(side("right")), Some("bob".to_owned()));
    let peer = Peer { status: PeerStatus::Present, side, user, retry_after: retry_after() };
    let bytes = peer.encode(ID);
    let expected = [
        b"\x02\xf2\0\x24".as_slice(),
        COOKIE_AND_ID,
        b"\x7f\x03\0\x04\0\0\0\x01",
        b"\x7f\x02\0\x05right\0\0\0",
        b"\0\x06\0\x03bob\0",
        b"\xff\x01\0\x04\0\0\x05\xdc",
    ];
    assert_eq!(bytes, expected.concat());
    assert_eq!(Peer::read(&decode(&bytes).unwrap()), Ok(peer));
    let gone = Peer { status: PeerStatus::Gone, side: None, user: None, retry_after: None };
    let bytes = gone.encode(ID);
    assert_eq!(bytes[20..], *b"\x7f\x03\0\x04\0\0\0\x02");
    assert_eq!(Peer::read(&decode(&bytes).unwrap()), Ok(gone));
}

#[test]
fn a_closing_is_on_the_wire_as_it_is_fixed() {
    let instance = Some(Instance(*b"12345678"));
    let closing = Closing { reason: Reason::Superseded, instance, retry_after: retry_after() };
    let bytes = closing.encode(ID);
    let expected = [
        b"\x02\xf3\0\x1c".as_slice(),
        COOKIE_AND_ID,
        b"\x7f\x04\0\x04\0\0\0\x01",
        b"\x7f\x05\0\x0812345678",
        b"\xff\x01\0\x04\0\0\x05\xdc",
    ];
    assert_eq!(bytes, expected.concat());
    assert_eq!(Closing::read(&decode(&bytes).unwrap()), Ok(closing));
    for (reason, number) in [
        (Reason::Superseded, 1),
        (Reason::Restarting, 2),
        (Reason::Idle, 3),
        (Reason::LifetimeOver, 4),
        (Reason::ProtocolError, 5),
        (Reason::Limit, 6),
    ] {
        let bytes = Closing::new(reason).encode(ID);
        assert_eq!(bytes[20..], [0x7f, 4, 0, 4, 0, 0, 0, number]);
        assert_eq!(Closing::read(&decode(&bytes).unwrap()), Ok(Closing::new(reason)));
    }
}

#[test]
fn a_ping_and_its_answer_are_bindings() {
    assert_eq!(ping(ID), [b"\0\x01\0\0".as_slice(), COOKIE_AND_ID].concat());
    let pong = pong(ID, "192.0.2.1:32853".parse().unwrap());
    let mapped = b"\0\x20\0\x08\0\x01\xa1\x47\xe1\x12\xa6\x43";
    assert_eq!(pong, [b"\x01\x01\0\x0c".as_slice(), COOKIE_AND_ID, mapped].concat());
}

#[test]
fn ids_have_their_lengths() {
    assert!(PairId::new([]).is_none() && PairId::new([0; 65]).is_none());
    assert_eq!(PairId::new([0; 64]).unwrap().as_bytes(), [0; 64]);
    for bad in ["", "a\nb", "\u{7f}", "\u{85}", &"s".repeat(65), &"\u{e9}".repeat(33)] {
        assert_eq!(SideId::new(bad), None, "{bad:?}");
    }
    for good in ["s", "left side", "\u{e9}", &"s".repeat(64)] {
        assert_eq!(side(good).to_string(), good);
    }
    assert!(side("B") < side("a") && side("a") < side("\u{e9}"), "compared as bytes");
}

#[test]
fn nothing_of_a_pair_id_is_printed() {
    let bytes = join().encode(ID, &seal()).unwrap();
    let printed = format!("{:?} {:?} {:?}", pair(), join(), decode(&bytes).unwrap());
    assert!(printed.contains("left") && printed.contains("PairId(…)"), "{printed}");
    for trace in ["pair!", "112", "70", "cGFpciE"] {
        assert!(!printed.contains(trace), "{printed}");
    }
}

#[test]
fn what_a_join_lacks_or_has_wrong_is_said() {
    let good: [(u16, &[u8]); 4] =
        [(PAIR_ID, b"p"), (SIDE_ID, b"s"), (INSTANCE, b"12345678"), (raw::LIFETIME, &[0, 0, 0, 1])];
    let read = |attributes: &[(u16, &[u8])]| {
        Join::read(&decode(&message(Method::JOIN, Class::Request, attributes)).unwrap())
    };
    assert!(read(&good).is_ok());
    let long = [b'x'; 65];
    for (at, name, bad) in [
        (0, "PAIR-ID", [b"".as_slice(), &long]),
        (1, "SIDE-ID", [b"", &long]),
        (1, "SIDE-ID", [b"\xff", b"a\0"]),
        (2, "INSTANCE", [b"1234567", b"123456789"]),
        (3, "LIFETIME", [&[0, 0, 0, 0], &[0, 0, 1]]),
    ] {
        for bad in bad {
            let mut attributes = good;
            attributes[at].1 = bad;
            assert_eq!(read(&attributes), Err(Malformed(name)), "{bad:?}");
        }
        let mut attributes = good.to_vec();
        attributes.remove(at);
        let expected = if at == 3 { None } else { Some(Malformed(name)) };
        assert_eq!(read(&attributes).err(), expected);
    }
}

#[test]
fn of_several_the_first_counts_and_none_behind_the_integrity() {
    let twice = message(
        Method::JOIN,
        Class::Request,
        &[
            (PAIR_ID, b"first"),
            (PAIR_ID, b"second"),
            (SIDE_ID, b"s"),
            (INSTANCE, b"12345678"),
            (INSTANCE, b""),
            (0x7f09, b""),
            (raw::MESSAGE_INTEGRITY_SHA256, &[0; 32]),
            (raw::LIFETIME, &[0, 0, 0, 9]),
            (SIDE_ID, b"other"),
            (0x7f0a, b""),
        ],
    );
    let twice = decode(&twice).unwrap();
    let read = Join::read(&twice).unwrap();
    assert_eq!((read.pair.as_bytes(), read.side.as_str(), read.lifetime), (&b"first"[..], "s", None));
    assert_eq!(unknown_required(&twice), [0x7f09]);
}

#[test]
fn only_a_whole_sha256_is_an_integrity() {
    for (attributes, expected) in [
        (vec![(raw::MESSAGE_INTEGRITY_SHA256, 32)], true),
        (vec![(raw::MESSAGE_INTEGRITY, 20), (raw::MESSAGE_INTEGRITY_SHA256, 32)], true),
        (vec![(raw::MESSAGE_INTEGRITY_SHA256, 32), (raw::FINGERPRINT, 4)], true),
        (vec![], false),
        (vec![(raw::MESSAGE_INTEGRITY, 20)], false),
        (vec![(raw::MESSAGE_INTEGRITY_SHA256, 28)], false),
        (vec![(raw::MESSAGE_INTEGRITY_SHA256, 16), (raw::MESSAGE_INTEGRITY_SHA256, 32)], false),
        (vec![(raw::FINGERPRINT, 4), (raw::MESSAGE_INTEGRITY_SHA256, 32)], false),
    ] {
        let zeros = [0; 32];
        let attributes: Vec<_> = attributes.iter().map(|(kind, len)| (*kind, &zeros[..*len])).collect();
        let bytes = message(Method::JOIN, Class::Request, &attributes);
        assert_eq!(decode(&bytes).unwrap().has_sha256(), expected, "{attributes:?}");
    }
}

#[test]
fn a_fingerprint_may_stand_behind_the_integrity() {
    let mut bytes = join().encode(ID, &seal()).unwrap();
    bytes.extend(b"\x80\x28\0\x04\x01\x02\x03\x04");
    bytes[3] += 8;
    let message = decode(&bytes).unwrap();
    assert!(message.has_sha256() && message.is_sealed_with(&seal().key));
    assert_eq!(Join::read(&message), Ok(join()));
}

#[test]
fn what_must_be_understood_and_is_not_spoils_a_message_to_a_side() {
    let status: &[u8] = &[0, 0, 0, 1];
    let error: &[u8] = b"\0\0\x04\0";
    for (kind, is_good) in [(0x7f09, false), (0x0033, false), (0x8099, true), (raw::DATA, true)] {
        let read = |attributes: &[(u16, &[u8])]| {
            let bytes = message(Method::PEER, Class::Indication, &[attributes, &[(kind, b"")]].concat());
            let message = decode(&bytes).unwrap();
            [
                Peer::read(&message).is_ok(),
                Granted::read(&message).is_ok(),
                Closing::read(&message).is_ok(),
                Refusal::read(&message).is_ok(),
            ]
        };
        let all: [(u16, &[u8]); 4] =
            [(PEER_STATUS, status), (raw::LIFETIME, status), (REASON, status), (raw::ERROR_CODE, error)];
        assert_eq!(read(&all), [is_good; 4], "{kind:#x}");
    }
}

#[test]
fn numbers_that_are_not_known_are_malformed() {
    for value in [&[0, 0, 0, 9][..], &[1, 0, 0, 1], &[1], &[]] {
        let bytes = message(Method::PEER, Class::Indication, &[(PEER_STATUS, value), (REASON, value)]);
        let message = decode(&bytes).unwrap();
        assert_eq!(Peer::read(&message), Err(Malformed("PEER-STATUS")));
        assert!(Closing::read(&message).is_err());
    }
}

#[test]
fn a_side_waits_a_minute_at_most_and_passes_over_what_is_malformed() {
    for (value, expected) in [
        (&[0, 0, 0, 0][..], Some(0)),
        (&[0, 0, 0xea, 0x60], Some(60_000)),
        (&[0, 0, 0xea, 0x61], Some(60_000)),
        (&[255; 4], Some(60_000)),
        (&[0; 3], None),
    ] {
        let attributes: [(u16, &[u8]); 2] = [(REASON, &[0, 0, 0, 2]), (RETRY_AFTER, value)];
        let bytes = message(Method::CLOSING, Class::Indication, &attributes);
        let read = Closing::read(&decode(&bytes).unwrap()).unwrap();
        assert_eq!(read.retry_after.map(|after| after.as_millis()), expected);
    }
    let endless = Closing { retry_after: Some(Duration::MAX), ..Closing::new(Reason::Restarting) };
    assert!(endless.encode(ID).ends_with(&[255; 4]));
}

#[test]
fn a_user_that_cannot_be_printed_is_not_told() {
    for user in [b"a\x1b[31m".as_slice(), b"\xff"] {
        let attributes: [(u16, &[u8]); 2] = [(PEER_STATUS, &[0, 0, 0, 1]), (raw::USERNAME, user)];
        let bytes = message(Method::PEER, Class::Indication, &attributes);
        assert_eq!(Peer::read(&decode(&bytes).unwrap()).unwrap().user, None);
    }
}

#[test]
fn a_challenge_without_the_bit_or_without_sha256_is_weak() {
    for (nonce, algorithms, expected) in [
        ("obMatJos2gAAA1", &[0, 2, 0, 0][..], true),
        ("obMatJos2gAAA1", &[0, 1, 0, 0, 0, 2, 0, 0], true),
        ("obMatJos2gAAA1", &[0, 1, 0, 0], false),
        ("obMatJos2gAAA1", &[0, 2], false),
        ("obMatJos2AAAA1", &[0, 2, 0, 0], false),
        ("anything", &[0, 2, 0, 0], false),
    ] {
        let challenge = Challenge { algorithms: algorithms.into(), ..Challenge::new("r", nonce) };
        assert_eq!(challenge.is_strong(), expected, "{nonce} {algorithms:?}");
    }
}

#[test]
fn another_implementation_accepts_what_is_sealed() {
    use turn_server_proto::types::stun::message as theirs;
    let account = theirs::LongTermKeyCredentials::new("alice".into(), "secret".into(), "example.org".into());
    let account = theirs::MessageIntegrityCredentials::from(account);
    let granted = Granted { lifetime: 1, peer: PeerStatus::Absent };
    for bytes in [
        join().encode(ID, &seal()).unwrap(),
        Refresh { lifetime: None }.encode(ID, &seal()).unwrap(),
        granted.encode(Method::JOIN, ID, &seal().key),
        Refusal::new(403).encode(Method::JOIN, ID, Some(&seal().key)),
    ] {
        let message = theirs::Message::from_bytes(&bytes).unwrap();
        assert_eq!(message.validate_integrity(&account).unwrap(), theirs::IntegrityAlgorithm::Sha256);
    }
}
