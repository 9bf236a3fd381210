//! What a TCP relay is told: where it listens, who may join, and its limits.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ChildId, ConfigError, MAX_LISTENERS, ServerTls, checks, defaults, duration};
use crate::credentials::{self, Secret, UserPassword};

/// One TCP relay: pairs of sides that both call it are joined there.
///
/// In a file a table `[[relay]]`. Somebody must be able to join: `users` or `shared_key` is set.
///
/// There is no limit of channels here, for a relay keeps nothing of them: each side limits those that its peer may open,
/// by [`max_sources`](super::SessionConfig::max_sources).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RelayConfig {
    /// Names the relay in events and messages.
    pub name: ChildId,
    /// Where sides connect to: 1 to 16 addresses, port 0 is chosen by the system.
    pub local_tcp: Vec<SocketAddr>,
    /// REALM, which goes into every key: 1 to 127 characters. Another one later makes every password another.
    pub realm: String,
    /// Who may join. The names have no colon: those with one are names of short-lived credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "credentials::users")]
    pub users: Vec<UserPassword>,
    /// Who knows this key makes short-lived credentials for anybody: user name `EXPIRY:NAME`, with seconds since 1970,
    /// and as password the base64 of HMAC-SHA1 (shared key, user name). The user is NAME.
    #[serde(default, skip_serializing)]
    pub shared_key: Option<Secret>,
    /// The two sides of a pair may be different users; otherwise both are the user's who came first.
    #[serde(default)]
    pub pairs_across_users: bool,
    /// Networks of proxies in front of the relay, at most 256. Each connection from there begins with a PROXY header
    /// (version 1 or 2, before TLS), and the address in it counts as the caller's; without one it is closed. At most
    /// 1,024 wait for theirs; past it the oldest goes. Whoever calls from there can say that he is anybody. From
    /// elsewhere no such header is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol: Vec<IpNet>,
    /// Connections that have not joined, over all addresses; 1 to 65,536, default 4,096. Past it the oldest of the
    /// busiest address goes.
    #[serde(default = "own::max_unjoined")]
    pub max_unjoined: usize,
    /// The same from one address (IPv4) or network of 64 bits (IPv6); default 64. Past it the oldest goes.
    #[serde(default = "own::max_unjoined_per_address")]
    pub max_unjoined_per_address: usize,
    /// Sides of one user at once, 1 to 1,048,576, default 1,024. Past it: 486.
    #[serde(default = "own::max_sessions_per_user")]
    pub max_sessions_per_user: usize,
    /// Pairs at once, those with one side included, 1 to 1,048,576, default 65,536. Past it: 508.
    #[serde(default = "own::max_pairs")]
    pub max_pairs: usize,
    /// How long a side may ask to wait for its peer, 10 s to 1 h (the default). It may ask again and again.
    #[serde(default = "own::max_lifetime", with = "duration")]
    pub max_lifetime: Duration,
    /// Bytes a second that one pair may send, both sides together, at least 65,536; `None` (the default) sets no limit.
    /// What comes faster is read later, and the sides are told so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u64>,
    /// The longest datagram that is forwarded, 1 to 65,527 bytes (the default); longer ones are dropped.
    #[serde(default = "own::max_datagram")]
    pub max_datagram: usize,
    /// Sides that connect must speak TLS. Without it whoever is in between sees the datagrams and may forge them, and
    /// `Closing` and `Peer` too; passwords he does not see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// `SO_MARK` of every socket (Linux, needs `CAP_NET_ADMIN`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// `TCP_CONGESTION` of every socket (Linux), such as `bbr`: at most 15 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// A datagram that has waited longer than this for a side to take it is dropped; default 50 ms.
    #[serde(default = "defaults::max_queue_delay", with = "duration")]
    pub max_queue_delay: Duration,
    /// What may wait for one side, each datagram counting 64 bytes more than it has; 64 KiB to 1 GiB, default 2 MiB.
    #[serde(default = "defaults::queue_bytes")]
    pub queue_bytes: usize,
}

mod own {
    use std::time::Duration;

    pub(super) fn max_unjoined() -> usize {
        4096
    }
    pub(super) fn max_unjoined_per_address() -> usize {
        64
    }
    pub(super) fn max_sessions_per_user() -> usize {
        1024
    }
    pub(super) fn max_pairs() -> usize {
        65_536
    }
    pub(super) fn max_lifetime() -> Duration {
        Duration::from_secs(3600)
    }
    pub(super) fn max_datagram() -> usize {
        65_527
    }
}

/// [`RelayConfig::realm`] has this many characters at most (RFC 8489 §14.9).
const MAX_REALM: usize = 127;
/// The most networks of [`RelayConfig::proxy_protocol`].
const MAX_PROXIES: usize = 256;
/// The most pairs, and the most sides of one user.
const MANY: usize = 1 << 20;

