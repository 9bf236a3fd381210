//! A program of another make that speaks RFC 4571: a plain TCP connection.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A datagram with its 16-bit length in front.
pub fn framed(datagram: &[u8]) -> Vec<u8> {
    let mut frame = u16::try_from(datagram.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(datagram);
    frame
}

pub struct RawPeer(pub TcpStream);

impl RawPeer {
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = super::soon("connecting", TcpStream::connect(to)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = super::soon("accepting", listener.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        super::soon("writing", self.0.write_all(bytes)).await.unwrap();
    }

    pub async fn send(&mut self, datagram: &[u8]) {
        self.write(&framed(datagram)).await;
    }

    pub async fn receive(&mut self) -> Vec<u8> {
        super::soon("reading a frame", async {
            let len = self.0.read_u16().await.unwrap();
            let mut datagram = vec![0; len.into()];
            self.0.read_exact(&mut datagram).await.unwrap();
            datagram
        })
        .await
    }

    /// Reads until the far side has closed or reset the connection.
    pub async fn closed(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        let end = async { while matches!(self.0.read(&mut buffer).await, Ok(1..)) {} };
        super::soon("the end of the connection", end).await;
    }
}
