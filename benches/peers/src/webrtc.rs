//! A small forwarder on the crate `turn` of webrtc-rs, one `recv` and one `send` per datagram.

use std::net::SocketAddr;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::UdpSocket;
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

use crate::Outcome;
use crate::client::Ready;
use crate::coturn::{PASSWORD, REALM, USER};
use crate::role::announce;
use crate::tunnel::{LARGE_BUFFER, LOOPBACK};

/// The largest UDP payload.
const DATAGRAM_MAX: usize = 65_507;

pub(crate) fn run(server: SocketAddr, peer: SocketAddr) -> Outcome<()> {
    // Measured: on several threads it costs more.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(forward(server, peer))
}

async fn forward(server: SocketAddr, peer: SocketAddr) -> Outcome<()> {
    let (control, application) = (bind().await?, bind().await?);
    let client = Client::new(ClientConfig {
        stun_serv_addr: String::new(),
        turn_serv_addr: server.to_string(),
        username: USER.into(),
        password: PASSWORD.into(),
        realm: REALM.into(),
        software: String::new(),
        rto_in_ms: 0,
        conn: Arc::new(control),
        vnet: None,
    })
    .await?;
    client.listen().await?;
    let relay = client.allocate().await?;
    announce(Ready { local: application.local_addr()?, relayed: relay.local_addr()? })?;
    let (_, from) = application.peek_from(&mut [0]).await?;
    application.connect(from).await?;
    tokio::select! {
        ended = up(&application, &relay, peer) => ended,
        ended = down(&relay, &application) => ended,
    }
}

/// As large as the system grants: not the loss but the cost of a datagram is to be measured.
pub(crate) async fn bind() -> Outcome<UdpSocket> {
    let socket = UdpSocket::bind(LOOPBACK).await?;
    SockRef::from(&socket).set_recv_buffer_size(LARGE_BUFFER)?;
    Ok(socket)
}

/// The first datagram makes the client ask for a permission and a channel.
async fn up(application: &UdpSocket, relay: &impl Conn, peer: SocketAddr) -> Outcome<()> {
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let len = application.recv(&mut datagram).await?;
        relay.send_to(&datagram[..len], peer).await?;
    }
}

async fn down(relay: &impl Conn, application: &UdpSocket) -> Outcome<()> {
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let (len, _) = relay.recv_from(&mut datagram).await?;
        application.send(&datagram[..len]).await?;
    }
}
