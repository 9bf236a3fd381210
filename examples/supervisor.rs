//! Everything in one process, below one supervisor: first two sessions joined by TCP, an echo application behind
//! the far one, and an application that sends through them while the TCP connection is cut once; then a TURN client
//! and an embedded TURN server, through which the application reaches the echo while the server is restarted once; then
//! two sessions that only call out, to an embedded relay with TLS, which is restarted once.
//!
//! `cargo run --release --example supervisor`
//!
//! Exits with 0 if every datagram came back in the end, with 1 if one was lost for good.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use actix::prelude::*;
use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::counters::DropReason;
use actix_relay::event::{Event, EventKind};
use actix_relay::session::{GetSession, RelaySessionActor, SessionInfo};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{Shutdown, StartSession, StopSession, Subscribe, SupervisorActor};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;
use tokio::time::Instant;

#[path = "supervisor/relay.rs"]
mod relay;
#[path = "supervisor/turn.rs"]
mod turn;

/// Datagrams of the application, one each 2 ms.
const DATAGRAMS: u64 = 2000;
const DATAGRAM_LEN: usize = 1200;
const SEND_INTERVAL: Duration = Duration::from_millis(2);
/// The connection is cut before this one is sent.
const CUT_AT: u64 = DATAGRAMS / 2;
/// What has not come back by then is sent again, as applications do.
const RESEND_TIMEOUT: Duration = Duration::from_millis(300);
/// What has not come back by then is lost for good.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Prints events and counts the connections that had to be made again.
struct Printer(Arc<AtomicU64>);

impl Actor for Printer {
    type Context = Context<Self>;
}

impl Handler<Event> for Printer {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        println!("{event}");
        if matches!(event.kind, EventKind::PeerDisconnected { retry_in: Some(_), .. }) {
            self.0.fetch_add(1, Relaxed);
        }
    }
}

#[actix::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(lost) => {
            eprintln!("{lost} datagrams were lost for good");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says how many datagrams were lost for good.
async fn run() -> Result<usize> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
    let restarts = Arc::new(AtomicU64::new(0));
    let printer = Printer(restarts.clone()).start();
    supervisor.send(Subscribe { recipient: printer.clone().recipient(), filter: Filter::All }).await?;

    let echo = start_echo(any).await?;
    let far = start(&supervisor, SessionConfig::listen("far", any).udp_forward(echo)).await?;
    let listening = far.send(GetSession).await?.local_tcp[0];
    let cable = Cable::start(any, listening).await?;
    let near = start(&supervisor, SessionConfig::connect("near", cable.addr).local_udp(any)).await?;
    let entry = near.send(GetSession).await?.local_udp.ok_or("the near session has no UDP port")?;
    println!("send UDP to {entry}: it comes back from an echo application behind the far session");

    let report = talk(entry, &cable.cut).await?;
    // So that the closing counters are those of a quiet tunnel.
    let (near, far) = (near.send(GetSession).await?, far.send(GetSession).await?);
    supervisor.send(StopSession { session: "near".into() }).await??;
    supervisor.send(StopSession { session: "far".into() }).await??;
    println!("--- the same through a TURN server ---");
    let (turn_report, turn) = turn::run(&supervisor, echo).await?;
    supervisor.send(StopSession { session: "turn".into() }).await??;
    println!("--- the same through a relay with TLS, which both sides call ---");
    let relayed = relay::run(&supervisor, echo).await?;
    supervisor.send(Shutdown).await?;
    println!("--- summary ---");
    let lost = report.missing.len() + turn_report.missing.len() + relayed.report.missing.len();
    for session in [near, far] {
        print_session(&session);
    }
    print_report(report);
    turn::print_summary(&turn);
    print_report(turn_report);
    relayed.sessions.iter().for_each(print_session);
    relay::print_summary(&relayed);
    print_report(relayed.report);
    println!("connections made again, in all: {}", restarts.load(Relaxed));
    Ok(lost)
}

async fn start(supervisor: &Addr<SupervisorActor>, config: SessionConfig) -> Result<Addr<RelaySessionActor>> {
    Ok(supervisor.send(StartSession { config }).await??)
}

