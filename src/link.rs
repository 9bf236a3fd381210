//! A child's obituary: tells the supervisor how a child ended, also when it panicked.
//!
//! actix tells nobody that an actor panicked: its fields are dropped and its address is closed. So each
//! child holds an [`Obituary`], and what its `Drop` sends is the news.

use std::fmt;
use std::time::Duration;

use actix::prelude::*;

use crate::config::ChildId;
use crate::event::Cause;
use crate::lane::LinkId;
use crate::supervisor::SupervisorActor;

/// What a session or a TURN client consists of, for whoever restarts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The `RelaySessionActor`.
    Session,
    /// The `UdpEndpointActor` of the local socket, or of the socket of one link towards a service.
    Endpoint(Option<LinkId>),
    /// A TCP connection: its making or its `TcpPeerActor`.
    Link(LinkId),
    /// A `TurnClientActor`: one of its own name, or a session's.
    Turn,
    /// One allocation of a TURN client, or the attempt to get one.
    Allocation,
    /// A `TcpRelayActor`.
    Relay,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => write!(f, "RelaySessionActor"),
            Self::Endpoint(None) => write!(f, "UdpEndpointActor"),
            Self::Endpoint(Some(link)) => write!(f, "UdpEndpointActor of link {link}"),
            Self::Link(link) => write!(f, "TcpPeerActor of link {link}"),
            Self::Turn => write!(f, "TurnClientActor"),
            Self::Allocation => write!(f, "allocation of the TurnClientActor"),
            Self::Relay => write!(f, "TcpRelayActor"),
        }
    }
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    /// In words, with the step that failed and what the system said.
    pub(crate) detail: String,
    /// The connection carried bytes from its peer, or lived for 10 s: the next failure starts from the
    /// shortest wait again.
    pub(crate) proven: bool,
    pub(crate) wait: Wait,
}

/// How long what ended stays away, if it comes again at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wait {
    /// As long as its cause and its history say.
    #[default]
    ByCause,
    /// As after a failure, but at least so long: the far side has said so.
    AtLeast(Duration),
    /// Until it is told to come.
    ForEver,
}

impl Ending {
    pub(crate) fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into(), proven: false, wait: Wait::ByCause }
    }

    pub(crate) fn panicked() -> Self {
        Self::new(Cause::Panicked, "its actor panicked")
    }
}

/// Which part of which child, and whether it is to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mortal {
    /// The session, or the TURN client or relay that has a name of its own.
    pub(crate) child: ChildId,
    /// Each restart of `child` has another one, so that late news of an earlier life is told apart.
    pub(crate) life: u64,
    pub(crate) part: Part,
    /// The same for the attempts and connections of a link, and for a client's allocations; 0 for other parts.
    pub(crate) round: u64,
    /// An accepted connection is not: its peer comes again.
    pub(crate) again: bool,
}

/// To the supervisor: a child has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ChildEnded {
    pub(crate) who: Mortal,
    pub(crate) ending: Ending,
}

/// Held by a child for as long as it lives.
#[derive(Debug)]
pub(crate) struct Obituary {
    who: Mortal,
    ending: Option<Ending>,
    to: Addr<SupervisorActor>,
}

impl Obituary {
    pub(crate) fn new(who: Mortal, to: Addr<SupervisorActor>) -> Self {
        Self { who, ending: None, to }
    }

    /// The first ending given is the one that is told.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let ending = self.ending.take().unwrap_or_else(|| {
            if std::thread::panicking() {
                Ending::panicked()
            } else {
                Ending::new(Cause::Told, "its thread ended")
            }
        });
        // One message for each child that lived, so the mailbox's capacity need not bound it.
        self.to.do_send(ChildEnded { who: self.who.clone(), ending });
    }
}
