//! A message that makes an actor panic, so that tests can see it replaced. Only with the feature `test-panic`.

use actix::prelude::*;

use crate::links::Phase;
use crate::relay::TcpRelayActor;
use crate::relay_desk::Told;
use crate::relay_link::RelayLinkActor;
use crate::session::{LinkId, RelaySessionActor};
use crate::session_relay::Carrier;
use crate::supervisor::SupervisorActor;
use crate::tcp::TcpPeerActor;
use crate::turn::TurnClientActor;
use crate::udp::UdpEndpointActor;

/// To a session: that actor of it is to panic.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub enum PanicIn {
    /// The session's own.
    Session,
    /// That of the local UDP socket.
    Endpoint,
    /// That of the link's socket towards the service; at a relay, all of them.
    LinkEndpoint(LinkId),
    /// That of the link's TCP connection.
    Link(LinkId),
}

/// To a TURN client: the endpoint of its forward with this index is to panic.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct PanicInForward(pub usize);

impl Handler<PanicInForward> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, PanicInForward(index): PanicInForward, _: &mut Self::Context) {
        self.forwards.endpoint(index).do_send(Panic);
    }
}

/// To a relay: what serves the sides of this name is to panic.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct PanicInSide(pub String);

impl Handler<PanicInSide> for TcpRelayActor {
    type Result = ();

    fn handle(&mut self, PanicInSide(side): PanicInSide, _: &mut Self::Context) {
        self.guests_named(&side).for_each(|guest| guest.desk.tell(Told::Panic));
    }
}

/// To any actor: panic.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Panic;

impl Handler<PanicIn> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, victim: PanicIn, _: &mut Self::Context) {
        match victim {
            PanicIn::Session => panic!("told to panic"),
            PanicIn::Endpoint => {
                self.local.iter().for_each(|local| local.endpoint.do_send(Panic));
            }
            PanicIn::LinkEndpoint(link) => {
                let endpoint = self.links.get(&link).and_then(|link| link.service.as_ref());
                endpoint.into_iter().for_each(|(_, endpoint)| endpoint.do_send(Panic));
                self.relayed_services().for_each(|endpoint| endpoint.do_send(Panic));
            }
            PanicIn::Link(link) => match self.links.get(&link).map(|link| &link.phase) {
                Some(Phase::Up { carrier: Carrier::Peer(actor), .. }) => actor.do_send(Panic),
                Some(Phase::Up { carrier: Carrier::Relay(actor, _), .. }) => actor.do_send(Panic),
                _ => {}
            },
        }
    }
}

macro_rules! panics {
    ($($actor:ty),*) => {$(
        impl Handler<Panic> for $actor {
            type Result = ();

            fn handle(&mut self, _: Panic, _: &mut Self::Context) {
                panic!("told to panic");
            }
        }
    )*};
}

panics!(SupervisorActor, UdpEndpointActor, TcpPeerActor, TurnClientActor, RelayLinkActor, TcpRelayActor);
