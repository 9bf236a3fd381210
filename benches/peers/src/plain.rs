//! A small forwarder on `turn-client-proto` with tokio's sockets, one `recv` and one `send` per datagram.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use turn_client_proto::api::{Transmit, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet};
use turn_client_proto::prelude::*;
use turn_client_proto::stun::Instant;
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::types::{TransportType, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;

use crate::Outcome;
use crate::client::Ready;
use crate::coturn::{PASSWORD, USER};
use crate::role::announce;
use crate::webrtc::bind;

/// More than any message of TURN: the largest UDP payload and a header.
const MESSAGE_MAX: usize = 1 << 16;

/// Measured: from 4 KiB to 64 KiB it makes no difference; the client moves what lies behind each message.
const READ_MAX: usize = 16 << 10;

pub(crate) fn run_udp(server: SocketAddr, peer: SocketAddr) -> Outcome<()> {
    block_on(async {
        let socket = bind().await?;
        socket.connect(server).await?;
        let client = TurnClientUdp::allocate(socket.local_addr()?, server, config());
        Forwarder::new(client, Wire::Udp(socket), peer).await?.run().await
    })
}

pub(crate) fn run_tcp(server: SocketAddr, peer: SocketAddr) -> Outcome<()> {
    block_on(async {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let client = TurnClientTcp::allocate(stream.local_addr()?, server, config());
        Forwarder::new(client, Wire::Tcp(stream), peer).await?.run().await
    })
}

fn block_on(forward: impl Future<Output = Outcome<()>>) -> Outcome<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(forward)
}

fn config() -> TurnConfig {
    TurnConfig::new(TurnCredentials::new(USER, PASSWORD))
}

/// The way to the server.
enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Wire {
    fn transport(&self) -> TransportType {
        match self {
            Self::Udp(_) => TransportType::Udp,
            Self::Tcp(_) => TransportType::Tcp,
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.recv(buffer).await,
            Self::Tcp(stream) => loop {
                stream.readable().await?;
                match stream.try_read(&mut buffer[..READ_MAX]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
            },
        }
    }

    async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(bytes).await.map(drop),
            Self::Tcp(stream) => {
                let mut done = 0;
                while done < bytes.len() {
                    match stream.try_write(&bytes[done..]) {
                        Ok(len) => done += len,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }
}

struct Forwarder<C> {
    client: C,
    wire: Wire,
    application: UdpSocket,
    /// Whether the application has shown itself.
    is_joined: bool,
    peer: SocketAddr,
    relayed: Option<SocketAddr>,
    message: Vec<u8>,
    began: std::time::Instant,
}

impl<C: TurnClientApi> Forwarder<C> {
    async fn new(client: C, wire: Wire, peer: SocketAddr) -> Outcome<Self> {
        let application = bind().await?;
        let (message, began) = (vec![0; MESSAGE_MAX], std::time::Instant::now());
        Ok(Self { client, wire, application, is_joined: false, peer, relayed: None, message, began })
    }

    async fn run(mut self) -> Outcome<()> {
        let (mut from_server, mut from_application) = (vec![0; MESSAGE_MAX], vec![0; MESSAGE_MAX]);
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        loop {
            // What only carries data leaves nothing else to do.
            let is_control = tokio::select! {
                received = self.wire.receive(&mut from_server) => {
                    let len = received?;
                    self.down(&from_server[..len]).await?
                }
                received = self.application.recv_from(&mut from_application) => {
                    let (len, from) = received?;
                    self.join(from).await?;
                    self.up(&from_application[..len]).await?;
                    false
                }
                () = &mut timer => true,
            };
            if is_control {
                let wait = self.turn().await?;
                timer.as_mut().reset(tokio::time::Instant::now() + wait);
            }
        }
    }

    async fn join(&mut self, application: SocketAddr) -> Outcome<()> {
        if !self.is_joined {
            self.application.connect(application).await?;
            self.is_joined = true;
        }
        Ok(())
    }

    async fn up(&mut self, datagram: &[u8]) -> Outcome<()> {
        if let Some(transmit) = self.client.send_to(TransportType::Udp, self.peer, datagram, self.now())? {
            let len = transmit.write_into(&mut self.message).data.len();
            self.wire.send(&self.message[..len]).await?;
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::from_std(self.began)
    }

    /// Says whether it was, in part, not data.
    async fn down(&mut self, bytes: &[u8]) -> Outcome<bool> {
        let (local, server) = (self.client.local_addr(), self.client.remote_addr());
        match self.client.recv(Transmit::new(bytes, self.wire.transport(), server, local), self.now()) {
            TurnRecvRet::PeerData(data) => give(&self.application, data.data()).await?,
            _ => return Ok(true),
        }
        while let Some(data) = self.client.poll_recv(self.now()) {
            give(&self.application, data.data()).await?;
        }
        Ok(false)
    }

    /// Does what the client wants to be done, and says how long it can wait.
    async fn turn(&mut self) -> Outcome<Duration> {
        let wait = match self.client.poll(self.now()) {
            TurnPollRet::WaitUntil(until) => until.saturating_duration_since(self.now()),
            other => return Err(format!("the client ended: {other:?}").into()),
        };
        while let Some(transmit) = self.client.poll_transmit(self.now()) {
            self.wire.send(&transmit.data).await?;
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                TurnEvent::AllocationCreated(transport, relayed) => {
                    self.relayed = Some(relayed);
                    self.client.bind_channel(transport, self.peer, self.now())?;
                    return Ok(Duration::ZERO);
                }
                TurnEvent::ChannelCreated(..) => {
                    let relayed = self.relayed.ok_or("a channel without an allocation")?;
                    announce(Ready { local: self.application.local_addr()?, relayed })?;
                }
                TurnEvent::PermissionCreated(..) => {}
                failed => return Err(format!("{failed:?}").into()),
            }
        }
        Ok(wait)
    }
}

async fn give(application: &UdpSocket, datagram: &[u8]) -> io::Result<()> {
    application.send(datagram).await.map(drop)
}
