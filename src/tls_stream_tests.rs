//! Halves in two tasks, keys that change, and peers that show a pinned certificate without having its key.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::TlsStream;
use super::tests::pair;
use crate::config::{ClientTls, Pin, ServerTls};
use crate::tls::{Acceptor, Connector, HANDSHAKE_TIMEOUT, TlsError, provider};

/// Whether it has been woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// As where [`RelayStream`](crate::turn::RelayStream) is split over two tasks.
#[tokio::test]
async fn who_reads_does_not_take_the_place_of_who_waits_to_write() {
    let (mut near, mut far) = pair().await;
    let flag = Arc::new(Flag::default());
    let (waker, piece) = (Waker::from(flag.clone()), vec![7; 60_000]);
    let mut cx = Context::from_waker(&waker);
    while pin!(&mut near).poll_write(&mut cx, &piece).is_ready() {
        // The socket may be full, and its buffers still grow.
        tokio::task::yield_now().await;
    }
    far.write_all(b"word").await.unwrap();
    far.flush().await.unwrap();
    let mut word = [0; 4];
    near.read_exact(&mut word).await.unwrap();
    flag.0.store(false, Relaxed);
    let mut buffer = vec![0; 1 << 20];
    let woken = async {
        while !flag.0.load(Relaxed) {
            assert_ne!(far.read(&mut buffer).await.unwrap(), 0);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), woken).await.expect("the writer is woken");
}

/// The certificate of one key, signed with another key.
fn stolen(certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> SingleCertAndKey {
    let other = rcgen::KeyPair::generate().unwrap();
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(other.serialize_der()));
    let key = provider().key_provider.load_private_key(der).unwrap();
    SingleCertAndKey::from(CertifiedKey::new(vec![certificate.cert.der().clone()], key))
}

fn pin_of(certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Pin {
    use sha2::Digest;
    let parsed = rustls::server::ParsedCertificate::try_from(certificate.cert.der()).unwrap();
    Pin(sha2::Sha256::digest(parsed.subject_public_key_info()).into())
}

#[tokio::test]
async fn a_server_with_a_pinned_certificate_and_another_key_is_refused_in_both_versions() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for version in [&TLS12, &TLS13] {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::new(stolen(&made));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        server.alpn_protocols = vec![b"test/1".to_vec()];
        let tls = ClientTls { pin: Some(pin_of(&made)), ..ClientTls::default() };
        let connector = Connector::new(&tls, Some(b"test/1")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = async {
            let tls = ServerConnection::new(Arc::new(server)).unwrap();
            let _ = TlsStream::handshake(listener.accept().await.unwrap().0, tls.into(), 1 << 20).await;
        };
        let call = async { connector.connect(TcpStream::connect(addr).await.unwrap(), "localhost").await };
        let (error, ()) = tokio::join!(call, serve);
        assert!(matches!(error, Err(TlsError::Refused { .. })), "{version:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_client_with_a_pinned_certificate_and_another_key_is_refused_in_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let shown = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("c"), dir.path().join("k"));
    std::fs::write(&cert, shown.cert.pem()).unwrap();
    std::fs::write(&key, shown.signing_key.serialize_pem()).unwrap();
    let made = rcgen::generate_simple_self_signed(["me".to_owned()]).unwrap();
    let mut tls = ServerTls::files(cert, key);
    tls.client_pins = vec![pin_of(&made)];
    let acceptor = Acceptor::new(&tls, b"test/1").unwrap();
    for version in [&TLS12, &TLS13] {
        let mut roots = RootCertStore::empty();
        roots.add(shown.cert.der().clone()).unwrap();
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(stolen(&made));
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(resolver);
        client.alpn_protocols = vec![b"test/1".to_vec()];
        client.resumption = Resumption::disabled();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let call = async {
            let name = ServerName::try_from("localhost").unwrap();
            let tls = ClientConnection::new(Arc::new(client), name).unwrap();
            let tcp = TcpStream::connect(addr).await.unwrap();
            let stream = TlsStream::handshake(tcp, tls.into(), 1 << 20).await;
            if let Ok(mut stream) = stream {
                let _ = stream.read(&mut [0; 10]).await;
            }
        };
        let serve = async { acceptor.accept(listener.accept().await.unwrap().0, HANDSHAKE_TIMEOUT).await };
        let (error, ()) = tokio::join!(serve, call);
        assert!(matches!(error, Err(TlsError::Refused { .. })), "{version:?}: {error:?}");
    }
}

#[tokio::test]
async fn keys_are_updated_by_either_side_while_bytes_go() {
    let (mut near, mut far) = pair().await;
    for round in 0..40_u8 {
        near.tls.refresh_traffic_keys().unwrap();
        near.write_all(&[round; 3000]).await.unwrap();
        near.flush().await.unwrap();
        let mut got = [0; 3000];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [round; 3000]);
        far.write_all(&[round; 2000]).await.unwrap();
        far.flush().await.unwrap();
        let mut got = [0; 2000];
        near.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [round; 2000]);
        far.tls.refresh_traffic_keys().unwrap();
    }
}

/// TLS 1.3: the client is through with its handshake before the server has seen its (missing) certificate.
#[tokio::test]
async fn a_refused_client_that_only_writes_hears_why() {
    let mut tls = ServerTls::new(crate::config::ServerCertificate::SelfSigned);
    tls.client_pins = vec![Pin([0; 32])];
    let acceptor = Acceptor::new(&tls, b"test/1").unwrap();
    let believed = ClientTls { pin: Some(acceptor.pin()), ..ClientTls::default() };
    let connector = Connector::new(&believed, Some(b"test/1")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    for _ in 0..20 {
        let call = async {
            let tcp = TcpStream::connect(addr).await.unwrap();
            let mut stream = connector.connect(tcp, "localhost").await.unwrap();
            // Until the server has closed, with much of it unread, and so has reset the connection.
            loop {
                if let Err(error) = stream.write_all(&[7; 60_000]).await {
                    return error;
                }
            }
        };
        let serve = async { acceptor.accept(listener.accept().await.unwrap().0, HANDSHAKE_TIMEOUT).await };
        let (refused, error) = tokio::join!(serve, call);
        refused.unwrap_err();
        assert!(TlsError::within(&error).is_some_and(TlsError::is_refusal), "{error}");
    }
}
