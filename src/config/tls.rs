//! TLS: whom a client believes, what a server shows.
//!
//! A [`Pin`] names a key instead of a certificate: whoever renews the certificate of the same key keeps it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 §2.4), written as 64 hex digits.
///
/// `openssl x509 -in cert.pem -pubkey -noout | openssl pkey -pubin -outform der | sha256sum` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pin(pub [u8; 32]);

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut pin = [0; 32];
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(ConfigError::Pin { text: text.to_owned() });
        }
        for (byte, at) in pin.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).expect("two hex digits");
        }
        Ok(Self(pin))
    }
}

impl TryFrom<String> for Pin {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

/// A certificate and its private key, as PEM files. A relative path is looked for in the working directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, then those of its issuers up to one that the far side knows.
    pub cert: PathBuf,
    /// PKCS #8, PKCS #1 or SEC 1; not encrypted.
    pub key: PathBuf,
}

/// How a client finds out whom it talks to, and who it is itself. The default believes the system's authorities.
///
/// In a file: `{}`, `{ ca = "FILE" }` or `{ pin = "64 HEX DIGITS" }`, with `cert = "FILE", key = "FILE"` if the
/// server asks for a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ClientTable", into = "ClientTable")]
#[non_exhaustive]
pub struct ClientTls {
    /// Believes these authorities (PEM) instead of the system's.
    pub ca: Option<PathBuf>,
    /// Believes the holder of this key and nobody else: name, issuer and dates of its certificate are not looked at.
    pub pin: Option<Pin>,
    /// Is shown to a server that asks for it.
    pub certificate: Option<CertificateFiles>,
}

impl ClientTls {
    /// Says what is wrong; what it says continues "tls …".
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match (&self.ca, &self.pin) {
            (Some(_), Some(_)) => Err("takes ca or pin, not both"),
            _ => Ok(()),
        }
    }
}

/// What a server shows, and whom it lets in.
///
/// In a file: `{ cert = "FILE", key = "FILE" }` or `{ self_signed = true }`, with `client_pins = ["64 HEX DIGITS", …]`
/// to let in only those clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ServerTable", into = "ServerTable")]
#[non_exhaustive]
pub struct ServerTls {
    /// What it shows.
    pub certificate: ServerCertificate,
    /// Clients must show a certificate of one of these keys; empty (the default) asks for none. At most 1,024.
    pub client_pins: Vec<Pin>,
}

/// Where a server's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerCertificate {
    /// Files, which are read again when they change.
    Files(CertificateFiles),
    /// Made when the server starts, from a new key: clients need its pin, which an event tells.
    SelfSigned,
}

/// [`ServerTls::client_pins`] holds at most this many.
const MAX_CLIENT_PINS: usize = 1024;

impl ServerTls {
    /// Shows this certificate to everybody.
    pub fn new(certificate: ServerCertificate) -> Self {
        Self { certificate, client_pins: Vec::new() }
    }

    /// Shows a certificate from files to everybody.
    pub fn files(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self::new(ServerCertificate::Files(CertificateFiles { cert: cert.into(), key: key.into() }))
    }

    /// Says what is wrong; what it says continues "listen_tls …".
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.client_pins.len() > MAX_CLIENT_PINS {
            return Err("may name at most 1024 client_pins");
        }
        Ok(())
    }
}

/// How [`ClientTls`] stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientTable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<Pin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cert: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
}

impl TryFrom<ClientTable> for ClientTls {
    type Error = ConfigError;

    fn try_from(table: ClientTable) -> Result<Self, ConfigError> {
        let certificate = files(table.cert, table.key)?;
        Ok(Self { ca: table.ca, pin: table.pin, certificate })
    }
}

impl From<ClientTls> for ClientTable {
    fn from(tls: ClientTls) -> Self {
        let (cert, key) = tls.certificate.map(|files| (files.cert, files.key)).unzip();
        Self { ca: tls.ca, pin: tls.pin, cert, key }
    }
}

/// How [`ServerTls`] stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerTable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cert: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    self_signed: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    client_pins: Vec<Pin>,
}

impl TryFrom<ServerTable> for ServerTls {
    type Error = ConfigError;

