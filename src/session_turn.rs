//! A session that goes through a TURN server (`Remote::Turn`, `turn_listen`): the two seeds joined.
//!
//! Its TURN client is a part of it, on the same arbiter. Links are dialed as relay connections to the peer; peers
//! that connect to the relayed address are let in as if a listener had accepted them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use crate::config::{AddressFamily, TurnConfig, TurnListen, TurnRemote, TurnServer};
use crate::event::Cause;
use crate::link::{Ending, Mortal, Part};
use crate::link_stream::Stream;
use crate::links::Phase;
use crate::session::{PartEnded, PeerArrived, RelaySessionActor, RestartPart, Stop};
use crate::sockets::Sockets;
use crate::turn::{
    AwaitAllocation, ConnectPeer, Permit, RelayConnectionAccepted, SetGate, TurnClientActor, TurnError,
    TurnSeed,
};

/// The allocation is waited for, over all its attempts, for this long; then the link's attempt has failed.
const ALLOCATION_TIMEOUT: Duration = Duration::from_secs(60);

/// The far side may be behind a relayed address too, and takes some round trips to bind its end. Until then coturn
/// keeps 16 reads and drops the rest, also inside a frame, which ruins the stream: so nothing is sent for so long.
const FAR_BIND_INTERVAL: Duration = Duration::from_millis(500);

/// The session's TURN client.
#[derive(Debug)]
pub(crate) struct SessionTurn {
    client: Addr<TurnClientActor>,
    server: TurnServer,
    family: AddressFamily,
    /// Counts clients, so that late news of an earlier one is told apart.
    round: u64,
    /// Told to delete its allocation and end.
    stopping: bool,
}

impl RelaySessionActor {
    /// Is reached at a relayed address from now on, if it is to be.
    pub(crate) fn start_turn_listen(&mut self, ctx: &mut Context<Self>) {
        if let Some(TurnListen { server, permit, .. }) = self.sockets.turn_listen() {
            if self.config.peer_limit() == 1 {
                self.ensure_primary();
            }
            // Validated: they are of one family.
            let family = permit.first().map_or(AddressFamily::Ipv4, |peer| AddressFamily::of(*peer));
            self.turn_client(&server, permit, family, ctx);
        }
    }

    /// Whether the session waits for peers at a relayed address.
    pub(crate) fn is_turn_listening(&self) -> bool {
        self.sockets.turn_listen().is_some()
    }

    /// The session's client of this server. One of another server, or for another family, is ended for it.
    fn turn_client(
        &mut self,
        server: &TurnServer,
        permit: Vec<IpAddr>,
        family: AddressFamily,
        ctx: &mut Context<Self>,
    ) -> Addr<TurnClientActor> {
        let serves = |turn: &&SessionTurn| turn.server == *server && turn.family == family && !turn.stopping;
        if let Some(turn) = self.turn.as_ref().filter(serves) {
            if !permit.is_empty() {
                turn.client.do_send(Permit { peers: permit });
            }
            return turn.client.clone();
        }
        self.stop_turn();
        self.turn_rounds += 1;
        let mut config = TurnConfig::tcp(self.config.name.clone(), server.clone());
        config.permit = permit;
        config.family = Some(family).filter(|family| *family == AddressFamily::Ipv6);
        config.bind = self.config.bind;
        config.fwmark = self.config.fwmark;
        config.congestion.clone_from(&self.config.congestion);
        config.connect_timeout = self.config.connect_timeout;
        let child = self.config.name.clone();
        let round = self.turn_rounds;
        let who = Mortal { child, life: self.life(), part: Part::Turn, round, again: true };
        let seed = TurnSeed {
            config,
            sockets: Arc::new(Sockets::default()),
            who,
            // The session's own statistics say what was carried.
            stats_interval: Duration::ZERO,
            supervisor: self.supervisor(),
            reporter: self.reporter.clone(),
            token: self.supervised(),
        };
        let client = TurnClientActor::new(seed).start();
        client.do_send(SetGate { gate: None, streams: Some(ctx.address().recipient()) });
        let server = server.clone();
        self.turn = Some(SessionTurn { client: client.clone(), server, family, round, stopping: false });
        client
    }

