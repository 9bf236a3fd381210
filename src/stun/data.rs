//! Send and Data indications (RFC 8656 §11), written and read by hand: they carry datagrams, so nothing here
//! allocates, and only what is appended is copied.

use std::net::SocketAddr;

use bytes::BufMut;

use super::TransactionId;
use super::raw::{self, ATTRIBUTE_HEADER_LEN, HEADER_LEN};

/// Message types: methods Send 0x006 and Data 0x007, class indication (RFC 8489 §5).
const SEND_INDICATION: u16 = 0x0016;
const DATA_INDICATION: u16 = 0x0017;

/// The longest datagram that a Send indication can hold, whatever the peer's family: the length of a message
/// has 16 bits.
pub(crate) const MAX_SEND_LEN: usize = raw::MAX_BODY_LEN - 2 * ATTRIBUTE_HEADER_LEN - 20;

/// The length of a Send indication to `peer` with a datagram of `len` bytes.
pub(crate) fn send_indication_len(peer: SocketAddr, len: usize) -> usize {
    HEADER_LEN + 2 * ATTRIBUTE_HEADER_LEN + raw::address_len(peer) + len.next_multiple_of(4)
}

/// Appends a Send indication.
///
/// # Panics
/// With a datagram of more than [`MAX_SEND_LEN`] bytes.
pub(crate) fn put_send_indication(
    to: &mut impl BufMut,
    id: TransactionId,
    peer: SocketAddr,
    datagram: &[u8],
) {
    assert!(datagram.len() <= MAX_SEND_LEN, "{} bytes do not fit a Send indication", datagram.len());
    let body_len = send_indication_len(peer, datagram.len()) - HEADER_LEN;
    raw::put_header(to, SEND_INDICATION, body_len as u16, id);
    to.put_u16(raw::XOR_PEER_ADDRESS);
    to.put_u16(raw::address_len(peer) as u16);
    raw::put_address(to, raw::xored(peer, id));
    raw::put_attribute(to, raw::DATA, datagram);
}

/// What a Data indication says: `peer` sent a datagram, or ICMP came back for one that went to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataIndication<'m> {
    pub(crate) peer: SocketAddr,
    /// DATA. May be empty: so are some datagrams.
    pub(crate) datagram: Option<&'m [u8]>,
    /// ICMP (RFC 8656 §18.13): type and code.
    pub(crate) icmp: Option<(u8, u8)>,
}

/// Reads one whole Data indication. `None` for any other message, a malformed one, one without
/// XOR-PEER-ADDRESS or with neither DATA nor ICMP, and one with a comprehension-required attribute that is not
/// known: such are discarded (RFC 8656 §11.6, RFC 8489 §6.3.2).
pub(crate) fn data_indication(message: &[u8]) -> Option<DataIndication<'_>> {
    let (DATA_INDICATION, mut rest) = raw::message(message)? else { return None };
    let (mut peer, mut datagram, mut icmp) = (None, None, None);
    while !rest.is_empty() {
        let (kind, value) = raw::take_attribute(&mut rest)?;
        match kind {
            _ if raw::is_end(kind) => break,
            // Of several the first counts (RFC 8489 §14).
            raw::XOR_PEER_ADDRESS if peer.is_none() => peer = Some(raw::address(value)?),
            raw::DATA => _ = datagram.get_or_insert(value),
            raw::ICMP => icmp = icmp.or(icmp_of(value)),
            _ if raw::is_known_or_optional(kind) => {}
            _ => return None,
        }
    }
    let peer = raw::xored(peer?, raw::transaction_id(message));
    (datagram.is_some() || icmp.is_some()).then_some(DataIndication { peer, datagram, icmp })
}

