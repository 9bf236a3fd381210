//! What is shown: a relay, two sessions that meet at it, and applications that make their counters move. All of it on
//! loopback, below one supervisor.

use std::net::SocketAddr;
use std::time::Duration;

use actix::prelude::*;
use actix_relay::config::{
    ClientTls, Pin, RelayConfig, RelayRemote, ServerCertificate, ServerTls, SessionConfig, SupervisorConfig,
};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{Event, EventKind};
use actix_relay::relay::GetRelay;
use actix_relay::session::GetSession;
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{Shutdown, StartRelay, StartSession, Subscribe, SupervisorActor};
use actix_web::rt;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::feed::{Close, Feed};

/// The relay's name below the supervisor.
pub(crate) const RELAY: &str = "relay";
/// Who both sides are; nobody else reaches the relay, which is on loopback.
const USER: &str = "alice";
const PASSWORD: &str = "an example, no secret";
/// How often the counters are told.
const STATS_INTERVAL: Duration = Duration::from_secs(1);
/// How often the application sends.
const SEND_INTERVAL: Duration = Duration::from_millis(40);
const LONGEST: usize = 1200;
/// The relay says which key it shows as soon as it has started.
const PIN_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// All that runs behind the page.
pub(crate) struct House {
    pub(crate) supervisor: Addr<SupervisorActor>,
    pub(crate) feed: Addr<Feed>,
    applications: [JoinHandle<()>; 2],
}

impl House {
    /// The relay and both sessions are there when this answers; they need not have met yet.
    pub(crate) async fn start() -> Result<Self> {
        let mut config = SupervisorConfig::default();
        config.stats_interval = STATS_INTERVAL;
        let supervisor = SupervisorActor::new(config).start();
        let feed = Feed::default().start();
        supervisor.send(Subscribe { recipient: feed.clone().recipient(), filter: Filter::All }).await?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (relay, pin) = start_relay(&supervisor, any).await?;
        let echo = UdpSocket::bind(any).await?;
        let office =
            SessionConfig::connect("office", at(relay, pin, "office")).udp_forward(echo.local_addr()?);
        let laptop = SessionConfig::connect("laptop", at(relay, pin, "laptop")).local_udp(any);
        supervisor.send(StartSession { config: office }).await??;
        let laptop = supervisor.send(StartSession { config: laptop }).await??;
        let entry = laptop.send(GetSession).await?.local_udp.ok_or("the laptop has no UDP port")?;
        let application = UdpSocket::bind(any).await?;
        application.connect(entry).await?;
        let applications = [rt::spawn(answer(echo)), rt::spawn(ask(application))];
        Ok(Self { supervisor, feed, applications })
    }

    /// The sessions and the relay end in order, and browsers hear of it; then their streams end.
    pub(crate) async fn stop(self) {
        self.applications.iter().for_each(JoinHandle::abort);
        if self.supervisor.send(Shutdown).await.is_err() || self.feed.send(Close).await.is_err() {
            eprintln!("error: an actor is gone before it was told to stop");
        }
    }
}

/// The relay makes a certificate when it starts; an event tells the pin of its key.
async fn start_relay(supervisor: &Addr<SupervisorActor>, any: SocketAddr) -> Result<(SocketAddr, Pin)> {
    let (heard, pin) = oneshot::channel();
    let ear = PinEar(Some(heard)).start();
    let filter = Filter::Session(RELAY.into());
    supervisor.send(Subscribe { recipient: ear.clone().recipient(), filter }).await?;
    let mut config = RelayConfig::new(RELAY, any, "example.org").user(UserPassword::new(USER, PASSWORD));
    config.tls = Some(ServerTls::new(ServerCertificate::SelfSigned));
    let relay = supervisor.send(StartRelay { config }).await??;
    let pin = tokio::time::timeout(PIN_TIMEOUT, pin).await??;
    Ok((relay.send(GetRelay).await?.local_tcp[0], pin))
}

fn at(relay: SocketAddr, pin: Pin, side: &str) -> RelayRemote {
    let mut tls = ClientTls::default();
    tls.pin = Some(pin);
    RelayRemote::new(relay.into(), UserPassword::new(USER, PASSWORD), "example", side).tls(tls)
}

/// Hears of one certificate, and ends.
struct PinEar(Option<oneshot::Sender<Pin>>);

impl Actor for PinEar {
    type Context = Context<Self>;
}

impl Handler<Event> for PinEar {
    type Result = ();

    fn handle(&mut self, event: Event, ctx: &mut Self::Context) {
        if let EventKind::CertificateShown { pin, .. } = event.kind
            && let Some(heard) = self.0.take()
        {
            // Whoever waited may have given up.
            let _ = heard.send(pin);
            ctx.stop();
        }
    }
}

/// The service behind the office: it sends back what it gets.
async fn answer(service: UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An error is that of an earlier datagram, which could not be delivered.
        let Ok((len, from)) = service.recv_from(&mut buffer).await else { continue };
        let _ = service.send_to(&buffer[..len], from).await;
    }
}

/// The application at the laptop: it sends datagrams of changing length, and reads the answers.
async fn ask(application: UdpSocket) {
    let mut tick = tokio::time::interval(SEND_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut buffer = vec![0; LONGEST];
    let mut len = 0;
    loop {
        // What is lost is lost: it is UDP.
        tokio::select! {
            _ = tick.tick() => {
                len = (len + 137) % LONGEST;
                let _ = application.send(&vec![7; len]).await;
            }
            _ = application.recv(&mut buffer) => {}
        }
    }
}
