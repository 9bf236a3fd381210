//! What can go wrong with TLS, each with a sentence that says what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::verify::Unpinned;

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is nobody to be believed.
    #[error(
        "this machine has no certificate authorities to believe: name one (ca), or the server's key (pin)"
    )]
    NoAuthorities,
    /// A certificate could not be made.
    #[error("making a certificate: {why}")]
    SelfSigned {
        /// What is wrong.
        why: String,
    },
    /// No certificate could be for such a name.
    #[error("'{host}' is no name that a certificate can be for")]
    Name {
        /// The name.
        host: String,
    },
    /// One of the two did not like what the other showed or could.
    #[error("TLS: {why}")]
    Refused {
        /// Who refused what.
        why: String,
    },
    /// Both speak TLS, but not for the same purpose: the peer did not choose our protocol (ALPN, RFC 7301).
    #[error("TLS: the peer does not speak {wanted} (ALPN)")]
    Protocol {
        /// What was asked for.
        wanted: String,
    },
    /// What came is not TLS.
    #[error("TLS: the peer does not speak TLS")]
    Plain,
    /// The peer closed the connection in the middle of the handshake.
    #[error("TLS: the peer closed the connection during the handshake")]
    Closed,
    /// The handshake took too long.
    #[error("TLS: the handshake was not finished within {after:.0?}; does the peer speak TLS?")]
    Timeout {
        /// Its deadline.
        after: Duration,
    },
    /// The handshake took too many bytes.
    #[error("TLS: the peer sent more than {limit} bytes before the handshake was over")]
    TooLong {
        /// How many it may have.
        limit: usize,
    },
    /// The connection broke.
    #[error("TLS: {0}")]
    Broken(#[source] io::Error),
}

impl TlsError {
    /// Whether it will be the same in a moment, so that asking again soon only makes work.
    pub(crate) fn is_refusal(&self) -> bool {
        !matches!(self, Self::Closed | Self::Timeout { .. } | Self::Broken(_))
    }

    /// The one that travelled inside of an I/O error, if there is one.
    pub(crate) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Broken(source) => source,
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

impl From<io::Error> for TlsError {
    fn from(source: io::Error) -> Self {
        source.downcast().unwrap_or_else(Self::Broken)
    }
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        let why = match error {
            Error::InvalidMessage(_) => return Self::Plain,
            Error::InvalidCertificate(error) => bad_certificate(&error),
            Error::AlertReceived(alert) => refused_by_peer(alert),
            Error::DecryptError => {
                return Self::Broken(io::Error::other("what came was changed on the way"));
            }
            Error::NoCertificatesPresented => "the peer showed no certificate".to_owned(),
            Error::NoApplicationProtocol => "the peer asks for another protocol (ALPN)".to_owned(),
            Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                "the peer takes no certificate of this kind".to_owned()
            }
            Error::PeerIncompatible(what) => format!("nothing in common with the peer: {what:?}"),
            error => error.to_string(),
        };
        Self::Refused { why }
    }
}

/// What is wrong with a certificate's dates, if that is it; continues "it …".
pub(crate) fn out_of_date(error: &CertificateError) -> Option<String> {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            Some(format!("expired on {}", date(not_after.as_secs())))
        }
        CertificateError::Expired => Some("has expired".to_owned()),
        CertificateError::NotValidYetContext { not_before, .. } => {
            let date = date(not_before.as_secs());
            Some(format!("is good from {date} only (is this machine's clock right?)"))
        }
        CertificateError::NotValidYet => Some("is not good yet".to_owned()),
        _ => None,
    }
}

