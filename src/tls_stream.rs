//! A TLS connection: rustls's state machine on a TCP connection.
//!
//! It reads much at once where its reader has room for much, and what it writes is flushed before it takes more:
//! nothing that was taken grows old in a buffer of its own.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;
use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::TlsError;

/// One read from the socket takes at most this.
const READ_LEN: usize = 128 << 10;
/// More than the longest record (RFC 8446 §5.2): so much may come out of one that was begun before.
const RECORD_LEN: usize = 20 << 10;
/// A reader with less room gets what one small read brings.
const MUCH_ROOM: usize = 64 << 10;

thread_local! {
    // An arbiter's, not a connection's: one that idles owns little.
    static SEALED: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_LEN]);
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct TlsStream {
    tcp: TcpStream,
    tls: Connection,
    /// Nothing more will come: close_notify, or the connection's end, which is an ordinary end too.
    eof: bool,
    /// Our close_notify is on its way.
    closing: bool,
}

/// One that no thread waits for.
#[derive(Debug)]
pub(crate) struct StillTls {
    tcp: std::net::TcpStream,
    tls: Connection,
    eof: bool,
    closing: bool,
}

impl StillTls {
    /// Goes on, on the thread that calls.
    ///
    /// # Errors
    /// The thread cannot wait for it.
    pub(crate) fn wake(self) -> io::Result<TlsStream> {
        let Self { tcp, tls, eof, closing } = self;
        Ok(TlsStream { tcp: TcpStream::from_std(tcp)?, tls, eof, closing })
    }
}

impl TlsStream {
    /// Leaves its thread, with all that it has decrypted and not given.
    ///
    /// # Errors
    /// The thread does not let it go.
    pub(crate) fn still(self) -> io::Result<StillTls> {
        let Self { tcp, tls, eof, closing } = self;
        Ok(StillTls { tcp: tcp.into_std()?, tls, eof, closing })
    }

    /// Ready when both sides are sure of each other; of the peer's bytes at most about `limit` are read for it.
    ///
    /// # Errors
    /// In a sentence; the peer has been sent an alert where there is one for it.
    pub(crate) async fn handshake(tcp: TcpStream, tls: Connection, limit: usize) -> Result<Self, TlsError> {
        let mut stream = Self { tcp, tls, eof: false, closing: false };
        let mut left = limit;
        loop {
            poll_fn(|cx| stream.poll_send(cx)).await?;
            if !stream.tls.is_handshaking() {
                let tls = &stream.tls;
                let suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
                tracing::debug!(version = ?tls.protocol_version(), ?suite, "TLS handshake done");
                return Ok(stream);
            }
            if left == 0 {
                return Err(TlsError::TooLong { limit });
            }
            match poll_fn(|cx| stream.poll_little(cx)).await? {
                0 => return Err(TlsError::Closed),
                len => left = left.saturating_sub(len),
            }
        }
    }

