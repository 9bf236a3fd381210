//! A panic in any actor of a session at a relay ends that actor only; it is replaced, and the ports stay.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::SocketAddr;

use actix_relay::config::{RelayRemote, SessionConfig};
use actix_relay::credentials::UserPassword;
use actix_relay::event::{EventKind, SideEvent};
use actix_relay::session::LinkId;
use actix_relay::supervisor::InSession;
use actix_relay::test_panic::PanicIn;
use support::relay_side::{PASSWORD, USER, config};
use support::{House, any, receive, udp};
use tokio::net::UdpSocket;

fn session(relay: SocketAddr, side: &str) -> SessionConfig {
    let account = UserPassword::new(USER, PASSWORD);
    SessionConfig::connect(side, RelayRemote::new(relay.into(), account, "pair", side))
}

async fn panic_in(house: &mut House, session: &str, victim: PanicIn, actor: &str) {
    let message = InSession { session: session.into(), message: victim };
    // The session's own panic leaves nobody to answer.
    let _ = house.supervisor.send(message).await.unwrap();
    house
        .event(session, |kind| match kind {
            EventKind::ActorPanicked { actor: who } => {
                assert!(who.starts_with(actor), "{who}");
                Some(())
            }
            _ => None,
        })
        .await;
}

/// Sends until it has got through; says from which port.
async fn carried(app: &UdpSocket, entry: SocketAddr, service: &UdpSocket, word: &str) -> SocketAddr {
    let sending = async {
        loop {
            let _ = app.send_to(word.as_bytes(), entry).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let receiving = async {
        loop {
            let (datagram, from) = receive(service).await;
            if datagram == word.as_bytes() {
                return from;
            }
        }
    };
    tokio::select! { from = receiving => from, () = sending => unreachable!() }
}

#[actix::test]
async fn every_actor_is_replaced() {
    let mut house = House::new().await;
    let (_, relay) = house.start_relay(config("relay")).await;
    let (service, app) = (udp().await, udp().await);
    let entry = house.local(session(relay, "near").local_udp(any())).await;
    house.start(session(relay, "far").udp_forward(service.local_addr().unwrap())).await;
    let port = carried(&app, entry, &service, "before").await;
    let victims = [
        ("near", PanicIn::Link(LinkId(0)), "TcpPeerActor of link 0"),
        ("near", PanicIn::Endpoint, "UdpEndpointActor"),
        ("near", PanicIn::Session, "RelaySessionActor"),
        ("far", PanicIn::Link(LinkId(0)), "TcpPeerActor of link 0"),
        ("far", PanicIn::LinkEndpoint(LinkId(0)), "UdpEndpointActor of link"),
        ("far", PanicIn::Session, "RelaySessionActor"),
    ];
    for (round, (name, victim, actor)) in victims.into_iter().enumerate() {
        panic_in(&mut house, name, victim, actor).await;
        if matches!(victim, PanicIn::Link(_) | PanicIn::Session) {
            house
                .event(name, |kind| {
                    matches!(kind, EventKind::Side(SideEvent::RelayPeerPresent { .. })).then_some(())
                })
                .await;
        }
        assert_eq!(
            carried(&app, entry, &service, &format!("round {round}")).await,
            port,
            "{actor} of {name}"
        );
        // And back: the service's socket has an endpoint again.
        let mut buffer = [0; 99];
        while app.try_recv(&mut buffer).is_ok() {}
        let word = format!("back {round}");
        let answered = async { while receive(&app).await.0 != word.as_bytes() {} };
        let sending = async {
            loop {
                let _ = service.send_to(word.as_bytes(), port).await;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::select! { () = answered => {}, () = sending => unreachable!() }
    }
    house.shutdown().await;
}
