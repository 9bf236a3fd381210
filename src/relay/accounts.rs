//! Who may join: users with a password, and short-lived credentials that holders of a shared key hand out.
//!
//! A short-lived USERNAME is `expiry:name`, its password base64(HMAC-SHA1(shared key, USERNAME)); `expiry` is in
//! seconds since 1970. The user is `name`, so a renewed name is the same user. Nothing that comes back tells an
//! unknown user from a wrong password or an expired one: each costs the same work.

use std::collections::HashMap;
use std::sync::Arc;

use hmac::{Hmac, Mac};
use sha1::Sha1;

use crate::credentials::{Secret, UserPassword};
use crate::stun::{self, Algorithm, Key, Message, StunError, raw};

/// The longest realm in characters (RFC 8489 §14.9).
const MAX_REALM_CHARS: usize = 127;
/// The longest USERNAME in bytes (RFC 8489 §14.3).
const MAX_USER_LEN: usize = 508;

/// The user that nobody can be: what his key seals, no one sends.
const NOBODY: &str = "nobody";

/// Whoever may join a relay. `Debug` shows no key and no password.
#[derive(Debug)]
pub(crate) struct Accounts {
    realm: String,
    opaque_realm: String,
    /// By their names after OpaqueString, none with a colon.
    users: HashMap<Arc<str>, Key>,
    shared_key: Option<Secret>,
    /// What a message is checked with if its user is unknown.
    nobody: Key,
}

/// Whom a message has been found to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// The user, without the expiry of a short-lived name.
    pub(crate) user: Arc<str>,
    /// What the answer is sealed with.
    pub(crate) key: Key,
}

/// Accounts that a relay cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccountsError {
    #[error("a realm has 1 to {MAX_REALM_CHARS} characters")]
    Realm,
    #[error("the user '{0}' has a colon in its name; such names are those of short-lived credentials")]
    Colon(String),
    #[error("the user '{0}' is there twice")]
    Twice(String),
    #[error("user names have at most {MAX_USER_LEN} bytes")]
    LongUser,
    #[error("the shared key is empty")]
    NoSharedKey,
    #[error(transparent)]
    Stun(#[from] StunError),
}

impl Accounts {
    /// A realm without users.
    ///
    /// # Errors
    /// The realm is empty or too long, or OpaqueString forbids it.
    pub(crate) fn new(realm: impl Into<String>) -> Result<Self, AccountsError> {
        let realm = realm.into();
        if !(1..=MAX_REALM_CHARS).contains(&realm.chars().count()) {
            return Err(AccountsError::Realm);
        }
        // A key needs some password; nobody is asked for this one, for nobody's messages are never accepted.
        let nobody = Key::long_term(NOBODY, &realm, NOBODY, Algorithm::Sha256)?;
        let opaque_realm = stun::opaque_string("the realm", &realm)?;
        Ok(Self { realm, opaque_realm, users: HashMap::new(), shared_key: None, nobody })
    }

    pub(crate) fn realm(&self) -> &str {
        &self.realm
    }

    /// Adds a user with a password. A short-lived name of the same user is then refused, whoever signed it.
    ///
    /// # Errors
    /// The name has a colon or is there already, or OpaqueString forbids name or password.
    pub(crate) fn insert(&mut self, account: &UserPassword) -> Result<(), AccountsError> {
        let UserPassword { user, password } = account;
        let name = stun::opaque_string("the user name", user)?;
        if name.contains(':') {
            return Err(AccountsError::Colon(name));
        }
        if name.len() > MAX_USER_LEN {
            return Err(AccountsError::LongUser);
        }
        if self.users.contains_key(name.as_str()) {
            return Err(AccountsError::Twice(name));
        }
        let key = Key::long_term(&name, &self.realm, password.expose(), Algorithm::Sha256)?;
        self.users.insert(name.into(), key);
        Ok(())
    }

    /// Takes short-lived credentials made with this key.
    ///
    /// # Errors
    /// The key is empty.
    pub(crate) fn set_shared_key(&mut self, key: Secret) -> Result<(), AccountsError> {
        if key.expose().is_empty() {
            return Err(AccountsError::NoSharedKey);
        }
        self.shared_key = Some(key);
        Ok(())
    }

