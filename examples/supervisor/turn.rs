//! The TURN part: a local UDP port forwarded to a peer through an allocation, its server restarted in the middle.

use std::net::SocketAddr;
use std::sync::Arc;

use actix::prelude::*;
use actix_relay::config::{TurnConfig, TurnServer, UdpForward};
use actix_relay::credentials::UserPassword;
use actix_relay::supervisor::{StartTurn, SupervisorActor};
use actix_relay::turn::{Allocate, AllocationInfo, BindChannel, GetAllocation};
use tokio::sync::Notify;

use super::{Report, Result, talk};

#[path = "../../tests/support/turn_server.rs"]
mod turn_server;

const USER: &str = "user";
const PASSWORD: &str = "password";

/// Says what the application saw, and how the client was in the end.
pub(super) async fn run(
    supervisor: &Addr<SupervisorActor>,
    echo: SocketAddr,
) -> Result<(Report, AllocationInfo)> {
    let any = SocketAddr::new(echo.ip(), 0);
    let server = turn_server::TurnServer::start(any, &turn_server::Config::new(USER, PASSWORD)).await?;
    let account = UserPassword::new(USER, PASSWORD);
    let mut config =
        TurnConfig::new("turn", TurnServer::new(server.uri("udp").parse()?).credentials(account));
    config.udp_forward.push(UdpForward { local_udp: any, peer: echo });
    let client = supervisor.send(StartTurn { config }).await??;
    let entry = client.send(Allocate).await??.local_udp[0];
    client.send(BindChannel { peer: echo }).await??;
    println!("send UDP to {entry}: it comes back from the echo application, by way of the server");
    let cut = Arc::new(Notify::new());
    actix_rt::spawn(restart_when(cut.clone(), server));
    let report = talk(entry, &cut).await?;
    Ok((report, client.send(GetAllocation).await?))
}

/// The server ends, and another one that knows nothing takes its place, for as long as the process lives.
async fn restart_when(cut: Arc<Notify>, server: turn_server::TurnServer) {
    cut.notified().await;
    println!("--- the TURN server is restarted ---");
    let addr = server.addr();
    server.stop().await;
    match turn_server::TurnServer::start(addr, &turn_server::Config::new(USER, PASSWORD)).await {
        Ok(_server) => std::future::pending().await,
        Err(error) => eprintln!("the TURN server did not start again: {error}"),
    }
}

pub(super) fn print_summary(info: &AllocationInfo) {
    let counters = info.counters;
    let (up, down) = (counters.to_peers, counters.from_peers);
    println!(
        "turn: to peers {} datagrams, {} bytes; from peers {} datagrams, {} bytes; {} dropped",
        up.datagrams,
        up.bytes,
        down.datagrams,
        down.bytes,
        counters.drops.total()
    );
}
