//! A TURN client with a UDP allocation, against coturn.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use actix_relay::config::{AddressFamily, TurnConfig, TurnServer, UdpForward};
use actix_relay::event::{TurnEvent, TurnState};
use actix_relay::turn::{
    Allocate, BindChannel, ChannelNumber, Deallocate, DeliverDatagrams, Forbid, Permit, SendDatagrams,
    TurnError,
};
use bytes::Bytes;
use support::coturn::Coturn;
use support::turn::{Inbox, info, server};
use support::{Echo, House, any, echoed_once, own_ip, receive, soon, udp, until_echoed};
use tokio::net::UdpSocket;

/// A client that forwards to a peer that echoes.
fn forwarding(server: TurnServer, peer: SocketAddr) -> TurnConfig {
    let mut config = TurnConfig::new("turn", server);
    config.udp_forward.push(UdpForward { local_udp: any(), peer });
    // Nothing gets too old, however busy the machine is.
    config.max_queue_delay = support::PATIENCE;
    config.connect_hold = support::PATIENCE;
    config
}

async fn a_forward_carries_datagrams_both_ways(transport: &str) {
    let coturn = Coturn::builder().arg("--verbose").start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let client = house.turn(forwarding(server(&coturn.uri(transport)), echo.addr)).await;
    let relayed = house.allocated("turn").await;
    let before = info(&client).await;
    assert_eq!(before.relayed, Some(relayed));
    for len in [0, 1, 3, 4, 148, 1200, 1471, 8000] {
        echoed_once(&app, before.local_udp[0], &vec![7; len]).await;
    }
    let after = info(&client).await;
    assert_eq!(after.channels, [(ChannelNumber(0x4000), echo.addr)]);
    assert_eq!(after.permissions, [echo.addr.ip()]);
    assert!(after.counters.from_peers.datagrams >= 8, "{after:?}");
    assert!(after.counters.to_peers.bytes >= 10_827, "{after:?}");
    house.shutdown().await;
    let log = coturn.log();
    assert!(log.contains("refreshed") && log.contains("lifetime=0"), "the allocation was not deleted: {log}");
}

#[actix::test]
async fn a_forward_carries_datagrams_both_ways_over_udp() {
    a_forward_carries_datagrams_both_ways("udp").await;
}

#[actix::test]
async fn a_forward_carries_datagrams_both_ways_over_tcp() {
    a_forward_carries_datagrams_both_ways("tcp").await;
}

/// Both ways, once as indications and once over a channel; what a forbidden peer sends arrives no more.
async fn messages_carry_datagrams(transport: &str) {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let (peer, other) = (udp().await, UdpSocket::bind((own_ip(), 0)).await.unwrap());
    let (peer_addr, other_addr) = (peer.local_addr().unwrap(), other.local_addr().unwrap());
    let client = house.turn(TurnConfig::new("turn", server(&coturn.uri(transport)))).await;
    let relayed = house.allocated("turn").await;
    let mut inbox = Inbox::new();
    client.send(DeliverDatagrams { to: Some(inbox.recipient.clone()) }).await.unwrap();
    let send = |datagrams: &[&'static [u8]]| {
        let datagrams = datagrams.iter().map(|it| Bytes::from_static(it)).collect();
        client.send(SendDatagrams { peer: peer_addr, datagrams })
    };
    let refused = send(&[b"too early"]).await.unwrap();
    assert_eq!(refused, Err(TurnError::NotPermitted { peer: peer_addr }));

    client.send(Permit { peers: vec![peer_addr.ip(), other_addr.ip()] }).await.unwrap().unwrap();
    send(&[b"one", b"", b"three"]).await.unwrap().unwrap();
    for expected in [&b"one"[..], b"", b"three"] {
        assert_eq!(receive(&peer).await, (expected.to_vec(), relayed));
        peer.send_to(expected, relayed).await.unwrap();
        assert_eq!(inbox.next().await, (peer_addr, expected.to_vec()));
    }
    let channel = client.send(BindChannel { peer: peer_addr }).await.unwrap().unwrap();
    assert_eq!(info(&client).await.channels, [(channel, peer_addr)]);
    send(&[b"four", b"", b"six and more"]).await.unwrap().unwrap();
    for expected in [&b"four"[..], b"", b"six and more"] {
        assert_eq!(receive(&peer).await, (expected.to_vec(), relayed));
        peer.send_to(expected, relayed).await.unwrap();
        assert_eq!(inbox.next().await, (peer_addr, expected.to_vec()));
    }
    assert_eq!(info(&client).await.counters.to_peers.datagrams, 6);

    client.send(Forbid { peers: vec![peer_addr.ip()] }).await.unwrap();
    assert_eq!(send(&[b"too late"]).await.unwrap(), Err(TurnError::NotPermitted { peer: peer_addr }));
    peer.send_to(b"forbidden", relayed).await.unwrap();
    // Through the same relayed address, and so behind it.
    other.send_to(b"permitted", relayed).await.unwrap();
    assert_eq!(inbox.next().await, (other_addr, b"permitted".to_vec()));
    assert_eq!(info(&client).await.permissions, [other_addr.ip()]);
    assert_eq!(info(&client).await.channels, []);
    house.shutdown().await;
}

