//! The network says nothing, or too little: what waits is bounded, what is dead is noticed, names are asked anew.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use actix_relay::config::SessionConfig;
use actix_relay::event::{Cause, EventKind};
use support::peer::RawPeer;
use support::proxy::{Mode, Proxy};
use support::{Echo, House, any, patient, receive, udp, until_echoed};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::oneshot;

/// Sends into the tunnel, ten a second, as an application does that hears no answer.
async fn keep_calling(app: &UdpSocket, entry: SocketAddr, seconds: u64) {
    for number in 0..seconds * 10 {
        app.send_to(format!("is anybody there? {number}").as_bytes(), entry).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A tunnel between two machines whose cable swallows everything for so many seconds. Says how often the
/// calling side lost its connection.
#[cfg(target_os = "linux")]
fn over_a_cable_that_swallows(test: &str, seconds: u64) -> Option<usize> {
    use support::namespace::{Cable, skipped};

    let cable = match Cable::new() {
        Ok(cable) => cable,
        Err(why) => {
            skipped(test, &why);
            return None;
        }
    };
    let (tell, far) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let far_side = cable.right.spawn(move || {
        actix::System::new().block_on(async move {
            let (house, echo) = (House::new().await, Echo::start().await);
            let at = SocketAddr::from(([10, 7, 0, 2], 0));
            tell.send(house.listen(SessionConfig::listen("far", at).udp_forward(echo.addr)).await).unwrap();
            let _ = stopped.await;
            house.shutdown().await;
        });
    });
    let near_side = cable.left.clone().spawn(move || {
        actix::System::new().block_on(async move {
            let (mut house, app) = (House::new().await, udp().await);
            let far = support::soon("the far side", far).await.unwrap();
            let entry = house.local(SessionConfig::connect("near", far).local_udp(any())).await;
            until_echoed(&app, entry, "before the silence").await;
            cable.swallow();
            keep_calling(&app, entry, seconds).await;
            cable.carry();
            until_echoed(&app, entry, "after the silence").await;
            assert_eq!(house.info("near").await.local_udp, Some(entry));
            let lost = |kind: &EventKind| matches!(kind, EventKind::PeerDisconnected { .. });
            let lost = house.reported().iter().filter(|event| lost(&event.kind)).count();
            house.shutdown().await;
            drop(stop);
            lost
        })
    });
    let lost = near_side.join().unwrap();
    far_side.join().unwrap();
    Some(lost)
}

#[test]
#[cfg(target_os = "linux")]
fn a_network_that_swallows_packets_for_a_while_costs_no_connection() {
    if let Some(lost) = over_a_cable_that_swallows("4 s of silence", 4) {
        assert_eq!(lost, 0);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_network_that_swallows_packets_for_long_costs_the_connection_and_not_the_tunnel() {
    if let Some(lost) = over_a_cable_that_swallows("15 s of silence", 15) {
        assert!(lost >= 1);
    }
}

#[actix::test]
async fn a_peer_that_never_reads_is_dead_in_the_end() {
    let (mut house, app) = (House::new().await, udp().await);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(any()).unwrap();
    let listener = socket.listen(8).unwrap();
    let near = SessionConfig::connect("near", listener.local_addr().unwrap()).local_udp(any());
    let entry = house.local(near).await;
    let peer = RawPeer::accept(&listener).await;
    let flood = async {
        loop {
            app.send_to(&[1; 1200], entry).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let began = std::time::Instant::now();
    tokio::select! {
        cause = house.disconnected("near") => assert_eq!(cause, Cause::Broken),
        () = flood => {}
    }
    eprintln!("dead after {:?}", began.elapsed());
    drop(peer);
    house.shutdown().await;
}

/// A tunnel through a proxy to a service that the test plays itself.
struct Narrow {
    house: House,
    proxy: Proxy,
    service: UdpSocket,
    app: UdpSocket,
    entry: SocketAddr,
}

impl Narrow {
    async fn new() -> Self {
        let (house, service, app) = (House::new().await, udp().await, udp().await);
        let far = SessionConfig::listen("far", any()).udp_forward(service.local_addr().unwrap());
        let proxy = Proxy::to(house.listen(patient(far)).await).await;
        let mut near = SessionConfig::connect("near", proxy.addr).local_udp(any());
        near.queue_bytes = 64 << 10;
        let entry = house.local(near).await;
        let narrow = Self { house, proxy, service, app, entry };
        narrow.until_heard(b"begin").await;
        narrow
    }

    /// Sends a word until the service hears it; gives back what it heard before.
    async fn until_heard(&self, word: &[u8]) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        let talk = async {
            let mut buffer = vec![0; 1 << 16];
            let mut again = tokio::time::interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    _ = again.tick() => { self.app.send_to(word, self.entry).await.unwrap(); }
                    received = self.service.recv_from(&mut buffer) => {
                        let (len, _) = received.unwrap();
                        if &buffer[..len] == word {
                            return;
                        }
                        heard.push(buffer[..len].to_vec());
                    }
                }
            }
        };
        support::soon("the word is heard", talk).await;
        heard
    }

    /// Sends many numbered datagrams, a hundred at a time, and sees that each is accounted for: carried,
    /// dropped, or begun.
    async fn burst(&self, chunks: u64) -> u64 {
        let start = self.accounted().await;
        for chunk in 0..chunks {
            for number in 0..100 {
                self.app.send_to(&numbered(chunk * 100 + number), self.entry).await.unwrap();
            }
            let sent = (chunk + 1) * 100;
            self.house
                .info_when("near", "all are accounted for but one that is begun", |info| {
                    let counters = info.counters;
                    counters.to_tcp.datagrams + counters.drops.total() + 1 >= start + sent
                })
                .await;
        }
        chunks * 100
    }

    async fn accounted(&self) -> u64 {
        let counters = self.house.info("near").await.counters;
        counters.to_tcp.datagrams + counters.drops.total()
    }
}

/// 1200 bytes that begin with a number and can be told from anything else.
fn numbered(number: u64) -> Vec<u8> {
    let mut datagram = vec![number as u8; 1200];
    datagram[..8].copy_from_slice(&number.to_be_bytes());
    datagram
}

fn number_of(datagram: &[u8]) -> u64 {
    let number = u64::from_be_bytes(datagram[..8].try_into().unwrap());
    assert!(datagram == numbered(number), "datagram {number} came whole");
    number
}

#[actix::test]
async fn what_waits_for_a_silent_network_is_bounded_and_the_rest_counted() {
    let narrow = Narrow::new().await;
    narrow.proxy.set(Mode::Silent);
    let before = narrow.house.info("near").await.counters;
    let sent = narrow.burst(20).await;
    let counters = narrow.house.info("near").await.counters;
    let taken = counters.to_tcp.datagrams - before.to_tcp.datagrams;
    eprintln!("of {sent}: {taken} taken by sockets, dropped {:?}", counters.drops);
    assert!(counters.drops.expired > 0, "too old");
    assert!(counters.drops.queue_full > 0, "100 datagrams are more than 64 KiB");
    assert!(taken < sent / 2, "sockets are no warehouse");
    narrow.proxy.set(Mode::Open);
    let heard = narrow.until_heard(b"fresh").await;
    let words = heard.iter().filter(|datagram| datagram.len() < 1200).count();
    let old = (heard.len() - words) as u64;
    eprintln!("{old} old ones came");
    assert!(old <= taken + 1, "only what the sockets held came late: {old} of {taken}");
    narrow.house.shutdown().await;
}

#[actix::test]
async fn a_slow_network_loses_whole_datagrams_and_keeps_their_order() {
    let mut narrow = Narrow::new().await;
    narrow.proxy.set(Mode::Slow(200_000));
    let flood = async {
        for number in 0..3000u64 {
            narrow.app.send_to(&numbered(number), narrow.entry).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let mut numbers = Vec::new();
    let listen = async {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (len, _) = narrow.service.recv_from(&mut buffer).await.unwrap();
            if len == 1200 {
                numbers.push(number_of(&buffer[..len]));
            }
        }
    };
    tokio::select! {
        () = flood => {}
        () = listen => {}
    }
    assert!(!numbers.is_empty());
    assert!(numbers.is_sorted_by(|a, b| a < b), "in order, none twice");
    let drops = narrow.house.info("near").await.counters.drops;
    eprintln!("{} came, dropped {drops:?}", numbers.len());
    assert!(drops.expired + drops.queue_full > 0);
    narrow.proxy.set(Mode::Open);
    narrow.until_heard(b"fresh").await;
    for event in narrow.house.reported() {
        assert!(!matches!(event.kind, EventKind::PeerDisconnected { .. }), "{event}");
    }
    narrow.house.shutdown().await;
}

#[actix::test]
async fn a_service_that_floods_a_silent_network_is_bounded_too() {
    let narrow = Narrow::new().await;
    narrow.app.send_to(b"please", narrow.entry).await.unwrap();
    let (_, peer) = receive(&narrow.service).await;
    narrow.proxy.set(Mode::Silent);
    // More than the default of 2 MiB holds, in an hour that nothing gets too old in.
    for number in 0..3000 {
        narrow.service.send_to(&numbered(number), peer).await.unwrap();
        if number % 100 == 99 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let full =
        narrow.house.info_when("far", "the queue is full", |info| info.counters.drops.queue_full > 0).await;
    eprintln!("dropped {:?}", full.counters.drops);
    narrow.proxy.set(Mode::Open);
    let mut seen = BTreeSet::new();
    let mut again = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            _ = again.tick() => { narrow.service.send_to(b"the end", peer).await.unwrap(); }
            (datagram, _) = receive(&narrow.app) => {
                if datagram == b"the end" {
                    break;
                }
                assert!(seen.insert(number_of(&datagram)), "none twice");
            }
        }
    }
    eprintln!("{} of 3000 came", seen.len());
    assert!((1..3000).contains(&seen.len()));
    narrow.house.shutdown().await;
}

/// A program's own /etc/hosts, on a thread of its own.
#[cfg(target_os = "linux")]
fn with_own_hosts(test: &str, work: impl FnOnce(std::path::PathBuf) + Send + 'static) {
    use nix::sched::{CloneFlags, unshare};
    use support::namespace::{run, skipped};

    let test = test.to_owned();
    let thread = std::thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "").unwrap();
        let own = unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
            .map_err(|error| format!("unshare(CLONE_NEWNS): {error}"))
            .and_then(|()| run("mount", "--make-rprivate /"))
            .and_then(|()| run("mount", &format!("--bind {} /etc/hosts", hosts.display())));
        match own {
            Ok(()) => work(hosts),
            Err(why) => skipped(&test, &why),
        }
    });
    thread.join().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_name_is_resolved_again_on_every_attempt() {
    with_own_hosts("names resolve again", |hosts| {
        actix::System::new().block_on(async move {
            let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
            let ips: Vec<_> = (0..3).map(|_| support::own_ip()).collect();
            let mut port = 0;
            let mut entry = None;
            for (number, ip) in ips.into_iter().enumerate() {
                let name = format!("far {number}");
                let at = SocketAddr::new(ip, port);
                let far = SessionConfig::listen(name.as_str(), at).udp_forward(echo.addr);
                port = house.listen(far).await.port();
                std::fs::write(&hosts, format!("{ip} relay.test\n")).unwrap();
                let remote: actix_relay::config::Remote = format!("relay.test:{port}").parse().unwrap();
                if number == 0 {
                    entry = Some(house.local(SessionConfig::connect("near", remote).local_udp(any())).await);
                }
                until_echoed(&app, entry.unwrap(), "where the name points now").await;
                let peer = house.info("near").await.links[0].peer.unwrap();
                assert_eq!(peer.ip(), ip);
                let stop = actix_relay::supervisor::StopSession { session: name.as_str().into() };
                house.supervisor.send(stop).await.unwrap().unwrap();
                house.disconnected("near").await;
            }
            house.shutdown().await;
        });
    });
}

#[test]
#[cfg(target_os = "linux")]
fn the_addresses_of_a_name_race_and_one_that_works_wins() {
    with_own_hosts("addresses race", |hosts| {
        actix::System::new().block_on(async move {
            let (mut house, echo, app) = (House::new().await, Echo::start().await, udp().await);
            let at = SocketAddr::new(support::own_ip(), 0);
            let far = house.listen(SessionConfig::listen("far", at).udp_forward(echo.addr)).await;
            // Nobody listens at the first two; the third is this test's own.
            let lines =
                format!("::1 relay.test\n{} relay.test\n{} relay.test\n", support::own_ip(), far.ip());
            std::fs::write(&hosts, lines).unwrap();
            let remote: actix_relay::config::Remote = format!("relay.test:{}", far.port()).parse().unwrap();
            let entry = house.local(SessionConfig::connect("near", remote).local_udp(any())).await;
            let failed = house
                .event("near", |kind| match kind {
                    EventKind::ConnectFailed { .. } => Some(true),
                    EventKind::PeerConnected { .. } => Some(false),
                    _ => None,
                })
                .await;
            assert!(!failed, "one of three works");
            until_echoed(&app, entry, "over the address that works").await;
            house.shutdown().await;
        });
    });
}
