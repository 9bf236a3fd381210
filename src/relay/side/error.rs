//! Why a side's connection to its relay ended, or came to nothing.

use std::net::SocketAddr;
use std::time::Duration;

use crate::event::Cause;
use crate::relay::messages::{ProtocolError, Reason};

/// What went wrong, or what the relay said. Its `Display` is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SideError {
    /// Neither user nor password are told apart: the relay does not say which is wrong.
    #[error("the relay does not accept user '{user}' with this password{}", or_expired(user))]
    Unauthorized { user: String },
    /// User name, realm or password hold what STUN does not allow (RFC 8489 §9.2.2).
    #[error("{0}")]
    UnusableCredentials(String),
    /// It may come from somebody in between, who wants to learn the password.
    #[error("the relay asks for a password in a way that is too weak: {0}")]
    WeakChallenge(&'static str),
    #[error("{request}: the relay answered {code}{}", advice(*code))]
    Refused { request: &'static str, code: u16, retry_after: Option<Duration> },
    #[error("{request}: the relay's answer is no use: {why}")]
    BadAnswer { request: &'static str, why: String },
    #[error("{request}: no answer within {after:?}{}", hint(*unbelieved))]
    NoAnswer { request: &'static str, after: Duration, unbelieved: bool },
    /// 300: followed at once.
    #[error("the relay sends to {to}{}", named(domain.as_deref()))]
    Redirected { to: SocketAddr, domain: Option<String> },
    /// 300, not followed.
    #[error("the relay sends to {to}, which is not followed: it sends in a circle, or too often")]
    RedirectedTooOften { to: SocketAddr },
    /// `own`: by a later connection of this session.
    #[error("{}", if *own { "a later connection of this session took its place" } else {
        "another session with the same name for its side took its place"
    })]
    Superseded { own: bool },
    #[error("the relay restarts")]
    Restarting { retry_after: Option<Duration> },
    #[error("the relay heard nothing from here for too long")]
    HeardNothing,
    #[error("nobody came in the time that the relay lets a side wait")]
    LifetimeOver,
    #[error("the relay could not understand what was sent to it")]
    NotUnderstood,
    #[error("a limit of the relay ended it")]
    Limit,
    #[error("the relay sent {0}")]
    Malformed(#[from] ProtocolError),
    #[error("nothing came from the relay within {0:?}, not even an answer")]
    Silent(Duration),
    /// It does not like our certificate, or what comes is no TLS any more.
    #[error("the relay: {0}")]
    Tls(String),
    /// Without a word why.
    #[error("the relay closed the connection")]
    Closed,
    /// What ended a connection without TLS before the relay had answered.
    #[error("{0}; does it speak TLS?")]
    Unanswered(Box<Self>),
    /// What the system reports.
    #[error("the connection to the relay {0}")]
    Lost(String),
}

impl SideError {
    /// What the relay's Closing says.
    pub(super) fn closing(reason: Reason, own: bool, retry_after: Option<Duration>) -> Self {
        match reason {
            Reason::Superseded => Self::Superseded { own },
            Reason::Restarting => Self::Restarting { retry_after },
            Reason::Idle => Self::HeardNothing,
            Reason::LifetimeOver => Self::LifetimeOver,
            Reason::ProtocolError => Self::NotUnderstood,
            Reason::Limit => Self::Limit,
        }
    }

    /// How an observer is told of it. What is refused is asked for again slowly.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Unauthorized { .. }
            | Self::UnusableCredentials(_)
            | Self::WeakChallenge(_)
            | Self::Refused { .. }
            | Self::BadAnswer { .. }
            | Self::RedirectedTooOften { .. }
            | Self::NotUnderstood
            | Self::Tls(_)
            | Self::Limit => Cause::Refused,
            Self::Redirected { .. } => Cause::Redirected,
            Self::Superseded { .. } => Cause::Superseded,
            Self::Restarting { .. } => Cause::Restarting,
            Self::LifetimeOver | Self::HeardNothing | Self::Closed => Cause::Closed,
            Self::Unanswered(error) => error.cause(),
            Self::NoAnswer { .. } | Self::Malformed(_) | Self::Silent(_) | Self::Lost(_) => Cause::Broken,
        }
    }

    /// When the relay said to come back.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } | Self::Restarting { retry_after } => *retry_after,
            _ => None,
        }
    }
}

/// What the code means here.
fn advice(code: u16) -> &'static str {
    match code {
        400 => " (it does not understand the request)",
        403 => " (the pair, or this side of it, belongs to another user)",
        409 => " (two other sides of this pair are there already)",
        420 => " (it does not know an attribute of the request)",
        437 => " (this connection is in another state than it should be)",
        441 => " (this connection is another user's)",
        486 => " (this user has as many sessions as it may)",
        508 => " (it is full)",
        _ => "",
    }
}

/// Names of short-lived credentials begin with the second at which they expire.
fn or_expired(user: &str) -> &'static str {
    let is_time = |expiry: &str| expiry.bytes().all(|digit| digit.is_ascii_digit());
    if user.split_once(':').is_some_and(|(expiry, _)| is_time(expiry)) {
        ", or they have expired"
    } else {
        ""
    }
}

fn hint(unbelieved: bool) -> &'static str {
    if unbelieved { " that could be believed: one came without a valid integrity" } else { "" }
}

fn named(domain: Option<&str>) -> String {
    domain.map_or_else(String::new, |domain| format!(", named '{}'", domain.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_a_sentence_and_says_how_fast_to_come_back() {
        let after = Some(Duration::from_secs(2));
        let full = SideError::Refused { request: "Join", code: 508, retry_after: after };
        assert_eq!(full.to_string(), "Join: the relay answered 508 (it is full)");
        assert_eq!((full.cause(), full.retry_after()), (Cause::Refused, after));
        let silent =
            SideError::NoAnswer { request: "Join", after: Duration::from_secs(10), unbelieved: true };
        assert!(silent.to_string().contains("no answer within 10s that could be believed"), "{silent}");
        assert_eq!((silent.cause(), silent.retry_after()), (Cause::Broken, None));
        let restarting = SideError::closing(Reason::Restarting, false, after);
        assert_eq!((restarting.cause(), restarting.retry_after()), (Cause::Restarting, after));
        for (reason, cause, words) in [
            (Reason::Superseded, Cause::Superseded, "another session with the same name"),
            (Reason::Idle, Cause::Closed, "heard nothing from here"),
            (Reason::LifetimeOver, Cause::Closed, "nobody came"),
            (Reason::ProtocolError, Cause::Refused, "could not understand"),
            (Reason::Limit, Cause::Refused, "a limit of the relay"),
        ] {
            let error = SideError::closing(reason, false, None);
            assert_eq!(error.cause(), cause, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        for (user, expected) in [
            ("alice", "the relay does not accept user 'alice' with this password"),
            (
                "17:alice",
                "the relay does not accept user '17:alice' with this password, or they have expired",
            ),
        ] {
            assert_eq!(SideError::Unauthorized { user: user.into() }.to_string(), expected);
        }
        assert!(SideError::Superseded { own: true }.to_string().contains("of this session"));
        let to = ([192, 0, 2, 1], 443).into();
        let redirected = SideError::Redirected { to, domain: Some("b.example".into()) };
        assert_eq!(redirected.to_string(), "the relay sends to 192.0.2.1:443, named 'b.example'");
        assert_eq!(redirected.cause(), Cause::Redirected);
    }
}
