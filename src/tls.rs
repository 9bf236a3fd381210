//! TLS 1.2 and 1.3 on TCP connections: who is believed, what is shown, and the handshake.
//!
//! Both ends must agree on a protocol (ALPN, RFC 7301), except with TURN servers, which seldom know one. Nothing is
//! resumed and there is no early data: each connection proves itself anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use tokio::net::TcpStream;

use crate::config::{ClientTls, Pin, ServerCertificate, ServerTls};
use crate::event::EventKind;
use crate::tls_files::{self, Stamp};
use crate::tls_stream::TlsStream;

pub use error::TlsError;
pub(crate) use error::out_of_date;
use verify::{Pinned, pin_of};

mod error;
mod verify;

/// The protocol between two sessions, RFC 4571 frames.
pub(crate) const DIRECT_PROTOCOL: &[u8] = b"actix-relay-direct/1";
/// The protocol between a side and its relay.
pub(crate) const RELAY_PROTOCOL: &[u8] = b"actix-relay/1";
/// A handshake may take this long.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client may send before its handshake is over.
const HANDSHAKE_LIMIT: usize = 16 << 10;
/// What a server may: its certificates can be many.
const ANSWER_LIMIT: usize = 128 << 10;
/// Files are looked at this often, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Makes TLS connections as a client.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
}

impl Connector {
    /// Reads the files that `tls` names. With `protocol`, the server must agree on it.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub(crate) fn new(tls: &ClientTls, protocol: Option<&[u8]>) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of both versions");
        let builder = match (tls.pin, &tls.ca) {
            (Some(pin), _) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pinned::new(vec![pin], provider()))),
            (None, Some(ca)) => builder.with_root_certificates(tls_files::authorities(ca)?),
            (None, None) => builder.with_root_certificates(tls_files::system_authorities()?),
        };
        let mut config = match &tls.certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let certificate = SingleCertAndKey::from(tls_files::from_files(files)?);
                builder.with_client_cert_resolver(Arc::new(certificate))
            }
        };
        config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }

    /// The handshake with the server of this name or address, within [`HANDSHAKE_TIMEOUT`].
    ///
    /// # Errors
    /// A sentence: the certificate is not good, the protocol not agreed on, the connection broke, …
    pub(crate) async fn connect(&self, tcp: TcpStream, host: &str) -> Result<TlsStream, TlsError> {
        // A zone is this machine's own affair.
        let name = host.split('%').next().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|_| TlsError::Name { host: host.to_owned() })?;
        let tls = ClientConnection::new(self.config.clone(), name)?;
        let handshake = TlsStream::handshake(tcp, tls.into(), ANSWER_LIMIT);
        let stream = within(HANDSHAKE_TIMEOUT, handshake).await?;
        agreed(&stream, &self.config.alpn_protocols)?;
        Ok(stream)
    }
}

/// Makes TLS connections as a server. Its clones share the certificate, which follows its files.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor {
    config: Arc<ServerConfig>,
    shown: Arc<Shown>,
}

/// The certificate that is shown at the moment.
#[derive(Debug)]
struct Shown {
    source: ServerCertificate,
    inner: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    certificate: Arc<CertifiedKey>,
    pin: Pin,
    /// As the files were when they were last read, well or not.
    stamp: Option<Stamp>,
    /// What was wrong with them then: they are tried again, for it may not be in the files.
    wrong: Option<String>,
    looked: Option<Instant>,
}

impl Current {
    /// What comes of it, as an event: the certificate that is shown from now on, or why the old one stays.
    fn read(&mut self, source: &ServerCertificate) -> EventKind {
        // Before they are read: what changes meanwhile is seen at the next look.
        self.stamp = stamp(source);
        match read(source) {
            Ok(read) => {
                (self.certificate, self.pin) = read;
                self.wrong = None;
                self.shown()
            }
            Err(error) => {
                let error = error.to_string();
                self.wrong = Some(error.clone());
                EventKind::CertificateKept { error }
            }
        }
    }

    fn shown(&self) -> EventKind {
        let doubt = self.certificate.cert.first().and_then(tls_files::doubt);
        EventKind::CertificateShown { pin: self.pin, doubt }
    }
}

