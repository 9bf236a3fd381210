//! What a TURN server knows a client by: a name and a password, given at once or asked for when needed.
//!
//! A [`Secret`] shows its value only to who calls [`Secret::expose`]: not in `Debug`, not in errors, not when a
//! configuration is serialized.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use actix::prelude::*;
use serde::Serialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::config::{ConfigError, TurnUri};

/// An answer to [`CredentialsWanted`] is awaited for this long; then it counts as `None`.
pub const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);

/// USERNAME has less than 509 bytes (RFC 8489 §14.3).
const MAX_USER: usize = 508;
/// Ours: the RFCs name none.
const MAX_PASSWORD: usize = 1024;

/// A password: 1 to 1,024 bytes, no control characters (RFC 8265 §4.2).
///
/// Comparing takes a time that depends on the values: good for configurations, not for authentication.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// The value, for who computes with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(value: T) -> Self {
        Self(value.into())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Text)
    }
}

/// Refuses values of other types without repeating them, as serde's own words would.
macro_rules! refuse {
    ($why:expr) => {
        refuse!($why; visit_bytes: &[u8], visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128);
        refuse!($why; visit_u128: u128, visit_f64: f64);
    };
    ($why:expr; $($visit:ident: $value:ty),+) => {$(
        fn $visit<E: Error>(self, _: $value) -> Result<Self::Value, E> {
            Err(E::custom($why))
        }
    )+};
}

/// Takes a string and nothing else.
struct Text;

const TEXT_EXPECTED: &str = "a password must be a text in quotes";

impl Visitor<'_> for Text {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a password in quotes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
        Ok(text.into())
    }

    refuse!(TEXT_EXPECTED);
}

/// A user name and its password: RFC 8489's long-term credentials, the realm being the server's to name.
///
/// Written `NAME:PASSWORD`, divided at the **last** colon: time-limited names have colons
/// (`1735689600:alice:BASE64`), their base64 passwords have none. A password with a colon cannot be written so:
/// give it in a field of its own.
///
/// In a file a table, `{ user = "…", password = "…" }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UserPassword {
    /// USERNAME: 1 to 508 bytes, no control characters.
    pub user: String,
    /// See [`Secret`].
    #[serde(skip_serializing)]
    pub password: Secret,
}

impl UserPassword {
    /// A user with this password.
    pub fn new(user: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self { user: user.into(), password: password.into() }
    }

    /// Says what is wrong; what it says continues "a server …".
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let is_good = |text: &str, max| (1..=max).contains(&text.len()) && !text.contains(char::is_control);
        if !is_good(&self.user, MAX_USER) {
            return Err("needs a user name of 1 to 508 bytes, none of them a control character");
        }
        if !is_good(self.password.expose(), MAX_PASSWORD) {
            return Err("needs a password of 1 to 1024 bytes, none of them a control character");
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for UserPassword {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Both)
    }
}

/// Takes a table and nothing else: a text may be `NAME:PASSWORD`.
struct Both;

const BOTH_EXPECTED: &str = "expected a table { user = …, password = … }";

impl<'de> Visitor<'de> for Both {
    type Value = UserPassword;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table { user = …, password = … }")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UserPassword, A::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            user: String,
            password: Secret,
        }

        let Table { user, password } = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(UserPassword { user, password })
    }

    refuse!(BOTH_EXPECTED; visit_str: &str);
    refuse!(BOTH_EXPECTED);
}

/// Users as tables in a list: what else there is may be a password, and is not repeated.
pub(crate) fn users<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<UserPassword>, D::Error> {
    from.deserialize_any(Users)
}

struct Users;

const USERS_EXPECTED: &str = "expected tables in a list, [{ user = …, password = … }]";

impl<'de> Visitor<'de> for Users {
    type Value = Vec<UserPassword>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tables in a list, [{ user = …, password = … }]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<UserPassword>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }

    refuse!(USERS_EXPECTED; visit_str: &str);
    refuse!(USERS_EXPECTED);
}

impl FromStr for UserPassword {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = |why| ConfigError::UserPassword { why };
        let (user, password) = text.rsplit_once(':').ok_or_else(|| bad("it has no colon"))?;
        let both = Self::new(user, password);
        both.check().map_err(bad)?;
        Ok(both)
    }
}

