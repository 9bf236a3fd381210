//! A TURN client with a UDP allocation, against coturn.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use actix_relay::config::{TurnConfig, UdpForward};
#[allow(unused_imports)]
use actix_relay::turn::{
    Allocate, BindChannel, DatagramsReceived, Deallocate, DeliverDatagrams, Forbid, GetAllocation, Permit,
    SendDatagrams, TurnError,
};
use bytes::Bytes;
use support::coturn::Coturn;
use support::turn::server;
use support::{Echo, House, any, echoed_once, receive, soon, udp, until_echoed};

async fn a_forward_carries_datagrams_both_ways(transport: &str) {
    let coturn = Coturn::builder().arg("--verbose").start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let mut config = TurnConfig::new("turn", server(&coturn.uri(transport)));
    config.udp_forward.push(UdpForward { local_udp: any(), peer: echo.addr });
    let client = house.turn(config).await;
    let relayed = house.allocated("turn").await;
    let info = client.send(GetAllocation).await.unwrap();
    assert_eq!(info.relayed, Some(relayed));
    for len in [0, 1, 3, 4, 148, 1200, 1471, 8000] {
        echoed_once(&app, info.local_udp[0], &vec![7; len]).await;
    }
    let info = client.send(GetAllocation).await.unwrap();
    assert_eq!(info.channels.len(), 1);
    assert_eq!(info.permissions, [echo.addr.ip()]);
    assert!(info.counters.from_peers.datagrams >= 8, "{info:?}");
    assert!(info.counters.to_peers.bytes >= 10_827, "{info:?}");
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
