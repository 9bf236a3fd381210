//! Reading a control message.

use std::net::SocketAddr;

use stun_rs::{MessageDecoder, StunAttribute};

use super::raw::{self, HEADER_LEN};
use super::{
    Algorithm, Class, Integrity, Key, MAX_ALGORITHMS_LEN, MAX_TEXT_LEN, Method, StunError, TransactionId,
    data, malformed,
};

/// How much of a reason phrase is kept, in characters (RFC 8489 §14.8).
const MAX_REASON_CHARS: usize = 128;

/// A message from the server. What a server may leave out is an `Option`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received<'b> {
    pub(crate) method: Method,
    pub(crate) class: Class,
    pub(crate) id: TransactionId,
    /// ERROR-CODE: number and reason, the latter without control characters (coturn's ends in NULs), at most 128
    /// characters.
    pub(crate) error: Option<(u16, String)>,
    pub(crate) realm: Option<String>,
    pub(crate) nonce: Option<String>,
    /// PASSWORD-ALGORITHMS, as it stands on the wire, and those of its algorithms that are known, in order.
    pub(crate) algorithms: Option<(Vec<u8>, Vec<Algorithm>)>,
    /// Seconds.
    pub(crate) lifetime: Option<u32>,
    pub(crate) xor_relayed: Option<SocketAddr>,
    pub(crate) xor_mapped: Option<SocketAddr>,
    /// The first XOR-PEER-ADDRESS.
    pub(crate) xor_peer: Option<SocketAddr>,
    pub(crate) connection_id: Option<u32>,
    pub(crate) alternate_server: Option<SocketAddr>,
    /// ICMP (RFC 8656 §18.13): type and code.
    pub(crate) icmp: Option<(u8, u8)>,
    /// Comprehension-required attributes (below 0x8000) that are not known.
    pub(crate) unknown_required: Vec<u16>,
    bytes: &'b [u8],
}

impl<'b> Received<'b> {
    /// Reads one whole message. Attributes behind the integrity do not count (RFC 8489 §14.5), nor do known
    /// ones that are not expected; of several of a type the first counts.
    ///
    /// # Errors
    /// These bytes are not one STUN message, or one of its attributes that matter is malformed.
    pub(crate) fn decode(bytes: &'b [u8]) -> Result<Self, StunError> {
        let (kind, mut rest) = raw::message(bytes).ok_or_else(|| malformed("header or length"))?;
        let mut received = Self::new(kind, bytes);
        // What is left to stun-rs. It would refuse a message for any attribute that it finds malformed, also
        // for one that nobody asked for, or behind the integrity; and be busy for seconds with one
        // UNKNOWN-ATTRIBUTES of 64 KB.
        let mut kept = bytes[..HEADER_LEN].to_vec();
        let mut is_over = false;
        while !rest.is_empty() {
            let (kind, value) =
                raw::take_attribute(&mut rest).ok_or_else(|| malformed("attribute cut short"))?;
            is_over |= raw::is_end(kind);
            if is_over {
                continue;
            }
            match kind {
                raw::LIFETIME
                | raw::XOR_PEER_ADDRESS
                | raw::XOR_RELAYED_ADDRESS
                | raw::XOR_MAPPED_ADDRESS => raw::put_attribute(&mut kept, kind, value),
                _ => received.read_by_hand(kind, value)?,
            }
        }
        let len = (kept.len() - HEADER_LEN) as u16;
        kept[2..4].copy_from_slice(&len.to_be_bytes());
        received.read_with_stun_rs(&kept)?;
        Ok(received)
    }

    fn new(kind: u16, bytes: &'b [u8]) -> Self {
        let (method, class) = raw::method_and_class(kind);
        Self {
            method,
            class,
            id: raw::transaction_id(bytes),
            error: None,
            realm: None,
            nonce: None,
            algorithms: None,
            lifetime: None,
            xor_relayed: None,
            xor_mapped: None,
            xor_peer: None,
            connection_id: None,
            alternate_server: None,
            icmp: None,
            unknown_required: Vec::new(),
            bytes,
        }
    }

