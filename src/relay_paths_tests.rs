use super::*;
use crate::clock::now;
use crate::datagrams::tests::received;
use std::future::poll_fn;
use std::task::Poll;

const SECOND: Duration = Duration::from_secs(1);

fn paths() -> RelayPaths {
    RelayPaths::new(Arc::default(), 1 << 20, 60 * SECOND, 60 * SECOND, None)
}

fn io() -> Arc<UdpIo> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    Arc::new(UdpIo::new(socket).unwrap())
}

fn party(port: u16) -> UdpParty {
    UdpParty { to: ([127, 0, 0, 1], port).into(), from: None }
}

fn side(name: &str) -> SideId {
    SideId::new(name).unwrap()
}

/// All that would go to the relay.
async fn sent(paths: &RelayPaths) -> Vec<u8> {
    let mut all = Vec::new();
    poll_fn(|cx| {
        while let Poll::Ready(frames) = paths.flow.poll_front(cx, now(), 1 << 16) {
            all.extend_from_slice(&frames);
            paths.flow.advance(frames.len());
        }
        Poll::Ready(())
    })
    .await;
    all
}

fn open(paths: &RelayPaths, now: Instant, number: u16) -> Option<Arc<ChannelPath>> {
    match paths.incoming(now, number) {
        Way::Open(path) => Some(path),
        Way::New | Way::Unopened => None,
    }
}

/// The peer has come, and no Refresh is under way. Gives back what is left of another one's flows.
fn meet(paths: &RelayPaths, now: Instant, peer: &str) -> Vec<Arc<ChannelPath>> {
    let strangers = paths.peer_present(now, &side("a"), &side(peer));
    paths.may_send(now);
    strangers
}

#[actix::test]
async fn what_was_held_goes_to_the_peer_it_may_be_for_and_to_no_other() {
    let (paths, io, start) = (paths(), io(), now());
    let path = paths.add(start, io.clone(), party(1));
    let say = |word: &[u8]| received(&[(word, word.len())], |received| path.send(now(), received));
    say(b"early");
    assert!(!path.is_open() && sent(&paths).await.is_empty());
    assert!(meet(&paths, start, "b").is_empty());
    assert_eq!(sent(&paths).await, b"\x40\x00\x00\x05early\0\0\0");
    say(b"queued for b");
    paths.peer_gone();
    say(b"held for b");
    meet(&paths, start, "b");
    assert_eq!(sent(&paths).await, b"\x40\x00\x00\x0aheld for b\0\0");
    paths.peer_gone();
    say(b"held for b");
    meet(&paths, start, "A");
    assert_eq!(sent(&paths).await, b"");
    say(b"to A");
    assert_eq!(sent(&paths).await, b"\x40\x01\x00\x04to A");
    assert_eq!(paths.counters.snapshot().drops.connection_lost, 2);
}

#[actix::test]
async fn the_flows_of_a_peer_that_comes_back_are_the_same_and_those_of_another_end() {
    let (paths, io, start) = (paths(), io(), now());
    assert!(matches!(paths.incoming(start, 0x4001), Way::Unopened));
    meet(&paths, start, "b");
    assert_eq!(paths.lone_peer().as_deref(), Some("b"));
    assert!(matches!(paths.incoming(start, 0x4001), Way::New));
    let service = paths.accept_service(start, 0x4001, io.clone(), party(9).to, LinkId(7));
    assert!(paths.lone_peer().is_none() && paths.has(&service));
    service.from_peer.set(start);
    paths.connection_ended();
    assert!(!service.is_open() && paths.has(&service));
    assert!(open(&paths, start, 0x4001).is_none());
    assert!(meet(&paths, start, "b").is_empty());
    assert!(Arc::ptr_eq(&open(&paths, start, 0x4001).unwrap(), &service));
    let strangers = meet(&paths, start, "c");
    assert!(Arc::ptr_eq(&strangers[0], &service) && !service.is_open());
    assert!(matches!(paths.incoming(start, 0x4001), Way::New));
}

