//! The control connection to a TURN server, and the one future that drives it, the data connections that are not
//! bound yet, and the timer.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix::fut::ActorFuture;
use actix::prelude::*;
use bytes::Bytes;
use tokio::time::Sleep;

use crate::clock::now;
use crate::config::{AddressFamily, ConfigError, HostPort, RelayedTransport, TurnConfig, TurnTransport};
use crate::counters::{DropReason, LiveCounters};
use crate::credentials::{Credentials, CredentialsWanted, UserPassword};
use crate::datagrams::Batch;
use crate::dial::resolve;
use crate::event::TurnState;
use crate::flow::Flow;
use crate::sockopt::{TcpOptions, connect_udp_server};
use crate::stream::{FrameReader, FrameWriter, ReadEnd};
use crate::stun::{self, Family, Relayed};
use crate::tls::TlsError;
use crate::transport::Transport;
use crate::turn::allocation::{Allocation, CREDENTIALS_TIMEOUT, Setup, State};
use crate::turn::{Phase, TurnClientActor, TurnError};
use crate::turn_data::DataConnections;
use crate::turn_dial::ServerDialer;
use crate::turn_forwards::{Forwards, Intake, Route};
use crate::udp_io::UdpIo;

/// Receives of up to 32 buffers in one turn of the task.
const MAX_TURNS: usize = 2;
/// A message begun on the control stream has this long.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// An attempt to reach the server.
#[derive(Debug)]
pub(crate) struct Opening {
    server: HostPort,
    /// Of a configuration that nobody has validated there may be none.
    transport: Result<TurnTransport, ConfigError>,
    options: TcpOptions,
    timeout: Duration,
    dialer: ServerDialer,
    /// Counts the attempts that failed: each takes the next address.
    attempt: u64,
    credentials: Option<Credentials>,
    wanted: CredentialsWanted,
    hops: Vec<SocketAddr>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Opened {
    control: Socket,
    server: SocketAddr,
    account: Option<UserPassword>,
    hops: Vec<SocketAddr>,
}

#[derive(Debug)]
enum Socket {
    Udp(std::net::UdpSocket),
    Stream(Transport),
}

impl Opening {
    pub(crate) fn new(config: &TurnConfig, options: TcpOptions, attempt: u64, hops: Vec<SocketAddr>) -> Self {
        let uri = &config.server.uri;
        let transport = uri.transport_for(config.relayed);
        let server = match hops.last() {
            Some(to) => (*to).into(),
            None => HostPort { host: uri.host.clone(), port: uri.port },
        };
        Self {
            server,
            transport,
            dialer: ServerDialer::new(config, options.clone()),
            options,
            timeout: config.connect_timeout,
            attempt,
            credentials: config.server.credentials.clone(),
            wanted: CredentialsWanted { server: uri.clone(), realm: None, rejected: None },
            hops,
        }
    }

    pub(crate) async fn open(self) -> Result<Opened, TurnError> {
        let account = match self.credentials {
            None => None,
            Some(Credentials::Fixed(account)) => Some(account),
            Some(Credentials::Asked(who)) => {
                let asked = tokio::time::timeout(CREDENTIALS_TIMEOUT, who.send(self.wanted)).await;
                let Ok(Ok(Some(account))) = asked else { return Err(TurnError::NoCredentials) };
                Some(account)
            }
        };
        let unreachable = |error: &dyn std::fmt::Display| TurnError::Unreachable { why: error.to_string() };
        let transport = self.transport.map_err(|error| unreachable(&error))?;
        let (control, server) = match transport {
            TurnTransport::Tcp => {
                let (stream, server) = self.dialer.dial(&self.server).await?;
                (Socket::Stream(stream), server)
            }
            TurnTransport::Udp => {
                let addresses = resolve(&self.server, &self.options, self.timeout).await;
                let addresses = addresses.map_err(|error| unreachable(&error))?;
                // There is one at least.
                let index = usize::try_from(self.attempt).unwrap_or(0) % addresses.len();
                let server = addresses[index];
                let socket =
                    connect_udp_server(server, &self.options).map_err(|error| unreachable(&error))?;
                (Socket::Udp(socket), server)
            }
        };
        Ok(Opened { control, server, account, hops: self.hops })
    }
}

/// The control connection.
#[derive(Debug)]
pub(crate) enum Control {
    Udp(Arc<UdpIo>),
    Stream { stream: Transport, reader: FrameReader, writer: FrameWriter, flow: Arc<Flow> },
}

/// One allocation, or the attempt to get one, with everything that ends with it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) core: Allocation,
    pub(crate) data: DataConnections,
    /// The server's address, after redirections.
    pub(crate) server: SocketAddr,
    pub(crate) hops: Vec<SocketAddr>,
    /// The relayed address, and since when there is an allocation.
    pub(crate) granted: Option<(SocketAddr, Instant)>,
    control: Control,
    timer: Option<Pin<Box<Sleep>>>,
}

