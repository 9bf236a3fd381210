//! What an observer may learn, in the past tense: the seed's observer callbacks as one message.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use actix::prelude::*;
use serde::Serialize;

use crate::config::{ChildId, Pin, Remote};
use crate::counters::{Counters, Drops};
use crate::session::{LinkId, SessionState};

pub use relay::{JoinRefusal, LeaveCause, RelayEvent};
pub use side::SideEvent;
pub use turn::{TurnEvent, TurnState};

mod relay;
mod side;
mod turn;

/// Something that happened to a supervised session, TURN client or relay. Subscribers receive it as a message; its `Display` is
/// one line for a person, its `Serialize` one flat object for a program.
#[derive(Clone, Debug, PartialEq, Serialize, Message)]
#[rtype(result = "()")]
pub struct Event {
    /// When, by this machine's clock.
    #[serde(serialize_with = "as_rfc3339")]
    pub time: SystemTime,
    /// Whose event it is.
    pub child: ChildId,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Why a TCP connection, or a TURN allocation, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The peer closed it in order (FIN).
    Closed,
    /// It broke: reset, timed out, unreachable.
    Broken,
    /// A frame begun was not finished within 10 s.
    UnfinishedFrame,
    /// The local UDP socket took nothing for 5 s.
    UdpStuck,
    /// A newer connection took its place.
    Replaced,
    /// Its application was silent for `source_idle`.
    Forgotten,
    /// `Disconnect`, `StopSession` or the end of the program.
    Told,
    /// The server refused: wrong credentials, quota, an address it does not serve. It is asked again, slowly.
    Refused,
    /// At a relay another session, or a later connection of this one, has come with the same name for its side. If
    /// it was another, and TLS says that it was the relay that told so, this one stays away until it is told to
    /// [`Connect`](crate::session::Connect).
    Superseded,
    /// The relay restarts, and has said when to come back.
    Restarting,
    /// The relay sends to another one, which is called at once.
    Redirected,
    /// A bug: its actor panicked.
    Panicked,
}

/// Why a peer that connected was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// Its address is not in `allow`.
    NotAllowed,
    /// `max_peers` are connected, none of them silent for long enough to be replaced.
    Full,
    /// It sent nothing, or did not finish its TLS handshake, and its place was needed.
    Silent,
    /// This side could not serve it: no UDP socket to be had.
    NoSocket,
}

