//! What an observer may learn of a TCP relay.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::counters::RelayCounters;
use crate::relay::PairLabel;

/// Why a side left its pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeaveCause {
    /// It said so, or closed its connection in order.
    Left,
    /// A newer connection of the same user and side has taken its place.
    Superseded,
    /// Nothing was heard of it for 25 s.
    Idle,
    /// It waited for longer than it had asked for.
    LifetimeOver,
    /// It sent what cannot be understood.
    ProtocolError,
    /// Its connection broke, or it took nothing for 10 s.
    Broken,
    /// Its peer came and went more often than it read of.
    Deaf,
    /// The relay stops.
    Restarting,
    /// A limit ended it.
    Limit,
    /// A bug: what serves it panicked.
    Panicked,
}

impl fmt::Display for LeaveCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "it left",
            Self::Superseded => "a newer connection took its place",
            Self::Idle => "nothing was heard of it for 25 s",
            Self::LifetimeOver => "its time to wait is over",
            Self::ProtocolError => "it sent what is neither STUN nor ChannelData",
            Self::Broken => "its connection broke, or it took nothing for 10 s",
            Self::Deaf => "it did not read that its peer came and went",
            Self::Restarting => "the relay stops",
            Self::Limit => "a limit ended it",
            Self::Panicked => "its connection's task panicked (a bug)",
        })
    }
}

/// Why a connection did not become a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JoinRefusal {
    /// 401: no such user, wrong password, or expired.
    Unauthenticated,
    /// 403: the pair, or the side, is another user's.
    NotYours,
    /// 409: two other sides are there.
    TwoOthers,
    /// 486: the user has as many sides here as `max_sessions_per_user`.
    SessionsUsedUp,
    /// 508: there are `max_pairs` pairs.
    Full,
    /// It had not joined, and a newer connection needed its place.
    PlaceNeeded,
    /// It comes from a proxy, an address of `proxy_protocol`, and what it sent first is no PROXY header.
    NoProxyHeader,
    /// The same, and its PROXY header is malformed, or longer than 1 KiB.
    BadProxyHeader,
    /// The same, and its PROXY header was not complete within 10 s.
    LateProxyHeader,
}

impl fmt::Display for JoinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unauthenticated => "unknown user, wrong password, or expired (401)",
            Self::NotYours => "the pair or the side is another user's (403)",
            Self::TwoOthers => "two other sides are there (409)",
            Self::SessionsUsedUp => "its user's sessions are used up (486)",
            Self::Full => "there is no room for another pair (508)",
            Self::PlaceNeeded => "it had not joined and its place was needed",
            Self::NoProxyHeader => "it did not begin with a PROXY header, as it must from this address",
            Self::BadProxyHeader => "its PROXY header is malformed or too long",
            Self::LateProxyHeader => "its PROXY header was not complete within 10 s",
        })
    }
}

/// The kinds of [`Event`](super::Event) that relays have. New ones may come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RelayEvent {
    /// The relay's actor is running. Seen again after a restart.
    RelayStarted {
        /// Where sides connect to, with the ports the system chose.
        local_tcp: Vec<SocketAddr>,
    },
    /// A side has joined.
    SideJoined {
        /// Which pair: the same for both of its sides.
        pair: PairLabel,
        /// The side's name (SIDE-ID).
        side: String,
        /// Whose it is.
        user: String,
        /// Where it calls from.
        peer: SocketAddr,
        /// Whether the other side is there too.
        paired: bool,
    },
    /// A side has left.
    SideLeft {
        /// Which pair.
        pair: PairLabel,
        /// The side's name.
        side: String,
        /// Whose it was.
        user: String,
        /// Where it called from.
        peer: SocketAddr,
        /// Why.
        cause: LeaveCause,
        /// Whether the other side is still there, and waits.
        parked: bool,
    },
    /// A connection was refused. At most one such event a second; the others are in `more`.
    JoinRefused {
        /// Where it calls from.
        peer: SocketAddr,
        /// Why.
        reason: JoinRefusal,
        /// How many others were refused since the last such event.
        more: u64,
    },
    /// Others may join from now on, or the same: see [`SetAccounts`](crate::supervisor::SetAccounts).
    AccountsSet {
        /// How many users with a password.
        users: usize,
        /// Whether credentials made with a shared key are taken too.
        short_lived: bool,
    },
    /// The relay stops: all sides are told to come back after a while.
    RelayDraining {
        /// How many sides there were.
        sides: usize,
        /// Within this time they come back.
        #[serde(serialize_with = "seconds")]
        within: Duration,
    },
    /// What there is and what was carried so far, every `stats_interval`.
    RelayStats {
        /// Connections that have not joined.
        unjoined: usize,
        /// Sides that have.
        sides: usize,
        /// Their pairs.
        pairs: usize,
        /// Since the relay was first started, restarts included.
        counters: RelayCounters,
    },
}

impl fmt::Display for RelayEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelayStarted { local_tcp } => {
                write!(f, "relay started")?;
                local_tcp.iter().try_for_each(|addr| write!(f, ", sides connect to {addr}"))
            }
            Self::SideJoined { pair, side, user, peer, paired } => {
                let state = if *paired { "its peer is there" } else { "it waits for its peer" };
                write!(f, "side '{side}' of pair {pair} joined (user '{user}', from {peer}): {state}")
            }
            Self::SideLeft { pair, side, user, peer, cause, parked } => {
                write!(f, "side '{side}' of pair {pair} is gone (user '{user}', from {peer}): {cause}")?;
                if *parked { write!(f, "; its peer waits") } else { Ok(()) }
            }
            Self::JoinRefused { peer, reason, more } => {
                write!(f, "connection from {peer} refused: {reason}")?;
                if *more > 0 { write!(f, " (and {more} others)") } else { Ok(()) }
            }
            Self::AccountsSet { users, short_lived } => {
                write!(f, "{users} users may join from now on")?;
                if *short_lived { write!(f, ", and who has credentials of the shared key") } else { Ok(()) }
            }
            Self::RelayDraining { sides, within } => {
                write!(f, "stopping: {sides} sides are told to come back within {} s", within.as_secs())
            }
            Self::RelayStats { unjoined, sides, pairs, counters } => {
                write!(f, "{pairs} pairs, {sides} sides, {unjoined} not joined, ")?;
                let RelayCounters { forwarded, drops, .. } = counters;
                write!(f, "forwarded {} datagrams {} bytes, ", forwarded.datagrams, forwarded.bytes)?;
                super::write_drops(f, drops)
            }
        }
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    time.as_secs_f64().serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_relay_is_a_line_and_a_flat_object() {
        let event = RelayEvent::SideLeft {
            pair: PairLabel::of(b"secret"),
            side: "home".into(),
            user: "alice".into(),
            peer: "192.0.2.1:40000".parse().unwrap(),
            cause: LeaveCause::Idle,
            parked: true,
        };
        let text = event.to_string();
        assert!(text.ends_with("nothing was heard of it for 25 s; its peer waits"), "{text}");
        let json = serde_json::to_value(super::super::EventKind::Relay(event)).unwrap();
        assert_eq!(json["event"], "side_left");
        assert_eq!(json["cause"], "idle");
        assert_eq!(json["pair"].as_str().map(str::len), Some(8));
    }
}