    /// The protocol that both sides agreed on (ALPN).
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Whether a byte is there to be read; `false` at the stream's end. Takes nothing.
    ///
    /// # Errors
    /// None will ever come, for the connection broke.
    pub(crate) fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let state = self.tls.process_new_packets().map_err(TlsError::from)?;
            if state.plaintext_bytes_to_read() > 0 {
                return Poll::Ready(Ok(true));
            }
            if self.eof || state.peer_has_closed() {
                return Poll::Ready(Ok(false));
            }
            ready!(self.poll_little(cx))?;
        }
    }

    /// One read of some KiB, straight into rustls; says how many bytes came, 0 at the end.
    fn poll_little(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, TlsError>> {
        let mut socket = Socket { tcp: &mut self.tcp, cx };
        match self.tls.read_tls(&mut socket) {
            Ok(len) => {
                self.eof |= len == 0;
                Poll::Ready(self.process(cx).map(|()| len))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// One large read. There is room in `buf` for all that it and a record begun before can hold.
    fn poll_much(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<(), TlsError>> {
        SEALED.with_borrow_mut(|sealed| {
            let len = READ_LEN.min(buf.remaining() - RECORD_LEN);
            let mut read = ReadBuf::new(&mut sealed[..len]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let mut sealed = read.filled();
            self.eof |= sealed.is_empty();
            while !sealed.is_empty() && self.tls.read_tls(&mut sealed)? > 0 {
                self.process(cx)?;
                self.open_into(buf)?;
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Decrypts what has been read, and sends what that asks for: an alert, the answer to a KeyUpdate.
    fn process(&mut self, cx: &mut Context<'_>) -> Result<(), TlsError> {
        let had_more = self.tls.wants_write();
        let processed = self.tls.process_new_packets();
        if self.tls.wants_write() && !had_more {
            // What does not go out now does before the next write; of an alert nothing depends. What was there before is
            // the writer's, who may be another task and waits for the socket himself.
            let _ = self.poll_send(cx);
        }
        processed?;
        Ok(())
    }

    /// Gives what has been decrypted, as far as there is room.
    fn open_into(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        while buf.remaining() > 0 {
            match self.tls.reader().read(buf.initialize_unfilled()) {
                Ok(0) => {
                    self.eof = true;
                    break;
                }
                Ok(len) => buf.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.eof = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ready when all that was encrypted is the socket's.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            let mut socket = Socket { tcp: &mut self.tcp, cx };
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(self.alert().unwrap_or(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What the peer said last, if that was an alert: for it closes then, and writing fails before it is read.
    fn alert(&mut self) -> Option<io::Error> {
        let mut bytes = [0; 4096];
        // Not through tokio, which may not have heard yet that there is something.
        while let Ok((len @ 1.., _)) = rustix::net::recv(&self.tcp, &mut bytes[..], RecvFlags::DONTWAIT) {
            let mut bytes = &bytes[..len];
            while !bytes.is_empty() {
                self.tls.read_tls(&mut bytes).ok().filter(|len| *len > 0)?;
                if let Err(error) = self.tls.process_new_packets() {
                    return Some(TlsError::from(error).into());
                }
            }
        }
        None
    }

    /// Encrypts what `write` gives, once all that was encrypted before is the socket's.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        let taken = write(&mut self.tls.writer())?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // The rest goes with a flush, or before the next write.
            _ => Poll::Ready(Ok(taken)),
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            this.open_into(buf)?;
            if buf.filled().len() > before || buf.remaining() == 0 || this.eof {
                return Poll::Ready(Ok(()));
            }
            if buf.remaining() >= MUCH_ROOM {
                ready!(this.poll_much(cx, buf))?;
            } else {
                ready!(this.poll_little(cx))?;
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |writer| writer.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |writer| writer.write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            this.tls.send_close_notify();
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

/// The socket as rustls wants it: "not now" is an error.
struct Socket<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

fn now_or_error<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Socket<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        now_or_error(Pin::new(&mut *self.tcp).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        now_or_error(Pin::new(&mut *self.tcp).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        now_or_error(Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "tls_stream_tests.rs"]
mod peer_tests;
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{ClientTls, ServerCertificate, ServerTls};
    use crate::tls::{Acceptor, Connector, HANDSHAKE_TIMEOUT};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Both ends of a connection, the client's first.
    pub(crate) async fn pair() -> (TlsStream, TlsStream) {
        pair_through(async |addr| addr).await
    }

    /// The same, the server reached through what stands before it.
    async fn pair_through(before: impl AsyncFnOnce(SocketAddr) -> SocketAddr) -> (TlsStream, TlsStream) {
        let acceptor = Acceptor::new(&ServerTls::new(ServerCertificate::SelfSigned), b"test/1").unwrap();
        let tls = ClientTls { pin: Some(acceptor.pin()), ..ClientTls::default() };
        let connector = Connector::new(&tls, Some(b"test/1")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = before(listener.local_addr().unwrap()).await;
        let client = async {
            let tcp = TcpStream::connect(addr).await.unwrap();
            connector.connect(tcp, "127.0.0.1").await.unwrap()
        };
        let server = async {
            let (tcp, _) = listener.accept().await.unwrap();
            acceptor.accept(tcp, HANDSHAKE_TIMEOUT).await.unwrap()
        };
        tokio::join!(client, server)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    /// Writes all of it in pieces of this length, then closes.
    async fn write(mut stream: TlsStream, bytes: Vec<u8>, piece: usize) {
        for piece in bytes.chunks(piece) {
            stream.write_all(piece).await.unwrap();
        }
        stream.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn bytes_arrive_as_they_were_whatever_the_sizes_of_reads_and_writes() {
        for (len, piece, room) in [
            (300_000, 1, 1 << 20),
            (4 << 20, 64 << 10, 256 << 10),
            (4 << 20, 16 << 10, 64 << 10),
            (4 << 20, 300_000, 70_000),
            (1 << 20, 5_000, 20_000),
            (100_000, 64 << 10, 1),
        ] {
            let (client, mut server) = pair().await;
            let writer = tokio::spawn(write(client, pattern(len), piece));
            let (mut got, mut buffer) = (Vec::new(), vec![0; room]);
            loop {
                match server.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => got.extend_from_slice(&buffer[..count]),
                }
            }
            writer.await.unwrap();
            assert!(got == pattern(len), "{len} bytes in pieces of {piece} into {room}: {}", got.len());
        }
    }

    /// Passes bytes on one by one, both ways.
    async fn trickle(to: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(to).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            tokio::join!(one_by_one(&mut from_client, &mut to_server), async {
                one_by_one(&mut from_server, &mut to_client).await;
            });
        });
        addr
    }

    async fn one_by_one(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
        while let Ok(byte) = from.read_u8().await {
            to.write_u8(byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        let _ = to.shutdown().await;
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_at_every_byte_carries_the_same() {
        let (client, mut server) = pair_through(trickle).await;
        let writer = tokio::spawn(write(client, pattern(20_000), 7_000));
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert!(got == pattern(20_000));
    }

    #[tokio::test]
    async fn a_writer_is_held_up_by_a_peer_that_does_not_read_and_loses_nothing() {
        let (mut client, mut server) = pair().await;
        let bytes = pattern(64 << 10);
        let mut taken = 0;
        let full = poll_fn(|cx| {
            while Pin::new(&mut client).poll_flush(cx).is_ready() {
                match Pin::new(&mut client).poll_write(cx, &bytes) {
                    Poll::Ready(len) => taken += len.unwrap(),
                    Poll::Pending => break,
                }
            }
            // What it has not sent yet it does not take more of.
            Poll::Ready(Pin::new(&mut client).poll_write(cx, b"more").is_pending())
        });
        assert!(full.await);
        let rest = async {
            client.shutdown().await.unwrap();
            client
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(rest, server.read_to_end(&mut got));
        assert_eq!(read.unwrap(), taken);
    }

    #[tokio::test]
    async fn an_end_without_close_notify_is_an_ordinary_end() {
        let (mut client, mut server) = pair().await;
        client.write_all(b"last").await.unwrap();
        client.tcp.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"last");
        assert!(!poll_fn(|cx| server.poll_spoken(cx)).await.unwrap());
    }

    #[tokio::test]
    async fn it_is_known_that_a_byte_is_there_without_taking_it() {
        let (mut client, mut server) = pair().await;
        assert!(poll_fn(|cx| Poll::Ready(server.poll_spoken(cx))).await.is_pending());
        client.write_all(b"hello").await.unwrap();
        assert!(poll_fn(|cx| server.poll_spoken(cx)).await.unwrap());
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello");
        assert!(!poll_fn(|cx| server.poll_spoken(cx)).await.unwrap());
    }

    #[tokio::test]
    async fn a_client_that_talks_too_long_before_its_handshake_is_over_is_cut_off() {
        let acceptor = Acceptor::new(&ServerTls::new(ServerCertificate::SelfSigned), b"test/1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        // The beginning of a ClientHello of 60,000 bytes, in records of 4 KiB.
        let hello = [&[1, 0, 0xea, 0x60][..], &[0; 60_000]].concat();
        for part in hello.chunks(4096) {
            let [high, low] = u16::try_from(part.len()).unwrap().to_be_bytes();
            client.write_all(&[&[22, 3, 1, high, low][..], part].concat()).await.unwrap();
        }
        let error = acceptor.accept(tcp, HANDSHAKE_TIMEOUT).await.unwrap_err();
        assert!(matches!(error, TlsError::TooLong { .. }), "{error}");
    }
}
