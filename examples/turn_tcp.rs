//! An observer of every callback of the seed: a TURN client with a TCP allocation (RFC 6062), in an actix program.
//! `cargo run --example turn_tcp` brings a server of its own. With `-- URI USER` and the password in `TURN_PASSWORD`
//! it takes that one, which must be allowed to reach this machine's loopback addresses.
use actix::prelude::*;
use actix_relay::config::{SupervisorConfig, TurnConfig, TurnServer, TurnUri};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{Event, EventKind, TurnEvent as Turn};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{Shutdown, StartTurn, Subscribe, SupervisorActor};
use actix_relay::turn::{
    Allocate, ConnectPeer, PeerConnectionAttempt, Permit, RelayConnectionAccepted, SetGate,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
#[path = "../tests/support/turn_server.rs"]
mod turn_server;

struct Observer;
impl Actor for Observer {
    type Context = Context<Self>;
}
impl Handler<Event> for Observer {
    type Result = ();
    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        let callback = match &event.kind {
            EventKind::Turn(Turn::TurnStateChanged { .. }) => "onClientStateChange",
            EventKind::Turn(Turn::AllocationFailed { .. }) => "onAllocationFailed",
            EventKind::Turn(Turn::AllocationDeleted { .. }) => "onAllocationDeleted",
            EventKind::Turn(Turn::PermissionsCreated { .. }) => "onAllocationPermissionsCreated",
            EventKind::Turn(Turn::RelayConnectionCreated { .. }) => "onRelayConnectionCreated",
            EventKind::Turn(Turn::RelayConnectionError { .. }) => "onRelayConnectionError",
            EventKind::Turn(Turn::RelayConnectionClosed { .. }) => "onRelayConnectionClosed",
            EventKind::Turn(Turn::RelayConnectionBindingFailed { .. }) => "onRelayConnectionBindingFailed",
            _ => "(more than the seed tells)",
        };
        println!("{callback:>30}  {event}");
    }
}
impl Handler<PeerConnectionAttempt> for Observer {
    type Result = bool;
    fn handle(&mut self, attempt: PeerConnectionAttempt, _: &mut Self::Context) -> bool {
        println!("{:>30}  {}: yes", "onPeerConnectionAttempt", attempt.peer);
        true
    }
}
impl Handler<RelayConnectionAccepted> for Observer {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, accepted: RelayConnectionAccepted, _: &mut Self::Context) -> Self::Result {
        let mut stream = accepted.stream;
        Box::pin(async move { println!("the peer sends {:?}", stream.read_u8().await.map(char::from)) })
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let any = "127.0.0.1:0".parse()?;
    let embedded = turn_server::TurnServer::start(any, &turn_server::Config::new("user", "password")).await?;
    let uri: TurnUri = std::env::args().nth(1).unwrap_or_else(|| embedded.uri("tcp")).parse()?;
    let user = std::env::args().nth(2).unwrap_or_else(|| "user".into());
    let account =
        UserPassword::new(user, std::env::var("TURN_PASSWORD").unwrap_or_else(|_| "password".into()));
    let (supervisor, observer) =
        (SupervisorActor::new(SupervisorConfig::default()).start(), Observer.start());
    supervisor.send(Subscribe { recipient: observer.clone().recipient(), filter: Filter::All }).await?;
    let config = TurnConfig::tcp("turn", TurnServer::new(uri).credentials(account));
    let turn = supervisor.send(StartTurn { config }).await??;
    let (gate, streams) = (Some(observer.clone().recipient()), Some(observer.clone().recipient()));
    turn.send(SetGate { gate, streams }).await?;
    let relayed = turn.send(Allocate).await??.relayed.ok_or("no relayed address")?;
    turn.send(Permit { peers: vec![any.ip()] }).await??;
    let mut caller = TcpStream::connect(relayed).await?; // a peer calls us
    caller.write_all(b"x").await?;
    let peer = TcpListener::bind(any).await?; // and we call a peer
    turn.send(ConnectPeer { peer: peer.local_addr()? }).await??.write_all(b"hello").await?;
    let mut got = [0; 5];
    peer.accept().await?.0.read_exact(&mut got).await?;
    println!("the other peer got {:?}", String::from_utf8_lossy(&got));
    supervisor.send(Shutdown).await?;
    Ok(())
}