/// Type and code of an ICMP attribute. The figure of RFC 8656 §18.13 draws them 7 and 9 bits wide; in ICMP
/// they have 8 bits each, and servers send those.
pub(super) fn icmp_of(value: &[u8]) -> Option<(u8, u8)> {
    let [_, _, kind, code, _, _, _, _] = *value else { return None };
    Some((kind, code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use turn_server_proto::types::attribute::{Data, Icmp, XorPeerAddress};
    use turn_server_proto::types::stun::attribute::{AttributeWrite, Software};
    use turn_server_proto::types::stun::message::{
        Message, MessageClass, MessageType, MessageWrite, MessageWriteExt, MessageWriteVec, Method,
    };

    const ID: TransactionId = TransactionId(*b"abcdefghijkl");

    fn peers() -> [SocketAddr; 2] {
        ["192.0.2.1:4000".parse().unwrap(), "[2001:db8::9]:65535".parse().unwrap()]
    }

    fn id() -> turn_server_proto::types::stun::message::TransactionId {
        u128::from_be_bytes(*b"\0\0\0\0abcdefghijkl").into()
    }

    fn theirs(class: MessageClass, method: u16) -> MessageWriteVec {
        let kind = MessageType::from_class_method(class, Method::new(method));
        Message::builder(kind, id(), MessageWriteVec::new())
    }

    /// A Data indication as turn-types writes it.
    fn indication(peer: SocketAddr, datagram: Option<&[u8]>, icmp: Option<(u8, u8)>) -> Vec<u8> {
        let mut message = theirs(MessageClass::Indication, 7);
        message.add_attribute(&Software::new("a server").unwrap()).unwrap();
        message.add_attribute(&XorPeerAddress::new(peer, id())).unwrap();
        if let Some((kind, code)) = icmp {
            message.add_attribute(&Icmp::new(kind, code, 1400)).unwrap();
        }
        if let Some(datagram) = datagram {
            message.add_attribute(&Data::new(datagram)).unwrap();
        }
        message.finish()
    }

    fn sent(peer: SocketAddr, datagram: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_send_indication(&mut bytes, ID, peer, datagram);
        bytes
    }

    /// A message with one Data indication's header around any attributes.
    fn data_with(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        attributes.iter().for_each(|(kind, value)| raw::put_attribute(&mut body, *kind, value));
        let mut bytes = Vec::new();
        raw::put_header(&mut bytes, DATA_INDICATION, body.len() as u16, ID);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_send_indication_is_what_the_rfc_says_byte_by_byte() {
        let expected = [
            b"\x00\x16\x00\x18\x21\x12\xa4\x42abcdefghijkl".as_slice(),
            b"\x00\x12\x00\x08\x00\x01\x2e\xb2\xe1\x12\xa6\x43",
            b"\x00\x13\x00\x05hello\0\0\0",
        ];
        assert_eq!(sent(peers()[0], b"hello"), expected.concat());
    }

    #[test]
    fn another_implementation_reads_what_is_sent() {
        for peer in peers() {
            for len in [0, 1, 2, 3, 4, 1200, MAX_SEND_LEN] {
                let datagram = vec![0xa5; len];
                let bytes = sent(peer, &datagram);
                assert_eq!(bytes.len(), send_indication_len(peer, len));
                let message = Message::from_bytes(&bytes).unwrap();
                assert_eq!((message.class(), message.method().value()), (MessageClass::Indication, 6));
                assert_eq!(message.transaction_id(), id());
                assert_eq!(message.attribute::<XorPeerAddress>().unwrap().addr(id()), peer);
                assert_eq!(message.attribute::<Data<'_>>().unwrap().data(), datagram);
            }
        }
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_datagram_that_does_not_fit_is_not_cut() {
        sent(peers()[0], &vec![0; MAX_SEND_LEN + 1]);
    }

    #[test]
    fn what_another_implementation_sends_is_read() {
        for peer in peers() {
            for len in [0, 1, 2, 3, 4, 1200, 65_000] {
                let datagram = vec![7; len];
                let bytes = indication(peer, Some(&datagram), None);
                let expected = DataIndication { peer, datagram: Some(&datagram), icmp: None };
                assert_eq!(data_indication(&bytes), Some(expected));
            }
            let bytes = indication(peer, None, Some((3, 4)));
            let expected = DataIndication { peer, datagram: None, icmp: Some((3, 4)) };
            assert_eq!(data_indication(&bytes), Some(expected));
        }
    }

    #[test]
    fn other_messages_are_not_data_indications() {
        let peer = peers()[0];
        assert_eq!(data_indication(&sent(peer, b"x")), None);
        for (class, method) in
            [(MessageClass::Request, 7), (MessageClass::Success, 7), (MessageClass::Indication, 8)]
        {
            let mut message = theirs(class, method);
            message.add_attribute(&XorPeerAddress::new(peer, id())).unwrap();
            message.add_attribute(&Data::new(b"x")).unwrap();
            assert_eq!(data_indication(&message.finish()), None, "{class:?} {method}");
        }
        let mut wrong_cookie = indication(peer, Some(b"x"), None);
        wrong_cookie[4] ^= 1;
        assert_eq!(data_indication(&wrong_cookie), None);
    }

    #[test]
    fn a_peer_and_something_to_say_are_needed() {
        let peer = Message::from_bytes(&indication(peers()[0], None, None))
            .unwrap()
            .attribute::<XorPeerAddress>()
            .unwrap()
            .to_raw()
            .value
            .to_vec();
        assert_eq!(data_indication(&data_with(&[(raw::XOR_PEER_ADDRESS, &peer)])), None);
        assert_eq!(data_indication(&data_with(&[(raw::DATA, b"x")])), None);
        let empty = data_with(&[(raw::XOR_PEER_ADDRESS, &peer), (raw::DATA, b"")]);
        assert_eq!(data_indication(&empty).unwrap().datagram, Some(b"".as_slice()));
    }

    #[test]
    fn only_a_required_attribute_that_is_not_known_spoils_an_indication() {
        let peer = [0, 1, 0x21, 0x12, 0x21, 0x12, 0xa4, 0x42];
        let with = |kind| data_with(&[(raw::XOR_PEER_ADDRESS, &peer), (kind, b"other"), (raw::DATA, b"x")]);
        for kind in [0x7f00, 0x0024, 0x0000] {
            assert_eq!(data_indication(&with(kind)), None, "{kind:#x}");
        }
        for kind in [0xc001, raw::NONCE, 0x8022, raw::ICMP] {
            let bytes = with(kind);
            let read = data_indication(&bytes).map(|read| (read.datagram, read.icmp));
            assert_eq!(read, Some((Some(b"x".as_slice()), None)), "{kind:#x}");
        }
    }

    #[test]
    fn the_first_of_several_counts_and_none_behind_the_integrity() {
        let (peer, other) = ([0, 1, 0, 1, 2, 3, 4, 5], [0, 1, 0, 9, 9, 9, 9, 9]);
        let bytes = data_with(&[
            (raw::XOR_PEER_ADDRESS, &peer),
            (raw::XOR_PEER_ADDRESS, &other),
            (raw::DATA, b"first"),
            (raw::DATA, b"second"),
            (raw::MESSAGE_INTEGRITY, &[0; 20]),
            (raw::ICMP, &[0, 0, 3, 3, 0, 0, 0, 0]),
            (0x7f00, b""),
        ]);
        let read = data_indication(&bytes).unwrap();
        assert_eq!(read.peer, raw::xored(raw::address(&peer).unwrap(), ID));
        assert_eq!((read.datagram, read.icmp), (Some(b"first".as_slice()), None));
    }

    #[test]
    fn a_cut_indication_is_none_at_every_byte() {
        let bytes = indication(peers()[1], Some(b"12345"), Some((11, 0)));
        for len in 0..bytes.len() {
            assert_eq!(data_indication(&bytes[..len]), None, "{len}");
            // Cut, and its length mended: whole attributes may be left, a part of one never.
            let Some(rest) = len.checked_sub(HEADER_LEN) else { continue };
            let mut mended = bytes[..len].to_vec();
            mended[2..4].copy_from_slice(&(rest as u16).to_be_bytes());
            let read = data_indication(&mended).map(|read| (read.peer, read.datagram, read.icmp));
            assert!(read.is_none_or(|read| read == (peers()[1], None, Some((11, 0)))), "{len}");
        }
        assert_eq!(data_indication(&[&bytes[..], b"\0\0\0\0"].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            data_indication(&bytes);
            if bytes.len() >= HEADER_LEN {
                let len = bytes.len() - HEADER_LEN;
                bytes[..8].copy_from_slice(&[0, 0x17, 0, len as u8, 0x21, 0x12, 0xa4, 0x42]);
                data_indication(&bytes);
            }
        }

        #[test]
        fn a_changed_indication_is_read_without_panic(
            datagram in prop::collection::vec(any::<u8>(), 0..40),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = indication(peers()[0], Some(&datagram), Some((3, 1)));
            for (at, to) in changes {
                let at = at.index(bytes.len());
                bytes[at] = to;
            }
            if let Some(DataIndication { datagram: Some(datagram), .. }) = data_indication(&bytes) {
                prop_assert!(datagram.len() < bytes.len());
            }
        }
    }
}