/// A small UDP application that sends back what it gets.
async fn start_echo(addr: SocketAddr) -> Result<SocketAddr> {
    let socket = UdpSocket::bind(addr).await?;
    let addr = socket.local_addr()?;
    actix_rt::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            // A datagram that cannot be answered is asked for again.
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    });
    Ok(addr)
}

/// The network between the two sessions, which can be cut.
struct Cable {
    addr: SocketAddr,
    cut: Arc<Notify>,
}

impl Cable {
    async fn start(addr: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let cable = Self { addr: listener.local_addr()?, cut: Arc::new(Notify::new()) };
        let cut = cable.cut.clone();
        actix_rt::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let cut = cut.clone();
                actix_rt::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.notified() => println!("--- the TCP connection is cut ---"),
                    }
                });
            }
        });
        Ok(cable)
    }
}

/// What the application saw.
#[derive(Default)]
struct Report {
    /// Sent and not back yet: when first, when last.
    missing: BTreeMap<u64, (Instant, Instant)>,
    round_trips: Vec<Duration>,
    resent: u64,
}

/// An application that sends all datagrams to `entry`, again if need be, until all have come back or it is too late.
/// Halfway it cuts the way.
async fn talk(entry: SocketAddr, cut: &Notify) -> Result<Report> {
    let application = UdpSocket::bind((entry.ip(), 0)).await?;
    application.connect(entry).await?;
    let application = &application;
    let mut report = Report::default();
    let mut tick = tokio::time::interval(SEND_INTERVAL);
    let deadline = Instant::now() + GIVE_UP_TIMEOUT;
    let mut buffer = vec![0; DATAGRAM_LEN];
    let mut next = 0;
    while (next < DATAGRAMS || !report.missing.is_empty()) && Instant::now() < deadline {
        tokio::select! {
            received = application.recv(&mut buffer) => report.on_answer(&buffer[..received?]),
            _ = tick.tick() => {
                if next == CUT_AT {
                    cut.notify_waiters();
                }
                if next < DATAGRAMS {
                    let now = Instant::now();
                    report.missing.insert(next, (now, now));
                    send(application, next).await?;
                    next += 1;
                }
                report.resend_oldest(application).await?;
            }
        }
    }
    Ok(report)
}

async fn send(application: &UdpSocket, number: u64) -> Result<()> {
    let mut datagram = [0; DATAGRAM_LEN];
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    application.send(&datagram).await?;
    Ok(())
}

impl Report {
    fn on_answer(&mut self, answer: &[u8]) {
        let number = answer.first_chunk().map(|number| u64::from_be_bytes(*number));
        if let Some((first, last)) = number.and_then(|number| self.missing.remove(&number)) {
            // An answer to one of several sendings says nothing about the way's length.
            if first == last {
                self.round_trips.push(first.elapsed());
            }
        }
    }

    async fn resend_oldest(&mut self, application: &UdpSocket) -> Result<()> {
        let due = |(_, (_, last)): &(&u64, &mut (Instant, Instant))| last.elapsed() > RESEND_TIMEOUT;
        if let Some((number, (_, last))) = self.missing.iter_mut().find(due) {
            *last = Instant::now();
            self.resent += 1;
            send(application, *number).await?;
        }
        Ok(())
    }

    fn round_trip(&mut self, percent: usize) -> Duration {
        self.round_trips.sort_unstable();
        let index = self.round_trips.len() * percent / 100;
        self.round_trips.get(index.min(self.round_trips.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

fn print_session(session: &SessionInfo) {
    let counters = session.counters;
    let (up, down) = (counters.to_tcp, counters.to_udp);
    println!(
        "{}: to TCP {} datagrams, {} bytes; to UDP {} datagrams, {} bytes",
        session.name, up.datagrams, up.bytes, down.datagrams, down.bytes
    );
    for reason in DropReason::ALL {
        if counters.drops.of(reason) > 0 {
            let count = counters.drops.of(reason);
            println!("{}: {count} datagrams dropped: {}", session.name, reason.as_str());
        }
    }
}

fn print_report(mut report: Report) {
    let (p50, p99) = (report.round_trip(50), report.round_trip(99));
    let answered = DATAGRAMS - report.missing.len() as u64;
    println!("application: {answered} of {DATAGRAMS} datagrams answered, {} sent again", report.resent);
    println!("application: round trip p50 {p50:?}, p99 {p99:?}");
}
