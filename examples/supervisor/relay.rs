//! The relay part: two sessions that only call out meet at an embedded relay, which speaks TLS and is restarted in the
//! middle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_relay::config::{ClientTls, Pin, RelayConfig, RelayRemote, ServerTls, SessionConfig};
use actix_relay::counters::RelayCounters;
use actix_relay::credentials::UserPassword;
use actix_relay::event::{Event, EventKind, SideEvent};
use actix_relay::relay::GetRelay;
use actix_relay::session::{GetSession, SessionInfo};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{InRelay, StartRelay, StopSession, Subscribe, SupervisorActor};
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};

use super::{Report, Result, start, talk};

const USER: &str = "alice";
const PASSWORD: &str = "password";
/// What both sides have in common.
const PAIR: &str = "example";
/// An event that has not come by then does not come.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How it went: what the application saw, both sessions, and what the restarted relay has forwarded.
pub(super) struct Outcome {
    pub(super) report: Report,
    pub(super) sessions: [SessionInfo; 2],
    forwarded: RelayCounters,
}

pub(super) async fn run(supervisor: &Addr<SupervisorActor>, echo: SocketAddr) -> Result<Outcome> {
    let mut events = Events::of(supervisor).await?;
    let certificate = Certificate::new(echo)?;
    let any = SocketAddr::new(echo.ip(), 0);
    let mut relay = RelayConfig::new("relay", any, "example.org").user(UserPassword::new(USER, PASSWORD));
    relay.tls = Some(certificate.shown());
    let addr = start_relay(supervisor, &relay).await?;
    // A restarted one has the same address, and the same key: so the pin stays.
    relay.local_tcp = vec![addr];
    let pin = events.pin().await?;
    let far = SessionConfig::connect("far side", at(addr, pin, "far")).udp_forward(echo);
    let near = SessionConfig::connect("near side", at(addr, pin, "near")).local_udp(any);
    let (far, near) = (start(supervisor, far).await?, start(supervisor, near).await?);
    let entry = near.send(GetSession).await?.local_udp.ok_or("the near side has no UDP port")?;
    events.paired().await?;
    println!("send UDP to {entry}: it comes back from the echo application, by way of the relay");
    let cut = Arc::new(Notify::new());
    let restart = actix_rt::spawn(restart_when(cut.clone(), supervisor.clone(), relay));
    let report = talk(entry, &cut).await?;
    // Nothing is left to be told when there was no time for it: then the application has lost datagrams.
    restart.abort();
    let sessions = [near.send(GetSession).await?, far.send(GetSession).await?];
    let info = supervisor.send(InRelay { relay: "relay".into(), message: GetRelay }).await??;
    for name in ["near side", "far side", "relay"] {
        supervisor.send(StopSession { session: name.into() }).await??;
    }
    Ok(Outcome { report, sessions, forwarded: info.counters })
}

/// Where a session meets its peer: both sides say the same, but for the name of the side.
fn at(relay: SocketAddr, pin: Pin, side: &str) -> RelayRemote {
    let mut tls = ClientTls::default();
    tls.pin = Some(pin);
    RelayRemote::new(relay.into(), UserPassword::new(USER, PASSWORD), PAIR, side).tls(tls)
}

async fn start_relay(supervisor: &Addr<SupervisorActor>, config: &RelayConfig) -> Result<SocketAddr> {
    let relay = supervisor.send(StartRelay { config: config.clone() }).await??;
    Ok(relay.send(GetRelay).await?.local_tcp[0])
}

/// The relay ends, and another one that knows nothing takes its place.
async fn restart_when(cut: Arc<Notify>, supervisor: Addr<SupervisorActor>, config: RelayConfig) {
    cut.notified().await;
    println!("--- the relay is restarted ---");
    let stopped = supervisor.send(StopSession { session: config.name.clone() }).await;
    if !matches!(stopped, Ok(Ok(()))) {
        eprintln!("the relay did not stop: {stopped:?}");
    }
    if let Err(error) = start_relay(&supervisor, &config).await {
        eprintln!("the relay did not start again: {error}");
    }
}

/// A key and a certificate that vouches for itself, in files as long as this lives.
struct Certificate(TempDir);

impl Certificate {
    fn new(host: SocketAddr) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([host.ip().to_string()])?.self_signed(&key)?;
        std::fs::write(dir.path().join("cert.pem"), certificate.pem())?;
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem())?;
        Ok(Self(dir))
    }

    fn shown(&self) -> ServerTls {
        ServerTls::files(self.0.path().join("cert.pem"), self.0.path().join("key.pem"))
    }
}

/// The events of all children from now on, to wait for.
struct Events {
    incoming: mpsc::Receiver<Event>,
    /// Subscribers are held weakly.
    _ears: Addr<Ears>,
}

struct Ears(mpsc::Sender<Event>);

impl Actor for Ears {
    type Context = Context<Self>;
}

impl Handler<Event> for Ears {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        // Those that nobody waits for any more may be lost.
        let _ = self.0.try_send(event);
    }
}

impl Events {
    async fn of(supervisor: &Addr<SupervisorActor>) -> Result<Self> {
        let (ears, incoming) = mpsc::channel(64);
        let ears = Ears(ears).start();
        supervisor.send(Subscribe { recipient: ears.clone().recipient(), filter: Filter::All }).await?;
        Ok(Self { incoming, _ears: ears })
    }

    async fn first<T>(&mut self, what: impl Fn(EventKind) -> Option<T>) -> Result<T> {
        let found = async {
            loop {
                let event = self.incoming.recv().await.ok_or("no more events")?;
                if let Some(found) = what(event.kind) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(EVENT_TIMEOUT, found).await?
    }

    /// The relay says which key it shows.
    async fn pin(&mut self) -> Result<Pin> {
        self.first(|kind| match kind {
            EventKind::CertificateShown { pin, .. } => Some(pin),
            _ => None,
        })
        .await
    }

    /// Each side hears that the other one is there.
    async fn paired(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.first(|kind| {
                matches!(kind, EventKind::Side(SideEvent::RelayPeerPresent { .. })).then_some(())
            })
            .await?;
        }
        Ok(())
    }
}

pub(super) fn print_summary(outcome: &Outcome) {
    let RelayCounters { forwarded, drops, .. } = outcome.forwarded;
    println!(
        "relay, since its restart: forwarded {} datagrams, {} bytes; {} dropped",
        forwarded.datagrams,
        forwarded.bytes,
        drops.total()
    );
}
