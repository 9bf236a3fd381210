//! A session whose connections speak TLS: the handshake comes after the dial, and before the lobby.

use std::net::SocketAddr;
use std::task::{Context as TaskContext, Poll};

use actix::prelude::*;
use tokio::net::TcpStream;

use crate::clock::now;
use crate::config::HostPort;
use crate::dial::dial;
use crate::event::{Cause, EventKind, Refusal};
use crate::link::Ending;
use crate::link_stream::Stream;
use crate::session::RelaySessionActor;
use crate::tls::{Acceptor, Connector, DIRECT_PROTOCOL, TlsError};

impl RelaySessionActor {
    /// A connection to the peer, with TLS if the session is to speak it: never without where it is.
    pub(crate) fn dial_direct(
        &self,
        remote: HostPort,
    ) -> impl Future<Output = Result<(Stream, SocketAddr), Ending>> + use<> {
        let (options, timeout) = (self.options.clone(), self.config.connect_timeout);
        let tls = self.config.tls.clone();
        async move {
            // The files are read each time: those of the moment count.
            let connector = tls.map(|tls| Connector::new(&tls, Some(DIRECT_PROTOCOL)));
            let connector = connector.transpose().map_err(failed)?;
            let dialed = dial(&remote, &options, timeout).await;
            let (tcp, peer) = dialed.map_err(|error| Ending::new(Cause::Broken, error.to_string()))?;
            let stream = match connector {
                None => tcp.into(),
                Some(connector) => connector.connect(tcp, &remote.host).await.map_err(failed)?.into(),
            };
            Ok((stream, peer))
        }
    }

    /// Says with which certificate the session listens, if it does with one.
    pub(crate) fn report_certificate(&self) {
        if let Some(acceptor) = self.sockets.acceptor().filter(|_| !self.listeners.is_empty()) {
            self.reporter.report(acceptor.shown());
        }
    }

    pub(crate) fn begin_handshake(&mut self, acceptor: Acceptor, tcp: TcpStream, peer: SocketAddr) {
        if let Some(news) = acceptor.look(now()) {
            self.reporter.report(news);
        }
        if let Some(evicted) = self.handshakes.begin(acceptor, tcp, peer, now()) {
            self.refuse(evicted, Refusal::Silent);
        }
    }

    /// Lets those into the lobby who have proven what they must.
    pub(crate) fn poll_handshakes(&mut self, cx: &mut TaskContext<'_>, ctx: &mut Context<Self>) {
        while let Poll::Ready((peer, result)) = self.handshakes.poll_next(cx) {
            match result {
                Ok(stream) => self.enter_lobby(stream.into(), peer, ctx),
                Err(error) => self.handshake_failed(peer, &error),
            }
        }
    }

    /// Counts a peer that is turned away; tells of one a second.
    fn handshake_failed(&mut self, peer: SocketAddr, error: &TlsError) {
        if let Some(more) = self.refusals.pass(now()) {
            let error = error.to_string();
            self.reporter.report(EventKind::HandshakeFailed { peer, error, more });
        }
    }
}

/// What a failed handshake, or a file that is no good, is to a link.
pub(crate) fn failed(error: TlsError) -> Ending {
    let cause = if error.is_refusal() { Cause::Refused } else { Cause::Broken };
    Ending::new(cause, error.to_string())
}
