//! A connection that the system made: TCP, plain or with TLS on it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls_stream::{StillTls, TlsStream};

/// See the file's head.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
}

impl From<TcpStream> for Transport {
    fn from(tcp: TcpStream) -> Self {
        Self::Tcp(tcp)
    }
}

impl From<TlsStream> for Transport {
    fn from(tls: TlsStream) -> Self {
        Self::Tls(Box::new(tls))
    }
}

impl Transport {
    /// What it runs on.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => tls.tcp(),
        }
    }

    /// Leaves its thread, with all that it has read and not given.
    ///
    /// # Errors
    /// The thread does not let it go.
    pub(crate) fn still(self) -> io::Result<Still> {
        Ok(match self {
            Self::Tcp(tcp) => Still::Tcp(tcp.into_std()?),
            Self::Tls(tls) => Still::Tls(Box::new(tls.still()?)),
        })
    }

    /// Whether a byte is there to be read; `false` at the stream's end. Takes nothing.
    ///
    /// # Errors
    /// None will ever come, for the connection broke.
    pub(crate) fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self {
            Self::Tcp(tcp) => {
                let mut byte = [0];
                tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)).map_ok(|len| len > 0)
            }
            Self::Tls(tls) => tls.poll_spoken(cx),
        }
    }
}

/// A connection that no thread waits for: on its way to another one.
#[derive(Debug)]
pub(crate) enum Still {
    Tcp(std::net::TcpStream),
    Tls(Box<StillTls>),
}

impl Still {
    /// Goes on, on the thread that calls.
    ///
    /// # Errors
    /// The thread cannot wait for it.
    pub(crate) fn wake(self) -> io::Result<Transport> {
        Ok(match self {
            Self::Tcp(tcp) => Transport::Tcp(TcpStream::from_std(tcp)?),
            Self::Tls(tls) => Transport::Tls(Box::new(tls.wake()?)),
        })
    }
}

/// The same call to whichever it is.
macro_rules! delegate {
    ($stream:expr, $poll:ident($($argument:expr),*)) => {
        match $stream.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).$poll($($argument),*),
            Self::Tls(tls) => Pin::new(&mut **tls).$poll($($argument),*),
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
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
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown(cx))
    }
}