impl TurnClientActor {
    /// What the next allocation is to be made from; credentials and transport come with the connection.
    pub(crate) fn setup(&self) -> Setup {
        let wishes = self.sockets.wishes();
        Setup {
            reliable: false,
            relayed: match self.config.relayed {
                RelayedTransport::Udp => Relayed::Udp,
                RelayedTransport::Tcp => Relayed::Tcp,
            },
            family: self.config.requested_family().map(|family| match family {
                AddressFamily::Ipv4 => Family::V4,
                AddressFamily::Ipv6 => Family::V6,
            }),
            lifetime: self
                .config
                .lifetime
                .map(|lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)),
            account: None,
            can_ask: matches!(self.config.server.credentials, Some(Credentials::Asked(_))),
            trust_unsealed_bind: self.config.server.trust_unsealed_bind,
            permissions: wishes.permissions.iter().copied().collect(),
            channels: wishes.channels.iter().copied().collect(),
            first_key: self.next_key,
            ids: crate::turn::transactions::Ids::new(stun::random_id),
        }
    }

    /// To the server, on the control connection.
    pub(crate) fn send_control(&mut self, bytes: &[u8]) {
        let Phase::Running(running) = &mut self.phase else { return };
        match &running.control {
            Control::Udp(io) => {
                // What the socket does not take now is sent again like any lost request.
                let (_, refused) = send_message(io, bytes);
                if refused {
                    running.core.unreachable(now(), &icmp(running.server));
                }
            }
            Control::Stream { flow, .. } => {
                if flow.push_control(bytes.to_vec().into()).is_err() {
                    running.core.control_lost(TurnError::Congested);
                }
            }
        }
    }

    pub(crate) fn want_credentials(
        &mut self,
        rejected: String,
        realm: Option<String>,
        ctx: &mut actix::Context<Self>,
    ) {
        let Some(Credentials::Asked(who)) = &self.config.server.credentials else { return };
        let server = self.config.server.uri.clone();
        let asked = who.send(CredentialsWanted { server, realm, rejected: Some(rejected) });
        let answer = async move { tokio::time::timeout(CREDENTIALS_TIMEOUT, asked).await };
        let round = self.round;
        ctx.spawn(answer.into_actor(self).map(move |answer, act, ctx| {
            if let Phase::Running(running) = &mut act.phase
                && act.round == round
            {
                running.core.credentials(now(), answer.ok().and_then(Result::ok).flatten());
                act.outputs(ctx);
            }
        }));
    }
}

/// Sends one message to the server, and says whether its host has answered an earlier one that nobody is there (ICMP):
/// the system told so instead of sending this one, which is sent all the same.
fn send_message(io: &UdpIo, message: &[u8]) -> (io::Result<()>, bool) {
    match io.send_message(message) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => (io.send_message(message), true),
        sent => (sent, false),
    }
}

fn icmp(server: SocketAddr) -> String {
    format!("{server} answers that nobody is there (ICMP port unreachable)")
}

impl Running {
    pub(crate) fn new(
        now: Instant,
        opened: Opened,
        config: &TurnConfig,
        mut setup: Setup,
        counters: Arc<LiveCounters>,
    ) -> Result<Self, TurnError> {
        let Opened { control, server, account, hops } = opened;
        let control = match control {
            Socket::Udp(socket) => {
                let io = UdpIo::new(socket).map_err(|error| TurnError::Unreachable {
                    why: format!("setting up the UDP socket to {server}: {error}"),
                })?;
                Control::Udp(Arc::new(io))
            }
            Socket::Stream(stream) => {
                setup.reliable = true;
                Control::Stream {
                    stream,
                    reader: FrameReader::new(MESSAGE_TIMEOUT, MESSAGE_TIMEOUT),
                    writer: FrameWriter::default(),
                    flow: Arc::new(Flow::turn(config.queue_bytes, config.max_queue_delay, counters)),
                }
            }
        };
        setup.account = account;
        Ok(Self {
            core: Allocation::new(now, setup),
            data: DataConnections::default(),
            server,
            hops,
            granted: None,
            control,
            timer: None,
        })
    }

    pub(crate) fn state(&self) -> TurnState {
        match self.core.state() {
            State::Allocating => TurnState::Allocating,
            State::Allocated(_) => TurnState::Allocated,
            State::Deallocating { .. } | State::Ended => TurnState::Deallocating,
        }
    }

    /// Counts what was queued for the server and will not reach it.
    pub(crate) fn close(&self) {
        if let Control::Stream { flow, .. } = &self.control {
            flow.close();
        }
    }

    /// The way of a channel's datagrams to the server.
    pub(crate) fn route(&self, channel: u16) -> Route {
        match &self.control {
            Control::Udp(io) => Route::Udp { io: io.clone(), channel },
            Control::Stream { flow, .. } => Route::Stream { flow: flow.clone(), channel },
        }
    }

    /// A whole STUN message that carries a datagram of `payload` bytes; on a stream behind what waits there.
    pub(crate) fn send_indication(
        &mut self,
        now: Instant,
        message: &[u8],
        payload: u64,
        counters: &LiveCounters,
    ) {
        match &self.control {
            Control::Udp(io) => {
                let (sent, refused) = send_message(io, message);
                match sent {
                    Ok(()) => counters.sent_to_tcp(1, payload),
                    Err(_) => counters.dropped(DropReason::SendFailed, 1),
                }
                if refused {
                    self.core.unreachable(now, &icmp(self.server));
                }
            }
            Control::Stream { flow, .. } => {
                flow.push(now, Batch { frames: Bytes::copy_from_slice(message), datagrams: 1, payload });
            }
        }
    }

