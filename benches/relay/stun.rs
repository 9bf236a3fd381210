//! STUN as far as a side of a relay needs it (RFC 8489 §5, §14), by hand: the crate's own is private.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::Outcome;

/// Types of messages: method and class in one.
pub(crate) const BINDING_REQUEST: u16 = 0x0001;
pub(crate) const BINDING_SUCCESS: u16 = 0x0101;
pub(crate) const JOIN_REQUEST: u16 = 0x02e1;
pub(crate) const JOIN_SUCCESS: u16 = 0x03e1;
pub(crate) const JOIN_ERROR: u16 = 0x03f1;
pub(crate) const PEER_INDICATION: u16 = 0x02f2;

pub(crate) const USERNAME: u16 = 0x0006;
pub(crate) const ERROR_CODE: u16 = 0x0009;
pub(crate) const REALM: u16 = 0x0014;
pub(crate) const NONCE: u16 = 0x0015;
pub(crate) const PASSWORD_ALGORITHM: u16 = 0x001d;
pub(crate) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub(crate) const PAIR_ID: u16 = 0x7f01;
pub(crate) const SIDE_ID: u16 = 0x7f02;
pub(crate) const PEER_STATUS: u16 = 0x7f03;
pub(crate) const INSTANCE: u16 = 0x7f05;
pub(crate) const PASSWORD_ALGORITHMS: u16 = 0x8002;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;

pub(crate) const HEADER_LEN: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const MAC_LEN: usize = 32;

pub(crate) type Id = [u8; 12];

/// A message of these attributes, sealed with `key` if there is one.
pub(crate) fn message(
    kind: u16,
    id: Id,
    attributes: &[(u16, &[u8])],
    key: Option<&[u8]>,
) -> Outcome<Vec<u8>> {
    let mut bytes = [&kind.to_be_bytes()[..], &[0, 0], &COOKIE, &id].concat();
    for (kind, value) in attributes {
        put(&mut bytes, *kind, value)?;
    }
    let sealed = bytes.len() - HEADER_LEN + if key.is_some() { 4 + MAC_LEN } else { 0 };
    bytes[2..4].copy_from_slice(&u16::try_from(sealed)?.to_be_bytes());
    if let Some(key) = key {
        let mac = Hmac::<Sha256>::new_from_slice(key)?.chain_update(&bytes).finalize();
        put(&mut bytes, MESSAGE_INTEGRITY_SHA256, &mac.into_bytes())?;
    }
    Ok(bytes)
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) -> Outcome<()> {
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(value.len())?.to_be_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(())
}

/// A whole message that has come.
pub(crate) struct Stun<'a>(pub(crate) &'a [u8]);

impl Stun<'_> {
    pub(crate) fn kind(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    pub(crate) fn id(&self) -> Id {
        std::array::from_fn(|at| self.0[8 + at])
    }

    pub(crate) fn attribute(&self, wanted: u16) -> Option<&[u8]> {
        let mut rest = self.0.get(HEADER_LEN..)?;
        while let Some((&[a, b, c, d], values)) = rest.split_first_chunk() {
            let len = usize::from(u16::from_be_bytes([c, d]));
            if u16::from_be_bytes([a, b]) == wanted {
                return values.get(..len);
            }
            rest = values.get(len.next_multiple_of(4)..)?;
        }
        None
    }
}