/// The kinds of [`Event`]. New ones may come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The session's actor is running and its UDP side is open. Seen again after a restart.
    SessionStarted {
        /// The address local applications send to.
        local_udp: Option<SocketAddr>,
        /// The service that datagrams are forwarded to.
        udp_forward: Option<SocketAddr>,
    },
    /// The session accepts TCP connections at these addresses.
    Listening {
        /// With the ports the system chose.
        local_tcp: Vec<SocketAddr>,
    },
    /// Peers that connect are shown a certificate of this key from now on: when the session starts to listen with TLS,
    /// and when the certificate's files have changed.
    CertificateShown {
        /// What those who pin the key need.
        pin: Pin,
        /// Why nobody else believes it: it has expired, or is not good yet. A sentence that begins with "it".
        #[serde(skip_serializing_if = "Option::is_none")]
        doubt: Option<String>,
    },
    /// The certificate's files have changed, but are no good: the old certificate stays.
    CertificateKept {
        /// Which file, and what is wrong with it.
        error: String,
    },
    /// The session's state is another one now.
    StateChanged {
        /// The new one.
        #[serde(flatten)]
        state: SessionState,
    },
    /// A TCP connection is up, dialed or accepted (the seed family's `TCPConnected`).
    PeerConnected {
        /// Which link it serves.
        link: LinkId,
        /// The far end.
        peer: SocketAddr,
    },
    /// A TCP connection has ended (`TCPDisconnected`).
    PeerDisconnected {
        /// Which link it served.
        link: LinkId,
        /// The far end.
        peer: SocketAddr,
        /// Why.
        cause: Cause,
        /// The same in words, with what the system said.
        detail: String,
        /// When a dialed link is tried again.
        #[serde(serialize_with = "as_seconds")]
        retry_in: Option<Duration>,
    },
    /// An attempt to connect failed.
    ConnectFailed {
        /// Which link it was for.
        link: LinkId,
        /// Where to.
        remote: Remote,
        /// Which step failed, with what the system said.
        error: String,
        /// When it is tried again.
        #[serde(serialize_with = "as_seconds")]
        retry_in: Option<Duration>,
    },
    /// A peer was turned away. At most one such event a second; the others are in `more`.
    PeerRefused {
        /// Who.
        peer: SocketAddr,
        /// Why.
        reason: Refusal,
        /// How many others were turned away since the last such event.
        more: u64,
    },
    /// A peer was turned away because its TLS handshake failed. At most one such event, or `PeerRefused`, a second;
    /// the others are in `more`.
    HandshakeFailed {
        /// Who.
        peer: SocketAddr,
        /// What was wrong, in a sentence.
        error: String,
        /// How many others were turned away since the last such event.
        more: u64,
    },
    /// A local application sent its first datagram.
    SourceAppeared {
        /// The link that carries it.
        link: LinkId,
        /// The application's address.
        source: SocketAddr,
    },
    /// A local application was silent for `source_idle` (or gave way to a newer one) and is forgotten.
    SourceForgotten {
        /// The link that carried it.
        link: LinkId,
        /// The application's address.
        source: SocketAddr,
    },
    /// A local application is not served because `max_sources` are, or because it is not `app`. At most one such
    /// event a second; the other datagrams that were refused are in `more`.
    SourceRefused {
        /// The application's address.
        source: SocketAddr,
        /// How many may be served at once.
        places: usize,
        /// How many batches of datagrams were refused since the last such event.
        more: u64,
    },
    /// The UDP service answers "port unreachable". Said once until it takes datagrams again.
    ServiceUnreachable {
        /// The service.
        service: SocketAddr,
    },
    /// The UDP service has answered after having been unreachable.
    ServiceReachable {
        /// The service.
        service: SocketAddr,
    },
    /// The listener rests because the system has no descriptor or memory for another connection.
    AcceptPaused {
        /// The listener's address.
        local_tcp: SocketAddr,
        /// What the system said.
        error: String,
    },
    /// The listener accepts again.
    AcceptResumed {
        /// The listener's address.
        local_tcp: SocketAddr,
    },
    /// An actor could not do its work and ended; it is started again.
    ActorFailed {
        /// Which one, such as `UdpEndpointActor`.
        actor: String,
        /// Which step failed, with what the system said.
        error: String,
        /// When it comes again.
        #[serde(serialize_with = "as_seconds")]
        retry_in: Option<Duration>,
    },
    /// A bug: an actor panicked. It is replaced, unless `GaveUp` follows.
    ActorPanicked {
        /// Which one, such as `TcpPeerActor of link 3`.
        actor: String,
    },
    /// The session, or the TURN client, was given up and stays closed.
    GaveUp {
        /// Why, in a sentence.
        reason: String,
    },
    /// The session, or the TURN client, has ended, as told or given up: its last event.
    SessionStopped,
    /// The counters so far, every `stats_interval`.
    Stats {
        /// TCP connections that are up.
        connected: usize,
        /// Since the session was first started, restarts included.
        counters: Counters,
    },
    /// This subscriber was too slow and lost events (of any session: the event's child is `supervisor`), or the
    /// supervisor was too busy to hear all of a session's.
    Missed {
        /// How many.
        count: u64,
    },
    /// Something that happened to a TURN client: see [`TurnEvent`].
    #[serde(untagged)]
    Turn(TurnEvent),
    /// Something that happened between a session and its relay: see [`SideEvent`].
    #[serde(untagged)]
    Side(SideEvent),
    /// Something that happened to a relay: see [`RelayEvent`].
    #[serde(untagged)]
    Relay(RelayEvent),
}