    /// A data connection to the same server.
    pub(crate) fn dial_data(
        &self,
        dialer: ServerDialer,
    ) -> impl Future<Output = Result<Transport, TurnError>> + use<> {
        let server: HostPort = self.server.into();
        async move { dialer.dial(&server).await.map(|(stream, _)| stream) }
    }

    /// Reads and writes what can be, then looks at the clock. `true`: there may be more at once.
    fn poll(&mut self, cx: &mut Context<'_>, forwards: &mut Forwards) -> bool {
        let now = now();
        let more = self.poll_control(cx, now, forwards);
        let core = &mut self.core;
        self.data.poll(cx, now, core);
        forwards.poll_kept(cx);
        let (sent, heard) = forwards.take_activity();
        core.note_data(sent, heard);
        if forwards.take_refused() {
            core.unreachable(now, &icmp(self.server));
        }
        if let Some(due) = core.poll_timeout()
            && due <= now
        {
            core.handle_timeout(now);
            return true;
        }
        more
    }

    fn poll_control(&mut self, cx: &mut Context<'_>, now: Instant, forwards: &mut Forwards) -> bool {
        let (core, is_granted) = (&mut self.core, self.granted.is_some());
        match &mut self.control {
            Control::Udp(io) => {
                for _ in 0..MAX_TURNS {
                    let mut intake = Intake { core, forwards, now };
                    match io.poll_recv(cx, |_, received| intake.datagrams(received)) {
                        Poll::Pending => return false,
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                            core.unreachable(now, &icmp(self.server));
                        }
                        Poll::Ready(Err(error)) => {
                            tracing::debug!(%error, server = %self.server, "receiving from the TURN server");
                        }
                    }
                }
                true
            }
            Control::Stream { stream, reader, writer, flow } => {
                let mut intake = Intake { core, forwards, now };
                if let Poll::Ready(end) = reader.poll(cx, stream, &mut intake, now, |_| {}) {
                    core.control_lost(lost(end, is_granted));
                } else if let Poll::Ready(error) = writer.poll(cx, stream, flow, now) {
                    core.control_lost(broken("writing to it", &error, is_granted));
                }
                false
            }
        }
    }

    /// Sets the timer to the core's next deadline; `true` if that has come already.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.core.poll_timeout().map(tokio::time::Instant::from_std) else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

fn lost(end: ReadEnd, is_granted: bool) -> TurnError {
    match end {
        ReadEnd::Closed => TurnError::ControlLost { why: "closed by the server".into() },
        ReadEnd::Broken(error) => broken("reading from it", &error, is_granted),
        ReadEnd::Malformed => {
            TurnError::ControlLost { why: "the server sends what is neither STUN nor ChannelData".into() }
        }
        ReadEnd::UnfinishedFrame | ReadEnd::SinkStuck => TurnError::ControlLost {
            why: format!("a message begun was not finished within {MESSAGE_TIMEOUT:?}"),
        },
    }
}

/// `is_granted`: there is, or was, an allocation.
fn broken(doing: &str, error: &io::Error, is_granted: bool) -> TurnError {
    // A server that does not like our certificate says so after the handshake (TLS 1.3), before all else.
    if let Some(refused) = TlsError::within(error).filter(|error| error.is_refusal() && !is_granted) {
        return TurnError::Untrusted { why: refused.to_string() };
    }
    TurnError::ControlLost { why: format!("{doing} failed: {error}") }
}

/// The one future of the actor: does a round each time anything wakes it.
pub(crate) struct Drive;

impl ActorFuture<TurnClientActor> for Drive {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        act: &mut TurnClientActor,
        ctx: &mut actix::Context<TurnClientActor>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        match &mut act.drive {
            Some(waker) => waker.clone_from(cx.waker()),
            drive => *drive = Some(cx.waker().clone()),
        }
        for _ in 0..MAX_TURNS {
            let Phase::Running(running) = &mut act.phase else { return Poll::Pending };
            let more = running.poll(cx, &mut act.forwards);
            act.take_outputs(ctx);
            act.report_icmp();
            let Phase::Running(running) = &mut act.phase else { return Poll::Pending };
            // What was sent just now on a stream is written in this turn.
            let more = more || running.data.is_fresh();
            if !more && !running.flush(cx) && !running.poll_timer(cx) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Running {
    /// Writes what the outputs have put in the stream's queue; `true` if that ended the connection.
    fn flush(&mut self, cx: &mut Context<'_>) -> bool {
        if let Control::Stream { stream, writer, flow, .. } = &mut self.control
            && let Poll::Ready(error) = writer.poll(cx, stream, flow, now())
        {
            let error = broken("writing to it", &error, self.granted.is_some());
            self.core.control_lost(error);
            return true;
        }
        false
    }
}
