//! Data connections (RFC 6062) between their dialing and the moment they are bound.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, ReadBuf};

use crate::transport::Transport;
use crate::turn::allocation::Allocation;
use crate::turn::connections::Key;

/// What one read brings at most. The server's answer is short; the peer's bytes may follow it.
const READ_LEN: usize = 4096;
/// What may wait for the answer to become whole. What is behind it stays in the kernel, and then the server's.
const MAX_UNUSED: usize = 8192;

/// All of one allocation, at most as many as the core has connections (256).
#[derive(Debug, Default)]
pub(crate) struct DataConnections {
    all: HashMap<Key, DataConnection>,
    /// There is something to send, or to read, that no poll has seen yet.
    is_fresh: bool,
}

#[derive(Debug)]
struct DataConnection {
    stream: Transport,
    to_send: BytesMut,
    unused: BytesMut,
}

impl DataConnections {
    pub(crate) fn insert(&mut self, key: Key, stream: Transport) {
        let connection = DataConnection { stream, to_send: BytesMut::new(), unused: BytesMut::new() };
        self.all.insert(key, connection);
        self.is_fresh = true;
    }

    /// To the server, at the next poll.
    pub(crate) fn send(&mut self, key: Key, bytes: &[u8]) {
        if let Some(connection) = self.all.get_mut(&key) {
            connection.to_send.extend_from_slice(bytes);
            self.is_fresh = true;
        }
    }

    /// Whether they are to be polled although nothing woke anybody.
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// The connection, and what has been read from it and not been used.
    pub(crate) fn take(&mut self, key: Key) -> Option<(Transport, Bytes)> {
        self.all.remove(&key).map(|connection| (connection.stream, connection.unused.freeze()))
    }

    /// Writes what is to be sent and hands what comes to the core, which may say more to send.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Instant, core: &mut Allocation) {
        self.is_fresh = false;
        self.all.retain(|key, connection| match connection.poll(cx, now, *key, core) {
            Poll::Pending => true,
            Poll::Ready(why) => {
                core.data_failed(*key, why);
                false
            }
        });
    }
}

impl DataConnection {
    /// Ready with the end.
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, key: Key, core: &mut Allocation) -> Poll<String> {
        while !self.to_send.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.to_send) {
                Poll::Ready(Ok(written)) => self.to_send.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(format!("writing to it failed: {error}")),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
            return Poll::Ready(format!("writing to it failed: {error}"));
        }
        // A bound one is not read any more: the bytes are its new owner's.
        while core.connections().get(key).is_some_and(|connection| !connection.is_bound())
            && self.unused.len() < MAX_UNUSED
        {
            match ready!(self.poll_read(cx)) {
                Ok(0) => return Poll::Ready("the server closed it before it was bound".into()),
                Ok(_) => {}
                Err(error) => return Poll::Ready(format!("it broke before it was bound: {error}")),
            }
            let used = core.handle_data(now, key, &self.unused);
            self.unused.advance(used);
        }
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = [0; READ_LEN];
        let mut read = ReadBuf::new(&mut buffer);
        ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut self.stream), cx, &mut read))?;
        self.unused.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }
}