impl Acceptor {
    /// Reads the files that `tls` names, or makes a certificate. Clients must agree on `protocol`.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub(crate) fn new(tls: &ServerTls, protocol: &[u8]) -> Result<Self, TlsError> {
        let source = tls.certificate.clone();
        let stamp = stamp(&source);
        let (certificate, pin) = read(&source)?;
        let inner = Mutex::new(Current { certificate, pin, stamp, wrong: None, looked: None });
        let shown = Arc::new(Shown { source, inner });
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of both versions");
        let builder = if tls.client_pins.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_verifier(Arc::new(Pinned::new(tls.client_pins.clone(), provider())))
        };
        let mut config = builder.with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![protocol.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), shown })
    }

    /// The pin of the certificate that is shown at the moment.
    #[cfg(test)]
    pub(crate) fn pin(&self) -> Pin {
        self.shown.lock().pin
    }

    /// The certificate that is shown at the moment, as an event.
    pub(crate) fn shown(&self) -> EventKind {
        self.shown.lock().shown()
    }

    /// Looks whether the certificate's files have changed, at most once a second, and shows the new one from now
    /// on. To be called before connections are accepted; has an event if there is news.
    ///
    /// Where the files have changed, but are no good, the old certificate stays. Said once for each change, or when
    /// something else is wrong with them.
    pub(crate) fn look(&self, now: Instant) -> Option<EventKind> {
        let mut current = self.shown.lock();
        if current.looked.is_some_and(|looked| now < looked + LOOK_INTERVAL) {
            return None;
        }
        current.looked = Some(now);
        let is_same = stamp(&self.shown.source) == current.stamp;
        if is_same && current.wrong.is_none() {
            return None;
        }
        let told = current.wrong.take();
        let news = current.read(&self.shown.source);
        (!is_same || told != current.wrong).then_some(news)
    }

    /// Reads the certificate's files again, whether they seem to have changed or not, and says in an event what came of
    /// it; `None` where there are none. Where they are no good, the old certificate stays.
    pub(crate) fn read_again(&self) -> Option<EventKind> {
        match &self.shown.source {
            ServerCertificate::Files(_) => Some(self.shown.lock().read(&self.shown.source)),
            ServerCertificate::SelfSigned => None,
        }
    }

    /// The handshake with a client, within `timeout`.
    ///
    /// # Errors
    /// A sentence: the client shows no good certificate, speaks no TLS or another protocol, the connection broke, …
    pub(crate) async fn accept(&self, tcp: TcpStream, timeout: Duration) -> Result<TlsStream, TlsError> {
        let tls = ServerConnection::new(self.config.clone())?;
        let stream = within(timeout, TlsStream::handshake(tcp, tls.into(), HANDSHAKE_LIMIT)).await?;
        agreed(&stream, &self.config.alpn_protocols)?;
        Ok(stream)
    }
}

impl Shown {
    /// A panic elsewhere must not end this: what is there is whole between any two lines.
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.lock().certificate.clone())
    }
}

/// What all TLS here computes with.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(source: &ServerCertificate) -> Result<(Arc<CertifiedKey>, Pin), TlsError> {
    let certificate = tls_files::certificate(source)?;
    let pin = pin_of(certificate.end_entity_cert()?)?;
    Ok((Arc::new(certificate), pin))
}

fn stamp(source: &ServerCertificate) -> Option<Stamp> {
    match source {
        ServerCertificate::Files(files) => Some(Stamp::of(files)),
        ServerCertificate::SelfSigned => None,
    }
}

async fn within(
    after: Duration,
    handshake: impl Future<Output = Result<TlsStream, TlsError>>,
) -> Result<TlsStream, TlsError> {
    match tokio::time::timeout(after, handshake).await {
        Ok(result) => result,
        Err(_) => Err(TlsError::Timeout { after }),
    }
}

/// A peer that offers or chooses no protocol at all is let pass by rustls, but not by us.
fn agreed(stream: &TlsStream, wanted: &[Vec<u8>]) -> Result<(), TlsError> {
    match wanted.first() {
        Some(wanted) if stream.protocol() != Some(wanted) => {
            Err(TlsError::Protocol { wanted: String::from_utf8_lossy(wanted).into_owned() })
        }
        _ => Ok(()),
    }
}
