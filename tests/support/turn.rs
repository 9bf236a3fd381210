//! What the tests of TURN clients share: configurations, the events that are awaited, who takes what peers send.

use std::net::SocketAddr;

use actix::prelude::*;
use actix_relay::config::{TurnConfig, TurnServer};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{EventKind, TurnEvent};
use actix_relay::supervisor::StartTurn;
use actix_relay::turn::{
    AllocationInfo, DatagramsReceived, GetAllocation, PeerConnectionAttempt, RelayConnectionAccepted,
    RelayStream, SetGate, TurnClientActor,
};
use tokio::sync::{mpsc, oneshot};

use super::coturn::{Coturn, PASSWORD, USER};
use super::{House, soon};

/// A server with the user that the test servers know.
pub fn server(uri: &str) -> TurnServer {
    TurnServer::new(uri.parse().unwrap()).credentials(UserPassword::new(USER, PASSWORD))
}

/// The same behind a proxy at this address.
pub fn server_at(addr: SocketAddr, transport: &str) -> TurnServer {
    server(&format!("turn:{addr}?transport={transport}"))
}

/// The same with a password that no test server knows.
pub fn wrong_password(addr: SocketAddr, transport: &str) -> TurnServer {
    let uri = format!("turn:{addr}?transport={transport}");
    TurnServer::new(uri.parse().unwrap()).credentials(UserPassword::new(USER, "wrong"))
}

impl House {
    pub async fn turn(&self, config: TurnConfig) -> Addr<TurnClientActor> {
        self.supervisor.send(StartTurn { config }).await.unwrap().unwrap()
    }

    /// The next event of this TURN client that is looked for; those before it are passed over.
    pub async fn turn_event<T>(&mut self, child: &str, find: impl Fn(&TurnEvent) -> Option<T>) -> T {
        self.event(child, |kind| match kind {
            EventKind::Turn(event) => find(event),
            _ => None,
        })
        .await
    }

    /// All events of this TURN client up to the one that is looked for.
    pub async fn turn_events(&mut self, child: &str, is_last: impl Fn(&TurnEvent) -> bool) -> Vec<TurnEvent> {
        let mut events = Vec::new();
        loop {
            events.push(self.turn_event(child, |event| Some(event.clone())).await);
            if events.last().is_some_and(&is_last) {
                return events;
            }
        }
    }

    /// The relayed address of the next allocation.
    pub async fn allocated(&mut self, child: &str) -> SocketAddr {
        self.turn_event(child, |event| match event {
            TurnEvent::AllocationCreated { relayed, .. } => Some(*relayed),
            _ => None,
        })
        .await
    }
}

pub async fn info(client: &Addr<TurnClientActor>) -> AllocationInfo {
    client.send(GetAllocation).await.unwrap()
}

/// Waits until the server has logged this; gives back all that it has logged.
pub async fn logged(coturn: &Coturn, what: &str) -> String {
    soon(what, async {
        loop {
            let log = coturn.log();
            if log.contains(what) {
                return log;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Takes the datagrams of peers, for who asks for them one by one.
pub struct Inbox {
    pub recipient: Recipient<DatagramsReceived>,
    received: mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>,
}

struct Postman(mpsc::UnboundedSender<(SocketAddr, Vec<u8>)>);

impl Actor for Postman {
    type Context = Context<Self>;
}

impl Handler<DatagramsReceived> for Postman {
    type Result = ();

    fn handle(&mut self, DatagramsReceived { peer, datagrams }: DatagramsReceived, _: &mut Self::Context) {
        for datagram in datagrams {
            let _ = self.0.send((peer, datagram.to_vec()));
        }
    }
}

impl Inbox {
    pub fn new() -> Self {
        let (tell, received) = mpsc::unbounded_channel();
        Self { recipient: Postman(tell).start().recipient(), received }
    }

    /// The next datagram, and its peer.
    pub async fn next(&mut self) -> (SocketAddr, Vec<u8>) {
        soon("a datagram of a peer", self.received.recv()).await.unwrap()
    }
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Reject,
    /// It never answers.
    Silence,
}

/// A gate that is asked about peers' attempts, and takes their connections.
pub struct Gate {
    addr: Addr<Keeper>,
    pub asked: mpsc::UnboundedReceiver<PeerConnectionAttempt>,
    streams: mpsc::UnboundedReceiver<RelayStream>,
}

struct Keeper {
    verdict: Verdict,
    asked: mpsc::UnboundedSender<PeerConnectionAttempt>,
    streams: mpsc::UnboundedSender<RelayStream>,
    unanswered: Vec<oneshot::Sender<bool>>,
}

impl Actor for Keeper {
    type Context = Context<Self>;
}

impl Handler<PeerConnectionAttempt> for Keeper {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, attempt: PeerConnectionAttempt, _: &mut Self::Context) -> Self::Result {
        let _ = self.asked.send(attempt);
        let (tell, told) = oneshot::channel();
        match self.verdict {
            Verdict::Silence => self.unanswered.push(tell),
            verdict => _ = tell.send(verdict == Verdict::Accept),
        }
        Box::pin(async move { told.await.unwrap_or(false) })
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Leave;

impl Handler<Leave> for Keeper {
    type Result = ();

    fn handle(&mut self, _: Leave, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<RelayConnectionAccepted> for Keeper {
    type Result = ();

    fn handle(&mut self, RelayConnectionAccepted { stream }: RelayConnectionAccepted, _: &mut Self::Context) {
        let _ = self.streams.send(stream);
    }
}

impl Gate {
    pub fn new(verdict: Verdict) -> Self {
        let ((ask, asked), (take, streams)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let addr = Keeper { verdict, asked: ask, streams: take, unanswered: Vec::new() }.start();
        Self { addr, asked, streams }
    }

    /// To be sent to the client: this gate decides and takes.
    pub fn set(&self) -> SetGate {
        SetGate { gate: Some(self.addr.clone().recipient()), ..self.takes_all() }
    }

    /// The same without being asked.
    pub fn takes_all(&self) -> SetGate {
        SetGate { gate: None, streams: Some(self.addr.clone().recipient()) }
    }

    /// Ends its actor.
    pub async fn stop(self) {
        let addr = self.addr.clone();
        addr.do_send(Leave);
        drop(self);
        soon("the gate's end", async {
            while addr.connected() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The next attempt that it was asked about.
    pub async fn attempt(&mut self) -> PeerConnectionAttempt {
        soon("an attempt", self.asked.recv()).await.unwrap()
    }

    /// The next connection.
    pub async fn stream(&mut self) -> RelayStream {
        soon("a peer's connection", self.streams.recv()).await.unwrap()
    }
}
