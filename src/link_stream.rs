//! What a link may run on: a TCP connection with the peer, plain or with TLS, or one that a TURN server relays.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls_stream::TlsStream;
use crate::transport::Transport;
use crate::turn_stream::RelayStream;

/// See the file's head.
#[derive(Debug)]
pub(crate) enum Stream {
    Direct(Transport),
    Relayed(RelayStream),
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Direct(tcp.into())
    }
}

impl From<TlsStream> for Stream {
    fn from(tls: TlsStream) -> Self {
        Self::Direct(tls.into())
    }
}

impl From<RelayStream> for Stream {
    fn from(relayed: RelayStream) -> Self {
        relayed.tune_for_datagrams();
        Self::Relayed(relayed)
    }
}

impl Stream {
    /// Whether a byte is there to be read; `false` if none will ever come. Takes nothing.
    pub(crate) fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self {
            Self::Direct(direct) => direct.poll_spoken(cx).map(|spoken| spoken.unwrap_or(false)),
            Self::Relayed(relayed) => relayed.poll_spoken(cx),
        }
    }
}

/// The same call to whichever it is.
macro_rules! delegate {
    ($stream:expr, $poll:ident($($argument:expr),*)) => {
        match $stream.get_mut() {
            Self::Direct(direct) => Pin::new(direct).$poll($($argument),*),
            Self::Relayed(relayed) => Pin::new(relayed).$poll($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Direct(direct) => direct.is_write_vectored(),
            Self::Relayed(relayed) => relayed.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn_stream::tests::{Relayed, relayed};
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn direct() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap().into(), far.unwrap().0)
    }

    /// Everything a link does with its stream.
    async fn carries_bytes_both_ways(mut stream: Stream, mut far: impl AsyncRead + AsyncWrite + Unpin) {
        far.write_all(b"down").await.unwrap();
        assert!(poll_fn(|cx| stream.poll_spoken(cx)).await);
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"down");
        assert!(stream.is_write_vectored());
        let parts = [IoSlice::new(b"u"), IoSlice::new(b"p ")];
        assert_eq!(stream.write_vectored(&parts).await.unwrap(), 3);
        stream.write_all(b"again").await.unwrap();
        stream.flush().await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        far.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "up again");
        drop(far);
        assert!(!poll_fn(|cx| stream.poll_spoken(cx)).await);
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 0);
    }

    #[actix::test]
    async fn a_direct_connection_carries_bytes_both_ways() {
        let (stream, far) = direct().await;
        carries_bytes_both_ways(stream, far).await;
    }

    #[actix::test]
    async fn a_connection_with_tls_carries_bytes_both_ways() {
        let (near, far) = crate::tls_stream::tests::pair().await;
        carries_bytes_both_ways(near.into(), far).await;
    }

    #[actix::test]
    async fn a_relayed_connection_carries_bytes_both_ways() {
        let Relayed { stream, server, .. } = relayed(b"", "192.0.2.1:9", 1).await;
        carries_bytes_both_ways(stream.into(), server).await;
    }
}
