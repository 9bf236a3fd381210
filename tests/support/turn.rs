//! What the tests of TURN clients share: configurations, and the events that are awaited.

use std::net::SocketAddr;

use actix::prelude::*;
use actix_relay::config::{TurnConfig, TurnServer};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{EventKind, TurnEvent};
use actix_relay::supervisor::StartTurn;
use actix_relay::turn::TurnClientActor;

use super::House;
use super::coturn::{PASSWORD, USER};

/// A server with the user that the test servers know.
pub fn server(uri: &str) -> TurnServer {
    TurnServer::new(uri.parse().unwrap()).credentials(UserPassword::new(USER, PASSWORD))
}

impl House {
    pub async fn turn(&self, config: TurnConfig) -> Addr<TurnClientActor> {
        self.supervisor.send(StartTurn { config }).await.unwrap().unwrap()
    }

    /// The next event of this TURN client that is looked for; those before it are passed over.
    pub async fn turn_event<T>(&mut self, child: &str, find: impl Fn(&TurnEvent) -> Option<T>) -> T {
        self.event(child, |kind| match kind {
            EventKind::Turn(event) => find(event),
            _ => None,
        })
        .await
    }

    /// The relayed address of the next allocation.
    pub async fn allocated(&mut self, child: &str) -> SocketAddr {
        self.turn_event(child, |event| match event {
            TurnEvent::AllocationCreated { relayed, .. } => Some(*relayed),
            _ => None,
        })
        .await
    }
}
