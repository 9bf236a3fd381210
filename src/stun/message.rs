//! A message whose attributes are read when they are asked for.

use std::fmt;

use super::keys::SHA256_LEN;
use super::raw;
use super::{Class, Integrity, Key, Method, StunError, TransactionId, malformed};

/// One whole message. What a malformed attribute means is for the reader to say, one attribute at a time: a server
/// must know who asks before it says what is wrong. `Debug` shows no attribute, for some are secrets.
#[derive(Clone, Copy)]
pub(crate) struct Message<'b> {
    pub(crate) method: Method,
    pub(crate) class: Class,
    pub(crate) id: TransactionId,
    bytes: &'b [u8],
}

impl<'b> Message<'b> {
    /// Takes one whole message.
    ///
    /// # Errors
    /// These bytes are not one STUN message, or one of its attributes, wherever it stands, goes past the end.
    pub(crate) fn decode(bytes: &'b [u8]) -> Result<Self, StunError> {
        let (kind, mut rest) = raw::message(bytes).ok_or_else(|| malformed("header or length"))?;
        while !rest.is_empty() {
            raw::take_attribute(&mut rest).ok_or_else(|| malformed("attribute cut short"))?;
        }
        let (method, class) = raw::method_and_class(kind);
        Ok(Self { method, class, id: raw::transaction_id(bytes), bytes })
    }

    /// The first attribute of this type. Those behind an integrity or FINGERPRINT do not count (RFC 8489 §14.5 to
    /// §14.7).
    pub(crate) fn attribute(&self, kind: u16) -> Option<&'b [u8]> {
        self.counted().find(|(other, _)| *other == kind).map(|(_, value)| value)
    }

    /// The comprehension-required attributes (below 0x8000) that neither RFC 8489, 8656 and 6062 nor the caller
    /// knows, each once, in order.
    pub(crate) fn unknown_required(&self, known: &[u16]) -> Vec<u16> {
        let mut unknown = Vec::new();
        for (kind, _) in self.counted() {
            if !raw::is_known_or_optional(kind) && !known.contains(&kind) && !unknown.contains(&kind) {
                unknown.push(kind);
            }
        }
        unknown
    }

    /// Whether a MESSAGE-INTEGRITY-SHA256 of 32 bytes is there, right or wrong.
    pub(crate) fn has_sha256(&self) -> bool {
        self.attributes()
            .take_while(|(kind, _)| *kind != raw::FINGERPRINT)
            .find(|(kind, _)| *kind == raw::MESSAGE_INTEGRITY_SHA256)
            .is_some_and(|(_, value)| value.len() == SHA256_LEN)
    }

    /// Whether the message carries a MESSAGE-INTEGRITY-SHA256 of 32 bytes, and it is right. Compares in constant
    /// time.
    pub(crate) fn is_sealed_with(&self, key: &Key) -> bool {
        key.seals(self.bytes, Integrity::Sha256)
    }

    /// All attributes.
    fn attributes(&self) -> impl Iterator<Item = (u16, &'b [u8])> + use<'b> {
        let mut rest = self.bytes.get(raw::HEADER_LEN..).unwrap_or_default();
        std::iter::from_fn(move || raw::take_attribute(&mut rest))
    }

    /// The attributes that count.
    fn counted(&self) -> impl Iterator<Item = (u16, &'b [u8])> + use<'b> {
        self.attributes().take_while(|(kind, _)| !raw::is_end(*kind))
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("method", &self.method)
            .field("class", &self.class)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
