//! This crate's TCP relay, as an application would start it.

use std::future;

use actix::prelude::*;
use actix_relay::config::{RelayConfig, ServerTls, SupervisorConfig};
use actix_relay::credentials::UserPassword;
use actix_relay::relay::GetRelay;
use actix_relay::supervisor::{StartRelay, SupervisorActor};

use crate::side::{PASSWORD, REALM, USER};
use crate::tunnel::LOOPBACK;
use crate::{Outcome, parent};

/// All sides call from one address here, and are one user.
const MANY: usize = 1 << 16;

/// Runs a relay with the threads that it has by default, until the process ends.
pub(crate) fn relay(tls: Option<ServerTls>) -> Outcome<()> {
    parent::exit_with_it();
    let mut config = RelayConfig::new("relay", LOOPBACK, REALM).user(UserPassword::new(USER, PASSWORD));
    config.max_unjoined_per_address = MANY;
    config.max_sessions_per_user = MANY;
    config.tls = tls;
    actix_rt::System::new().block_on(async move {
        let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
        let relay = supervisor.send(StartRelay { config }).await??;
        let info = relay.send(GetRelay).await?;
        parent::announce(*info.local_tcp.first().ok_or("the relay listens nowhere")?)?;
        future::pending().await
    })
}
