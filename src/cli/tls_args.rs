//! TLS on the command line: what a server shows, whom a client believes.

use std::path::PathBuf;

use actix_relay::config::{CertificateFiles, ClientTls, ConfigError, Pin, ServerCertificate, ServerTls};
use clap::Args;

/// What a server shows.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct ServerTlsArgs {
    /// Speak TLS with this certificate (PEM), followed by those of its issuers; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Speak TLS with a certificate made now; its pin, which peers need, is printed and is another at each start
    #[arg(long, conflicts_with = "tls_cert")]
    tls_self_signed: bool,
    /// Let in only peers that show a certificate whose key has one of these pins (SHA-256, 64 hex digits)
    #[arg(long, value_name = "SHA256", num_args = 1.., value_parser = pin)]
    tls_client_pin: Vec<Pin>,
}

impl ServerTlsArgs {
    pub(super) fn is_given(&self) -> bool {
        self.tls_self_signed || self.tls_cert.is_some() || !self.tls_client_pin.is_empty()
    }

    /// What it stands for; `None`: no TLS.
    pub(super) fn tls(self) -> Result<Option<ServerTls>, String> {
        let certificate = match (self.tls_cert, self.tls_key, self.tls_self_signed) {
            (Some(cert), Some(key), _) => ServerCertificate::Files(CertificateFiles { cert, key }),
            (_, _, true) => ServerCertificate::SelfSigned,
            _ if self.tls_client_pin.is_empty() => return Ok(None),
            _ => return Err("--tls-client-pin needs --tls-cert and --tls-key, or --tls-self-signed".into()),
        };
        let mut tls = ServerTls::new(certificate);
        tls.client_pins = self.tls_client_pin;
        Ok(Some(tls))
    }
}

/// Whom a client believes, where something else says that it speaks TLS: `--tls`, or a URI with `turns:`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct BelieveArgs {
    /// Believe the authorities in this file (PEM) instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "tls_pin")]
    tls_ca: Option<PathBuf>,
    /// Believe nobody but the holder of the key with this pin (SHA-256, 64 hex digits)
    #[arg(long, value_name = "SHA256", value_parser = pin)]
    tls_pin: Option<Pin>,
}

impl BelieveArgs {
    pub(super) fn is_given(&self) -> bool {
        self.tls_ca.is_some() || self.tls_pin.is_some()
    }

    pub(super) fn tls(self) -> ClientTls {
        let mut tls = ClientTls::default();
        (tls.ca, tls.pin) = (self.tls_ca, self.tls_pin);
        tls
    }
}

/// Whether a client speaks TLS, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct ClientTlsArgs {
    /// Speak TLS; the server must show a certificate for its name from an authority that this system knows
    #[arg(long)]
    tls: bool,
    /// Show this certificate (PEM) to a server that asks for one
    #[arg(long, value_name = "FILE", requires = "tls_client_key")]
    tls_client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_client_cert")]
    tls_client_key: Option<PathBuf>,
}

impl ClientTlsArgs {
    /// What it stands for, together with whom it believes; `None`: no TLS.
    pub(super) fn tls(self, believe: BelieveArgs) -> Result<Option<ClientTls>, String> {
        if !self.tls {
            return if believe.is_given() || self.tls_client_cert.is_some() {
                Err("--tls-ca, --tls-pin and --tls-client-cert go with --tls".into())
            } else {
                Ok(None)
            };
        }
        let mut tls = believe.tls();
        let certificate = self.tls_client_cert.zip(self.tls_client_key);
        tls.certificate = certificate.map(|(cert, key)| CertificateFiles { cert, key });
        Ok(Some(tls))
    }
}

fn pin(text: &str) -> Result<Pin, String> {
    text.parse().map_err(|_: ConfigError| "expected 64 hex digits, the SHA-256 of a public key".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const PIN: &str = "00010203040506070809aabbccddeeff000102030405060708090a0b0c0d0e0f";

    #[derive(Debug, Parser)]
    struct Server {
        #[command(flatten)]
        tls: ServerTlsArgs,
    }

    #[derive(Debug, Parser)]
    struct Client {
        #[command(flatten)]
        tls: ClientTlsArgs,
        #[command(flatten)]
        believe: BelieveArgs,
    }

    fn server(line: &str) -> Result<Option<ServerTls>, String> {
        let args = Server::try_parse_from(format!("a {line}").split_whitespace());
        args.map_err(|error| error.to_string())?.tls.tls()
    }

    fn client(line: &str) -> Result<Option<ClientTls>, String> {
        let args = Client::try_parse_from(format!("a {line}").split_whitespace());
        let Client { tls, believe } = args.map_err(|error| error.to_string())?;
        tls.tls(believe)
    }

    #[test]
    fn a_server_shows_files_or_what_is_made() {
        assert_eq!(server(""), Ok(None));
        assert_eq!(server("--tls-cert c --tls-key k"), Ok(Some(ServerTls::files("c", "k"))));
        let mut pinned = ServerTls::new(ServerCertificate::SelfSigned);
        pinned.client_pins = vec![PIN.parse().unwrap()];
        assert_eq!(server(&format!("--tls-self-signed --tls-client-pin {PIN}")), Ok(Some(pinned)));
        for (line, expected) in [
            ("--tls-cert c", "--tls-key"),
            ("--tls-key k", "--tls-cert"),
            ("--tls-cert c --tls-key k --tls-self-signed", "cannot be used with"),
            (&format!("--tls-client-pin {PIN}"), "--tls-client-pin needs"),
            ("--tls-self-signed --tls-client-pin 12", "expected 64 hex digits"),
        ] {
            assert!(server(line).unwrap_err().contains(expected), "{line}");
        }
    }

    #[test]
    fn a_client_speaks_tls_only_when_told() {
        assert_eq!(client(""), Ok(None));
        assert_eq!(client("--tls"), Ok(Some(ClientTls::default())));
        let pinned = client(&format!("--tls --tls-pin {PIN} --tls-client-cert c --tls-client-key k"));
        let pinned = pinned.unwrap().unwrap();
        assert_eq!((pinned.pin, pinned.ca), (PIN.parse().ok(), None));
        assert_eq!(pinned.certificate, Some(CertificateFiles { cert: "c".into(), key: "k".into() }));
        for (line, expected) in [
            ("--tls-ca a", "go with --tls"),
            ("--tls-client-cert c --tls-client-key k", "go with --tls"),
            ("--tls --tls-client-cert c", "--tls-client-key"),
            (&format!("--tls --tls-ca a --tls-pin {PIN}"), "cannot be used with"),
        ] {
            assert!(client(line).unwrap_err().contains(expected), "{line}");
        }
    }
}
