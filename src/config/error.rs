//! What can be wrong with a configuration.

use super::ChildId;

/// What is wrong with a configuration, in one sentence. It never repeats a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not `HOST:PORT`.
    #[error("'{text}' is not a host and port: {why}")]
    HostPort {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not `turn:HOST[:PORT][?transport=udp|tcp]`.
    #[error("'{text}' is not the URI of a TURN server: {why}")]
    TurnUri {
        /// What was given; what stands before an `@` is left out, for it may hold a password.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not `NAME:PASSWORD`.
    #[error("expected NAME:PASSWORD: {why}")]
    UserPassword {
        /// What is wrong.
        why: &'static str,
    },
    /// A user name without a password, or the other way round.
    #[error("user and password go together: {missing} is missing")]
    Halved {
        /// Which of the two.
        missing: &'static str,
    },
    /// Not a [`Pin`](super::Pin).
    #[error("'{text}' is not a pin: expected 64 hex digits, the SHA-256 of a certificate's public key")]
    Pin {
        /// What was given.
        text: String,
    },
    /// A certificate's file without that of its key, or the other way round.
    #[error("cert and key go together: {missing} is missing")]
    HalfCertificate {
        /// Which of the two.
        missing: &'static str,
    },
    /// A server with TLS needs one certificate.
    #[error("a certificate is needed: cert and key, or self_signed")]
    Certificate,
    /// A field of the supervisor has a value it may not have.
    #[error("supervisor: {field} {why}")]
    InvalidSupervisor {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        why: &'static str,
    },
    /// A field of a session has a value it may not have.
    #[error("session '{}': {field} {why}", session.as_str().escape_debug())]
    Invalid {
        /// The session's name.
        session: ChildId,
        /// The field's name.
        field: &'static str,
        /// What it must be.
        why: &'static str,
    },
    /// A field of a TURN client has a value it may not have.
    #[error("turn '{}': {field} {why}", turn.as_str().escape_debug())]
    InvalidTurn {
        /// The client's name.
        turn: ChildId,
        /// The field's name.
        field: &'static str,
        /// What it must be.
        why: &'static str,
    },
    /// The files that a field names cannot be read, or do not hold what they should.
    #[error("{kind} '{}': {field}: {why}", child.as_str().escape_debug())]
    Files {
        /// "session", "turn" or "relay".
        kind: &'static str,
        /// Its name.
        child: ChildId,
        /// The field's name; `remote.tls` is one in `remote`.
        field: &'static str,
        /// Which file, and what is wrong with it.
        why: String,
    },
    /// A field of a relay has a value it may not have.
    #[error("relay '{}': {field} {why}", relay.as_str().escape_debug())]
    InvalidRelay {
        /// The relay's name.
        relay: ChildId,
        /// The field's name.
        field: &'static str,
        /// What it must be.
        why: &'static str,
    },
}
