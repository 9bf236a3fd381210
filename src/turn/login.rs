//! The long-term credential mechanism (RFC 8489 §9.2): what the server asked for, and how requests are sealed.

use std::sync::Arc;

use super::error::TurnError;
use crate::credentials::UserPassword;
use crate::stun::{self, Algorithm, Integrity, Key, Received, Seal, User};

/// What is known of the server's wishes. Learned from its first 401, renewed by each 438.
#[derive(Debug)]
pub(crate) struct Login {
    account: Option<UserPassword>,
    challenge: Option<Challenge>,
    seal: Option<Arc<Seal>>,
}

/// The last challenge that could be used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    nonce: String,
    /// PASSWORD-ALGORITHMS as the server sent it, and the one chosen.
    algorithms: Option<(Vec<u8>, Algorithm)>,
    /// The user's name is to be sent as USERHASH.
    anonymous: bool,
}

impl Login {
    pub(crate) fn new(account: Option<UserPassword>) -> Self {
        Self { account, challenge: None, seal: None }
    }

    /// Whether there is anything to log in with: then an answer without integrity proves nothing.
    pub(crate) fn has_account(&self) -> bool {
        self.account.is_some()
    }

    /// The user's name, for errors. What is behind its last colon may be a password that was given in the wrong place.
    pub(crate) fn user(&self) -> String {
        let user = self.account.as_ref().map_or("", |account| &account.user);
        user.rsplit_once(':').map_or_else(|| user.to_owned(), |(shown, _)| format!("{shown}:…"))
    }

    /// The whole of it, for whoever gave it.
    pub(crate) fn whole_user(&self) -> String {
        self.account.as_ref().map_or_else(String::new, |account| account.user.clone())
    }

    pub(crate) fn realm(&self) -> Option<String> {
        self.challenge.as_ref().map(|challenge| challenge.realm.clone())
    }

    /// What requests are sealed with; `None` before the server has asked.
    pub(crate) fn seal(&self) -> Option<&Arc<Seal>> {
        self.seal.as_ref()
    }

    /// Whether this was sealed with the user and the password that are known now, whatever its nonce.
    pub(crate) fn uses(&self, seal: &Seal) -> bool {
        self.seal.as_ref().is_some_and(|now| now.user == seal.user && now.key == seal.key)
    }

    /// Other credentials, for the same server.
    ///
    /// # Errors
    /// They hold what STUN does not allow.
    pub(crate) fn set_account(&mut self, account: UserPassword) -> Result<(), TurnError> {
        self.account = Some(account);
        self.reseal()
    }

    /// Takes in a 401 or 438.
    ///
    /// # Errors
    /// It is no use: what must be there is missing, it offers less than before, or there are no credentials.
    pub(crate) fn challenged(&mut self, request: &'static str, by: &Received<'_>) -> Result<(), TurnError> {
        let challenge = self.read(by).map_err(|why| TurnError::BadAnswer { request, why })?;
        if self.account.is_none() {
            return Err(TurnError::NoCredentials);
        }
        if self.challenge.as_ref() != Some(&challenge) {
            self.challenge = Some(challenge);
            self.reseal()?;
        }
        Ok(())
    }

    fn read(&self, by: &Received<'_>) -> Result<Challenge, String> {
        let code = by.error.as_ref().map_or(0, |(code, _)| *code);
        let missing = |what: &str| format!("{code} without {what}");
        let realm = by.realm.clone().ok_or_else(|| missing("REALM"))?;
        let nonce = by.nonce.clone().ok_or_else(|| missing("NONCE"))?;
        let features = stun::nonce_features(&nonce);
        // The bid-down check: the nonce says that the list was sent (RFC 8489 §9.2.5).
        if features.is_some_and(|features| features.password_algorithms) && by.algorithms.is_none() {
            return Err(missing("the PASSWORD-ALGORITHMS that its NONCE announces"));
        }
        let algorithms = match &by.algorithms {
            None => None,
            Some((bytes, known)) => {
                let best = [Algorithm::Sha256, Algorithm::Md5].into_iter().find(|it| known.contains(it));
                let best = best.ok_or("it offers no password algorithm that is known")?;
                Some((bytes.clone(), best))
            }
        };
        if let Some(before) = &self.challenge {
            if before.realm != realm {
                // It came without integrity: it must not write what it likes into logs.
                let shown: String = realm.escape_debug().take(64).collect();
                return Err(format!("the realm changed from '{}' to '{shown}'", before.realm.escape_debug()));
            }
            if before.algorithms.is_some() && algorithms.is_none() {
                return Err("it no longer offers the password algorithms that it did before".into());
            }
        }
        let anonymous = features.is_some_and(|features| features.user_name_anonymity);
        Ok(Challenge { realm, nonce, algorithms, anonymous })
    }

    fn reseal(&mut self) -> Result<(), TurnError> {
        let (Some(account), Some(challenge)) = (&self.account, &self.challenge) else { return Ok(()) };
        let unusable = |error: stun::StunError| TurnError::UnusableCredentials(error.to_string());
        let Challenge { realm, nonce, algorithms, anonymous } = challenge;
        let algorithm = algorithms.as_ref().map_or(Algorithm::Md5, |(_, algorithm)| *algorithm);
        let user = &account.user;
        let key = Key::long_term(user, realm, account.password.expose(), algorithm).map_err(unusable)?;
        let name = if *anonymous {
            User::Hash(stun::user_hash(user, realm).map_err(unusable)?)
        } else {
            User::Name(user.clone())
        };
        self.seal = Some(Arc::new(Seal {
            user: name,
            realm: realm.clone(),
            nonce: nonce.clone(),
            algorithms: algorithms.clone(),
            // "all the subsequent requests MUST be authenticated using MESSAGE-INTEGRITY-SHA256 only"
            integrity: if algorithms.is_some() { Integrity::Sha256 } else { Integrity::Sha1 },
            key,
        }));
        Ok(())
    }
}
