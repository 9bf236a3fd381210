use super::*;
use crate::datagrams::BatchBuilder;
use std::future::poll_fn;

fn io(socket: UdpSocket) -> UdpIo {
    socket.set_nonblocking(true).unwrap();
    UdpIo::new(socket).unwrap()
}

fn bound(addr: &str) -> UdpIo {
    io(UdpSocket::bind(addr).unwrap())
}

async fn receive(io: &UdpIo, count: usize) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    while got.len() < count {
        poll_fn(|cx| io.poll_recv(cx, |_, received| got.extend(received.datagrams().map(<[u8]>::to_vec))))
            .await
            .unwrap();
    }
    got
}

async fn all_sizes_arrive(addr: &str, sizes: &[usize]) {
    let (from, to) = (bound(addr), bound(addr));
    let mut builder = BatchBuilder::default();
    let sent: Vec<Vec<u8>> = sizes.iter().map(|size| vec![*size as u8; *size]).collect();
    sent.iter().for_each(|datagram| builder.push(datagram, datagram.len()));
    let frames = builder.finish().frames;
    let result = from.send_frames(&frames, to.local(), None);
    assert_eq!(result.used, frames.len(), "{result:?}");
    assert_eq!(result.datagrams, sizes.len() as u64, "{result:?}");
    assert_eq!(receive(&to, sizes.len()).await, sent);
}

const SIZES: [usize; 12] = [0, 1, 148, 148, 148, 100, 0, 1472, 1473, 9000, 65_507, 7];

#[tokio::test]
async fn datagrams_of_every_size_arrive_over_ipv4() {
    all_sizes_arrive("127.0.0.1:0", &SIZES).await;
}

#[tokio::test]
async fn datagrams_of_every_size_arrive_over_ipv6() {
    all_sizes_arrive("[::1]:0", &SIZES).await;
}

#[tokio::test]
async fn what_udp_cannot_take_is_counted_and_the_rest_sent() {
    let (from, to) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    let mut builder = BatchBuilder::default();
    for size in [65_535, 65_508, 3] {
        builder.push(&vec![1; size], size);
    }
    let result = from.send_frames(&builder.finish().frames, to.local(), None);
    assert_eq!((result.too_long, result.datagrams, result.blocked), (2, 1, false));
    assert_eq!(receive(&to, 1).await, [vec![1; 3]]);
}

#[tokio::test]
async fn a_service_that_is_not_there_is_counted_and_one_that_came_is_reached_at_once() {
    let service = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = service.local_addr().unwrap();
    drop(service);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    let io = io(socket);
    let mut builder = BatchBuilder::default();
    builder.push(b"anybody?", 8);
    let frames = builder.finish().frames;
    assert_eq!(io.send_frames(&frames, to, None).datagrams, 1);
    let came = bound(&to.to_string());
    assert_eq!(io.send_frames(&frames, to, None).datagrams, 1);
    assert_eq!(receive(&came, 1).await, [b"anybody?".to_vec()]);
}

fn connected(to: SocketAddr) -> UdpIo {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    io(socket)
}

/// The calls that `count` datagrams of one size need, where the system has GSO or not.
fn calls(io: &UdpIo, count: usize) -> usize {
    count.div_ceil(io.state.max_gso_segments().min(64))
}

#[tokio::test]
async fn channel_data_goes_out_as_it_stands_and_its_headers_do_not_count() {
    let server = bound("127.0.0.1:0");
    let io = connected(server.local());
    let sizes: Vec<usize> = [1200; 40].into_iter().chain([7, 0, 0, 1473, 65_503, 65_504, 3]).collect();
    let mut messages = Vec::new();
    sizes.iter().for_each(|size| channel_data::put_message(&mut messages, 0x4001, &vec![*size as u8; *size]));
    let sent = io.send_channel_data(&messages);
    assert_eq!((sent.used, sent.datagrams, sent.blocked), (messages.len(), 46, false), "{sent:?}");
    assert_eq!(sent.bytes, (sizes.iter().sum::<usize>() - 65_504) as u64);
    assert_eq!((sent.too_long, sent.failed), (1, 0), "with its header it is too long for UDP");
    assert_eq!(sent.calls, calls(&io, 41) + calls(&io, 2) + 4);
    let arrived = receive(&server, 46).await;
    for (message, size) in arrived.iter().zip(sizes.into_iter().filter(|size| *size != 65_504)) {
        assert_eq!(channel_data::parse(message), Some((0x4001, &vec![size as u8; size][..])));
    }
}

#[tokio::test]
async fn neighbours_of_equal_size_are_sent_with_one_call() {
    let (from, to) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    let datagrams: Vec<Vec<u8>> =
        [1200, 1200, 1200, 30, 0, 9000, 30, 30].map(|size: usize| vec![size as u8; size]).into();
    let sent = from.send_datagrams(datagrams.iter().map(Vec::as_slice), to.local(), None);
    assert_eq!((sent.datagrams, sent.bytes, sent.failed), (8, 3600 + 30 + 9000 + 60, 0), "{sent:?}");
    assert_eq!(sent.calls, calls(&from, 4) + 1 + 1 + calls(&from, 2));
    assert_eq!(receive(&to, 8).await, datagrams);
}

#[tokio::test]
async fn a_datagram_that_fails_does_not_take_its_neighbours_along() {
    let (from, to) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    let datagrams = [vec![1; 65_535], vec![2; 3], vec![3; 65_508], vec![4; 3]];
    let sent = from.send_datagrams(datagrams.iter().map(Vec::as_slice), to.local(), None);
    assert_eq!((sent.datagrams, sent.too_long), (2, 2), "{sent:?}");
    assert_eq!(receive(&to, 2).await, [vec![2; 3], vec![4; 3]]);
    let nothing = from.send_datagrams(std::iter::empty(), to.local(), None);
    assert_eq!(nothing, Sent::default());
}
