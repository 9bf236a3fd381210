//! Streams to a TURN server, the control connection and the data connections, with TLS where its URI says `turns:`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{ClientTls, HostPort, TurnConfig};
use crate::dial::dial;
use crate::sockopt::TcpOptions;
use crate::tls::{Connector, TlsError};
use crate::transport::Transport;
use crate::turn::TurnError;

/// How they are made.
#[derive(Debug)]
pub(crate) struct ServerDialer {
    /// Whom the server's certificate must be for: what the URI says, wherever redirections lead.
    host: String,
    tls: Option<ClientTls>,
    options: TcpOptions,
    timeout: Duration,
}

impl ServerDialer {
    pub(crate) fn new(config: &TurnConfig, options: TcpOptions) -> Self {
        let server = &config.server;
        Self {
            host: server.uri.host.clone(),
            tls: server.spoken_tls().cloned(),
            options,
            timeout: config.connect_timeout,
        }
    }

    /// A stream, and the address that it goes to.
    ///
    /// # Errors
    /// [`TurnError::Unreachable`] or [`TurnError::Untrusted`].
    pub(crate) async fn dial(&self, to: &HostPort) -> Result<(Transport, SocketAddr), TurnError> {
        // No protocol is asked for (RFC 7443 would have one): servers seldom know any.
        let connector = self.tls.as_ref().map(|tls| Connector::new(tls, None));
        let connector = connector.transpose().map_err(failed)?;
        let dialed = dial(to, &self.options, self.timeout).await;
        let (tcp, addr) = dialed.map_err(|error| TurnError::Unreachable { why: error.to_string() })?;
        let stream = match connector {
            None => tcp.into(),
            Some(connector) => connector.connect(tcp, &self.host).await.map_err(failed)?.into(),
        };
        Ok((stream, addr))
    }
}

fn failed(error: TlsError) -> TurnError {
    let why = error.to_string();
    if error.is_refusal() { TurnError::Untrusted { why } } else { TurnError::Unreachable { why } }
}