    /// Whoever sealed this request, `wall` seconds after 1970. `None` if its user is unknown or expired, its realm
    /// is another, or the password was wrong, which cannot be told apart.
    pub(crate) fn authenticate(&self, wall: u64, request: &Message<'_>) -> Option<Account> {
        let name = request.attribute(raw::USERNAME).and_then(|name| str::from_utf8(name).ok());
        let found = name.and_then(|name| self.find(wall, name));
        let is_realm = request.attribute(raw::REALM) == Some(self.realm.as_bytes());
        let key = found.as_ref().map_or(&self.nobody, |(_, key)| key);
        let is_sealed = request.is_sealed_with(key);
        let (user, key) = found?;
        let user = user.filter(|_| is_sealed && is_realm)?;
        Some(Account { user, key })
    }

    /// The user of this name and its key; no user but a key, if that name has expired or may not be used.
    fn find(&self, wall: u64, name: &str) -> Option<(Option<Arc<str>>, Key)> {
        if name.len() > MAX_USER_LEN {
            return None;
        }
        let name = stun::opaque_string("the user name", name).ok()?;
        let Some((expiry, user)) = name.split_once(':') else {
            let (user, key) = self.users.get_key_value(name.as_str())?;
            return Some((Some(user.clone()), key.clone()));
        };
        let shared_key = self.shared_key.as_ref()?;
        let expiry = expiry_of(expiry)?;
        let password = short_lived_password(shared_key, &name);
        // base64 is as OpaqueString leaves it.
        let key = Key::of_opaque(&name, &self.opaque_realm, &password);
        let is_good = wall <= expiry && !user.is_empty() && !self.users.contains_key(user);
        Some((is_good.then(|| user.into()), key))
    }
}

