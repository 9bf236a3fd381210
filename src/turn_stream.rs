//! `RelayStream`: a connection with a peer through a TURN server, once it is bound (RFC 6062 §4.3, §4.5).

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix::prelude::*;
use bytes::Bytes;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sockopt::{be_patient, tune_tcp};
use crate::transport::Transport;

/// What the server calls one connection with a peer: CONNECTION-ID, RFC 6062 §6.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ConnectionId(pub u32);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// To the TURN client: a stream that it handed out has ended.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub(crate) struct RelayStreamEnded {
    /// The client's own number for the stream.
    pub(crate) key: u64,
    /// The last error that a read or a write met; `None` if the stream was closed or dropped in order.
    pub(crate) error: Option<String>,
}

/// The bytes to and from one peer of a TCP allocation. What came before the stream was bound is read first, then
/// what the data connection brings. Closes the connection when dropped.
///
/// Over TLS (`turns:`) what was written has gone out when a flush says so.
///
/// A server need not know half-closed connections: after `shutdown` the other direction may end too, and what
/// the server had not passed on may be lost.
#[derive(Debug)]
pub struct RelayStream {
    transport: Transport,
    /// Came with the answer that bound the connection, or right behind it.
    early: Bytes,
    peer: SocketAddr,
    connection: ConnectionId,
    guard: Guard,
}

/// Tells the client when it is dropped.
#[derive(Debug)]
struct Guard {
    client: Recipient<RelayStreamEnded>,
    ended: RelayStreamEnded,
}

impl Guard {
    /// Remembers an error.
    fn see<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.ended.error = Some(error.to_string()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // One message for each stream, so the mailbox's capacity need not bound it.
        self.client.do_send(self.ended.clone());
    }
}

impl RelayStream {
    /// A data connection that the server has bound to `peer`, tuned already. `early` are the peer's bytes that
    /// were read with the answer; `client` will be told of the stream's end, under the number `key`.
    pub(crate) fn new(
        transport: Transport,
        early: Bytes,
        peer: SocketAddr,
        connection: ConnectionId,
        client: Recipient<RelayStreamEnded>,
        key: u64,
    ) -> Self {
        // As it was dialed, a peer that pauses for 10 s would count as dead.
        let _ = be_patient(transport.tcp());
        let ended = RelayStreamEnded { key, error: None };
        Self { transport, early, peer, connection, guard: Guard { client, ended } }
    }

    /// The far end, as the server sees it.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The server's number for it.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// This machine's end of the data connection.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.transport.tcp().local_addr()
    }

    /// The server's end of the data connection.
    ///
    /// # Errors
    /// What the system says, such as that the connection has been reset.
    pub fn server_addr(&self) -> io::Result<SocketAddr> {
        self.transport.tcp().peer_addr()
    }

    /// It carries datagrams from now on: a peer that does not read them for 10 s is dead.
    pub(crate) fn tune_for_datagrams(&self) {
        if let Err(error) = tune_tcp(self.transport.tcp()) {
            tracing::debug!(%error, peer = %self.peer, "tuning a relay connection");
        }
    }

    /// Whether a byte of the peer is there to be read; `false` if none will ever come.
    pub(crate) fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.early.is_empty() {
            return Poll::Ready(true);
        }
        let spoken = ready!(self.transport.poll_spoken(cx));
        Poll::Ready(self.guard.see(spoken).unwrap_or(false))
    }
}

/// The same call to what the connection runs on; an error is remembered.
macro_rules! delegate {
    ($stream:expr, $poll:ident($($argument:expr),*)) => {{
        let result = ready!(Pin::new(&mut $stream.transport).$poll($($argument),*));
        Poll::Ready($stream.guard.see(result))
    }};
}

