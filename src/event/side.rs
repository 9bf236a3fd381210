//! What an observer may learn of a session that goes through a relay, besides what it learns of any link.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::seconds;
use crate::session::LinkId;

/// Something that happened between a session and its relay. How a connection ended, or came to nothing, is told by
/// [`PeerDisconnected`](super::EventKind::PeerDisconnected) and [`ConnectFailed`](super::EventKind::ConnectFailed).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SideEvent {
    /// The relay has let the session in, which waits for its peer now.
    RelayJoined {
        /// Which link.
        link: LinkId,
        /// The relay's address.
        relay: SocketAddr,
        /// How long the relay lets it wait; extended in time.
        #[serde(serialize_with = "seconds")]
        lifetime: Duration,
    },
    /// The peer is there: datagrams go through.
    RelayPeerPresent {
        /// Which link.
        link: LinkId,
        /// The peer's name for its side.
        side: String,
        /// The peer's user, where the relay joins sides of different users.
        user: Option<String>,
    },
    /// The peer has gone. The connection to the relay is kept, and it is waited for.
    RelayPeerGone {
        /// Which link.
        link: LinkId,
    },
    /// One of the relay's limits slows the pair.
    RelaySlowed {
        /// Which link.
        link: LinkId,
        /// For how long.
        #[serde(serialize_with = "seconds")]
        wait: Duration,
    },
    /// The peer has as many flows as it may have (`max_sources`), each of them used: another one is not served. At most
    /// one such event a second.
    RelayChannelRefused {
        /// The number that the peer gave it.
        channel: u16,
        /// How many batches of datagrams were refused since the last such event.
        more: u64,
    },
    /// The relay sends to another one, which is called at once.
    RelayRedirected {
        /// Which link.
        link: LinkId,
        /// The relay that was asked.
        from: SocketAddr,
        /// The other one.
        to: SocketAddr,
    },
}

impl fmt::Display for SideEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelayJoined { link, relay, .. } => {
                write!(f, "link {link} is let in by relay {relay} and waits for its peer")
            }
            Self::RelayPeerPresent { link, side, user } => {
                write!(f, "link {link}: the peer is there, side '{side}'")?;
                user.as_ref().map_or(Ok(()), |user| write!(f, " of user '{}'", user.escape_debug()))
            }
            Self::RelayPeerGone { link } => write!(f, "link {link}: the peer has gone and is waited for"),
            Self::RelaySlowed { link, wait } if *wait < Duration::from_secs(1) => {
                write!(f, "link {link} is slowed by a limit of the relay for {} ms", wait.as_millis())
            }
            Self::RelaySlowed { link, wait } => {
                write!(f, "link {link} is slowed by a limit of the relay for {:.1} s", wait.as_secs_f64())
            }
            Self::RelayChannelRefused { channel, .. } => {
                write!(
                    f,
                    "channel {channel:#06x} of the peer is not served: all places are taken (max_sources)"
                )
            }
            Self::RelayRedirected { link, from, to } => {
                write!(f, "link {link} is sent by relay {from} to {to}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;

    #[test]
    fn they_are_lines_for_people_and_flat_objects_for_programs() {
        let link = LinkId(0);
        let present = SideEvent::RelayPeerPresent { link, side: "b".into(), user: Some("bob".into()) };
        assert_eq!(present.to_string(), "link 0: the peer is there, side 'b' of user 'bob'");
        let json = serde_json::to_value(EventKind::Side(present)).unwrap();
        assert_eq!((json["event"].as_str(), json["side"].as_str()), (Some("relay_peer_present"), Some("b")));
        let relay = ([192, 0, 2, 1], 443).into();
        let joined = SideEvent::RelayJoined { link, relay, lifetime: Duration::from_secs(600) };
        assert_eq!(serde_json::to_value(EventKind::Side(joined)).unwrap()["lifetime"], 600.0);
        let slowed = SideEvent::RelaySlowed { link, wait: Duration::from_millis(1500) };
        assert_eq!(slowed.to_string(), "link 0 is slowed by a limit of the relay for 1.5 s");
        let slowed = SideEvent::RelaySlowed { link, wait: Duration::from_millis(40) };
        assert_eq!(slowed.to_string(), "link 0 is slowed by a limit of the relay for 40 ms");
    }
}