#[actix::test]
async fn datagrams_come_before_they_may_go() {
    let (paths, io, start) = (paths(), io(), now());
    let own = paths.add(start, io.clone(), party(1));
    let say = |path: &ChannelPath, word: &[u8]| {
        received(&[(word, word.len())], |received| path.send(now(), received))
    };
    paths.peer_present(start, &side("a"), &side("b"));
    say(&own, b"wait");
    assert!(matches!(paths.incoming(start, 0x4001), Way::New));
    let service = paths.accept_service(start, 0x4001, io.clone(), party(9).to, LinkId(7));
    say(&service, b"answer");
    assert!(open(&paths, start, 0x4001).is_some() && sent(&paths).await.is_empty());
    paths.may_send(start);
    let both = sent(&paths).await;
    for message in [&b"\x40\x01\x00\x06answer\0\0"[..], b"\x40\x00\x00\x04wait"] {
        assert!(both.starts_with(message) || both.ends_with(message), "{both:?}");
    }
    assert_eq!(both.len(), 20);
    // It has gone meanwhile.
    paths.peer_gone();
    paths.may_send(start);
    say(&own, b"wait");
    assert!(sent(&paths).await.is_empty());
    // The same one comes back, and its service goes on sending before we may.
    paths.peer_present(start, &side("a"), &side("b"));
    assert!(Arc::ptr_eq(&open(&paths, start, 0x4000).unwrap(), &own));
    assert!(sent(&paths).await.is_empty());
    paths.may_send(start);
    assert_eq!(sent(&paths).await, b"\x40\x00\x00\x04wait");
}

#[actix::test]
async fn a_silent_flow_of_the_peer_ends_and_one_of_ours_pauses() {
    let (paths, io, start) = (paths(), io(), now());
    meet(&paths, start, "b");
    let own = paths.add(start, io.clone(), party(1));
    paths.accept_service(start, 0x4001, io.clone(), party(9).to, LinkId(7));
    assert!(paths.expire(start + CHANNEL_LIFETIME - SECOND).is_empty() && own.is_open());
    assert_eq!(paths.expire(start + CHANNEL_LIFETIME).len(), 1);
    assert!(!own.is_open());
    // The old number rests.
    paths.open(start + CHANNEL_LIFETIME, &own);
    assert!(open(&paths, start + CHANNEL_LIFETIME, 0x4002).is_some());
}

#[actix::test]
async fn room_is_made_by_the_one_that_was_silent_longest() {
    let (paths, io, start) = (paths(), io(), now());
    meet(&paths, start, "b");
    let first = paths.accept_service(start, 0x4001, io.clone(), party(9).to, LinkId(1));
    assert!(matches!(paths.make_room(start, 2), Ok(None)));
    paths.accept_service(start + SECOND, 0x4003, io.clone(), party(9).to, LinkId(2));
    assert!(paths.make_room(start + 4 * SECOND, 2).is_err());
    let given_way = paths.make_room(start + SILENT_TIMEOUT, 2).unwrap().unwrap();
    assert!(Arc::ptr_eq(&given_way, &first));
    assert!(matches!(paths.make_room(start + SILENT_TIMEOUT, 2), Ok(None)));
}

#[actix::test]
async fn what_the_peers_applications_send_goes_to_our_newest() {
    let (paths, io, start) = (paths(), io(), now());
    meet(&paths, start, "b");
    let incoming = paths.accept_application(start, 0x4001, io.clone());
    assert_eq!(incoming.path.application(), None);
    let first = paths.add(start, io.clone(), party(1));
    let second = paths.add(start, io.clone(), party(2));
    assert_eq!(incoming.path.application(), Some(party(2)));
    paths.readdress(&second, party(3));
    assert_eq!(incoming.path.application(), Some(party(3)));
    paths.remove(start, &second);
    assert_eq!(incoming.path.application(), Some(party(1)));
    assert_eq!(first.path.application(), Some(party(1)));
    assert_eq!(paths.applications().len(), 1);
}
