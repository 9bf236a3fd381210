//! TLS between sides and a relay: a certificate for this run, and who believes it.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::Outcome;

const ALPN: &[u8] = b"actix-relay/1";

/// A connection to a relay; its handshake comes with the first write.
pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A certificate of its own issue, as files while this is not dropped.
pub(crate) struct Certificate {
    dir: TempDir,
    believer: Believer,
}

/// Believes one certificate.
#[derive(Clone)]
pub(crate) struct Believer(Arc<ClientConfig>);

impl Certificate {
    pub(crate) fn issue() -> Outcome<Self> {
        let name = Ipv4Addr::LOCALHOST.to_string();
        let issued = rcgen::generate_simple_self_signed([name])?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("cert"), issued.cert.pem())?;
        std::fs::write(dir.path().join("key"), issued.signing_key.serialize_pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(issued.cert.der().clone())?;
        let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Every join is the first of its side.
        config.resumption = Resumption::disabled();
        Ok(Self { dir, believer: Believer(Arc::new(config)) })
    }

    /// Where certificate and key are.
    pub(crate) fn files(&self) -> [String; 2] {
        ["cert", "key"].map(|file| self.dir.path().join(file).display().to_string())
    }

    pub(crate) fn believer(&self) -> Believer {
        self.believer.clone()
    }
}

impl Believer {
    pub(crate) fn over(&self, tcp: TcpStream) -> Outcome<TlsStream> {
        let name = tcp.peer_addr()?.ip().into();
        Ok(StreamOwned::new(ClientConnection::new(self.0.clone(), name)?, tcp))
    }
}