/// How a TURN client comes by its user name and password.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Credentials {
    /// Always the same.
    Fixed(UserPassword),
    /// Whoever this is gives them, again and again: for passwords that expire.
    Asked(Recipient<CredentialsWanted>),
}

impl From<UserPassword> for Credentials {
    fn from(both: UserPassword) -> Self {
        Self::Fixed(both)
    }
}

/// A TURN client asks for a user name and its password: before each attempt to allocate, and again when the server
/// refuses what it had, because it has expired or was never right.
///
/// Answered with `None` where there are none to be had; no answer within [`CREDENTIALS_TIMEOUT`] says the same.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Option<UserPassword>")]
#[non_exhaustive]
pub struct CredentialsWanted {
    /// Which server they are for.
    pub server: TurnUri,
    /// The server's realm, once it has named it.
    pub realm: Option<String>,
    /// The user name whose password the server has just refused.
    pub rejected: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TurnServer;

    #[test]
    fn a_name_and_a_password_are_divided_at_the_last_colon() {
        let both: UserPassword = "1735689600:alice:kQ2mXf+/p9c=".parse().unwrap();
        assert_eq!(both, UserPassword::new("1735689600:alice", "kQ2mXf+/p9c="));
        for (text, expected) in [
            ("alice", "no colon"),
            ("", "no colon"),
            (":hunter2", "user name"),
            ("alice:", "password"),
            ("a\nb:hunter2", "user name"),
            ("alice:hunter2\n", "password"),
        ] {
            let error = text.parse::<UserPassword>().unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{text:?}: {error}");
        }
    }

    #[test]
    fn lengths_have_limits() {
        let check = |user: usize, password: usize| {
            UserPassword::new("u".repeat(user), "p".repeat(password)).check().is_ok()
        };
        assert!(check(1, 1) && check(508, 1024));
        assert!(!check(0, 1) && !check(1, 0) && !check(509, 1) && !check(1, 1025));
    }

    #[test]
    fn a_password_is_never_shown() {
        let both = UserPassword::new("alice", "hunter2");
        let server = TurnServer::new("turn:h".parse().unwrap()).credentials(both.clone());
        for text in [
            format!("{both:?}"),
            format!("{:#?}", Credentials::from(both.clone())),
            format!("{server:?}"),
            serde_json::to_string(&both).unwrap(),
            serde_json::to_string(&server).unwrap(),
        ] {
            assert!(text.contains("alice") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_password_of_another_type_is_refused_without_repeating_it() {
        assert_eq!(serde_json::from_str::<Secret>("\"4711\"").unwrap().expose(), "4711");
        for text in ["4711", "-4711", "4711.5", "true", "[4711]", "{\"4711\":1}", "99999999999999994711"] {
            let error = serde_json::from_str::<Secret>(text).unwrap_err().to_string();
            assert!(!error.contains("4711") && !error.contains("true"), "{text}: {error}");
        }
    }

    #[test]
    fn a_user_that_is_no_table_is_refused_without_repeating_it() {
        let both = r#"{"user": "alice", "password": "hunter2"}"#;
        assert_eq!(
            serde_json::from_str::<UserPassword>(both).unwrap(),
            UserPassword::new("alice", "hunter2")
        );
        let list = |text: &str| users(&mut serde_json::Deserializer::from_str(text));
        assert_eq!(list(&format!("[{both}]")).unwrap(), [UserPassword::new("alice", "hunter2")]);
        for (text, expected) in [
            (r#""alice:hunter2""#, "expected tables in a list"),
            ("4711", "expected tables in a list"),
            ("4711.5", "expected tables in a list"),
            (both, "expected tables in a list"),
            (r#"["alice:hunter2"]"#, "expected a table { user"),
            (r#"[["alice", "hunter2"]]"#, "expected a table { user"),
            ("[4711]", "expected a table { user"),
            (r#"[{"user": "alice", "password": 4711}]"#, "must be a text in quotes"),
            (r#"[{"user": "alice:hunter2"}]"#, "missing field `password`"),
        ] {
            let error = list(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!["hunter2", "4711"].iter().any(|secret| error.contains(secret)), "{text}: {error}");
        }
    }
}