impl RelayConfig {
    /// A relay that listens at `local_tcp`. Nobody may join yet: set `users` or `shared_key`.
    pub fn new(name: impl Into<ChildId>, local_tcp: SocketAddr, realm: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            local_tcp: vec![local_tcp],
            realm: realm.into(),
            users: Vec::new(),
            shared_key: None,
            pairs_across_users: false,
            proxy_protocol: Vec::new(),
            max_unjoined: own::max_unjoined(),
            max_unjoined_per_address: own::max_unjoined_per_address(),
            max_sessions_per_user: own::max_sessions_per_user(),
            max_pairs: own::max_pairs(),
            max_lifetime: own::max_lifetime(),
            max_rate: None,
            max_datagram: own::max_datagram(),
            tls: None,
            fwmark: None,
            congestion: None,
            max_queue_delay: defaults::max_queue_delay(),
            queue_bytes: defaults::queue_bytes(),
        }
    }

    /// One more who may join.
    pub fn user(mut self, user: UserPassword) -> Self {
        self.users.push(user);
        self
    }

    /// Whether all values make sense together.
    ///
    /// # Errors
    /// One sentence that names the field and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |field, why| ConfigError::InvalidRelay { relay: self.name.clone(), field, why };
        checks::name(self.name.as_str()).map_err(|why| invalid("name", why))?;
        if !(1..=MAX_LISTENERS).contains(&self.local_tcp.len()) {
            return Err(invalid("local_tcp", "must name 1 to 16 addresses"));
        }
        let realm = &self.realm;
        if !(1..=MAX_REALM).contains(&realm.chars().count()) || realm.contains(char::is_control) {
            return Err(invalid("realm", "must have 1 to 127 characters, none of them a control character"));
        }
        self.check_users().map_err(|why| invalid("users", why))?;
        if self.shared_key.as_ref().is_some_and(|key| !(1..=1024).contains(&key.expose().len())) {
            return Err(invalid("shared_key", "must have 1 to 1024 bytes"));
        }
        if self.proxy_protocol.len() > MAX_PROXIES {
            return Err(invalid("proxy_protocol", "must name at most 256 networks"));
        }
        self.check_limits().map_err(|(field, why)| invalid(field, why))?;
        if let Some(tls) = &self.tls {
            tls.check().map_err(|why| invalid("tls", why))?;
        }
        checks::congestion(self.congestion.as_deref()).map_err(|why| invalid("congestion", why))?;
        checks::queue_bytes(self.queue_bytes).map_err(|why| invalid("queue_bytes", why))?;
        checks::duration(self.max_queue_delay).map_err(|why| invalid("max_queue_delay", why))
    }

    fn check_users(&self) -> Result<(), &'static str> {
        if self.users.is_empty() && self.shared_key.is_none() {
            return Err("names nobody, and there is no shared key: nobody could join");
        }
        let mut names = HashSet::new();
        for both in &self.users {
            if both.check().is_err() {
                return Err(
                    "must have names of 1 to 508 bytes and passwords of 1 to 1024, without control characters",
                );
            }
            if both.user.contains(':') {
                return Err("must have names without a colon: those with one are of short-lived credentials");
            }
            if !names.insert(&both.user) {
                return Err("must not name a user twice");
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), (&'static str, &'static str)> {
        if !(1..=65_536).contains(&self.max_unjoined) {
            return Err(("max_unjoined", "must be 1 to 65536"));
        }
        if !(1..=65_536).contains(&self.max_unjoined_per_address) {
            return Err(("max_unjoined_per_address", "must be 1 to 65536"));
        }
        if !(1..=MANY).contains(&self.max_sessions_per_user) {
            return Err(("max_sessions_per_user", "must be 1 to 1048576"));
        }
        if !(1..=MANY).contains(&self.max_pairs) {
            return Err(("max_pairs", "must be 1 to 1048576"));
        }
        if !(10..=3600).contains(&self.max_lifetime.as_secs()) {
            return Err(("max_lifetime", "must be 10s to 1h"));
        }
        if self.max_rate.is_some_and(|rate| !(65_536..=1 << 50).contains(&rate)) {
            return Err(("max_rate", "must be 65536 bytes a second or more"));
        }
        if !(1..=65_527).contains(&self.max_datagram) {
            return Err(("max_datagram", "must be 1 to 65527 bytes"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RelayConfig {
        RelayConfig::new("relay", "127.0.0.1:0".parse().unwrap(), "example.org")
            .user(UserPassword::new("alice", "hunter2"))
    }

    #[test]
    fn a_relay_needs_an_address_and_somebody_who_may_join() {
        config().validate().unwrap();
        let mut shared = config();
        (shared.users, shared.shared_key) = (Vec::new(), Some("key".into()));
        shared.validate().unwrap();
    }

    #[test]
    fn what_is_wrong_is_said_without_a_password() {
        type Change = fn(&mut RelayConfig);
        let wrong: [(Change, &str); 16] = [
            (|c| c.name = "".into(), "name must have"),
            (|c| c.local_tcp.clear(), "local_tcp must name 1 to 16"),
            (|c| c.realm.clear(), "realm must have 1 to 127"),
            (|c| c.realm = "a".repeat(128), "realm must have 1 to 127"),
            (|c| c.users.clear(), "users names nobody, and there is no shared key"),
            (|c| c.users[0].user = "17:alice".into(), "users must have names without a colon"),
            (|c| c.users.push(UserPassword::new("alice", "hunter2")), "users must not name a user twice"),
            (|c| c.users.push(UserPassword::new("bob", "")), "users must have names of"),
            (|c| c.shared_key = Some("".into()), "shared_key must have"),
            (|c| c.proxy_protocol = vec![IpNet::default(); 257], "proxy_protocol must name at most"),
            (|c| c.max_unjoined = 0, "max_unjoined must be"),
            (|c| c.max_sessions_per_user = 0, "max_sessions_per_user must be"),
            (|c| c.max_lifetime = Duration::from_secs(9), "max_lifetime must be"),
            (|c| c.max_datagram = 65_528, "max_datagram must be"),
            (|c| c.max_rate = Some(65_535), "max_rate must be"),
            (|c| c.queue_bytes = 1, "queue_bytes must be"),
        ];
        for (change, expected) in wrong {
            let mut config = config();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{expected}: {error}");
        }
    }

    #[test]
    fn no_secret_is_shown_or_written() {
        let mut config = config();
        config.shared_key = Some("hunter2".into());
        for text in [format!("{config:?}"), serde_json::to_string(&config).unwrap()] {
            assert!(text.contains("alice") && !text.contains("hunter2"), "{text}");
        }
    }
}
