//! Certificates and keys: read from PEM files, read again when those change, or made here.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use crate::config::{
    CertificateFiles, ClientTls, ConfigError, RelayConfig, ServerCertificate, ServerTls, SessionConfig,
    TurnConfig,
};
use crate::tls::{Connector, TlsError, out_of_date, provider};

/// A certificate chain and its key are far shorter; a device or a log given by mistake is not read to its end.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Reads a certificate with its key, or makes one.
///
/// # Errors
/// Which file, and what is wrong with it: it cannot be read, holds no certificate or key, or the two are not a pair.
pub(crate) fn certificate(certificate: &ServerCertificate) -> Result<CertifiedKey, TlsError> {
    match certificate {
        ServerCertificate::Files(files) => {
            let read = from_files(files)?;
            warn_of_everybody(&files.key);
            Ok(read)
        }
        ServerCertificate::SelfSigned => self_signed(),
    }
}

/// Reads the files that a client's `tls` names, and throws away what is in them.
///
/// # Errors
/// Which file, and what is wrong with it; or there is nobody to believe.
pub(crate) fn check_client(tls: &ClientTls) -> Result<(), TlsError> {
    Connector::new(tls, None)?;
    if let Some(files) = &tls.certificate {
        warn_of_everybody(&files.key);
    }
    Ok(())
}

impl SessionConfig {
    /// Reads the files that `listen_tls`, `tls`, and those of `remote` and `turn_listen` name, as
    /// [`StartSession`](crate::supervisor::StartSession) does. Blocks while it reads.
    ///
    /// # Errors
    /// [`ConfigError::Files`].
    pub fn check_files(&self) -> Result<(), ConfigError> {
        let listen = self.listen_tls.as_ref().map_or(Ok(()), check_server);
        listen.map_err(|error| self.bad_files("listen_tls", &error))?;
        self.client_tls()
            .try_for_each(|(field, tls)| check_client(tls).map_err(|error| self.bad_files(field, &error)))
    }

    fn bad_files(&self, field: &'static str, error: &TlsError) -> ConfigError {
        ConfigError::Files { kind: "session", child: self.name.clone(), field, why: error.to_string() }
    }
}

impl TurnConfig {
    /// Reads the files that the server's `tls` names, as [`StartTurn`](crate::supervisor::StartTurn) does. Blocks while
    /// it reads.
    ///
    /// # Errors
    /// [`ConfigError::Files`].
    pub fn check_files(&self) -> Result<(), ConfigError> {
        let checked = self.server.spoken_tls().map_or(Ok(()), check_client);
        let (kind, child) = ("turn", self.name.clone());
        checked.map_err(|error| ConfigError::Files { kind, child, field: "tls", why: error.to_string() })
    }
}

impl RelayConfig {
    /// Reads the files that `tls` names, as [`StartRelay`](crate::supervisor::StartRelay) does. Blocks while it reads.
    ///
    /// # Errors
    /// [`ConfigError::Files`].
    pub fn check_files(&self) -> Result<(), ConfigError> {
        let checked = self.tls.as_ref().map_or(Ok(()), check_server);
        let (kind, child) = ("relay", self.name.clone());
        checked.map_err(|error| ConfigError::Files { kind, child, field: "tls", why: error.to_string() })
    }
}

/// A key that others can read is theirs too.
fn warn_of_everybody(key: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;

        let is_open = |file: fs::Metadata| file.is_file() && file.permissions().mode() & 0o004 != 0;
        if fs::metadata(key).is_ok_and(is_open) {
            tracing::warn!("{} can be read by everybody on this machine: chmod o-r", key.display());
        }
    }
}

fn check_server(tls: &ServerTls) -> Result<(), TlsError> {
    certificate(&tls.certificate).map(drop)
}

pub(crate) fn from_files(files: &CertificateFiles) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong(&files.key, "no private key in it (PEM, not encrypted)"),
        error => wrong(&files.key, &error.to_string()),
    })?;
    let pair = CertifiedKey::from_der(chain, key, &provider());
    pair.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let cert = files.cert.display();
            wrong(&files.key, &format!("this is not the key of the certificate in {cert}"))
        }
        error @ rustls::Error::InvalidCertificate(_) => wrong(&files.cert, &error.to_string()),
        error => wrong(&files.key, &error.to_string()),
    })
}

/// Why a certificate is believed by those only who pin its key: its time is over, or has not come.
pub(crate) fn doubt(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    let algorithms = provider().signature_verification_algorithms.all;
    // Dates are looked at before an issuer, who is not found here, is looked for.
    let (nobody, now) = (RootCertStore::empty(), UnixTime::now());
    match verify_server_cert_signed_by_trust_anchor(&certificate, &nobody, &[], now, algorithms) {
        Err(rustls::Error::InvalidCertificate(error)) => Some(format!("it {}", out_of_date(&error)?)),
        _ => None,
    }
}

/// A key that nobody else has, and a certificate for no name in particular: only a pin makes it believed.
fn self_signed() -> Result<CertifiedKey, TlsError> {
    let bad = |why: String| TlsError::SelfSigned { why };
    let made = rcgen::generate_simple_self_signed(["actix-relay.invalid".to_owned()]);
    let made = made.map_err(|error| bad(error.to_string()))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let pair = CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider());
    pair.map_err(|error| bad(error.to_string()))
}