impl Event {
    pub(crate) fn now(child: ChildId, kind: EventKind) -> Self {
        Self { time: SystemTime::now(), child, kind }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_millis(self.time);
        write!(f, "{time} {}: {}", self.child, self.kind)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionStarted { local_udp: Some(udp), .. } => write!(f, "started, send UDP to {udp}"),
            Self::SessionStarted { udp_forward: Some(to), .. } => write!(f, "started, forwards UDP to {to}"),
            Self::SessionStarted { .. } => write!(f, "started"),
            Self::Listening { local_tcp } => {
                write!(f, "listening on TCP")?;
                local_tcp.iter().try_for_each(|addr| write!(f, " {addr}"))
            }
            Self::CertificateShown { pin, doubt } => {
                write!(f, "shows a certificate whose key has the pin {pin}")?;
                let Some(doubt) = doubt else { return Ok(()) };
                write!(f, "; {doubt}: only who pins its key believes it")
            }
            Self::CertificateKept { error } => {
                write!(f, "the certificate's files have changed, but the old one stays: {error}")
            }
            Self::StateChanged { state } => write!(f, "{state}"),
            Self::PeerConnected { link, peer } => write!(f, "link {link} connected with {peer}"),
            Self::PeerDisconnected { link, peer, detail, retry_in, .. } => {
                write!(f, "link {link} disconnected from {peer}: {detail}{}", Retry(*retry_in))
            }
            Self::ConnectFailed { link, remote, error, retry_in } => {
                write!(f, "link {link} could not connect to {remote}: {error}{}", Retry(*retry_in))
            }
            Self::PeerRefused { peer, reason, more } => {
                write!(f, "peer {peer} turned away: {}{}", reason.as_str(), More(*more))
            }
            Self::HandshakeFailed { peer, error, more } => {
                write!(f, "peer {peer} turned away: {error}{}", More(*more))
            }
            Self::SourceAppeared { link, source } => {
                write!(f, "application {source} is served by link {link}")
            }
            Self::SourceForgotten { link, source } => {
                write!(f, "application {source} of link {link} is forgotten")
            }
            Self::SourceRefused { source, places: 1, .. } => {
                write!(f, "application {source} is not served: the one place is another's")
            }
            Self::SourceRefused { source, places, .. } => {
                write!(
                    f,
                    "application {source} is not served: all {places} places are taken (max_sources); "
                )?;
                write!(f, "one is free when its application has been silent for source_idle")
            }
            Self::ServiceUnreachable { service } => write!(f, "nobody listens at UDP {service}"),
            Self::ServiceReachable { service } => write!(f, "UDP {service} answers again"),
            Self::AcceptPaused { local_tcp, error } => write!(f, "listener {local_tcp} rests: {error}"),
            Self::AcceptResumed { local_tcp } => write!(f, "listener {local_tcp} accepts again"),
            Self::ActorFailed { actor, error, retry_in } => {
                write!(f, "{actor} failed: {error}{}", Retry(*retry_in))
            }
            Self::ActorPanicked { actor } => write!(f, "{actor} panicked (a bug) and is replaced"),
            Self::GaveUp { reason } => write!(f, "given up: {reason}"),
            Self::SessionStopped => write!(f, "stopped"),
            Self::Stats { connected, counters } => write_stats(f, *connected, counters),
            Self::Turn(event) => event.fmt(f),
            Self::Side(event) => event.fmt(f),
            Self::Relay(event) => event.fmt(f),
            Self::Missed { count } => write!(f, "{count} events were lost because this subscriber was busy"),
        }
    }
}

fn write_stats(f: &mut fmt::Formatter<'_>, connected: usize, counters: &Counters) -> fmt::Result {
    let Counters { to_tcp, to_udp, drops } = counters;
    write!(f, "{connected} connected, to TCP {} datagrams {} bytes, ", to_tcp.datagrams, to_tcp.bytes)?;
    write!(f, "to UDP {} datagrams {} bytes, ", to_udp.datagrams, to_udp.bytes)?;
    write_drops(f, drops)
}

