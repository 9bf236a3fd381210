//! What happens to datagrams on their way through a TURN client: bursts, losses, restarts, late allocations.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use actix_relay::config::{TurnConfig, TurnServer, UdpForward};
use actix_relay::event::{EventKind, TurnEvent};
use actix_relay::turn::{BindChannel, DeliverDatagrams, Permit, SendDatagrams};
use bytes::Bytes;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGroSegment;
use quinn_udp::{Transmit, UdpSocketState};
use support::coturn::Coturn;
use support::turn::{Inbox, info, server, server_at};
use support::turn_proxy::{StreamProxy, Treatment, UdpProxy, Way};
use support::{Echo, House, any, echoed_once, receive, soon, udp, until_echoed};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A client that forwards to these peers; nothing gets too old, however busy the machine is.
fn forwarding(server: TurnServer, peers: &[SocketAddr]) -> TurnConfig {
    let mut config = TurnConfig::new("turn", server);
    config.udp_forward = peers.iter().map(|peer| UdpForward { local_udp: any(), peer: *peer }).collect();
    config.max_queue_delay = support::PATIENCE;
    config.connect_hold = support::PATIENCE;
    config
}

/// Sends `bytes` as datagrams of `size` bytes with one call (GSO).
async fn send_run(from: &UdpSocket, to: SocketAddr, bytes: &[u8], size: usize) {
    let state = UdpSocketState::new(from.into()).unwrap();
    // That merges what comes, too.
    setsockopt(from, UdpGroSegment, &false).unwrap();
    let run =
        Transmit { destination: to, ecn: None, contents: bytes, segment_size: Some(size), src_ip: None };
    from.writable().await.unwrap();
    from.try_io(Interest::WRITABLE, || state.try_send(from.into(), &run)).unwrap();
}

/// Bursts that one call sends, of sizes that no padding makes equal, each datagram with a number in it.
async fn bursts_arrive_whole(transport: &str) {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let client = house.turn(forwarding(server(&coturn.uri(transport)), &[echo.addr])).await;
    house.allocated("turn").await;
    let local = info(&client).await.local_udp[0];
    echoed_once(&app, local, b"before").await;
    let before = info(&client).await.counters;
    let (mut number, mut bytes) = (0u32, 0);
    for (size, count) in [(1200, 16), (1199, 16), (5, 40), (1452, 12), (333, 30), (1200, 1)] {
        for _ in 0..4 {
            // The last one is shorter: that ends a run.
            let mut run = Vec::new();
            for index in 0..count {
                let len = size - usize::from(index + 1 == count && count > 1);
                let start = run.len();
                run.extend_from_slice(&(number + index).to_be_bytes());
                run.resize(start + len, index as u8);
            }
            send_run(&app, local, &run, size).await;
            for (index, sent) in (0..).zip(run.chunks(size)) {
                let got = receive(&app).await.0;
                assert!(got == sent, "datagram {index} of {count} of {size} bytes");
            }
            number += count;
            bytes += run.len() as u64;
        }
    }
    let after = info(&client).await.counters;
    for (before, after) in [(before.to_peers, after.to_peers), (before.from_peers, after.from_peers)] {
        assert_eq!(after.datagrams - before.datagrams, u64::from(number));
        assert_eq!(after.bytes - before.bytes, bytes);
    }
    assert_eq!(after.drops.total(), 0);
    house.shutdown().await;
}

#[actix::test]
async fn bursts_arrive_whole_over_udp() {
    bursts_arrive_whole("udp").await;
}

#[actix::test]
async fn bursts_arrive_whole_over_tcp() {
    bursts_arrive_whole("tcp").await;
}

#[actix::test]
async fn datagrams_held_while_the_server_is_silent_arrive_in_order() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    for transport in ["udp", "tcp"] {
        let (peer, app) = (udp().await, udp().await);
        coturn.pause();
        let mut config = forwarding(server(&coturn.uri(transport)), &[peer.local_addr().unwrap()]);
        config.name = transport.into();
        let client = house.turn(config).await;
        let local = info(&client).await.local_udp[0];
        for number in 0u8..20 {
            app.send_to(&[number; 100], local).await.unwrap();
        }
        let appeared = |kind: &EventKind| matches!(kind, EventKind::SourceAppeared { .. }).then_some(());
        house.event(transport, appeared).await;
        assert_eq!(info(&client).await.counters.to_peers.datagrams, 0);
        coturn.resume();
        for number in 0u8..20 {
            assert_eq!(receive(&peer).await.0, [number; 100]);
        }
    }
    house.shutdown().await;
}

