//! A message while it is written: by hand, attribute after attribute, and sealed at the end.

use std::net::SocketAddr;

use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::Sha256;

use super::keys::opaque_string;
use super::raw::{self, HEADER_LEN};
use super::{
    Class, Integrity, Key, MAX_ALGORITHMS_LEN, MAX_TEXT_LEN, MAX_USER_LEN, Method, Seal, StunError,
    TransactionId, USER_NAME, User,
};

/// A message that has its header, whose length is not yet right, and some attributes.
pub(crate) struct Draft(Vec<u8>);

impl Draft {
    /// A message without attributes.
    pub(crate) fn new(method: Method, class: Class, id: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(256);
        raw::put_header(&mut bytes, raw::message_type(method, class), 0, id);
        Self(bytes)
    }

    /// The message that begins with these bytes: a header and whole attributes.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Appends an attribute. All attributes of a message together must stay below 64 KiB.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        raw::put_attribute(&mut self.0, kind, value);
        self
    }

    /// Appends an attribute that is a number of 32 bits.
    pub(crate) fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_be_bytes())
    }

    /// Appends an attribute like MAPPED-ADDRESS (RFC 8489 §14.1).
    pub(crate) fn with_address(self, kind: u16, address: SocketAddr) -> Self {
        let mut value = Vec::new();
        raw::put_address(&mut value, address);
        self.with(kind, &value)
    }

    /// Appends an attribute like XOR-MAPPED-ADDRESS (RFC 8489 §14.2).
    pub(crate) fn with_xor_address(self, kind: u16, address: SocketAddr) -> Self {
        let id = raw::transaction_id(&self.0);
        self.with_address(kind, raw::xored(address, id))
    }

    /// Appends ERROR-CODE (RFC 8489 §14.8): 300 to 699, and a few words.
    pub(crate) fn with_error(self, code: u16, reason: &str) -> Self {
        let [class, number] = [code / 100, code % 100].map(|part| part as u8);
        self.with(raw::ERROR_CODE, &[&[0, 0, class, number], reason.as_bytes()].concat())
    }

    /// The message, without integrity.
    pub(crate) fn unsealed(mut self) -> Vec<u8> {
        let len = u16::try_from(self.0.len() - HEADER_LEN).expect("all that is in it is bounded");
        self.0[2..4].copy_from_slice(&len.to_be_bytes());
        self.0
    }

    /// The message, with the integrity at its end.
    pub(crate) fn sealed(self, key: &Key, integrity: Integrity) -> Vec<u8> {
        let draft = match integrity {
            Integrity::Sha1 => {
                let mac = key.mac::<Hmac<Sha1>>(&self.0).finalize().into_bytes();
                self.with(raw::MESSAGE_INTEGRITY, &mac)
            }
            Integrity::Sha256 => {
                let mac = key.mac::<Hmac<Sha256>>(&self.0).finalize().into_bytes();
                self.with(raw::MESSAGE_INTEGRITY_SHA256, &mac)
            }
        };
        draft.unsealed()
    }

    /// The message as a request that says who asks, sealed.
    ///
    /// # Errors
    /// A user name, realm or nonce that STUN does not allow.
    pub(crate) fn authenticated(mut self, seal: &Seal) -> Result<Vec<u8>, StunError> {
        put_credentials(&mut self.0, seal)?;
        Ok(self.sealed(&seal.key, seal.integrity))
    }
}

/// Appends what makes a request an authenticated one, integrity excepted. REALM and NONCE, which the server
/// wants back as they were, are written by hand: stun-rs takes only quotable ASCII without spaces at its ends,
/// and only 509 bytes of it. So is PASSWORD-ALGORITHMS, whose padding it changes.
fn put_credentials(bytes: &mut Vec<u8>, seal: &Seal) -> Result<(), StunError> {
    let mut put = |kind, what, value: &[u8], max| {
        if value.len() > max {
            return Err(StunError::Text { what, why: format!("it is longer than {max} bytes") });
        }
        raw::put_attribute(bytes, kind, value);
        Ok(())
    };
    match &seal.user {
        User::Name(name) => {
            let name = opaque_string(USER_NAME, name)?;
            put(raw::USERNAME, USER_NAME, name.as_bytes(), MAX_USER_LEN)?;
        }
        User::Hash(hash) => put(raw::USERHASH, USER_NAME, hash, hash.len())?,
    }
    put(raw::REALM, "the realm", seal.realm.as_bytes(), MAX_TEXT_LEN)?;
    put(raw::NONCE, "the nonce", seal.nonce.as_bytes(), MAX_TEXT_LEN)?;
    if let Some((algorithms, chosen)) = &seal.algorithms {
        put(raw::PASSWORD_ALGORITHMS, "PASSWORD-ALGORITHMS", algorithms, MAX_ALGORITHMS_LEN)?;
        // It has no parameters.
        put(raw::PASSWORD_ALGORITHM, "PASSWORD-ALGORITHM", &[0, chosen.number(), 0, 0], 4)?;
    }
    Ok(())
}
