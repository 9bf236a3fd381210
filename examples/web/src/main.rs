//! A web page of sessions: their state and counters, live, in an actix-web application that runs them itself.
//!
//! `cargo run --manifest-path examples/web/Cargo.toml [ADDR]`, then open <http://127.0.0.1:8080/>.
//!
//! - `/` the page; `/events` all events as server-sent events, with JSON.
//! - `/sessions` the sessions, the relay and its pairs as JSON; `/health` 200 while all sessions have their peer.
//!
//! SIGTERM and Ctrl-C end it in order: the sessions first, and browsers hear of that.

use std::net::SocketAddr;
use std::process::ExitCode;

use actix_web::dev::{Server, ServerHandle};
use actix_web::{App, HttpServer, web};
use tokio::signal::unix::{SignalKind, signal};

use crate::house::{House, Result};
use crate::routes::Hub;

mod feed;
mod house;
mod routes;
#[cfg(test)]
mod tests;

/// Where it listens unless told otherwise: nobody else needs to see the page.
const DEFAULT_ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
/// Threads that serve browsers.
const WORKERS: usize = 2;
/// Connections at once, for each of those threads.
const MAX_CONNECTIONS: usize = 64;
/// What is still being sent to browsers has this long at the end, in seconds.
const STOP_TIMEOUT: u64 = 2;

#[actix_web::main]
async fn main() -> ExitCode {
    let addr = match arguments() {
        Ok(addr) => addr,
        Err(why) => {
            eprintln!("error: {why}\nUsage: actix-relay-web [ADDR]");
            return ExitCode::from(2);
        }
    };
    match run(addr).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> std::result::Result<SocketAddr, String> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next(), arguments.next()) {
        (None, _) => Ok(DEFAULT_ADDR),
        (Some(addr), None) => {
            addr.parse().map_err(|_| format!("'{addr}' is not an address and a port, such as {DEFAULT_ADDR}"))
        }
        (Some(_), Some(more)) => Err(format!("'{more}' is one argument too many")),
    }
}

async fn run(addr: SocketAddr) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (house, site) = open(addr).await?;
    println!("open http://{}/", site.addr);
    let mut serving = actix_web::rt::spawn(site.server);
    let ended = tokio::select! {
        ended = &mut serving => Some(ended),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    house.stop().await;
    match ended {
        Some(ended) => Ok(ended??),
        None => {
            site.handle.stop(true).await;
            Ok(serving.await??)
        }
    }
}

/// The page's server, to be run.
struct Site {
    addr: SocketAddr,
    server: Server,
    handle: ServerHandle,
}

/// Binds first: nothing is started for a port that cannot be had.
async fn open(addr: SocketAddr) -> Result<(House, Site)> {
    let listener = std::net::TcpListener::bind(addr).map_err(|error| format!("{addr}: {error}"))?;
    let addr = listener.local_addr()?;
    let house = House::start().await?;
    let hub = web::Data::new(Hub { supervisor: house.supervisor.clone(), feed: house.feed.clone() });
    let server = HttpServer::new(move || App::new().app_data(hub.clone()).configure(routes::configure))
        .workers(WORKERS)
        .max_connections(MAX_CONNECTIONS)
        .shutdown_timeout(STOP_TIMEOUT)
        .disable_signals()
        .listen(listener)?
        .run();
    let handle = server.handle();
    Ok((house, Site { addr, server, handle }))
}
