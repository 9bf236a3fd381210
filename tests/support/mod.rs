//! What the integration tests share: an actix system, an observer of events, UDP parties.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses its part"
)]

use std::net::SocketAddr;
use std::time::Duration;

use actix::prelude::*;
use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::event::{Event, EventKind};
use actix_relay::session::{GetSession, RelaySessionActor, SessionInfo};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{InSession, Shutdown, StartSession, Subscribe, SupervisorActor};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

/// Nothing in a test takes this long; what does is a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An address of loopback whose port the system chooses.
pub fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A supervisor and everything it has reported.
pub struct House {
    pub supervisor: Addr<SupervisorActor>,
    events: mpsc::UnboundedReceiver<Event>,
    _observer: Addr<Observer>,
}

struct Observer(mpsc::UnboundedSender<Event>);

impl Actor for Observer {
    type Context = Context<Self>;
}

impl Handler<Event> for Observer {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        let _ = self.0.send(event);
    }
}

impl House {
    pub async fn new() -> Self {
        Self::with(SupervisorConfig::default()).await
    }

    pub async fn with(config: SupervisorConfig) -> Self {
        let supervisor = SupervisorActor::new(config).start();
        let (tell, events) = mpsc::unbounded_channel();
        let observer = Observer(tell).start();
        let subscribe = Subscribe { recipient: observer.clone().recipient(), filter: Filter::All };
        supervisor.send(subscribe).await.unwrap();
        Self { supervisor, events, _observer: observer }
    }

    pub async fn start(&self, config: SessionConfig) -> Addr<RelaySessionActor> {
        self.supervisor.send(StartSession { config }).await.unwrap().unwrap()
    }

    pub async fn info(&self, session: &str) -> SessionInfo {
        let ask = InSession { session: session.into(), message: GetSession };
        self.supervisor.send(ask).await.unwrap().unwrap()
    }

    /// The next event of this session that is looked for; those before it are passed over.
    pub async fn event<T>(&mut self, session: &str, find: impl Fn(&EventKind) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the supervisor is gone");
                eprintln!("{event}");
                if event.child == session.into()
                    && let Some(found) = find(&event.kind)
                {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the event did not come")
    }

    pub async fn connected(&mut self, session: &str) {
        self.event(session, |kind| matches!(kind, EventKind::PeerConnected { .. }).then_some(())).await;
    }

    pub async fn disconnected(&mut self, session: &str) -> actix_relay::event::Cause {
        self.event(session, |kind| match kind {
            EventKind::PeerDisconnected { cause, .. } => Some(*cause),
            _ => None,
        })
        .await
    }

    pub async fn shutdown(self) {
        self.supervisor.send(Shutdown).await.unwrap();
    }
}

/// A UDP socket at a port of the system's choice.
pub async fn udp() -> UdpSocket {
    UdpSocket::bind(any()).await.unwrap()
}

/// The next datagram, and where it came from.
pub async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let received = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await;
    let (len, from) = received.expect("no datagram came").unwrap();
    buffer.truncate(len);
    (buffer, from)
}

/// A UDP service that answers each datagram with itself, until it is dropped.
pub struct Echo {
    pub addr: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Echo {
    pub async fn start() -> Self {
        Self::at(any()).await
    }

    pub async fn at(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind(addr).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..len], from).await;
            }
        });
        Self { addr, task }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends numbered datagrams until one of them has come back: the tunnel works.
pub async fn until_echoed(app: &UdpSocket, to: SocketAddr, label: &str) {
    let talk = async {
        let mut buffer = vec![0; 1 << 16];
        for number in 0u64.. {
            let _ = app.send_to(format!("{label} {number}").as_bytes(), to).await;
            let answer = tokio::time::timeout(Duration::from_millis(100), app.recv_from(&mut buffer)).await;
            if let Ok(Ok((len, _))) = answer
                && buffer[..len].starts_with(label.as_bytes())
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("no answer came through the tunnel");
}
