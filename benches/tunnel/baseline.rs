//! The baseline: a faithful simple tunnel, one `recv` and one `write_all` per datagram on plain tokio.
//!
//! RFC 4571 frames, the default multi-threaded runtime, `TCP_NODELAY`, a task per direction. One large read may
//! bring many frames; each datagram of them is one `send`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;

use crate::{Outcome, parent};

const HEADER: usize = 2;
const FRAME_MAX: usize = HEADER + u16::MAX as usize;

/// Calls `tcp` and carries for the first application that sends to `udp`. A `udp_buffer` of 0 is the system's.
pub(crate) fn near(tcp: SocketAddr, udp: SocketAddr, udp_buffer: usize) -> Outcome<()> {
    Runtime::new()?.block_on(async {
        let udp = UdpSocket::bind(udp).await?;
        if udp_buffer > 0 {
            SockRef::from(&udp).set_recv_buffer_size(udp_buffer)?;
        }
        let tcp = TcpStream::connect(tcp).await?;
        parent::announce(udp.local_addr()?)?;
        let (_, application) = udp.peek_from(&mut [0]).await?;
        udp.connect(application).await?;
        carry(tcp, udp).await
    })
}

/// Listens at `tcp`; each connection has a UDP socket of its own towards `service`.
pub(crate) fn far(tcp: SocketAddr, service: SocketAddr) -> Outcome<()> {
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(tcp).await?;
        parent::announce(listener.local_addr()?)?;
        loop {
            let (tcp, peer) = listener.accept().await?;
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            udp.connect(service).await?;
            tokio::spawn(async move {
                if let Err(error) = carry(tcp, udp).await {
                    eprintln!("{peer}: {error}");
                }
            });
        }
    })
}

async fn carry(tcp: TcpStream, udp: UdpSocket) -> Outcome<()> {
    tcp.set_nodelay(true)?;
    let (reader, writer) = tcp.into_split();
    let udp = Arc::new(udp);
    let mut up = tokio::spawn(udp_to_tcp(udp.clone(), writer));
    let mut down = tokio::spawn(tcp_to_udp(reader, udp));
    let ended = tokio::select! { ended = &mut up => ended, ended = &mut down => ended };
    up.abort();
    down.abort();
    ended?
}

async fn udp_to_tcp(udp: Arc<UdpSocket>, mut tcp: OwnedWriteHalf) -> Outcome<()> {
    let mut frame = vec![0; FRAME_MAX];
    loop {
        let len = udp.recv(&mut frame[HEADER..]).await?;
        frame[..HEADER].copy_from_slice(&u16::try_from(len)?.to_be_bytes());
        tcp.write_all(&frame[..HEADER + len]).await?;
    }
}

async fn tcp_to_udp(mut tcp: OwnedReadHalf, udp: Arc<UdpSocket>) -> Outcome<()> {
    let mut buffer = vec![0; FRAME_MAX];
    let mut filled = 0;
    loop {
        match tcp.read(&mut buffer[filled..]).await? {
            0 => return Err("the other end closed the connection".into()),
            len => filled += len,
        }
        let mut done = 0;
        while let Some(datagram) = first_datagram(&buffer[done..filled]) {
            udp.send(datagram).await?;
            done += HEADER + datagram.len();
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
}

/// The first datagram, if all of it is there.
fn first_datagram(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    rest.get(..u16::from_be_bytes(*header).into())
}
