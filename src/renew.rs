//! What is renewed while all goes on: certificates that stand in files, and who may join a relay.

use actix::prelude::*;

use crate::config::ChildId;
use crate::credentials::{Secret, UserPassword};
use crate::event::{EventKind, RelayEvent};
use crate::slots::Slot;
use crate::supervisor::{NoSession, StartError, SupervisorActor};

/// Has the certificates that sessions and relays show from files read again, now; the files are looked at before each
/// connection too. What each shows from now on is an event: `CertificateShown`, or `CertificateKept` where the files are
/// no good and the old one stays. Connections that are there stay.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct ReadCertificates;

/// Says who may join a relay from now on, in the place of its configuration's users and shared key. Sides that have
/// joined stay; one that may not any more is refused (401) when it joins again, or asks for more time to wait.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), SetAccountsError>")]
pub struct SetAccounts {
    /// The relay's name.
    pub relay: ChildId,
    /// As [`RelayConfig::users`](crate::config::RelayConfig::users).
    pub users: Vec<UserPassword>,
    /// As [`RelayConfig::shared_key`](crate::config::RelayConfig::shared_key).
    pub shared_key: Option<Secret>,
}

/// Who may join a relay has not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetAccountsError {
    /// There is no relay of this name.
    #[error(transparent)]
    NoRelay(#[from] NoSession),
    /// Nobody could join, or a name or a password cannot be.
    #[error(transparent)]
    Accounts(#[from] StartError),
}

impl Handler<ReadCertificates> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, _: ReadCertificates, _: &mut Self::Context) {
        let read = |(name, slot): (&ChildId, &Slot)| Some((name.clone(), slot.read_certificate()?));
        let all: Vec<_> = self.slots.iter().filter_map(read).collect();
        for (child, news) in all {
            self.publish(&child, news);
        }
    }
}

impl Handler<SetAccounts> for SupervisorActor {
    type Result = Result<(), SetAccountsError>;

    fn handle(&mut self, message: SetAccounts, _: &mut Self::Context) -> Self::Result {
        let SetAccounts { relay, users, shared_key } = message;
        let (count, short_lived) = (users.len(), shared_key.is_some());
        let set = self.slots.get_mut(&relay).and_then(|slot| slot.set_accounts(users, shared_key));
        set.ok_or_else(|| NoSession(relay.clone()))??;
        self.publish(&relay, EventKind::Relay(RelayEvent::AccountsSet { users: count, short_lived }));
        Ok(())
    }
}