impl AsyncRead for RelayStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return delegate!(self, poll_read(cx, buffer));
        }
        let len = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush(cx))
    }

    /// The error of a connection that has gone already says nothing of how it went: it is not told.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;

    /// Stands in for the TURN client.
    struct Client(mpsc::UnboundedSender<RelayStreamEnded>);

    impl Actor for Client {
        type Context = actix::Context<Self>;
    }

    impl Handler<RelayStreamEnded> for Client {
        type Result = ();

        fn handle(&mut self, ended: RelayStreamEnded, _: &mut Self::Context) {
            let _ = self.0.send(ended);
        }
    }

    /// A stream, the server's end of its data connection, and what its client is told.
    pub(crate) struct Relayed {
        pub(crate) stream: RelayStream,
        pub(crate) server: TcpStream,
        pub(crate) ended: mpsc::UnboundedReceiver<RelayStreamEnded>,
    }

    pub(crate) async fn relayed(early: &'static [u8], peer: &str, key: u64) -> Relayed {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (data, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (tell, ended) = mpsc::unbounded_channel();
        // The address would not keep it alive when the test drops the stream: the channel is what is asked.
        let client = Client(tell).start().recipient();
        let (early, peer) = (Bytes::from_static(early), peer.parse().unwrap());
        let stream = RelayStream::new(data.unwrap().into(), early, peer, ConnectionId(7), client, key);
        Relayed { stream, server: server.unwrap().0, ended }
    }

    /// Makes the other end see a reset instead of an orderly end.
    pub(crate) fn reset(tcp: TcpStream) {
        socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }

    #[actix::test]
    async fn early_bytes_are_read_first_however_small_the_buffer() {
        let Relayed { mut stream, mut server, .. } = relayed(b"early ", "192.0.2.1:9", 1).await;
        server.write_all(b"late").await.unwrap();
        drop(server);
        let mut got = Vec::new();
        let mut buffer = [0; 4];
        loop {
            let len = stream.read(&mut buffer).await.unwrap();
            if len == 0 {
                break;
            }
            got.extend_from_slice(&buffer[..len]);
        }
        assert_eq!(got, b"early late");
    }

    #[actix::test]
    async fn writes_pass_through_vectored_ones_as_one() {
        let Relayed { mut stream, mut server, .. } = relayed(b"", "192.0.2.1:9", 1).await;
        assert!(stream.is_write_vectored());
        let parts = [IoSlice::new(b"one "), IoSlice::new(b"two "), IoSlice::new(b"three")];
        assert_eq!(stream.write_vectored(&parts).await.unwrap(), 13);
        stream.write_all(b" four").await.unwrap();
        stream.flush().await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "one two three four");
    }

    #[cfg(target_os = "linux")]
    #[actix::test]
    async fn a_peer_may_pause_but_not_the_one_of_a_link() {
        let stream = relayed(b"", "192.0.2.1:9", 1).await.stream;
        let tcp = stream.transport.tcp();
        let timeout = || socket2::SockRef::from(tcp).tcp_user_timeout().unwrap();
        tune_tcp(tcp).unwrap();
        assert!(timeout().is_some());
        be_patient(tcp).unwrap();
        assert_eq!(timeout(), None);
        stream.tune_for_datagrams();
        assert!(timeout().is_some());
    }

    #[actix::test]
    async fn it_says_whom_it_connects() {
        let Relayed { stream, server, .. } = relayed(b"", "192.0.2.1:9", 1).await;
        assert_eq!((stream.peer(), stream.connection()), ("192.0.2.1:9".parse().unwrap(), ConnectionId(7)));
        assert_eq!(stream.local_addr().unwrap(), server.peer_addr().unwrap());
        assert_eq!(stream.server_addr().unwrap(), server.local_addr().unwrap());
        assert_eq!(ConnectionId(7).to_string(), "7");
        assert_eq!(serde_json::to_value(ConnectionId(7)).unwrap(), 7);
    }

    #[actix::test]
    async fn a_stream_dropped_in_order_is_told_once_and_without_an_error() {
        let Relayed { mut stream, server, mut ended } = relayed(b"", "192.0.2.1:9", 3).await;
        drop(server);
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 0);
        assert!(ended.try_recv().is_err());
        drop(stream);
        assert_eq!(ended.recv().await, Some(RelayStreamEnded { key: 3, error: None }));
        assert_eq!(ended.recv().await, None);
    }

    #[actix::test]
    async fn a_stream_that_broke_is_told_with_its_error() {
        let Relayed { mut stream, server, mut ended } = relayed(b"", "192.0.2.1:9", 4).await;
        reset(server);
        let error = stream.read(&mut [0; 4]).await.unwrap_err();
        drop(stream);
        assert_eq!(ended.recv().await, Some(RelayStreamEnded { key: 4, error: Some(error.to_string()) }));
    }

    #[actix::test]
    async fn early_bytes_count_as_spoken_and_so_do_later_ones() {
        let mut early = relayed(b"e", "192.0.2.1:9", 1).await.stream;
        assert!(poll_fn(|cx| early.poll_spoken(cx)).await);
        let Relayed { mut stream, mut server, .. } = relayed(b"", "192.0.2.1:9", 1).await;
        let pending = poll_fn(|cx| Poll::Ready(stream.poll_spoken(cx).is_pending())).await;
        assert!(pending);
        server.write_all(b"l").await.unwrap();
        assert!(poll_fn(|cx| stream.poll_spoken(cx)).await);
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 1);
        drop(server);
        assert!(!poll_fn(|cx| stream.poll_spoken(cx)).await);
    }

    #[actix::test]
    async fn a_peek_that_meets_a_reset_is_told_too() {
        let Relayed { mut stream, server, mut ended } = relayed(b"", "192.0.2.1:9", 5).await;
        reset(server);
        assert!(!poll_fn(|cx| stream.poll_spoken(cx)).await);
        drop(stream);
        assert!(ended.recv().await.unwrap().error.is_some());
    }
}
