//! Certificates of an authority that exists for one test only, and peers that speak TLS without our code.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use actix_relay::config::{CertificateFiles, ClientTls, Pin, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls::{SupportedProtocolVersion, crypto::ring};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::PATIENCE;

/// The protocol of two sessions.
pub const DIRECT: &[u8] = b"actix-relay-direct/1";

/// An authority and what it has issued, as files.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub ca: PathBuf,
    dir: TempDir,
}

/// A certificate with its key and the pin of that.
#[derive(Clone)]
pub struct Issued {
    pub files: CertificateFiles,
    pub pin: Pin,
}

impl Authority {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        // No two of them have the same name.
        let name = dir.path().display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), ca, dir }
    }

    /// A good certificate for this name or address.
    pub fn issue(&self, name: &str) -> Issued {
        self.issue_with(name, |_| ())
    }

    /// One that is no longer good.
    pub fn issue_expired(&self, name: &str) -> Issued {
        self.issue_with(name, |params| params.not_after = rcgen::date_time_ymd(2020, 2, 3))
    }

    fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pin = Pin(Sha256::digest(key.subject_public_key_info()).into());
        let file = |ending: &str| self.dir.path().join(format!("{pin}.{ending}"));
        std::fs::write(file("cert"), certificate.pem()).unwrap();
        std::fs::write(file("key"), "").unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(file("key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        Issued { files: CertificateFiles { cert: file("cert"), key: file("key") }, pin }
    }

    /// Believes what this has issued.
    pub fn believed(&self) -> ClientTls {
        let mut tls = ClientTls::default();
        tls.ca = Some(self.ca.clone());
        tls
    }
}

impl Issued {
    pub fn shown(&self) -> ServerTls {
        ServerTls::files(&self.files.cert, &self.files.key)
    }

    /// In the place of another, as those do who renew certificates: each file at once, one after the other.
    pub fn take_the_place_of(&self, other: &Self) {
        for (from, to) in [(&self.files.cert, &other.files.cert), (&self.files.key, &other.files.key)] {
            let beside = to.with_extension("new");
            std::fs::copy(from, &beside).unwrap();
            std::fs::rename(beside, to).unwrap();
        }
    }
}

/// Believes the holder of this key.
pub fn pinned(pin: Pin) -> ClientTls {
    let mut tls = ClientTls::default();
    tls.pin = Some(pin);
    tls
}

/// How a peer without our code speaks.
#[derive(Clone)]
pub struct Dialect {
    pub versions: Vec<&'static SupportedProtocolVersion>,
    pub protocols: Vec<&'static [u8]>,
}

impl Default for Dialect {
    fn default() -> Self {
        Self { versions: rustls::ALL_VERSIONS.to_vec(), protocols: vec![DIRECT] }
    }
}

pub type Client = StreamOwned<ClientConnection, TcpStream>;
pub type Server = StreamOwned<ServerConnection, TcpStream>;

/// A client; blocks. Its handshake happens with the first byte written or read.
pub fn client(to: SocketAddr, authority: &Authority, dialect: &Dialect) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&authority.ca).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&dialect.versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = dialect.protocols.iter().map(|name| name.to_vec()).collect();
    let tcp = TcpStream::connect(to).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = to.ip().into();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
}

/// The next client of a listener; blocks.
pub fn accept(listener: &TcpListener, issued: &Issued, dialect: &Dialect) -> Server {
    let chain = vec![CertificateDer::from_pem_file(&issued.files.cert).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&issued.files.key).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&dialect.versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = dialect.protocols.iter().map(|name| name.to_vec()).collect();
    let (tcp, _) = listener.accept().unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), tcp)
}

/// Writes a frame and reads one of the same length.
pub fn echoed(stream: &mut (impl Read + Write), datagram: &[u8]) -> std::io::Result<()> {
    let len = u16::try_from(datagram.len()).unwrap().to_be_bytes();
    let frame = [&len[..], datagram].concat();
    stream.write_all(&frame)?;
    stream.flush()?;
    let mut answer = vec![0; frame.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, frame);
    Ok(())
}
