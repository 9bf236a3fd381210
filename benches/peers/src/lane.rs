//! One client with its application and its peer, and the traffic of one case through it.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::client::{Client, Kind, Transport};
use crate::coturn::Coturn;
use crate::echo::Echo;
use crate::sender::{Pattern, Sender, WINDOW_MAX};
use crate::sink::Sink;
use crate::tunnel::LOOPBACK;

/// So that nothing is measured before the channel is bound and all paths are warm.
const WARM_UP: Duration = Duration::from_millis(400);

/// The two say hello this often, and give up after so long.
const HELLO_INTERVAL: Duration = Duration::from_millis(20);
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// No datagram of the bench; of a length that needs no padding.
const HELLO: &[u8] = b"hello...";

/// Under way at once towards the server's relayed address: coturn asks for no more than 128 KiB there, which is 56
/// of 1200 bytes.
const RELAYED_WINDOW_MAX: u64 = 32;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Direction {
    /// From the application to the peer.
    Up,
    /// From the peer to the application.
    Down,
    /// Up and down again.
    Echo,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Echo => "echo",
        })
    }
}

/// What is measured.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) transport: Transport,
    pub(crate) direction: Direction,
    pub(crate) pattern: Pattern,
}

/// The client goes first when dropped: it would end at the first ICMP error.
pub(crate) struct Lane {
    client: Client,
    sender: Sender,
    sink: Sink,
    _echo: Option<Echo>,
}

pub(crate) struct Round {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Of the client alone, for each datagram received.
    pub(crate) cpu_micros: f64,
    pub(crate) per_second: f64,
}

impl Lane {
    pub(crate) fn start(kind: Kind, case: Case, server: &Coturn) -> Outcome<Self> {
        let (application, peer) = (UdpSocket::bind(LOOPBACK)?, UdpSocket::bind(LOOPBACK)?);
        let (client, ready) = Client::start(kind, case.transport, server, peer.local_addr()?)?;
        say_hello(&application, ready.local, &peer)?;
        say_hello(&peer, ready.relayed, &application)?;
        let (pattern, size) = (case.pattern, case.pattern.size);
        let (sender, sink, echo) = match case.direction {
            Direction::Up => {
                let sender = Sender::on(application, ready.local, pattern, WINDOW_MAX)?;
                (sender, Sink::on(peer, size)?, None)
            }
            Direction::Down => {
                let sender = Sender::on(peer, ready.relayed, pattern, RELAYED_WINDOW_MAX)?;
                (sender, Sink::on(application, size)?, None)
            }
            Direction::Echo => {
                let socket = application.try_clone()?;
                let sender = Sender::on(socket, ready.local, pattern, RELAYED_WINDOW_MAX)?;
                (sender, Sink::on(application, size)?, Some(Echo::on(peer)?))
            }
        };
        let mut lane = Self { client, sender, sink, _echo: echo };
        lane.round(WARM_UP)?;
        Ok(lane)
    }

    pub(crate) fn round(&mut self, length: Duration) -> Outcome<Round> {
        let before = self.client.cpu_time()?;
        let sent = self.sender.run(&self.sink, length)?;
        self.client.check()?;
        let cpu = self.client.cpu_time()? - before;
        if sent.received == 0 {
            return Err("no datagram came through".into());
        }
        if sent.received > sent.sent {
            return Err(format!("{} datagrams were sent, {} came", sent.sent, sent.received).into());
        }
        Ok(Round {
            sent: sent.sent,
            received: sent.received,
            cpu_micros: cpu.as_secs_f64() * 1e6 / sent.received as f64,
            per_second: sent.received as f64 / sent.elapsed.as_secs_f64(),
        })
    }
}

/// Sends until something has arrived.
fn say_hello(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Outcome<()> {
    at.set_read_timeout(Some(HELLO_INTERVAL))?;
    let began = Instant::now();
    while began.elapsed() < HELLO_TIMEOUT {
        from.send_to(HELLO, to)?;
        if at.recv(&mut [0; 64]).is_ok() {
            return Ok(());
        }
    }
    Err(format!("no hello came through in {HELLO_TIMEOUT:?}").into())
}
