//! Sessions in an actix program: start a supervisor, subscribe to its events, tell a session what to do.
//!
//! `cargo run --example subscribe`

use actix::prelude::*;
use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::event::Event;
use actix_relay::session::{Connect, Disconnect, GetSession, Listen};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{Shutdown, StartSession, Subscribe, SupervisorActor};

/// An observer: every event of every session comes as a message.
struct Printer;

impl Actor for Printer {
    type Context = Context<Self>;
}

impl Handler<Event> for Printer {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        println!("{event}");
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
    let printer = Printer.start();
    let recipient = printer.clone().recipient();
    supervisor.send(Subscribe { recipient, filter: Filter::All }).await?;

    // Two sessions that do nothing yet but hold their UDP ports.
    let any = "127.0.0.1:0".parse()?;
    let far = SessionConfig::new("far").local_udp(any);
    let near = SessionConfig::new("near").local_udp(any);
    let far = supervisor.send(StartSession { config: far }).await??;
    let near = supervisor.send(StartSession { config: near }).await??;

    // One listens, the other connects to it.
    let local_tcp = far.send(Listen { local_tcp: vec![any] }).await??;
    near.send(Connect { remote: local_tcp[0].into() }).await?;

    // Two applications talk through them; the far one speaks once it has been spoken to.
    let (here, there) = (tokio::net::UdpSocket::bind(any).await?, tokio::net::UdpSocket::bind(any).await?);
    let (near_udp, far_udp) = (near.send(GetSession).await?.local_udp, far.send(GetSession).await?.local_udp);
    there.send_to(b"I am here", far_udp.ok_or("no UDP port")?).await?;
    let mut buffer = [0; 1500];
    here.send_to(b"hello", near_udp.ok_or("no UDP port")?).await?;
    let (len, _) = there.recv_from(&mut buffer).await?;
    println!("the far application got: {}", String::from_utf8_lossy(&buffer[..len]));

    near.send(Disconnect).await?;
    supervisor.send(Shutdown).await?;
    Ok(())
}
