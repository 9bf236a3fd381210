//! What long-term credentials need: OpaqueString, keys, USERHASH, and the features that a nonce announces.

use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use stun_rs::attributes::stun::UserHash;
use stun_rs::{AlgorithmId, HMACKey};

use super::raw::{self, ATTRIBUTE_HEADER_LEN, HEADER_LEN};
use super::{Algorithm, Integrity, Key, StunError, USER_NAME};

/// The bytes of MESSAGE-INTEGRITY, and of MESSAGE-INTEGRITY-SHA256 uncut.
const SHA1_LEN: usize = 20;
pub(super) const SHA256_LEN: usize = 32;

impl Key {
    /// The long-term key of user name, realm and password, all through OpaqueString.
    ///
    /// # Errors
    /// One of them is empty, or has characters that OpaqueString forbids.
    pub(crate) fn long_term(
        user: &str,
        realm: &str,
        password: &str,
        algorithm: Algorithm,
    ) -> Result<Self, StunError> {
        let user = opaque_string(USER_NAME, user)?;
        let realm = opaque_string("the realm", realm)?;
        let password = opaque_string("the password", password)?;
        if algorithm == Algorithm::Sha256 {
            return Ok(Self::of_opaque(&user, &realm, &password));
        }
        let algorithm = stun_rs::Algorithm::from(match algorithm {
            Algorithm::Md5 => AlgorithmId::MD5,
            Algorithm::Sha256 => AlgorithmId::SHA256,
        });
        let key = HMACKey::new_long_term(user, realm, password, algorithm)
            .map_err(|_| forbidden("the realm or password"))?;
        Ok(Self(key.as_bytes().to_vec()))
    }

    /// The key with SHA-256 of what has been through OpaqueString.
    pub(crate) fn of_opaque(user: &str, realm: &str, password: &str) -> Self {
        let parts = [user, ":", realm, ":", password];
        let hash = parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part));
        Self(hash.finalize().to_vec())
    }

    /// The HMAC of a message as far as `before`, as if it ended with the integrity that follows (RFC 8489 §14.5).
    pub(super) fn mac<M: Mac + KeyInit>(&self, before: &[u8]) -> M {
        let len = before.len() - HEADER_LEN + ATTRIBUTE_HEADER_LEN + M::output_size();
        let mut mac = <M as Mac>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&before[..2]);
        mac.update(&u16::try_from(len).expect("a message ends with it, or will").to_be_bytes());
        mac.update(&before[4..]);
        mac
    }

    /// Whether the message carries this integrity, and it is right: see
    /// [`Received::is_sealed_with`](super::Received::is_sealed_with).
    pub(super) fn seals(&self, message: &[u8], integrity: Integrity) -> bool {
        let Some((_, mut rest)) = raw::message(message) else { return false };
        loop {
            let before = &message[..message.len() - rest.len()];
            match (raw::take_attribute(&mut rest), integrity) {
                // Of another length it is no integrity, and may stand where no message can end.
                (Some((raw::MESSAGE_INTEGRITY, value)), Integrity::Sha1) => {
                    return value.len() == SHA1_LEN
                        && self.mac::<Hmac<Sha1>>(before).verify_slice(value).is_ok();
                }
                (Some((raw::MESSAGE_INTEGRITY_SHA256, value)), Integrity::Sha256) => {
                    return value.len() == SHA256_LEN
                        && self.mac::<Hmac<Sha256>>(before).verify_slice(value).is_ok();
                }
                // MESSAGE-INTEGRITY does not count behind MESSAGE-INTEGRITY-SHA256, nor does anything behind
                // FINGERPRINT.
                (None | Some((raw::MESSAGE_INTEGRITY_SHA256 | raw::FINGERPRINT, _)), _) => return false,
                (Some(_), _) => {}
            }
        }
    }
}

/// USERHASH of a user name and realm (RFC 8489 §14.4).
///
/// # Errors
/// One of them is empty, or has characters that OpaqueString forbids.
pub(crate) fn user_hash(user: &str, realm: &str) -> Result<[u8; 32], StunError> {
    // stun-rs checks, but does not map the characters.
    let user = opaque_string(USER_NAME, user)?;
    let realm = opaque_string("the realm", realm)?;
    let hash = UserHash::new(user, realm).map_err(|_| forbidden("the user name or realm"))?;
    Ok(hash.hash().try_into().expect("SHA-256 has 32 bytes"))
}

/// A text after OpaqueString (RFC 8265 §4.2), which stun-rs shows only as the key of short-term credentials.
pub(crate) fn opaque_string(what: &'static str, text: &str) -> Result<String, StunError> {
    if text.is_empty() {
        return Err(StunError::Text { what, why: "it is empty".into() });
    }
    // It changes none of these, and is slow with them.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(text.to_owned());
    }
    let key = HMACKey::new_short_term(text).map_err(|_| forbidden(what))?;
    Ok(String::from_utf8(key.as_bytes().to_vec()).expect("OpaqueString gives text"))
}

