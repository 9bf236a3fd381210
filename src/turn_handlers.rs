//! What a `TurnClientActor` does when it is told or asked something.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use actix::prelude::*;
use tokio::sync::oneshot;

use crate::clock::now;
use crate::config::RelayedTransport;
use crate::turn::allocation::Allocation;
use crate::turn::{
    Allocate, AllocationInfo, BindChannel, ChannelNumber, ConnectPeer, Deallocate, DeliverDatagrams, Forbid,
    GetAllocation, Permit, Phase, RelayStream, SendDatagrams, SetGate, TurnClientActor, TurnError, Waiting,
};

/// From a session: answer `true` as soon as there is an allocation. Unlike `Allocate` it hurries nothing: a server
/// that refuses is not to be asked more often because somebody waits. `false`: too many wait.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub(crate) struct AwaitAllocation;

/// The answer to a question whose answer comes later.
async fn answer<T>(from: oneshot::Receiver<Result<T, TurnError>>) -> Result<T, TurnError> {
    // The client is gone, by a panic perhaps.
    from.await.unwrap_or(Err(TurnError::NoAllocation { retrying: false }))
}

/// Answers that may be awaited at once; more are refused.
const MAX_WAITING: usize = 1024;

impl TurnClientActor {
    /// The core, while there is one.
    fn core(&mut self) -> Option<&mut Allocation> {
        match &mut self.phase {
            Phase::Running(running) => Some(&mut running.core),
            _ => None,
        }
    }

    pub(crate) fn deallocate(&mut self, ctx: &mut Context<Self>) {
        self.sockets.wishes().allocation = Some(false);
        match &mut self.phase {
            Phase::Running(running) => {
                running.core.deallocate(now());
                self.outputs(ctx);
            }
            Phase::Opening(attempt) => {
                ctx.cancel_future(*attempt);
                self.phase = Phase::Idle;
                self.ended_with(TurnError::Told, None, ctx);
            }
            Phase::Backoff { .. } => self.phase = Phase::Idle,
            Phase::Idle => {}
        }
        if !matches!(self.phase, Phase::Running(_)) {
            self.waiting.deallocate.drain(..).for_each(|waiting| {
                let _ = waiting.send(());
            });
            for waiting in self.waiting.allocate.drain(..) {
                let _ = waiting.send(Err(TurnError::Told));
            }
        }
        self.waiting.ready.clear();
        self.state_may_have_changed();
    }

    /// A place among those who wait, or the reason why there is none.
    fn check_waiting(&self) -> Result<(), TurnError> {
        let Waiting { allocate, ready, deallocate, permit, bind, connect } = &self.waiting;
        let binds = bind.values().map(Vec::len).sum::<usize>();
        let all = allocate.len() + ready.len() + deallocate.len() + permit.len() + binds + connect.len();
        if all < MAX_WAITING {
            Ok(())
        } else {
            Err(TurnError::TooMany { what: "waiting requests", limit: MAX_WAITING })
        }
    }

    fn permit(&mut self, message: Permit, ctx: &mut Context<Self>) -> Answer<()> {
        self.check_waiting()?;
        let limit = crate::turn::permissions::MAX_PERMISSIONS;
        {
            let mut wishes = self.sockets.wishes();
            let asked: BTreeSet<_> = message.peers.iter().collect();
            let new = asked.into_iter().filter(|peer| !wishes.permissions.contains(peer)).count();
            if wishes.permissions.len() + new > limit {
                return Err(TurnError::TooMany { what: "permissions", limit });
            }
            wishes.permissions.extend(message.peers.iter().copied());
        }
        let error = self.no_allocation();
        let Some(core) = self.core() else { return Err(error) };
        let granted = core.permit(now(), &message.peers)?;
        let missing: BTreeSet<_> = message.peers.into_iter().filter(|peer| !granted.contains(peer)).collect();
        let (tell, told) = oneshot::channel();
        if missing.is_empty() {
            let _ = tell.send(Ok(()));
        } else {
            self.waiting.permit.push((missing, tell));
        }
        self.outputs(ctx);
        Ok(told)
    }

    fn bind_channel(&mut self, message: BindChannel, ctx: &mut Context<Self>) -> Answer<ChannelNumber> {
        self.check_waiting()?;
        if self.config.relayed == RelayedTransport::Tcp {
            return Err(TurnError::WrongTransport { request: "ChannelBind", needed: "a UDP" });
        }
        let limit = crate::turn::channels::MAX_CHANNELS;
        {
            let mut wishes = self.sockets.wishes();
            if wishes.channels.len() >= limit && !wishes.channels.contains(&message.peer) {
                return Err(TurnError::TooMany { what: "channels", limit });
            }
            wishes.channels.insert(message.peer);
        }
        let error = self.no_allocation();
        let Some(core) = self.core() else { return Err(error) };
        let bound = core.bind_channel(now(), message.peer)?;
        let (tell, told) = oneshot::channel();
        match bound {
            Some(channel) => {
                let _ = tell.send(Ok(ChannelNumber(channel)));
            }
            None => self.waiting.bind.entry(message.peer).or_default().push(tell),
        }
        self.outputs(ctx);
        Ok(told)
    }