    /// Reads what stun-rs lacks, or is stricter with than a client can afford: a malformed optional attribute
    /// is passed over, texts need not be quotable, and reasons need not be UTF-8.
    fn read_by_hand(&mut self, kind: u16, value: &[u8]) -> Result<(), StunError> {
        match kind {
            raw::ERROR_CODE if self.error.is_none() => self.error = Some(error_of(value)?),
            raw::REALM if self.realm.is_none() => self.realm = Some(text_of("REALM", value)?),
            raw::NONCE if self.nonce.is_none() => self.nonce = Some(text_of("NONCE", value)?),
            raw::CONNECTION_ID if self.connection_id.is_none() => {
                let id = value.try_into().map_err(|_| malformed("CONNECTION-ID"))?;
                self.connection_id = Some(u32::from_be_bytes(id));
            }
            raw::PASSWORD_ALGORITHMS if self.algorithms.is_none() => {
                self.algorithms = algorithms_of(value).map(|known| (value.to_vec(), known));
            }
            raw::ALTERNATE_SERVER => self.alternate_server = self.alternate_server.or(raw::address(value)),
            raw::ICMP => self.icmp = self.icmp.or(data::icmp_of(value)),
            _ if raw::is_known_or_optional(kind) => {}
            _ => self.unknown_required.push(kind),
        }
        Ok(())
    }

    fn read_with_stun_rs(&mut self, bytes: &[u8]) -> Result<(), StunError> {
        let (message, _) = MessageDecoder::default().decode(bytes).map_err(malformed)?;
        for attribute in message.attributes() {
            match attribute {
                StunAttribute::LifeTime(lifetime) => _ = self.lifetime.get_or_insert(lifetime.as_u32()),
                StunAttribute::XorPeerAddress(peer) => {
                    self.xor_peer.get_or_insert(*peer.socket_address());
                }
                StunAttribute::XorRelayedAddress(relayed) => {
                    self.xor_relayed.get_or_insert(*relayed.socket_address());
                }
                StunAttribute::XorMappedAddress(mapped) => {
                    self.xor_mapped.get_or_insert(*mapped.socket_address());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the message carries this integrity, and it is right. Compares in constant time. A
    /// MESSAGE-INTEGRITY-SHA256 that is cut to fewer than 32 bytes is never right.
    pub(crate) fn is_sealed_with(&self, key: &Key, integrity: Integrity) -> bool {
        key.seals(self.bytes, integrity)
    }
}

/// ERROR-CODE (RFC 8489 §14.8).
pub(crate) fn error_of(value: &[u8]) -> Result<(u16, String), StunError> {
    let (number, reason) = match value {
        [_, _, class, number @ 0..=99, reason @ ..] if (3..=6).contains(&(class & 7)) => {
            (u16::from(class & 7) * 100 + u16::from(*number), reason)
        }
        _ => return Err(malformed("ERROR-CODE")),
    };
    let reason = String::from_utf8_lossy(reason);
    Ok((number, reason.chars().filter(|c| !c.is_control()).take(MAX_REASON_CHARS).collect()))
}

fn text_of(what: &'static str, value: &[u8]) -> Result<String, StunError> {
    match str::from_utf8(value) {
        Ok(text) if text.len() <= MAX_TEXT_LEN => Ok(text.to_owned()),
        _ => Err(malformed(format_args!("{what} is too long, or not UTF-8"))),
    }
}

/// The known ones of PASSWORD-ALGORITHMS, each laid out as an attribute (RFC 8489 §14.11), without
/// parameters. `None` if the list is malformed or too long.
pub(crate) fn algorithms_of(value: &[u8]) -> Option<Vec<Algorithm>> {
    let mut rest = Some(value).filter(|value| value.len() <= MAX_ALGORITHMS_LEN)?;
    let mut known = Vec::new();
    while !rest.is_empty() {
        match raw::take_attribute(&mut rest)? {
            (1, []) => known.push(Algorithm::Md5),
            (2, []) => known.push(Algorithm::Sha256),
            _ => {}
        }
    }
    Some(known)
}

#[cfg(test)]
#[path = "received_tests.rs"]
mod tests;
