//! Pins: whoever holds the key is believed, whatever else its certificate says.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use sha2::{Digest, Sha256};

use crate::config::Pin;

/// The pin of a certificate's key.
///
/// # Errors
/// It is no certificate that rustls can read (X.509 version 3).
pub(super) fn pin_of(certificate: &CertificateDer<'_>) -> Result<Pin, Error> {
    let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    Ok(Pin(Sha256::digest(&key).into()))
}

/// What is said of a certificate whose key is not among the pins.
#[derive(Debug)]
pub(super) struct Unpinned(pub(super) Pin);

impl fmt::Display for Unpinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its certificate's key has the pin {}, which is not expected here", self.0)
    }
}

impl std::error::Error for Unpinned {}

/// Believes certificates of these keys, as a client and as a server, and asks clients for one.
#[derive(Debug)]
pub(super) struct Pinned {
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    pub(super) fn new(pins: Vec<Pin>, provider: Arc<CryptoProvider>) -> Self {
        Self { pins, provider }
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let pin = pin_of(certificate)?;
        if self.pins.contains(&pin) {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Unpinned(pin))))))
    }

    /// That the peer holds the key, too, is shown by its signature.
    fn check_tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn check_tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_that_of_the_key_whatever_the_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = |name: &str| {
            let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            params.self_signed(&key).unwrap().der().clone()
        };
        let (first, renewed) = (certificate("a.example"), certificate("b.example"));
        let pin = pin_of(&first).unwrap();
        assert_ne!(first, renewed);
        assert_eq!(pin_of(&renewed).unwrap(), pin);
        let other = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pinned = Pinned::new(vec![pin], provider);
        assert_eq!(pinned.check(&renewed), Ok(()));
        assert!(pinned.check(other.cert.der()).is_err());
        assert!(pinned.check(&CertificateDer::from(b"0".to_vec())).is_err());
    }
}