    fn try_from(table: ServerTable) -> Result<Self, ConfigError> {
        let certificate = match (files(table.cert, table.key)?, table.self_signed) {
            (Some(files), false) => ServerCertificate::Files(files),
            (None, true) => ServerCertificate::SelfSigned,
            _ => return Err(ConfigError::Certificate),
        };
        Ok(Self { certificate, client_pins: table.client_pins })
    }
}

impl From<ServerTls> for ServerTable {
    fn from(tls: ServerTls) -> Self {
        let (files, self_signed) = match tls.certificate {
            ServerCertificate::Files(files) => (Some(files), false),
            ServerCertificate::SelfSigned => (None, true),
        };
        let (cert, key) = files.map(|files| (files.cert, files.key)).unzip();
        Self { cert, key, self_signed, client_pins: tls.client_pins }
    }
}

fn files(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<CertificateFiles>, ConfigError> {
    match (cert, key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(CertificateFiles { cert, key })),
        (Some(_), None) => Err(ConfigError::HalfCertificate { missing: "key" }),
        (None, Some(_)) => Err(ConfigError::HalfCertificate { missing: "cert" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "00010203040506070809aabbccddeeff000102030405060708090a0b0c0d0e0f";

    #[test]
    fn a_pin_is_64_hex_digits() {
        let pin: Pin = PIN.parse().unwrap();
        assert_eq!((pin.0[1], pin.0[10], pin.0[31]), (1, 0xaa, 15));
        assert_eq!(pin.to_string(), PIN);
        assert_eq!(PIN.to_uppercase().parse(), Ok(pin));
        for text in ["", "00", &PIN[1..], &PIN.replace('a', "ä"), &PIN.replace('a', "+"), &format!("{PIN}00")]
        {
            assert!(text.parse::<Pin>().unwrap_err().to_string().contains("64 hex digits"), "{text}");
        }
    }

    #[test]
    fn a_client_is_a_flat_table() {
        let files = CertificateFiles { cert: "c.pem".into(), key: "k.pem".into() };
        for (text, expected) in [
            ("{}".to_owned(), ClientTls::default()),
            (r#"{"ca":"ca.pem"}"#.into(), ClientTls { ca: Some("ca.pem".into()), ..Default::default() }),
            (
                format!(r#"{{"pin":"{PIN}","cert":"c.pem","key":"k.pem"}}"#),
                ClientTls { pin: PIN.parse().ok(), certificate: Some(files), ca: None },
            ),
        ] {
            let read: ClientTls = serde_json::from_str(&text).unwrap();
            assert_eq!(read, expected);
            assert_eq!(read.check(), Ok(()));
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn a_server_is_a_flat_table() {
        for (text, expected) in [
            (r#"{"cert":"c.pem","key":"k.pem"}"#.to_owned(), ServerTls::files("c.pem", "k.pem")),
            (r#"{"self_signed":true}"#.into(), ServerTls::new(ServerCertificate::SelfSigned)),
            (
                format!(r#"{{"self_signed":true,"client_pins":["{PIN}"]}}"#),
                ServerTls {
                    client_pins: vec![PIN.parse().unwrap()],
                    ..ServerTls::new(ServerCertificate::SelfSigned)
                },
            ),
        ] {
            let read: ServerTls = serde_json::from_str(&text).unwrap();
            assert_eq!(read, expected);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, expected) in [
            (r#"{"cert":"c.pem"}"#, "key is missing"),
            (r#"{"key":"k.pem"}"#, "cert is missing"),
            (r#"{"pin":"12"}"#, "64 hex digits"),
            (r#"{"pins":[]}"#, "unknown field `pins`"),
        ] {
            let error = serde_json::from_str::<ClientTls>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for (text, expected) in [
            ("{}", "cert and key, or self_signed"),
            (r#"{"cert":"c.pem","key":"k.pem","self_signed":true}"#, "cert and key, or self_signed"),
            (r#"{"self_signed":true,"cert":"c.pem"}"#, "key is missing"),
        ] {
            let error = serde_json::from_str::<ServerTls>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let both = ClientTls { ca: Some("ca.pem".into()), pin: PIN.parse().ok(), certificate: None };
        assert_eq!(both.check(), Err("takes ca or pin, not both"));
        let mut many = ServerTls::new(ServerCertificate::SelfSigned);
        many.client_pins = vec![PIN.parse().unwrap(); 1025];
        assert_eq!(many.check(), Err("may name at most 1024 client_pins"));
    }
}
