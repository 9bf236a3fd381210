//! What the integration tests share: an actix system, an observer of events, UDP parties.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses its part"
)]

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::event::{Event, EventKind};
use actix_relay::session::{GetSession, RelaySessionActor, SessionInfo};
use actix_relay::subscribers::Filter;
use actix_relay::supervisor::{InSession, Shutdown, StartSession, Subscribe, SupervisorActor};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

pub mod coturn;
#[cfg(target_os = "linux")]
pub mod namespace;
pub mod peer;
#[cfg(all(unix, feature = "cli"))]
pub mod process;
pub mod proxy;
pub mod relay_side;
pub mod tls;
pub mod turn;
#[cfg(all(unix, feature = "cli"))]
pub mod turn_process;
pub mod turn_proxy;
pub mod turn_server;

/// Nothing in a test takes this long; what does is a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An address of loopback whose port the system chooses.
pub fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// An address of loopback that is this test's own, so that a port can be freed and bound again without anybody
/// else getting it in between.
pub fn own_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Relaxed);
    let [.., a, b] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 100 + (number % 100) as u8, a, b.max(1)).into()
}

/// An address where no UDP service is, but may come.
pub fn vacant_udp() -> SocketAddr {
    std::net::UdpSocket::bind((own_ip(), 0)).unwrap().local_addr().unwrap()
}

/// An address where nobody listens, but may.
pub fn vacant_tcp() -> SocketAddr {
    std::net::TcpListener::bind((own_ip(), 0)).unwrap().local_addr().unwrap()
}

/// Nothing gets too old in this session, however busy the machine is: for tests that count every datagram.
pub fn patient(mut config: SessionConfig) -> SessionConfig {
    config.max_queue_delay = PATIENCE;
    config.connect_hold = PATIENCE;
    config
}

/// Waits for something that must happen.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
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

    /// What no event tells, asked for again and again.
    pub async fn info_when(
        &self,
        session: &str,
        what: &str,
        is_so: impl Fn(&SessionInfo) -> bool,
    ) -> SessionInfo {
        soon(what, async {
            loop {
                let info = self.info(session).await;
                if is_so(&info) {
                    return info;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// A session that listens, and where it does.
    pub async fn listen(&self, config: SessionConfig) -> SocketAddr {
        let name = config.name.clone();
        self.start(config).await;
        self.info(name.as_str()).await.local_tcp[0]
    }

    /// A session, and where its local applications send to.
    pub async fn local(&self, config: SessionConfig) -> SocketAddr {
        let name = config.name.clone();
        self.start(config).await;
        self.info(name.as_str()).await.local_udp.unwrap()
    }

    /// All that has been reported and not been looked at yet.
    pub fn reported(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).inspect(|event| eprintln!("{event}")).collect()
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
        // The one before it at this address may be on its way out.
        let socket = soon("binding", async {
            loop {
                match UdpSocket::bind(addr).await {
                    Ok(socket) => return socket,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
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

/// Sends numbered datagrams until one of them has come back: the tunnel works. Prints how long that took.
pub async fn until_echoed(app: &UdpSocket, to: SocketAddr, label: &str) {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let began = Instant::now();
    // Late answers to an earlier call do not count.
    let label = &format!("{label} #{}:", CALLS.fetch_add(1, Relaxed));
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
    eprintln!("{label}: an answer after {:?}", began.elapsed());
}

/// Sends one datagram, once, and awaits its echo.
pub async fn echoed_once(app: &UdpSocket, to: SocketAddr, datagram: &[u8]) {
    app.send_to(datagram, to).await.unwrap();
    loop {
        // Late answers to earlier datagrams are passed over.
        let (answer, from) = receive(app).await;
        assert_eq!(from, to, "answered from the address it was sent to");
        if answer == datagram {
            return;
        }
    }
}