    /// A relay connection to the peer, as soon as there is an allocation.
    pub(crate) fn dial_turn(
        &mut self,
        remote: &TurnRemote,
        ctx: &mut Context<Self>,
    ) -> impl Future<Output = Result<(Stream, SocketAddr), Ending>> + use<> {
        let family = AddressFamily::of(remote.peer.ip());
        let clashes = |listen: &TurnListen| {
            listen.server != remote.server
                || listen.permit.iter().any(|peer| AddressFamily::of(*peer) != family)
        };
        if self.sockets.turn_listen().as_ref().is_some_and(clashes) {
            self.sockets.set_turn_listen(None);
        }
        let mut config = self.config.clone();
        (config.remote, config.turn_listen) = (Some(remote.clone().into()), None);
        // A message may say what no configuration may.
        let client = config.validate().map(|()| self.turn_client(&remote.server, Vec::new(), family, ctx));
        let peer = remote.peer;
        async move {
            let client = client.map_err(|error| Ending::new(Cause::Refused, error.to_string()))?;
            let gone = || Ending::new(Cause::Broken, "the TURN client is gone");
            match tokio::time::timeout(ALLOCATION_TIMEOUT, client.send(AwaitAllocation)).await {
                Ok(Ok(true)) => {}
                Ok(_) => return Err(gone()),
                Err(_) => {
                    let detail = format!("no allocation within {ALLOCATION_TIMEOUT:?}");
                    return Err(Ending::new(Cause::Broken, detail));
                }
            }
            match client.send(ConnectPeer { peer }).await {
                Ok(Ok(stream)) => {
                    tokio::time::sleep(FAR_BIND_INTERVAL).await;
                    Ok((stream.into(), peer))
                }
                Ok(Err(error)) => Err(Ending::new(cause(&error), error.to_string())),
                Err(_) => Err(gone()),
            }
        }
    }

    /// Ends the TURN client; it deletes its allocation first.
    fn stop_turn(&mut self) {
        if let Some(turn) = self.turn.as_mut().filter(|turn| !turn.stopping) {
            turn.stopping = true;
            turn.client.do_send(Stop);
        }
    }

    /// After a link has ended, or the session was told something: nobody may need the allocation any more. As long
    /// as a link is up it does, for what is queued.
    pub(crate) fn stop_turn_if_unused(&mut self) {
        let is_up = self.links.values().any(|link| matches!(link.phase, Phase::Up { relayed: true, .. }));
        let is_wanted = self.is_turn_listening() || self.sockets.calls_through_turn();
        if !is_up && (self.stopping || !is_wanted) {
            self.stop_turn();
        }
    }

    /// Whether the TURN client has ended, or there never was one.
    pub(crate) fn is_turn_gone(&self) -> bool {
        self.turn.is_none()
    }

    /// News of the TURN client or of its allocation.
    pub(crate) fn turn_part_ended(&mut self, message: PartEnded, ctx: &mut Context<Self>) {
        match (&self.turn, message.part) {
            (Some(turn), Part::Turn) if turn.round == message.round => {
                self.turn = None;
                self.stop_if_done(ctx);
            }
            (Some(turn), Part::Allocation) => turn.client.do_send(message),
            _ => {}
        }
    }

    /// The supervisor says that it is time.
    pub(crate) fn restart_turn_part(&mut self, message: RestartPart, ctx: &mut Context<Self>) {
        match (&self.turn, message.part) {
            (Some(turn), Part::Allocation) => turn.client.do_send(message),
            // Links that are dialed start it by themselves, perhaps before: then it has to be told whom to permit.
            (_, Part::Turn) if !self.stopping => self.start_turn_listen(ctx),
            _ => {}
        }
    }

    /// The session is gone: so is its TURN client.
    pub(crate) fn abandon_turn(&self) {
        if let Some(turn) = &self.turn {
            turn.client.do_send(Stop);
        }
    }
}

/// How fast the supervisor is to try again: a peer that is not there may come, a server's refusal stays one.
fn cause(error: &TurnError) -> Cause {
    match error {
        TurnError::Refused { code: 446 | 447, .. } => Cause::Broken,
        error if error.is_refusal() => Cause::Refused,
        _ => Cause::Broken,
    }
}

impl Handler<RelayConnectionAccepted> for RelaySessionActor {
    type Result = ();

    fn handle(&mut self, message: RelayConnectionAccepted, ctx: &mut Self::Context) {
        let peer = message.stream.peer();
        // Not told to listen: whoever comes is not served.
        if self.is_turn_listening() {
            Handler::<PeerArrived>::handle(self, PeerArrived { stream: message.stream.into(), peer }, ctx);
        }
    }
}
