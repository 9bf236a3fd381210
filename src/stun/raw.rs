//! The bytes of a STUN message: header, attributes, addresses (RFC 8489 §5, §14). Nothing here allocates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BufMut;

use super::{Class, Method, TransactionId};

pub(crate) const HEADER_LEN: usize = 20;
pub(crate) const ATTRIBUTE_HEADER_LEN: usize = 4;
const MAGIC_COOKIE: u32 = 0x2112_a442;

/// What a message's length can say at most: it is a multiple of 4.
pub(crate) const MAX_BODY_LEN: usize = 0xfffc;

pub(crate) const USERNAME: u16 = 0x0006;
pub(crate) const MESSAGE_INTEGRITY: u16 = 0x0008;
pub(crate) const ERROR_CODE: u16 = 0x0009;
pub(crate) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
pub(crate) const LIFETIME: u16 = 0x000d;
pub(crate) const XOR_PEER_ADDRESS: u16 = 0x0012;
pub(crate) const DATA: u16 = 0x0013;
pub(crate) const REALM: u16 = 0x0014;
pub(crate) const NONCE: u16 = 0x0015;
pub(crate) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
pub(crate) const REQUESTED_TRANSPORT: u16 = 0x0019;
pub(crate) const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
pub(crate) const PASSWORD_ALGORITHM: u16 = 0x001d;
pub(crate) const USERHASH: u16 = 0x001e;
pub(crate) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub(crate) const CONNECTION_ID: u16 = 0x002a;
pub(crate) const PASSWORD_ALGORITHMS: u16 = 0x8002;
pub(crate) const ALTERNATE_DOMAIN: u16 = 0x8003;
pub(crate) const ICMP: u16 = 0x8004;
pub(crate) const ALTERNATE_SERVER: u16 = 0x8023;
pub(crate) const FINGERPRINT: u16 = 0x8028;

/// Whether an attribute may be passed over: it is comprehension-optional, or of RFC 8489, 8656 or 6062, where
/// those that are not expected are ignored (RFC 8489 §6.3).
pub(super) fn is_known_or_optional(kind: u16) -> bool {
    matches!(
        kind,
        0x0001
            | 0x0006
            | 0x0008..=0x000a
            | 0x000c
            | 0x000d
            | 0x0012..=0x001a
            | 0x001c..=0x001e
            | 0x0020
            | 0x0022
            | 0x002a
            | 0x8000..
    )
}

/// Whether what stands from here on does not count, integrity excepted (RFC 8489 §14.5 to §14.7).
pub(super) fn is_end(kind: u16) -> bool {
    matches!(kind, MESSAGE_INTEGRITY | MESSAGE_INTEGRITY_SHA256 | FINGERPRINT)
}

/// The message type and the attributes of one whole message; `None` if these bytes are not one.
pub(super) fn message(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let ([t0, t1, l0, l1, cookie @ ..], rest) = bytes.split_first_chunk::<8>()?;
    let kind = u16::from_be_bytes([*t0, *t1]);
    let attributes = rest.get(12..)?;
    let is_whole = attributes.len() == usize::from(u16::from_be_bytes([*l0, *l1]));
    let is_stun = kind < 0x4000 && *cookie == MAGIC_COOKIE.to_be_bytes();
    (is_stun && is_whole && attributes.len() % 4 == 0).then_some((kind, attributes))
}

/// The transaction id of what [`message`] took for a message.
pub(super) fn transaction_id(message: &[u8]) -> TransactionId {
    let mut id = [0; 12];
    id.copy_from_slice(&message[8..HEADER_LEN]);
    TransactionId(id)
}

/// Takes the next attribute, its type and its value, from the front of `rest`; `None` if it is cut short.
pub(super) fn take_attribute<'m>(rest: &mut &'m [u8]) -> Option<(u16, &'m [u8])> {
    let ([k0, k1, l0, l1], behind) = rest.split_first_chunk::<ATTRIBUTE_HEADER_LEN>()?;
    let len = usize::from(u16::from_be_bytes([*l0, *l1]));
    let value = behind.get(..len)?;
    // A message has room for the padding, its length being a multiple of 4. The last entry of
    // PASSWORD-ALGORITHMS, which is laid out alike, need not.
    *rest = behind.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_be_bytes([*k0, *k1]), value))
}

/// The message type of a method and a class: of the 12 bits of the method, the class's two stand behind the seventh
/// and the fourth from the right (RFC 8489 §5).
pub(super) fn message_type(method: Method, class: Class) -> u16 {
    let Method(method) = method;
    let class = match class {
        Class::Request => 0x000,
        Class::Indication => 0x010,
        Class::Success => 0x100,
        Class::Error => 0x110,
    };
    (method & 0xf80) << 2 | (method & 0x70) << 1 | method & 0xf | class
}

/// The method and the class of a message type.
pub(super) fn method_and_class(kind: u16) -> (Method, Class) {
    let method = (kind >> 2 & 0xf80) | (kind >> 1 & 0x70) | kind & 0xf;
    let class = match kind & 0x110 {
        0x000 => Class::Request,
        0x010 => Class::Indication,
        0x100 => Class::Success,
        _ => Class::Error,
    };
    (Method(method), class)
}

pub(super) fn put_header(to: &mut impl BufMut, kind: u16, body_len: u16, id: TransactionId) {
    to.put_u16(kind);
    to.put_u16(body_len);
    to.put_u32(MAGIC_COOKIE);
    to.put_slice(&id.0);
}

/// Appends an attribute, padded with zeros.
///
/// # Panics
/// With a value of more than 65,535 bytes: callers have checked that the whole message is shorter.
pub(super) fn put_attribute(to: &mut impl BufMut, kind: u16, value: &[u8]) {
    to.put_u16(kind);
    to.put_u16(u16::try_from(value.len()).expect("the whole message is shorter"));
    to.put_slice(value);
    to.put_bytes(0, value.len().next_multiple_of(4) - value.len());
}

/// The value of MAPPED-ADDRESS and all attributes like it (RFC 8489 §14.1).
pub(crate) fn address(value: &[u8]) -> Option<SocketAddr> {
    let ([_, family, p0, p1], ip) = value.split_first_chunk::<4>()?;
    let ip = match family {
        1 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        2 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([*p0, *p1])))
}

pub(super) const fn address_len(address: SocketAddr) -> usize {
    if address.is_ipv4() { 8 } else { 20 }
}

pub(super) fn put_address(to: &mut impl BufMut, address: SocketAddr) {
    to.put_u8(0);
    to.put_u8(if address.is_ipv4() { 1 } else { 2 });
    to.put_u16(address.port());
    match address.ip() {
        IpAddr::V4(ip) => to.put_slice(&ip.octets()),
        IpAddr::V6(ip) => to.put_slice(&ip.octets()),
    }
}

/// To and from the form of XOR-MAPPED-ADDRESS (RFC 8489 §14.2).
pub(super) fn xored(address: SocketAddr, id: TransactionId) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() ^ MAGIC_COOKIE).into(),
        IpAddr::V6(ip) => {
            let id = id.0.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
            Ipv6Addr::from_bits(ip.to_bits() ^ (u128::from(MAGIC_COOKIE) << 96 | id)).into()
        }
    };
    SocketAddr::new(ip, address.port() ^ (MAGIC_COOKIE >> 16) as u16)
}