#[actix::test]
async fn several_forwards_of_one_client_keep_their_peers_apart() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let peers = [udp().await, udp().await, udp().await];
    let addrs: Vec<_> = peers.iter().map(|peer| peer.local_addr().unwrap()).collect();
    for transport in ["udp", "tcp"] {
        let mut config = forwarding(server(&coturn.uri(transport)), &addrs);
        config.name = transport.into();
        let client = house.turn(config).await;
        let relayed = house.allocated(transport).await;
        let local_udp = info(&client).await.local_udp;
        let apps = [udp().await, udp().await, udp().await];
        for (index, (app, peer)) in apps.iter().zip(&peers).enumerate() {
            app.send_to(&[index as u8], local_udp[index]).await.unwrap();
            assert_eq!(receive(peer).await, (vec![index as u8], relayed));
        }
        for (index, (app, peer)) in apps.iter().zip(&peers).enumerate().rev() {
            peer.send_to(&[index as u8, 7], relayed).await.unwrap();
            assert_eq!(receive(app).await, (vec![index as u8, 7], local_udp[index]));
        }
        assert_eq!(info(&client).await.channels.len(), 3);
    }
    house.shutdown().await;
}

#[actix::test]
async fn an_application_that_restarts_on_another_port_gets_its_answers() {
    let coturn = Coturn::start();
    let house = House::new().await;
    let echo = Echo::start().await;
    let client = house.turn(forwarding(server(&coturn.uri("udp")), &[echo.addr])).await;
    let local = info(&client).await.local_udp[0];
    let first = udp().await;
    until_echoed(&first, local, "first").await;
    drop(first);
    let second = udp().await;
    echoed_once(&second, local, b"second").await;
    house.shutdown().await;
}