fn write_drops(f: &mut fmt::Formatter<'_>, drops: &Drops) -> fmt::Result {
    write!(f, "dropped {}", drops.total())?;
    let mut before = " (";
    for reason in crate::counters::DropReason::ALL {
        let count = drops.of(reason);
        if count > 0 {
            write!(f, "{before}{count} {}", reason.as_str())?;
            before = ", ";
        }
    }
    if before == ", " { write!(f, ")") } else { Ok(()) }
}

struct Retry(Option<Duration>);

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(wait) if wait < Duration::from_secs(1) => {
                write!(f, "; next attempt in {} ms", wait.as_millis())
            }
            Some(wait) => write!(f, "; next attempt in {:.1} s", wait.as_secs_f64()),
            None => Ok(()),
        }
    }
}

struct More(u64);

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, " (and {} others)", self.0) } else { Ok(()) }
    }
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "its address is not allowed",
            Self::Full => "all places are taken",
            Self::Silent => "it sent nothing and its place was needed",
            Self::NoSocket => "no UDP socket could be opened for it",
        }
    }
}

/// Also for the times in other messages.
pub(crate) fn as_rfc3339<S: serde::Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_millis(*at))
}

fn seconds<S: serde::Serializer>(wait: &Duration, to: S) -> Result<S::Ok, S::Error> {
    wait.as_secs_f64().serialize(to)
}

fn as_seconds<S: serde::Serializer>(wait: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    wait.map(|wait| wait.as_secs_f64()).serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_for_a_person_and_one_flat_object_for_a_program() {
        let event = Event {
            time: SystemTime::UNIX_EPOCH,
            child: "vpn".into(),
            kind: EventKind::PeerDisconnected {
                link: LinkId(3),
                peer: "192.0.2.1:443".parse().unwrap(),
                cause: Cause::Closed,
                detail: "closed by the peer".into(),
                retry_in: Some(Duration::from_millis(1500)),
            },
        };
        let line = event.to_string();
        assert_eq!(
            line,
            "1970-01-01T00:00:00.000Z vpn: link 3 disconnected from 192.0.2.1:443: closed by the peer; \
             next attempt in 1.5 s"
        );
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["event"], "peer_disconnected");
        assert_eq!(json["cause"], "closed");
        assert_eq!(json["retry_in"], 1.5);
        assert_eq!(json["child"], "vpn");
    }

    #[test]
    fn an_application_that_is_refused_is_told_when_a_place_is_free() {
        let refused = |places| {
            let source = ([127, 0, 0, 1], 9).into();
            EventKind::SourceRefused { source, places, more: 0 }.to_string()
        };
        assert_eq!(refused(1), "application 127.0.0.1:9 is not served: the one place is another's");
        assert_eq!(
            refused(64),
            "application 127.0.0.1:9 is not served: all 64 places are taken (max_sources); one is free when its \
             application has been silent for source_idle"
        );
    }

    #[test]
    fn a_certificate_is_doubted_in_one_sentence_and_not_without_a_reason() {
        let shown = |doubt: Option<&str>| EventKind::CertificateShown {
            pin: Pin([0xab; 32]),
            doubt: doubt.map(str::to_owned),
        };
        let sentence = format!("shows a certificate whose key has the pin {}", "ab".repeat(32));
        assert_eq!(shown(None).to_string(), sentence);
        assert_eq!(
            shown(Some("it has expired")).to_string(),
            format!("{sentence}; it has expired: only who pins its key believes it")
        );
        assert!(serde_json::to_value(shown(None)).unwrap().get("doubt").is_none());
    }

    #[test]
    fn statistics_name_only_the_reasons_that_occurred() {
        let mut counters = Counters::default();
        counters.drops.expired = 2;
        counters.drops.too_long = 1;
        let text = EventKind::Stats { connected: 1, counters }.to_string();
        assert!(text.ends_with("dropped 3 (2 too old, 1 too long)"), "{text}");
    }
}