fn bad_certificate(error: &CertificateError) -> String {
    if let Some(why) = out_of_date(error) {
        return format!("the peer's certificate {why}");
    }
    match error {
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| plain(name)).collect();
            let names = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
            format!("the peer's certificate is for {names}, not for {}", expected.to_str())
        }
        CertificateError::NotValidForName => "the peer's certificate is for another name".to_owned(),
        CertificateError::UnknownIssuer => {
            "the peer's certificate is from an authority that is not believed \
             here: name that one (ca), or the peer's key (pin)"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "the peer's certificate is not signed by the authority that it names, or the peer does not have its key"
                .to_owned()
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<Unpinned>() {
            Some(unpinned) => format!("the peer is not who is expected: {unpinned}"),
            // webpki's error is not to be had by its type.
            None if other.0.to_string() == "CaUsedAsEndEntity" => {
                "the peer's certificate is an authority's, such as `openssl req -x509` makes: name the peer's key (pin)"
                    .to_owned()
            }
            None => format!("the peer's certificate: {}", other.0),
        },
        error => format!("the peer's certificate: {error}"),
    }
}

/// `DnsName("a.example")` is a.example.
fn plain(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"')
}

fn date(unix: u64) -> impl std::fmt::Display {
    // Beyond the year 9999 there is nothing to be shown.
    let last = 253_402_300_799;
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(unix.min(last)))
}

fn refused_by_peer(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateRequired => "it asks for a certificate",
        AlertDescription::CertificateExpired => "our certificate has expired",
        AlertDescription::UnknownCA => "it does not believe the authority of our certificate",
        AlertDescription::CertificateUnknown
        | AlertDescription::BadCertificate
        | AlertDescription::AccessDenied => "it does not believe our certificate",
        AlertDescription::NoApplicationProtocol => "it speaks another protocol (ALPN)",
        AlertDescription::UnrecognisedName => "it does not know the name that it was asked for",
        AlertDescription::ProtocolVersion => "it speaks another version of TLS",
        AlertDescription::HandshakeFailure => "nothing in common, or it asks for a certificate",
        AlertDescription::CertificateRevoked => "our certificate is revoked",
        AlertDescription::UnsupportedCertificate => "it takes no certificate of this kind",
        AlertDescription::InsufficientSecurity => "it wants stronger ciphers",
        alert => return format!("the peer refused ({alert:?})"),
    };
    format!("the peer refused: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{ServerName, UnixTime};

    fn said(error: Error) -> String {
        TlsError::from(error).to_string()
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_said_in_a_sentence() {
        let unix = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let wrong_name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.example").unwrap(),
            presented: vec!["DnsName(\"b.example\")".into(), "IpAddress(192.0.2.1)".into()],
        };
        for (error, expected) in [
            (wrong_name, "TLS: the peer's certificate is for b.example, 192.0.2.1, not for a.example"),
            (
                CertificateError::ExpiredContext { time: unix(9), not_after: unix(8) },
                "TLS: the peer's certificate expired on 1970-01-01T00:00:08Z",
            ),
            (
                CertificateError::ExpiredContext { time: unix(9), not_after: unix(u64::MAX) },
                "TLS: the peer's certificate expired on 9999-12-31T23:59:59Z",
            ),
        ] {
            assert_eq!(said(Error::InvalidCertificate(error)), expected);
        }
        assert!(said(Error::InvalidCertificate(CertificateError::UnknownIssuer)).contains("(ca)"));
        let alert = Error::AlertReceived(AlertDescription::CertificateRequired);
        assert_eq!(said(alert), "TLS: the peer refused: it asks for a certificate");
    }

    #[test]
    fn only_what_may_be_better_in_a_moment_is_no_refusal() {
        assert!(TlsError::Plain.is_refusal());
        assert!(TlsError::from(Error::NoCertificatesPresented).is_refusal());
        assert!(!TlsError::Closed.is_refusal());
        assert!(TlsError::from(Error::AlertReceived(AlertDescription::UnknownCA)).is_refusal());
        assert!(!TlsError::from(Error::DecryptError).is_refusal());
        let error: io::Error = TlsError::Plain.into();
        assert!(matches!(TlsError::within(&error), Some(TlsError::Plain)));
        assert!(matches!(TlsError::from(error), TlsError::Plain), "it is the same on the way back");
        assert!(TlsError::within(&io::ErrorKind::ConnectionReset.into()).is_none());
    }
}