#[actix::test]
async fn messages_carry_datagrams_over_udp_with_and_without_a_channel_until_their_peer_is_forbidden() {
    messages_carry_datagrams("udp").await;
}

#[actix::test]
async fn messages_carry_datagrams_over_tcp_with_and_without_a_channel_until_their_peer_is_forbidden() {
    messages_carry_datagrams("tcp").await;
}

#[actix::test]
async fn a_forbidden_peers_data_indications_arrive_no_more_either() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let (peer, other) = (udp().await, UdpSocket::bind((own_ip(), 0)).await.unwrap());
    let peers = vec![peer.local_addr().unwrap().ip(), other.local_addr().unwrap().ip()];
    let client = house.turn(TurnConfig::new("turn", server(&coturn.uri("udp")))).await;
    let relayed = house.allocated("turn").await;
    let mut inbox = Inbox::new();
    client.send(DeliverDatagrams { to: Some(inbox.recipient.clone()) }).await.unwrap();
    client.send(Permit { peers: peers.clone() }).await.unwrap().unwrap();
    client.send(Forbid { peers: peers[..1].to_vec() }).await.unwrap();
    peer.send_to(b"forbidden", relayed).await.unwrap();
    other.send_to(b"permitted", relayed).await.unwrap();
    assert_eq!(inbox.next().await, (other.local_addr().unwrap(), b"permitted".to_vec()));
    assert_eq!(info(&client).await.counters.drops.no_application, 1);
    house.shutdown().await;
}

#[actix::test]
async fn who_waits_for_a_permission_or_a_channel_hears_that_its_peer_is_forbidden() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::new("turn", server(&coturn.uri("udp")))).await;
    house.allocated("turn").await;
    coturn.pause();
    let peer: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let (permit, bind) = (client.send(Permit { peers: vec![peer.ip()] }), client.send(BindChannel { peer }));
    let forbid = client.send(Forbid { peers: vec![peer.ip()] });
    let (permitted, bound, forbidden) =
        soon("the answers", async { tokio::join!(permit, bind, forbid) }).await;
    forbidden.unwrap();
    assert!(matches!(permitted.unwrap(), Err(TurnError::NotPermitted { .. })));
    assert_eq!(bound.unwrap(), Err(TurnError::NotPermitted { peer }));
    coturn.resume();
    house.shutdown().await;
}

#[actix::test]
async fn channels_and_connections_need_the_right_allocation() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::tcp("turn", server(&coturn.uri("tcp")))).await;
    house.allocated("turn").await;
    let peer = udp().await.local_addr().unwrap();
    let refused = client.send(BindChannel { peer }).await.unwrap();
    assert_eq!(refused, Err(TurnError::WrongTransport { request: "ChannelBind", needed: "a UDP" }));
    client.send(Deallocate).await.unwrap();
    client.send(Allocate).await.unwrap().unwrap();
    client.send(Permit { peers: vec![peer.ip()] }).await.unwrap().unwrap();
    let failed = house.reported().iter().any(|event| event.to_string().contains("no channel"));
    assert!(!failed, "it asks for the channel all the same");
    house.shutdown().await;
}

