//! One end of this crate's tunnel, as an application would start it.

use std::future;
use std::net::SocketAddr;
use std::time::Duration;

use actix::prelude::*;
use actix_relay::config::{SessionConfig, SupervisorConfig};
use actix_relay::session::{GetSession, SessionInfo};
use actix_relay::supervisor::{StartSession, SupervisorActor};

use crate::{Outcome, parent};

/// The bench gives up on a child that is not bound in 10 s; this is how often we look.
const BOUND_INTERVAL: Duration = Duration::from_millis(10);

/// Calls `tcp` and carries for the applications that send to `udp`.
pub(crate) fn near(tcp: SocketAddr, udp: SocketAddr) -> Outcome<()> {
    run(SessionConfig::connect("near", tcp).local_udp(udp), |info| info.local_udp)
}

/// Listens at `tcp` for peers of `service`.
pub(crate) fn far(tcp: SocketAddr, service: SocketAddr) -> Outcome<()> {
    run(SessionConfig::listen("far", tcp).udp_forward(service), |info| info.local_tcp.first().copied())
}

/// Runs one session on one thread until the process ends.
fn run(config: SessionConfig, bound: fn(&SessionInfo) -> Option<SocketAddr>) -> Outcome<()> {
    actix_rt::System::new().block_on(async move {
        let mut supervision = SupervisorConfig::default();
        supervision.workers = 0;
        let supervisor = SupervisorActor::new(supervision).start();
        let session = supervisor.send(StartSession { config }).await??;
        let addr = loop {
            let info = session.send(GetSession).await?;
            match bound(&info) {
                Some(addr) => break addr,
                None => actix_rt::time::sleep(BOUND_INTERVAL).await,
            }
        };
        parent::announce(addr)?;
        future::pending().await
    })
}