    /// Nobody asks the server any more for what these wait for.
    fn refuse_forbidden(&mut self, peers: &[IpAddr]) {
        for ip in peers {
            let permits = self.waiting.permit.extract_if(.., |(missing, _)| missing.contains(ip));
            for (_, waiting) in permits {
                let _ = waiting.send(Err(TurnError::NotPermitted { peer: SocketAddr::new(*ip, 0) }));
            }
            for (peer, waiting) in self.waiting.bind.extract_if(|peer, _| peer.ip() == *ip) {
                for waiting in waiting {
                    let _ = waiting.send(Err(TurnError::NotPermitted { peer }));
                }
            }
        }
    }

    fn connect_peer(&mut self, message: ConnectPeer, ctx: &mut Context<Self>) -> Answer<RelayStream> {
        self.check_waiting()?;
        let error = self.no_allocation();
        let Some(core) = self.core() else { return Err(error) };
        let key = core.connect(now(), message.peer)?;
        let (tell, told) = oneshot::channel();
        self.waiting.connect.insert(key, tell);
        self.outputs(ctx);
        Ok(told)
    }
}

/// Where the answer will come from, or the reason why there is none.
type Answer<T> = Result<oneshot::Receiver<Result<T, TurnError>>, TurnError>;

impl Handler<Allocate> for TurnClientActor {
    type Result = ResponseActFuture<Self, Result<AllocationInfo, TurnError>>;

    fn handle(&mut self, _: Allocate, ctx: &mut Self::Context) -> Self::Result {
        let asked = self.check_waiting().and_then(|()| {
            if self.stopping {
                return Err(TurnError::Told);
            }
            self.sockets.wishes().allocation = Some(true);
            let (tell, told) = oneshot::channel();
            if self.core().is_some_and(|core| core.granted().is_some()) {
                let _ = tell.send(Ok(()));
            } else {
                self.waiting.allocate.push(tell);
                self.allocate_if_wanted(ctx);
            }
            Ok(told)
        });
        let done = async move { answer(asked?).await };
        Box::pin(done.into_actor(self).map(|done, act, _| done.map(|()| act.info())))
    }
}

impl Handler<AwaitAllocation> for TurnClientActor {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, _: AwaitAllocation, _: &mut Self::Context) -> Self::Result {
        let is_there = self.core().is_some_and(|core| core.granted().is_some());
        let (tell, told) = oneshot::channel();
        if is_there {
            let _ = tell.send(());
        } else {
            // Those who gave up have left their places.
            self.waiting.ready.retain(|waiting| !waiting.is_closed());
            if self.check_waiting().is_ok() {
                self.waiting.ready.push(tell);
            }
        }
        Box::pin(async move { told.await.is_ok() })
    }
}

impl Handler<Deallocate> for TurnClientActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Deallocate, ctx: &mut Self::Context) -> Self::Result {
        let (tell, told) = oneshot::channel();
        if self.check_waiting().is_ok() {
            self.waiting.deallocate.push(tell);
        }
        self.deallocate(ctx);
        Box::pin(async move { told.await.unwrap_or_default() })
    }
}

impl Handler<Permit> for TurnClientActor {
    type Result = ResponseFuture<Result<(), TurnError>>;

    fn handle(&mut self, message: Permit, ctx: &mut Self::Context) -> Self::Result {
        let asked = self.permit(message, ctx);
        Box::pin(async move { answer(asked?).await })
    }
}

impl Handler<Forbid> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, message: Forbid, ctx: &mut Self::Context) {
        {
            let mut wishes = self.sockets.wishes();
            wishes.permissions.retain(|peer| !message.peers.contains(peer));
            wishes.channels.retain(|peer| !message.peers.contains(&peer.ip()));
        }
        if let Some(core) = self.core() {
            core.forbid(now(), &message.peers);
            self.outputs(ctx);
        }
        // Also those that no core knows, for there is no allocation now.
        self.forwards.forget(&message.peers);
        self.refuse_forbidden(&message.peers);
    }
}

impl Handler<BindChannel> for TurnClientActor {
    type Result = ResponseFuture<Result<ChannelNumber, TurnError>>;

    fn handle(&mut self, message: BindChannel, ctx: &mut Self::Context) -> Self::Result {
        let asked = self.bind_channel(message, ctx);
        Box::pin(async move { answer(asked?).await })
    }
}

impl Handler<ConnectPeer> for TurnClientActor {
    type Result = ResponseFuture<Result<RelayStream, TurnError>>;

    fn handle(&mut self, message: ConnectPeer, ctx: &mut Self::Context) -> Self::Result {
        let asked = self.connect_peer(message, ctx);
        Box::pin(async move { answer(asked?).await })
    }
}

impl Handler<SendDatagrams> for TurnClientActor {
    type Result = Result<(), TurnError>;

    fn handle(&mut self, message: SendDatagrams, ctx: &mut Self::Context) -> Self::Result {
        let sent = self.send_datagrams(message);
        self.outputs(ctx);
        sent
    }
}

impl Handler<DeliverDatagrams> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, message: DeliverDatagrams, _: &mut Self::Context) {
        self.sockets.wishes().datagrams.clone_from(&message.to);
        self.forwards.deliver_to(message.to);
    }
}

impl Handler<SetGate> for TurnClientActor {
    type Result = ();

    fn handle(&mut self, message: SetGate, _: &mut Self::Context) {
        self.sockets.wishes().gate = Some(message.clone());
        self.gate = message;
    }
}

impl Handler<GetAllocation> for TurnClientActor {
    type Result = MessageResult<GetAllocation>;

    fn handle(&mut self, _: GetAllocation, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.info())
    }
}
