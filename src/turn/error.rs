//! Why a TURN request, a relay connection or a whole allocation failed.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// What went wrong, with the step. Its `Display` is one sentence; as JSON it is that sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The server answered with an error code (RFC 8656 §19, RFC 6062 §6.3).
    #[error("{request}: the server answered {code} {reason}{}", advice(request, *code))]
    Refused {
        /// The request's method, as the RFCs spell it.
        request: &'static str,
        /// ERROR-CODE.
        code: u16,
        /// Its reason phrase, as the server wrote it.
        reason: String,
    },
    /// The server does not accept the user name or the password.
    #[error("{request}: the server does not accept user '{user}' with this password")]
    Unauthorized {
        /// The request's method.
        request: &'static str,
        /// The user name.
        user: String,
    },
    /// The server wants credentials and there are none: none configured, or none given when asked.
    #[error("the server asks for a user name and a password, and there are none to be had")]
    NoCredentials,
    /// User name, realm or password hold what STUN does not allow (RFC 8489 §9.2.2).
    #[error("{0}")]
    UnusableCredentials(String),
    /// No answer came, over UDP to the last of 7 tries (RFC 8489 §6.2.1).
    #[error("{request}: no answer within {after:?}{}", hint(*unbelieved))]
    NoAnswer {
        /// The request's method.
        request: &'static str,
        /// How long was waited.
        after: Duration,
        /// An answer came that could not be believed, for it was not sealed: its error code, or 0 for a success.
        unbelieved: Option<u16>,
    },
    /// It has waited for its turn for so long, while the server refused others. It is asked for later.
    #[error("{request}: its turn did not come within {after:?}, for the server refuses others")]
    NotSent {
        /// The request's method.
        request: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// An answer that cannot be what a TURN server means.
    #[error("{request}: the server's answer is no use: {why}")]
    BadAnswer {
        /// The request's method.
        request: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The server, or the way to it, answers that nobody is there (ICMP), or could not be dialed.
    #[error("the server cannot be reached: {why}")]
    Unreachable {
        /// Which step failed, with what the system said.
        why: String,
    },
    /// There is a server, but no TLS connection with it that could be believed.
    #[error("the server: {why}")]
    Untrusted {
        /// What is wrong, in a sentence.
        why: String,
    },
    /// The control connection to the server ended.
    #[error("the control connection ended: {why}")]
    ControlLost {
        /// What the system said.
        why: String,
    },
    /// The server no longer knows the allocation: it was restarted, or the allocation ran out.
    #[error("the server no longer knows the allocation")]
    AllocationLost,
    /// The server sends elsewhere (300, RFC 8489 §10). Seen only where that is not followed: in a circle, or for the
    /// fourth time in a row.
    #[error("the server redirects to {to}, which is not followed: it redirects in a circle, or too often")]
    Redirected {
        /// ALTERNATE-SERVER.
        to: SocketAddr,
    },
    /// Told to: `Deallocate`, `StopSession`, or the end of the program.
    #[error("told to deallocate")]
    Told,
    /// There is no allocation now.
    #[error("there is no allocation{}", if *.retrying { " now; a new one is being made" } else { "" })]
    NoAllocation {
        /// A new one is on its way.
        retrying: bool,
    },
    /// A bound of this client.
    #[error("more than {limit} {what} are not possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The allocation is of the other transport: channels and datagrams need UDP, connections TCP.
    #[error("{request} needs {needed} allocation")]
    WrongTransport {
        /// What was asked for.
        request: &'static str,
        /// "a UDP" or "a TCP".
        needed: &'static str,
    },
    /// The peer may not be sent to: [`Permit`](super::Permit) it, or bind a channel.
    #[error("{peer} is not permitted")]
    NotPermitted {
        /// The peer; with port 0 where only its address counts.
        peer: SocketAddr,
    },
    /// The data connection (RFC 6062 §4.3) could not be made or was lost before it was bound.
    #[error("the data connection to the server: {why}")]
    DataConnection {
        /// Which step failed, with what the system said.
        why: String,
    },
    /// The gate, or its silence for 5 s, rejected a peer's attempt to connect.
    #[error("the attempt was not accepted")]
    NotAccepted,
    /// The control socket does not take what is to be sent.
    #[error("the control connection is congested")]
    Congested,
}

impl TurnError {
    /// The server is there and says no: it is to be asked again slowly.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Unauthorized { .. }
                | Self::NoCredentials
                | Self::UnusableCredentials(_)
                | Self::BadAnswer { .. }
                | Self::Redirected { .. }
                | Self::Untrusted { .. }
        )
    }
}

impl Serialize for TurnError {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

fn hint(unbelieved: Option<u16>) -> String {
    match unbelieved {
        None => String::new(),
        Some(0) => " that could be believed (one came without a valid MESSAGE-INTEGRITY)".into(),
        Some(code) => {
            format!(" that could be believed (error {code} came without a valid MESSAGE-INTEGRITY)")
        }
    }
}

/// What a person can do about it, where the code alone does not say.
fn advice(request: &str, code: u16) -> &'static str {
    match (request, code) {
        ("Allocate", 437) => " (an earlier allocation of this address is still there)",
        ("Allocate", 440) => " (the server has no relayed addresses of this family)",
        ("Allocate", 442) => " (the server does not relay this transport)",
        ("Allocate", 486) => " (this user has as many allocations as it may)",
        ("Connect", 446) => " (there is, or was just now, a connection to this peer)",
        ("Connect", 447) => " (the server could not connect to the peer)",
        ("CreatePermission" | "ChannelBind" | "Connect", 403) => {
            " (the server does not relay to this address)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_sentence_with_its_step() {
        let refused = TurnError::Refused { request: "Allocate", code: 486, reason: "Quota Reached".into() };
        assert_eq!(
            refused.to_string(),
            "Allocate: the server answered 486 Quota Reached (this user has as many allocations as it may)"
        );
        assert!(refused.is_refusal());
        let silent =
            TurnError::NoAnswer { request: "Refresh", after: Duration::from_secs(4), unbelieved: Some(400) };
        assert!(silent.to_string().contains("error 400 came without"), "{silent}");
        assert!(!silent.is_refusal());
        assert_eq!(TurnError::NoAllocation { retrying: false }.to_string(), "there is no allocation");
    }
}
