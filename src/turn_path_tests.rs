use super::*;
use crate::counters::{Counters, Traffic};
use crate::datagrams::BatchBuilder;
use crate::datagrams::tests::received;
use std::future::poll_fn;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;

const HOLD: Duration = Duration::from_secs(1);
const CHANNEL: u16 = 0x4007;

fn now() -> Instant {
    crate::clock::now()
}

fn io(connect: Option<SocketAddr>) -> Arc<UdpIo> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    if let Some(to) = connect {
        socket.connect(to).unwrap();
    }
    Arc::new(UdpIo::new(socket).unwrap())
}

fn path() -> PeerPath {
    PeerPath::new(1 << 20, HOLD, Arc::new(LiveCounters::default()), Arc::default())
}

fn counted(path: &PeerPath) -> Counters {
    path.counters.snapshot()
}

fn batch(datagram: &[u8]) -> Batch {
    let mut builder = BatchBuilder::default();
    builder.push(datagram, datagram.len());
    builder.finish()
}

fn send(path: &PeerPath, train: &[u8], stride: usize) {
    received(&[(train, stride)], |received| path.send(now(), received));
}

async fn arrive(at: &UdpIo, count: usize) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    while got.len() < count {
        poll_fn(|cx| at.poll_recv(cx, |_, received| got.extend(received.datagrams().map(<[u8]>::to_vec))))
            .await
            .unwrap();
    }
    got
}

/// A server, and a route to it.
fn server() -> (Arc<UdpIo>, Route) {
    let server = io(None);
    let route = Route::Udp { io: io(Some(server.local())), channel: CHANNEL };
    (server, route)
}

/// What the client keeps when its socket has taken nothing of `messages`.
fn keep(path: &PeerPath, route: &Route, messages: &'static [u8]) {
    let Route::Udp { io, .. } = route else { panic!("not over UDP") };
    let messages = Bytes::from_static(messages);
    path.up().kept = Some(Kept { io: io.clone(), messages, full: Full::default() });
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn datagrams_wait_for_a_channel_but_not_too_long() {
    let (server, route) = server();
    let (path, begin) = (path(), now());
    path.send_batch(begin, batch(b"too old"));
    received(&[(b"aabb", 2)], |received| path.send(begin + HOLD / 2, received));
    assert!(path.is_waiting());
    path.open(begin + HOLD, route);
    assert!(!path.is_waiting());
    assert_eq!(arrive(&server, 2).await, [b"\x40\x07\x00\x02aa", b"\x40\x07\x00\x02bb"]);
    assert_eq!(counted(&path).to_tcp, Traffic { datagrams: 2, bytes: 4 });
    assert_eq!(counted(&path).drops.expired, 1);
}

#[tokio::test]
async fn over_udp_datagrams_go_out_as_channel_data_at_once() {
    let (server, route) = server();
    let path = path();
    path.open(now(), route);
    send(&path, b"aaab", 3);
    path.send_batch(now(), batch(b""));
    let expected: [&[u8]; 3] = [b"\x40\x07\x00\x03aaa", b"\x40\x07\x00\x01b", b"\x40\x07\x00\x00"];
    assert_eq!(arrive(&server, 3).await, expected);
    assert_eq!(counted(&path).to_tcp, Traffic { datagrams: 3, bytes: 4 });
    assert!(path.activity.sent.get().is_some());
    poll_fn(|cx| path.poll_ready(cx)).await;
}

#[tokio::test]
async fn over_a_stream_datagrams_are_padded_into_its_flow_which_counts_them() {
    let path = path();
    let flow = Arc::new(Flow::turn(1 << 20, HOLD, path.counters.clone()));
    send(&path, b"held", 4);
    path.open(now(), Route::Stream { flow: flow.clone(), channel: CHANNEL });
    send(&path, b"aaab", 3);
    path.send_batch(now(), batch(b"c"));
    assert_eq!(counted(&path).to_tcp.datagrams, 0);
    let mut stream = Vec::new();
    while !flow.is_empty() {
        let front = poll_fn(|cx| flow.poll_front(cx, now(), 1 << 16)).await;
        stream.extend_from_slice(&front);
        flow.advance(front.len());
    }
    let payloads: Vec<_> = channel_data::Payloads::new(&stream, CHANNEL).collect();
    assert_eq!(payloads, [&b"held"[..], b"aaa", b"b", b"c"]);
    assert_eq!(counted(&path).to_tcp, Traffic { datagrams: 4, bytes: 9 });
}

#[tokio::test]
async fn what_the_control_socket_did_not_take_goes_first_once_it_is_ready() {
    let (server, route) = server();
    let path = path();
    path.open(now(), route.clone());
    keep(&path, &route, b"\x40\x07\x00\x03one\x40\x07\x00\x03two");
    poll_fn(|cx| path.poll_ready(cx)).await;
    keep(&path, &route, b"\x40\x07\x00\x05three");
    send(&path, b"four", 4);
    let arrived = arrive(&server, 4).await;
    let payloads: Vec<_> = arrived.iter().map(|message| &message[4..]).collect();
    assert_eq!(payloads, [&b"one"[..], b"two", b"three", b"four"]);
    assert_eq!(counted(&path).to_tcp, Traffic { datagrams: 4, bytes: 15 });
}

#[tokio::test]
async fn a_server_that_is_not_there_is_known_from_its_hosts_answer() {
    let (server, route) = server();
    let path = path();
    path.open(now(), route);
    drop(server);
    send(&path, b"anybody?", 8);
    assert_eq!(path.activity.refused.get(), None);
    send(&path, b"anybody?", 8);
    assert!(path.activity.refused.get().is_some());
    assert_eq!(counted(&path).drops.service_unreachable, 1);
    assert_eq!(counted(&path).to_tcp.datagrams, 2);
}

#[tokio::test]
async fn without_its_channel_a_path_holds_again_and_what_was_kept_is_counted() {
    let (_server, route) = server();
    let path = path();
    path.open(now(), route.clone());
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    assert!(path.poll_ready(&mut Context::from_waker(&waker)).is_ready());
    keep(&path, &route, b"\x40\x07\x00\x03one\x40\x07\x00\x03two");
    path.close(HOLD / 2);
    assert_eq!(wakes.0.load(SeqCst), 1, "the sender has nothing to wait for");
    assert_eq!(counted(&path).drops.connection_lost, 2);
    let held = now();
    received(&[(b"held", 4)], |received| path.send(held, received));
    path.expire(held + HOLD / 2);
    assert_eq!(counted(&path).drops.expired, 1);
    send(&path, b"for nobody", 10);
    path.end();
    assert_eq!(counted(&path).drops.connection_lost, 3);
    assert_eq!(counted(&path).to_tcp.datagrams, 0);
}

#[tokio::test]
async fn what_a_peer_sends_goes_to_the_application_or_is_counted() {
    let (path, local, application) = (path(), io(None), io(None));
    let datagrams: [&[u8]; 3] = [b"one", b"two", b"3"];
    assert_eq!(path.deliver(datagrams.into_iter()), 0);
    path.set_local(local, None);
    path.deliver(datagrams.into_iter());
    assert_eq!(counted(&path).drops.no_application, 6);
    path.set_application(Some(UdpParty { to: application.local(), from: None }));
    assert!(path.deliver(datagrams.into_iter()) > 0);
    assert_eq!(arrive(&application, 3).await, datagrams);
    assert_eq!(counted(&path).to_udp, Traffic { datagrams: 3, bytes: 7 });
    assert_eq!(path.activity.sent.get(), None);
}
