//! `TurnClientActor`: a TURN client (RFC 8656), with TCP allocations (RFC 6062).
#![allow(dead_code, reason = "wired by the founder")]

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

pub use error::TurnError;

pub(crate) mod allocation;
mod answers;
mod binding;
pub(crate) mod channels;
pub(crate) mod connections;
mod error;
mod login;
pub(crate) mod permissions;
pub(crate) mod transactions;

use crate::config::TurnConfig;
use crate::event::Cause;
use crate::link::{Ending, Mortal, Obituary};
use crate::session::{PartEnded, RestartPart, Stop};
use crate::sockets::Sockets;
use crate::supervisor::{Reporter, SupervisorActor};

pub use crate::turn_stream::{ConnectionId, RelayStream};

/// What a TURN client's actor is made from; the sockets are the same in each of its lives.
#[derive(Debug)]
pub(crate) struct TurnSeed {
    pub(crate) config: TurnConfig,
    pub(crate) sockets: Arc<Sockets>,
    /// Whose part it is: that of a slot of its own, or a session's. Its `part` is `Part::Turn` in both cases.
    pub(crate) who: Mortal,
    pub(crate) stats_interval: Duration,
    pub(crate) supervisor: Addr<SupervisorActor>,
    pub(crate) reporter: Reporter,
    pub(crate) token: CancellationToken,
}

/// A client of one TURN server. Started by [`StartTurn`](crate::supervisor::StartTurn), or by a session that
/// goes through the server.
#[derive(Debug)]
pub struct TurnClientActor {
    config: TurnConfig,
    sockets: Arc<Sockets>,
    reporter: Reporter,
    who: Mortal,
    /// Cancelled when the supervisor is gone, however it went.
    supervised: CancellationToken,
    supervisor: Addr<SupervisorActor>,
    obituary: Obituary,
    stats_interval: Duration,
}

impl TurnClientActor {
    pub(crate) fn new(seed: TurnSeed) -> Self {
        let TurnSeed { config, sockets, who, stats_interval, supervisor, reporter, token } = seed;
        Self {
            config,
            sockets,
            reporter,
            obituary: Obituary::new(who.clone(), supervisor.clone()),
            who,
            supervised: token,
            supervisor,
            stats_interval,
        }
    }
}

impl Actor for TurnClientActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let token = self.supervised.clone();
        let gone = async move { token.cancelled().await }.into_actor(self);
        ctx.spawn(gone.map(|(), _, ctx| ctx.stop()));
    }
}

impl Handler<Stop> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.obituary.end(Ending::new(Cause::Told, "stopped"));
        ctx.stop();
    }
}

impl Handler<PartEnded> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, _: PartEnded, _: &mut Self::Context) {}
}

impl Handler<RestartPart> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, _: RestartPart, _: &mut Self::Context) {}
}