/// Seconds, written in decimal digits.
fn expiry_of(text: &str) -> Option<u64> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The password that goes with a short-lived name.
pub(crate) fn short_lived_password(shared_key: &Secret, name: &str) -> String {
    let mut mac = <Hmac<Sha1> as Mac>::new_from_slice(shared_key.expose().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(name.as_bytes());
    base64(&mac.finalize().into_bytes())
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0, |group, byte| group << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[group >> (18 - 6 * place) & 0x3f];
            text.push(if place <= chunk.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::messages::{Challenge, Refresh, decode};
    use crate::stun::TransactionId;

    const ID: TransactionId = TransactionId(*b"abcdefghijkl");
    const REALM: &str = "example.org";
    const SHARED_KEY: &str = "north";

    fn accounts() -> Accounts {
        let mut accounts = Accounts::new(REALM).unwrap();
        accounts.insert(&UserPassword::new("alice", "secret")).unwrap();
        accounts.insert(&UserPassword::new("m\u{e9}lanie", "gehe\u{ed}m")).unwrap();
        accounts.set_shared_key(SHARED_KEY.into()).unwrap();
        accounts
    }

    fn request(realm: &str, user: &str, password: &str) -> Vec<u8> {
        let seal = Challenge::new(realm, "a nonce").seal(&UserPassword::new(user, password)).unwrap();
        Refresh { lifetime: None }.encode(ID, &seal).unwrap()
    }

    fn user_at(wall: u64, user: &str, password: &str) -> Option<String> {
        let bytes = request(REALM, user, password);
        let account = accounts().authenticate(wall, &decode(&bytes).unwrap())?;
        let seal = Challenge::new(REALM, "n").seal(&UserPassword::new(user, password)).unwrap();
        assert_eq!(account.key, seal.key);
        Some(account.user.to_string())
    }

    fn short_lived(name: &str) -> String {
        short_lived_password(&SHARED_KEY.into(), name)
    }

    #[test]
    fn a_user_is_known_by_his_password() {
        assert_eq!(user_at(0, "alice", "secret").as_deref(), Some("alice"));
        // In another form of the same text (RFC 8265: NFC).
        assert_eq!(user_at(0, "me\u{301}lanie", "gehei\u{301}m").as_deref(), Some("m\u{e9}lanie"));
        for (user, password) in
            [("alice", "Secret"), ("Alice", "secret"), ("bob", "secret"), (NOBODY, NOBODY)]
        {
            assert_eq!(user_at(0, user, password), None, "{user} {password}");
        }
    }

    #[test]
    fn short_lived_credentials_are_good_until_they_expire() {
        let (name, later) = ("1700000000:bob", "1700009999:bob");
        for (wall, expected) in
            [(0, true), (1_699_999_999, true), (1_700_000_000, true), (1_700_000_001, false)]
        {
            assert_eq!(user_at(wall, name, &short_lived(name)).is_some(), expected, "{wall}");
        }
        assert_eq!(user_at(0, name, &short_lived(name)), user_at(0, later, &short_lived(later)));
        assert_eq!(user_at(0, name, &short_lived(name)).as_deref(), Some("bob"));
        assert_eq!(user_at(0, later, &short_lived(name)), None, "signed for another expiry");
        assert_eq!(user_at(0, "9:a:b", &short_lived("9:a:b")).as_deref(), Some("a:b"));
    }

    #[test]
    fn names_that_are_no_short_lived_ones_are_refused_whoever_signed_them() {
        for name in [
            "9:",
            ":bob",
            "x:bob",
            "+9:bob",
            "-9:bob",
            " 9:bob",
            "99999999999999999999:bob",
            "9:alice",
            "bob",
        ] {
            assert_eq!(user_at(0, name, &short_lived(name)), None, "{name}");
        }
        let without = Accounts { shared_key: None, ..accounts() };
        let bytes = request(REALM, "9:bob", &short_lived("9:bob"));
        assert_eq!(without.authenticate(0, &decode(&bytes).unwrap()), None);
    }

    #[test]
    fn a_short_lived_password_is_what_turn_servers_make_of_it() {
        // printf 1700000000:bob | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(short_lived("1700000000:bob"), "7tNSWpJ3gOxGfEgOjt+kaWhBC20=");
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn another_realm_is_refused_even_if_the_key_is_right() {
        let right = request(REALM, "alice", "secret");
        assert!(accounts().authenticate(0, &decode(&right).unwrap()).is_some());
        let other = request("example.com", "alice", "secret");
        assert_eq!(accounts().authenticate(0, &decode(&other).unwrap()), None);
        let seal = Challenge::new(REALM, "n").seal(&UserPassword::new("alice", "secret")).unwrap();
        let other = stun::Seal { realm: "example.com".into(), ..seal };
        let other = Refresh { lifetime: None }.encode(ID, &other).unwrap();
        assert_eq!(accounts().authenticate(0, &decode(&other).unwrap()), None);
    }

    #[test]
    fn a_name_that_is_no_text_is_unknown() {
        let key = accounts().nobody;
        let long = [b'a'; MAX_USER_LEN + 1];
        for name in [b"\xff".as_slice(), b"", b"a\n", &long] {
            let draft = stun::Draft::new(stun::Method::REFRESH, stun::Class::Request, ID);
            let draft = draft.with(raw::USERNAME, name).with(raw::REALM, REALM.as_bytes());
            // Even what is sealed with nobody's key, if somebody should find it.
            let bytes = draft.sealed(&key, stun::Integrity::Sha256);
            assert_eq!(accounts().authenticate(0, &decode(&bytes).unwrap()), None, "{name:?}");
        }
    }

    #[test]
    fn accounts_that_cannot_be_are_refused() {
        let mut accounts = accounts();
        let mut insert = |user: &str, password: &str| {
            let result = accounts.insert(&UserPassword::new(user, password));
            result.map_err(|error| error.to_string()).err().unwrap_or_default()
        };
        assert!(insert("1:bob", "hunter2").contains("colon"));
        assert!(insert("me\u{301}lanie", "hunter2").contains("twice"));
        assert!(insert(&"u".repeat(509), "hunter2").contains("508"));
        assert!(insert("", "hunter2").contains("empty"));
        assert_eq!(insert("bob", "a\u{7}hunter2").find("hunter2"), None);
        assert_eq!(insert("bob", "hunter2"), "");
        assert!(Accounts::new("").is_err() && Accounts::new("r".repeat(128)).is_err());
        assert!(Accounts::new("r".repeat(127)).is_ok() && Accounts::new("a\nb").is_err());
        assert!(accounts.set_shared_key("".into()).is_err());
    }

    #[test]
    fn no_secret_is_printed() {
        let printed = format!("{:?}", accounts());
        assert!(printed.contains("alice") && printed.contains("Key(..)"), "{printed}");
        for secret in ["secret", SHARED_KEY] {
            assert!(!printed.contains(&format!("\"{secret}\"")) && !printed.contains("[110"), "{printed}");
        }
    }
}