/// Says nothing of what is in the text: it may be a password.
fn forbidden(what: &'static str) -> StunError {
    StunError::Text { what, why: "it has characters that OpaqueString (RFC 8265) forbids".into() }
}

/// The security feature bits of a nonce that begins with the cookie `obMatJos2` (RFC 8489 §9.2): bit 0, password
/// algorithms; bit 1, user name anonymity. `None` without the cookie.
pub(crate) fn nonce_features(nonce: &str) -> Option<NonceFeatures> {
    let set = nonce.as_bytes().strip_prefix(b"obMatJos2")?.first_chunk::<4>()?;
    let mut bits = 0;
    for digit in set {
        bits = bits << 6 | base64_digit(*digit)?;
    }
    // RFC 8489 §18.1 counts the bits from the left, its erratum 6290 from the right, and there are servers of
    // either kind. The other bits are not assigned, so both can be told.
    Some(NonceFeatures {
        password_algorithms: bits & 0x80_0001 != 0,
        user_name_anonymity: bits & 0x40_0002 != 0,
    })
}

/// RFC 4648 §4.
fn base64_digit(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

/// See [`nonce_features`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NonceFeatures {
    pub(crate) password_algorithms: bool,
    pub(crate) user_name_anonymity: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(nonce: &str) -> Option<(bool, bool)> {
        nonce_features(nonce).map(|features| (features.password_algorithms, features.user_name_anonymity))
    }

    #[test]
    fn a_nonce_tells_its_features_from_either_end() {
        for (nonce, expected) in [
            // RFC 8656 §20, RFC 8489 B.1.
            ("obMatJos2gAAAadl7W7PeDU4hKE72jda", (true, false)),
            ("obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA", (false, true)),
            ("obMatJos2wAAA", (true, true)),
            ("obMatJos2QAAAx", (false, true)),
            ("obMatJos2AAAD", (true, true)),
            ("obMatJos2AAABx", (true, false)),
            ("obMatJos2AAAAx", (false, false)),
            ("obMatJos2P//8x", (false, false)),
        ] {
            assert_eq!(features(nonce), Some(expected), "{nonce}");
        }
    }

    #[test]
    fn a_nonce_without_the_cookie_has_no_features() {
        for nonce in [
            "",
            "f//499k954d6OL34oL9FSTvy64sA",
            "obmatjos2gAAA",
            "obMatJos2",
            "obMatJos2gAA",
            "obMatJos2gA==",
        ] {
            assert_eq!(features(nonce), None, "{nonce}");
        }
    }

    #[test]
    fn a_nonce_with_other_than_ascii_in_its_cookie_does_not_panic() {
        for nonce in
            ["obMatJos2\u{e9}\u{e9}", "obMatJos2gA\u{1F980}", "obMatJos2gAA\u{e9}", "obMatJos\u{b2}gAAA"]
        {
            assert_eq!(features(nonce), None, "{nonce}");
        }
        assert_eq!(features("obMatJos2gAAA\u{e9}"), Some((true, false)));
    }

    #[test]
    fn keys_are_the_digest_of_user_realm_and_password() {
        // RFC 8489 §9.2.2: its own example.
        let key = Key::long_term("user", "realm", "pass", Algorithm::Md5).unwrap();
        assert_eq!(key.0, 0x8493fbc53ba582fb4c044c456bdc40eb_u128.to_be_bytes());
        let key = Key::long_term("user", "realm", "pass", Algorithm::Sha256).unwrap();
        assert_eq!(key.0.len(), 32);
        assert_eq!(key.0[..4], [0x07, 0xe9, 0x34, 0x11]);
    }

    #[test]
    fn all_three_go_through_opaque_string() {
        // A no-break space and a decomposed letter.
        let (odd, plain) = ("e\u{301}\u{a0}x", "\u{e9} x");
        for algorithm in [Algorithm::Md5, Algorithm::Sha256] {
            let key = Key::long_term(odd, odd, odd, algorithm).unwrap();
            assert_eq!(key, Key::long_term(plain, plain, plain, algorithm).unwrap());
            assert_ne!(key, Key::long_term(plain, plain, "e x", algorithm).unwrap());
        }
        assert_eq!(user_hash(odd, odd), user_hash(plain, plain));
    }

    #[test]
    fn empty_and_forbidden_texts_are_named() {
        let fault = |user, realm, password| {
            let error = Key::long_term(user, realm, password, Algorithm::Md5).unwrap_err();
            let StunError::Text { what, .. } = error else { panic!("{error}") };
            what
        };
        assert_eq!(fault("", "r", "p"), "the user name");
        assert_eq!(fault("u", "r\0", "p"), "the realm");
        assert_eq!(fault("u", "r", ""), "the password");
        assert!(user_hash("u\u{ad}", "r").is_err() && user_hash("u", "").is_err());
    }
}