#[actix::test]
async fn a_server_at_an_ipv6_address_relays_between_ipv6_peers() {
    let coturn = Coturn::builder().ip(Ipv6Addr::LOCALHOST).start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::at("[::1]:0".parse().unwrap()).await, udp().await);
    for transport in ["udp", "tcp"] {
        let mut config = forwarding(server(&coturn.uri(transport)), echo.addr);
        config.name = transport.into();
        let client = house.turn(config).await;
        assert!(house.allocated(transport).await.is_ipv6());
        echoed_once(&app, info(&client).await.local_udp[0], b"hello").await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_server_at_an_ipv4_address_relays_to_ipv6_peers_if_asked() {
    let coturn = Coturn::builder().relay_ip(Ipv6Addr::LOCALHOST).start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::at("[::1]:0".parse().unwrap()).await, udp().await);
    // From the peer's family, without being told.
    let client = house.turn(forwarding(server(&coturn.uri("udp")), echo.addr)).await;
    assert!(house.allocated("turn").await.is_ipv6());
    assert!(info(&client).await.mapped.unwrap().is_ipv4());
    echoed_once(&app, info(&client).await.local_udp[0], b"hello").await;
    let mut told = TurnConfig::new("told", server(&coturn.uri("tcp")));
    told.family = Some(AddressFamily::Ipv6);
    let client = house.turn(told).await;
    assert!(house.allocated("told").await.is_ipv6());
    client.send(Permit { peers: vec![Ipv6Addr::LOCALHOST.into()] }).await.unwrap().unwrap();
    let of_the_other_family = vec![IpAddr::from([127, 0, 0, 1])];
    let refused = client.send(Permit { peers: of_the_other_family.clone() }).await.unwrap();
    assert!(matches!(refused, Err(TurnError::Refused { code: 443, .. })), "{refused:?}");
    let failed = |event: &TurnEvent| match event {
        TurnEvent::PermissionsFailed { peers, .. } => Some(peers.clone()),
        _ => None,
    };
    assert_eq!(house.turn_event("told", failed).await, of_the_other_family);
    house.shutdown().await;
}

#[actix::test]
async fn an_allocation_comes_and_goes_as_told_and_its_events_are_in_order() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = forwarding(server(&coturn.uri("udp")), echo.addr);
    config.allocate = false;
    let client = house.turn(config).await;
    let started = info(&client).await;
    assert_eq!((started.state, started.relayed), (TurnState::Idle, None));
    let refused = client.send(SendDatagrams { peer: echo.addr, datagrams: Vec::new() }).await.unwrap();
    assert_eq!(refused, Err(TurnError::NoAllocation { retrying: false }));
    for _ in 0..5 {
        let allocated = client.send(Allocate).await.unwrap().unwrap();
        assert_eq!(allocated.state, TurnState::Allocated);
        let again = client.send(Allocate).await.unwrap().unwrap();
        assert_eq!(again.relayed, allocated.relayed);
        until_echoed(&app, started.local_udp[0], "round").await;
        client.send(Deallocate).await.unwrap();
        assert_eq!(info(&client).await.relayed, None);
        client.send(Deallocate).await.unwrap();
        let events = house.turn_events("turn", |event| matches!(event, TurnEvent::AllocationDeleted { .. }));
        let order: Vec<_> = events.await.iter().filter_map(phase).collect();
        assert_eq!(
            order,
            ["connecting", "allocating", "created", "allocated", "bound", "deallocating", "deleted"]
        );
    }
    house.shutdown().await;
}

/// What an event says of the life of an allocation.
fn phase(event: &TurnEvent) -> Option<&'static str> {
    Some(match event {
        TurnEvent::TurnStateChanged { state: TurnState::Connecting } => "connecting",
        TurnEvent::TurnStateChanged { state: TurnState::Allocating } => "allocating",
        TurnEvent::TurnStateChanged { state: TurnState::Allocated } => "allocated",
        TurnEvent::TurnStateChanged { state: TurnState::Deallocating } => "deallocating",
        TurnEvent::TurnStateChanged { state: TurnState::Backoff { .. } } => "backoff",
        TurnEvent::AllocationCreated { .. } => "created",
        TurnEvent::AllocationFailed { .. } => "failed",
        TurnEvent::AllocationDeleted { .. } => "deleted",
        TurnEvent::ChannelBound { .. } => "bound",
        _ => return None,
    })
}
