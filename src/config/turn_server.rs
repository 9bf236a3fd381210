//! A TURN server, as each part that uses one is told of it.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::{ClientTls, ConfigError, RelayedTransport, TurnUri};
use crate::credentials::{Credentials, Secret, UserPassword};

/// Where a TURN server is, and who we are to it.
///
/// In a file: `server = "turn:…"`, `user` and `password`, with `turns:` perhaps `tls = { … }` ([`ClientTls`]). It is
/// written back without the password.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Table")]
#[non_exhaustive]
pub struct TurnServer {
    /// The server.
    pub uri: TurnUri,
    /// User name and password; a server that asks for them gets an error without.
    pub credentials: Option<Credentials>,
    /// Believes a success of Connect and ConnectionBind that lacks MESSAGE-INTEGRITY, as pion's and icey's servers
    /// send it. Default: no.
    pub trust_unsealed_bind: bool,
    /// With `turns:`, whom the server's certificate must be from; the default believes the system's authorities.
    pub tls: ClientTls,
}

impl TurnServer {
    /// A server that asks for no credentials.
    pub fn new(uri: TurnUri) -> Self {
        Self { uri, credentials: None, trust_unsealed_bind: false, tls: ClientTls::default() }
    }

    /// Who we are to it: a [`UserPassword`], or a recipient that is asked.
    pub fn credentials(mut self, credentials: impl Into<Credentials>) -> Self {
        self.credentials = Some(credentials.into());
        self
    }

    /// Whom to believe, where TLS is spoken with it.
    pub(crate) fn spoken_tls(&self) -> Option<&ClientTls> {
        self.uri.tls.then_some(&self.tls)
    }

    pub(super) fn from_fields(
        uri: TurnUri,
        user: Option<String>,
        password: Option<Secret>,
        trust_unsealed_bind: bool,
        tls: ClientTls,
    ) -> Result<Self, ConfigError> {
        let credentials = match (user, password) {
            (None, None) => None,
            (Some(user), Some(password)) => Some(Credentials::Fixed(UserPassword { user, password })),
            (Some(_), None) => return Err(ConfigError::Halved { missing: "password" }),
            (None, Some(_)) => return Err(ConfigError::Halved { missing: "user" }),
        };
        Ok(Self { uri, credentials, trust_unsealed_bind, tls })
    }

    /// Whether it will do for such an allocation; what is wrong continues "the server …".
    pub(super) fn check(&self, relayed: RelayedTransport) -> Result<(), &'static str> {
        if self.uri.port == 0 || self.uri.host.is_empty() {
            return Err("must have a host, and a port from 1 to 65535");
        }
        if self.uri.transport_for(relayed).is_err() {
            return Err("must be spoken to over TCP, with ?transport=tcp in its URI (RFC 6062)");
        }
        if !self.uri.tls && self.tls != ClientTls::default() {
            return Err("speaks TLS only where its URI begins with turns:");
        }
        if self.tls.check().is_err() {
            return Err("has ca and pin in tls: one of the two");
        }
        match &self.credentials {
            Some(Credentials::Fixed(both)) => both.check(),
            Some(Credentials::Asked(_)) | None => Ok(()),
        }
    }
}

/// How a server stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    server: TurnUri,
    user: Option<String>,
    password: Option<Secret>,
    #[serde(default)]
    trust_unsealed_bind: bool,
    #[serde(default)]
    tls: ClientTls,
}

impl TryFrom<Table> for TurnServer {
    type Error = ConfigError;

    fn try_from(table: Table) -> Result<Self, ConfigError> {
        Self::from_fields(table.server, table.user, table.password, table.trust_unsealed_bind, table.tls)
    }
}

impl Serialize for TurnServer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let user = match &self.credentials {
            Some(Credentials::Fixed(both)) => Some(&both.user),
            Some(Credentials::Asked(_)) | None => None,
        };
        let mut fields = to.serialize_struct("TurnServer", 4)?;
        fields.serialize_field("server", &self.uri)?;
        match user {
            Some(user) => fields.serialize_field("user", user)?,
            None => fields.skip_field("user")?,
        }
        fields.serialize_field("trust_unsealed_bind", &self.trust_unsealed_bind)?;
        if self.tls == ClientTls::default() {
            fields.skip_field("tls")?;
        } else {
            fields.serialize_field("tls", &self.tls)?;
        }
        fields.end()
    }
}