#[actix::test]
async fn a_server_that_serves_everybody_needs_no_credentials() {
    let coturn = Coturn::builder().no_auth().start();
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    for transport in ["udp", "tcp"] {
        let open = TurnServer::new(coturn.uri(transport).parse().unwrap());
        let mut config = forwarding(open, &[echo.addr]);
        config.name = transport.into();
        let client = house.turn(config).await;
        house.allocated(transport).await;
        echoed_once(&app, info(&client).await.local_udp[0], b"hello").await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn a_control_stream_of_single_bytes_carries_the_same() {
    let coturn = Coturn::start();
    let proxy = StreamProxy::to(coturn.addr(), |_| Treatment::ByteByByte).await;
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let client = house.turn(forwarding(server_at(proxy.addr, "tcp"), &[echo.addr])).await;
    house.allocated("turn").await;
    let local = info(&client).await.local_udp[0];
    for len in [0, 1, 2, 3, 4, 5, 500] {
        echoed_once(&app, local, &vec![len as u8; len]).await;
    }
    house.shutdown().await;
}

#[actix::test]
async fn requests_and_answers_that_are_lost_are_repeated() {
    let coturn = Coturn::start();
    let proxy = UdpProxy::to(coturn.addr()).await;
    // Every request is lost once, and so is the answer that the allocation is there.
    let (mut seen, mut lost) = (HashSet::new(), false);
    proxy.filter(move |way, datagram| match (way, datagram) {
        (Way::Up, [0x00..0x40, ..]) => !seen.insert(datagram[8..20].to_vec()),
        (Way::Down, [1, 3, ..]) => std::mem::replace(&mut lost, true),
        _ => true,
    });
    let mut house = House::new().await;
    let (echo, app) = (Echo::start().await, udp().await);
    let client = house.turn(forwarding(server_at(proxy.addr, "udp"), &[echo.addr])).await;
    house.allocated("turn").await;
    echoed_once(&app, info(&client).await.local_udp[0], b"hello").await;
    house.shutdown().await;
}

/// A Data indication with an ICMP attribute (RFC 8656 §11.5): type 3, code 3.
fn icmp_of(peer: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(v4) = peer else { unreachable!() };
    let mut message = b"\x00\x17\x00\x18\x21\x12\xa4\x42not a secret".to_vec();
    message.extend(b"\x00\x12\x00\x08\x00\x01");
    message.extend((v4.port() ^ 0x2112).to_be_bytes());
    message.extend((v4.ip().to_bits() ^ 0x2112_a442).to_be_bytes());
    message.extend(b"\x80\x04\x00\x08\x00\x00\x03\x03\x00\x00\x00\x00");
    message
}

#[actix::test]
async fn what_the_server_hears_by_icmp_is_told_but_not_more_than_once_a_second() {
    let coturn = Coturn::start();
    let proxy = UdpProxy::to(coturn.addr()).await;
    let mut house = House::new().await;
    let client = house.turn(TurnConfig::new("turn", server_at(proxy.addr, "udp"))).await;
    house.allocated("turn").await;
    let (peer, other) = (udp().await.local_addr().unwrap(), udp().await.local_addr().unwrap());
    for _ in 0..9 {
        proxy.inject(&icmp_of(peer)).await;
    }
    let unreachable = |event: &TurnEvent| match event {
        TurnEvent::PeerUnreachable { peer, icmp_type: 3, icmp_code: 3, more } => Some((*peer, *more)),
        _ => None,
    };
    assert_eq!(house.turn_event("turn", unreachable).await, (peer, 0));
    let told = soon("the next such event", async {
        loop {
            proxy.inject(&icmp_of(other)).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            let events = house.reported();
            let told = events.iter().find_map(|event| match &event.kind {
                EventKind::Turn(event) => unreachable(event),
                _ => None,
            });
            if let Some(told) = told {
                return told;
            }
        }
    })
    .await;
    assert_eq!(told.0, other);
    assert!(told.1 > 8, "the others are counted: {told:?}");
    drop(client);
    house.shutdown().await;
}

#[actix::test]
async fn a_burst_of_one_message_leaves_whole_over_a_channel_without_an_endpoint() {
    let coturn = Coturn::start();
    for transport in ["udp", "tcp"] {
        let mut house = House::new().await;
        let peer = udp().await;
        let client = house.turn(forwarding(server(&coturn.uri(transport)), &[])).await;
        house.allocated("turn").await;
        let addr = peer.local_addr().unwrap();
        client.send(BindChannel { peer: addr }).await.unwrap().unwrap();
        let mut inbox = Inbox::new();
        client.send(DeliverDatagrams { to: Some(inbox.recipient.clone()) }).await.unwrap();
        let datagrams: Vec<_> = (0..40u8).map(|number| Bytes::from(vec![number; 1200])).collect();
        client.send(SendDatagrams { peer: addr, datagrams: datagrams.clone() }).await.unwrap().unwrap();
        for expected in datagrams {
            let (got, relayed) = receive(&peer).await;
            assert_eq!(got, expected);
            peer.send_to(&got, relayed).await.unwrap();
            assert_eq!(inbox.next().await, (addr, got));
        }
        house.shutdown().await;
    }
}

#[actix::test]
async fn nothing_is_lost_when_a_channel_takes_the_place_of_indications() {
    let coturn = Coturn::start();
    let mut house = House::new().await;
    let peer = udp().await;
    let addr = peer.local_addr().unwrap();
    let client = house.turn(forwarding(server(&coturn.uri("tcp")), &[])).await;
    let relayed = house.allocated("turn").await;
    let mut inbox = Inbox::new();
    client.send(DeliverDatagrams { to: Some(inbox.recipient.clone()) }).await.unwrap();
    client.send(Permit { peers: vec![addr.ip()] }).await.unwrap().unwrap();
    static SENT: AtomicUsize = AtomicUsize::new(0);
    let sending = tokio::spawn(async move {
        loop {
            let number = SENT.fetch_add(1, SeqCst);
            peer.send_to(&number.to_be_bytes(), relayed).await.unwrap();
            // Not more than the sockets hold.
            tokio::time::sleep(std::time::Duration::from_micros(200)).await;
        }
    });
    let mut expected = 0usize;
    let mut take = async |count: usize| {
        for _ in 0..count {
            assert_eq!(inbox.next().await, (addr, expected.to_be_bytes().to_vec()));
            expected += 1;
        }
    };
    take(50).await;
    client.send(BindChannel { peer: addr }).await.unwrap().unwrap();
    take(SENT.load(SeqCst)).await;
    sending.abort();
    assert_eq!(info(&client).await.counters.drops.total(), 0);
    house.shutdown().await;
}

/// Over TCP, to a server that reads nothing and then dies: what was queued is counted as lost, once.
#[actix::test]
async fn every_datagram_is_sent_or_counted_when_the_control_connection_ends() {
    const COUNT: u64 = 3000;
    let mut coturn = Coturn::start();
    let mut house = House::new().await;
    let peer = udp().await;
    let client = house.turn(forwarding(server(&coturn.uri("tcp")), &[])).await;
    house.allocated("turn").await;
    let peer = peer.local_addr().unwrap();
    client.send(BindChannel { peer }).await.unwrap().unwrap();
    coturn.pause();
    for _ in 0..COUNT / 10 {
        let datagrams = vec![Bytes::from(vec![7; 4000]); 10];
        client.send(SendDatagrams { peer, datagrams }).await.unwrap().unwrap();
    }
    coturn.kill();
    let deleted = |event: &TurnEvent| matches!(event, TurnEvent::AllocationDeleted { .. }).then_some(());
    house.turn_event("turn", deleted).await;
    let counters = info(&client).await.counters;
    assert!(counters.drops.connection_lost > 0 && counters.drops.queue_full > 0, "{counters:?}");
    assert_eq!(counters.to_peers.datagrams + counters.drops.total(), COUNT, "{counters:?}");
    house.shutdown().await;
}