/// The authorities in a file.
pub(crate) fn authorities(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| wrong(path, &error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// The system's authorities, read once, when there are some; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
pub(crate) fn system_authorities() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
    let mut known = ROOTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(roots) = &*known {
        return Ok(roots.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "reading the system's certificate authorities");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(TlsError::NoAuthorities);
    }
    Ok(known.insert(Arc::new(roots)).clone())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| wrong(path, &error.to_string()))?;
    if found.is_empty() {
        return Err(wrong(path, "no certificate in it (PEM)"));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    if file.take(MAX_FILE_LEN + 1).read_to_end(&mut text).map_err(failed)? as u64 > MAX_FILE_LEN {
        return Err(wrong(path, "longer than 1 MiB"));
    }
    Ok(text)
}

fn wrong(path: &Path, why: &str) -> TlsError {
    TlsError::File { path: path.to_owned(), why: why.to_owned() }
}

/// By what a change of two files is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp([Option<FileStamp>; 2]);

/// Length, when it was last written, its number, which a file put in another's place has another of, and when that or its
/// rights last changed.
type FileStamp = (u64, SystemTime, u64, (i64, i64));

impl Stamp {
    pub(crate) fn of(files: &CertificateFiles) -> Self {
        Self([&files.cert, &files.key].map(|path| {
            let meta = fs::metadata(path).ok()?;
            #[cfg(unix)]
            let (number, changed) = {
                use std::os::unix::fs::MetadataExt;
                (meta.ino(), (meta.ctime(), meta.ctime_nsec()))
            };
            #[cfg(not(unix))]
            let (number, changed) = (0, (0, 0));
            Some((meta.len(), meta.modified().ok()?, number, changed))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn pair(dir: &Path, name: &str) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let file = |kind: &str| dir.join(format!("{name}.{kind}"));
        fs::write(file("cert"), made.cert.pem()).unwrap();
        fs::write(file("key"), made.signing_key.serialize_pem()).unwrap();
        CertificateFiles { cert: file("cert"), key: file("key") }
    }

    #[test]
    fn a_pair_is_read_and_what_is_none_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (pair(dir.path(), "a"), pair(dir.path(), "b"));
        from_files(&a).unwrap();
        let mixed = |cert: &PathBuf, key: &PathBuf| {
            from_files(&CertificateFiles { cert: cert.clone(), key: key.clone() }).unwrap_err().to_string()
        };
        for (error, expected) in [
            (mixed(&a.cert, &b.key), "b.key: this is not the key of the certificate in"),
            (mixed(&a.key, &a.key), "a.key: no certificate in it (PEM)"),
            (mixed(&a.cert, &a.cert), "a.cert: no private key in it (PEM, not encrypted)"),
            (mixed(&a.cert, &dir.path().join("none")), "none: No such file or directory"),
            (mixed(&a.cert, &"/dev/null".into()), "/dev/null: no private key in it"),
            (mixed(&"/dev/zero".into(), &a.key), "/dev/zero: longer than 1 MiB"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        assert!(authorities(&a.cert).is_ok() && authorities(&a.key).is_err());
    }

    #[test]
    fn a_change_of_either_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let files = pair(dir.path(), "a");
        let before = Stamp::of(&files);
        assert_eq!(Stamp::of(&files), before);
        let other = pair(dir.path(), "b");
        fs::rename(&other.key, &files.key).unwrap();
        assert_ne!(Stamp::of(&files), before);
        let before = Stamp::of(&files);
        let text = fs::read(&files.cert).unwrap();
        let written = fs::metadata(&files.cert).unwrap().modified().unwrap();
        fs::write(&files.cert, vec![b'x'; text.len()]).unwrap();
        fs::File::options().write(true).open(&files.cert).unwrap().set_modified(written).unwrap();
        assert_ne!(Stamp::of(&files), before, "of the same length, and written at the same time, it says");
        let before = Stamp::of(&files);
        fs::remove_file(&files.cert).unwrap();
        assert_ne!(Stamp::of(&files), before);
    }

    #[test]
    fn a_certificate_whose_time_is_over_or_to_come_is_doubted() {
        let doubt_of = |from: i32, to: i32| {
            let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(from, 2, 3);
            params.not_after = rcgen::date_time_ymd(to, 2, 3);
            // As `openssl req -x509` makes them.
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            doubt(params.self_signed(&key).unwrap().der())
        };
        assert_eq!(doubt_of(2019, 2020).unwrap(), "it expired on 2020-02-03T00:00:00Z");
        assert!(doubt_of(3000, 3001).unwrap().starts_with("it is good from 3000-02-03T00:00:00Z only"));
        assert_eq!(doubt_of(2020, 3000), None);
        assert_eq!(doubt(&self_signed().unwrap().cert[0]), None);
    }

    #[test]
    fn a_certificate_is_made_with_a_key_of_its_own() {
        let (a, b) = (self_signed().unwrap(), self_signed().unwrap());
        assert_ne!(a.cert, b.cert);
    }
}
