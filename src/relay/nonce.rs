//! The relay's nonces: each is bound to its connection and to when it was given out, and is believed for 600 s, or until
//! the connection's peer goes: who shows a newer one knows that it has gone.
//!
//! Nothing is kept of them. A nonce is the cookie of RFC 8489 §9.2, 12 hexadecimal digits of milliseconds since the
//! connection was accepted, and 32 of an HMAC-SHA256, cut to 128 bits, of the connection's number, how many
//! peers have gone, and that time.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::messages::NONCE_COOKIE;

/// How long a nonce is believed.
pub(crate) const NONCE_LIFETIME: Duration = Duration::from_secs(600);

/// The digits of the time, and how many bytes of the HMAC are sent.
const TIME_DIGITS: usize = 12;
const MAC_LEN: usize = 16;

/// What a relay's nonces are made with: a [`random_key`](crate::stun::random_key), made anew whenever a relay starts.
/// Secret.
#[derive(Clone)]
pub(crate) struct NonceKey(pub(crate) [u8; 32]);

/// What a nonce is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The connection's: no two of a relay have the same.
    pub(crate) number: u64,
    /// How many peers of it have gone.
    pub(crate) parted: u64,
}

impl NonceKey {
    /// A nonce for a connection, `now` after it was accepted. All have the same length.
    pub(crate) fn nonce(&self, connection: Bound, now: Duration) -> String {
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mac = self.mac(connection, millis).finalize().into_bytes();
        let mac = mac.first_chunk().expect("SHA-256 has 32 bytes");
        format!("{NONCE_COOKIE}{millis:0TIME_DIGITS$x}{:032x}", u128::from_be_bytes(*mac))
    }

    /// Whether this is a nonce of that connection that has not expired. Compares in constant time.
    pub(crate) fn is_fresh(&self, connection: Bound, now: Duration, nonce: &[u8]) -> bool {
        let is_ours = |millis, mac: &[u8]| self.mac(connection, millis).verify_truncated_left(mac).is_ok();
        parts(nonce).is_some_and(|(millis, mac)| {
            let age = now.checked_sub(Duration::from_millis(millis));
            is_ours(millis, &mac) && age.is_some_and(|age| age < NONCE_LIFETIME)
        })
    }

    fn mac(&self, connection: Bound, millis: u64) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&connection.number.to_be_bytes());
        mac.update(&connection.parted.to_be_bytes());
        mac.update(&millis.to_be_bytes());
        mac
    }
}

impl fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NonceKey(..)")
    }
}

/// The time and the HMAC that a nonce claims.
fn parts(nonce: &[u8]) -> Option<(u64, [u8; MAC_LEN])> {
    let digits = str::from_utf8(nonce).ok()?.strip_prefix(NONCE_COOKIE)?;
    let (millis, mac) = digits.split_at_checked(TIME_DIGITS)?;
    let is_hex = mac.len() == 2 * MAC_LEN && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let mac = is_hex.then(|| u128::from_str_radix(mac, 16).ok())??;
    Some((u64::from_str_radix(millis, 16).ok()?, mac.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: NonceKey = NonceKey([7; 32]);
    const SECOND: Duration = Duration::from_secs(1);

    fn bound(number: u64) -> Bound {
        Bound { number, parted: 0 }
    }

    #[test]
    fn a_nonce_begins_with_the_cookie_and_announces_password_algorithms() {
        let nonce = KEY.nonce(bound(1), SECOND);
        assert!(nonce.starts_with("obMatJos2gAAA0000000003e8"), "{nonce}");
        assert!(crate::stun::nonce_features(&nonce).unwrap().password_algorithms);
        assert!(!crate::stun::nonce_features(&nonce).unwrap().user_name_anonymity);
        assert_eq!((nonce.len(), KEY.nonce(bound(u64::MAX), SECOND * 1_000_000).len()), (57, 57));
    }

    #[test]
    fn a_nonce_is_good_for_600_s_on_its_connection() {
        let nonce = KEY.nonce(bound(1), SECOND);
        for (connection, now, expected) in [
            (1, SECOND, true),
            (1, SECOND * 600, true),
            (1, SECOND * 601 - Duration::from_millis(1), true),
            (1, SECOND * 601, false),
            (1, SECOND / 2, false),
            (2, SECOND, false),
            (0, SECOND, false),
        ] {
            assert_eq!(
                KEY.is_fresh(bound(connection), now, nonce.as_bytes()),
                expected,
                "{connection} {now:?}"
            );
        }
        assert!(!KEY.is_fresh(Bound { number: 1, parted: 1 }, SECOND, nonce.as_bytes()), "a peer has gone");
        assert!(!NonceKey([8; 32]).is_fresh(bound(1), SECOND, nonce.as_bytes()), "of another relay");
    }

    #[test]
    fn a_nonce_with_a_changed_digit_or_of_another_length_is_not_ours() {
        let nonce = KEY.nonce(bound(1), SECOND);
        for at in 0..nonce.len() {
            for other in [b'0', b'1', b'f', b'+', b' ', 0xff] {
                let mut changed = nonce.clone().into_bytes();
                if changed[at] != other {
                    changed[at] = other;
                    assert!(!KEY.is_fresh(bound(1), SECOND * 2, &changed), "{at} {other}");
                }
            }
            assert!(!KEY.is_fresh(bound(1), SECOND, &nonce.as_bytes()[..at]));
        }
        assert!(!KEY.is_fresh(bound(1), SECOND, format!("{nonce}0").as_bytes()));
    }

    #[test]
    fn no_two_relays_have_the_same_key() {
        let keys = [crate::stun::random_key(), crate::stun::random_key()];
        assert_ne!(keys[0], keys[1]);
        assert!(keys.iter().all(|key| key[24..] != [0; 8]));
        let nonce = NonceKey(keys[0]).nonce(bound(1), SECOND);
        assert!(!NonceKey(keys[1]).is_fresh(bound(1), SECOND, nonce.as_bytes()));
    }

    #[test]
    fn the_key_is_not_printed() {
        assert_eq!(format!("{KEY:?}"), "NonceKey(..)");
    }

    proptest! {
        #[test]
        fn no_bytes_are_ours_by_chance(bytes in prop::collection::vec(any::<u8>(), 0..80), text in "\\PC{0,50}") {
            prop_assert!(!KEY.is_fresh(bound(1), SECOND, &bytes));
            let text = format!("{NONCE_COOKIE}{text}");
            prop_assert!(!KEY.is_fresh(bound(1), SECOND, text.as_bytes()));
        }
    }
}
