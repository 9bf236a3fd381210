use super::*;
use crate::counters::LiveCounters;
use crate::datagrams::{BatchBuilder, Framing};
use crate::tcp::{channel_data, framing};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;

/// A stream that takes what `takes` says, a number of bytes a write; then it would block.
#[derive(Default)]
struct Taking {
    takes: VecDeque<usize>,
    /// What it has taken has not gone out, and will not for now.
    holds_back: bool,
    written: Vec<u8>,
    largest: usize,
}

impl AsyncWrite for Taking {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.largest = self.largest.max(bytes.len());
        match self.takes.pop_front() {
            Some(takes) => {
                let takes = takes.min(bytes.len());
                self.written.extend_from_slice(&bytes[..takes]);
                Poll::Ready(Ok(takes))
            }
            None => Poll::Pending,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds_back { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn flow(datagrams: &[Vec<u8>]) -> (Flow, Vec<u8>) {
    let mut builder = BatchBuilder::default();
    datagrams.iter().for_each(|datagram| builder.push(datagram, datagram.len()));
    let batch = builder.finish();
    let bytes = batch.frames.to_vec();
    let flow = Flow::new(1 << 22, Duration::from_secs(1), Arc::new(LiveCounters::default()));
    flow.push(crate::flow::tests::any_instant(), batch);
    (flow, bytes)
}

async fn write(flow: &Flow, writer: &mut FrameWriter, stream: &mut Taking) {
    let now = crate::flow::tests::any_instant();
    poll_fn(|cx| {
        assert!(writer.poll(cx, stream, flow, now).is_pending());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_takes_everything_gets_large_writes() {
    let (flow, bytes) = flow(&vec![vec![1; 1200]; 100]);
    let (mut writer, mut stream) = (FrameWriter::default(), Taking::default());
    stream.takes.extend([usize::MAX; 20]);
    write(&flow, &mut writer, &mut stream).await;
    assert_eq!(stream.written, bytes);
    assert!(stream.largest > BACKLOG_WRITE_LEN);
}

#[tokio::test]
async fn a_stream_that_holds_bytes_back_gets_no_more_and_small_writes_after_that() {
    let (flow, bytes) = flow(&vec![vec![1; 1200]; 200]);
    let (mut writer, mut stream) = (FrameWriter::default(), Taking::default());
    stream.takes.extend([usize::MAX; 100]);
    stream.holds_back = true;
    write(&flow, &mut writer, &mut stream).await;
    assert!(stream.written.is_empty() && !flow.is_empty());
    stream.holds_back = false;
    while !flow.is_empty() {
        write(&flow, &mut writer, &mut stream).await;
    }
    assert_eq!(stream.written, bytes);
    assert!(stream.largest <= BACKLOG_WRITE_LEN, "{}", stream.largest);
}

#[tokio::test]
async fn a_slow_stream_gets_small_writes_until_it_has_caught_up() {
    let (flow, bytes) = flow(&vec![vec![1; 1200]; 200]);
    let (mut writer, mut stream) = (FrameWriter::default(), Taking::default());
    stream.takes.push_back(7);
    write(&flow, &mut writer, &mut stream).await;
    stream.largest = 0;
    while !flow.is_empty() {
        stream.takes.extend([usize::MAX; 3]);
        write(&flow, &mut writer, &mut stream).await;
    }
    assert_eq!(stream.written, bytes);
    assert!(stream.largest <= BACKLOG_WRITE_LEN, "{}", stream.largest);
}

/// A sink that blocks after each `burst` datagrams, until asked whether it is ready.
struct Bursty {
    burst: usize,
    left: usize,
    taken: Vec<Vec<u8>>,
    open: bool,
}

impl FrameSink for Bursty {
    fn take(&mut self, bytes: &[u8]) -> (usize, Taken) {
        let (mut used, mut work) = (0, 0);
        while let Some(datagram) = framing::first_datagram(&bytes[used..]) {
            if self.left == 0 {
                return (used, Taken::Blocked);
            }
            if work == 2 {
                return (used, Taken::Some);
            }
            work += 1;
            self.left -= 1;
            self.taken.push(datagram.to_vec());
            used += framing::HEADER_LEN + datagram.len();
        }
        (used, Taken::All)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.open {
            return Poll::Pending;
        }
        self.left = self.burst;
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn last_sent(&self) -> Option<Instant> {
        None
    }

    fn datagrams(&self, rest: &[u8]) -> u64 {
        framing::whole_frames(rest, usize::MAX).1
    }
}

fn sink(burst: usize) -> Bursty {
    Bursty { burst, left: burst, taken: Vec::new(), open: true }
}

async fn read_to_end<S: FrameSink>(bytes: &[u8], mut sink: S, reader: &mut FrameReader) -> (ReadEnd, S) {
    let mut stream = bytes;
    let end = poll_fn(|cx| {
        let now = tokio::time::Instant::now().into_std();
        reader.poll(cx, &mut stream, &mut sink, now, |_| {})
    })
    .await;
    (end, sink)
}

fn reader() -> FrameReader {
    FrameReader::new(Duration::from_secs(10), Duration::from_secs(5))
}

#[tokio::test]
async fn a_sink_that_blocks_loses_nothing() {
    let sent: Vec<Vec<u8>> = (0..500).map(|n: usize| vec![n as u8; n * 7 % 1500]).collect();
    let (_, bytes) = flow(&sent);
    let (end, sink) = read_to_end(&bytes, sink(3), &mut reader()).await;
    assert!(matches!(end, ReadEnd::Closed), "{end:?}");
    assert_eq!(sink.taken, sent);
}

#[tokio::test]
async fn an_idle_reader_owns_no_buffer() {
    let (_, bytes) = flow(&[vec![1; 60_000]]);
    let mut reader = reader();
    read_to_end(&bytes, sink(9), &mut reader).await;
    assert_eq!(reader.rest.capacity(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_frame_ends_the_connection_after_its_time() {
    let (mut near, mut far) = tokio::io::duplex(64);
    let mut reader = reader();
    let begin = tokio::time::Instant::now();
    // A byte now and then does not help a frame that claims 65,535 of them.
    let slow = async {
        use tokio::io::AsyncWriteExt;
        for _ in 0..100 {
            if near.write_all(&[0xff]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let mut sink = sink(9);
    let read = poll_fn(|cx| {
        let now = tokio::time::Instant::now().into_std();
        reader.poll(cx, &mut far, &mut sink, now, |_| {})
    });
    tokio::select! {
        end = read => assert!(matches!(end, ReadEnd::UnfinishedFrame), "{end:?}"),
        () = slow => panic!("the reader went on"),
    }
    assert_eq!(begin.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_takes_nothing_ends_the_connection_after_its_time() {
    let (_, bytes) = flow(&[vec![1; 10], vec![2; 10]]);
    let (mut reader, mut sink) = (reader(), sink(1));
    sink.open = false;
    let begin = tokio::time::Instant::now();
    let (end, sink) = read_to_end(&bytes, sink, &mut reader).await;
    assert!(matches!(end, ReadEnd::SinkStuck), "{end:?}");
    assert_eq!(begin.elapsed().as_secs(), 5);
    assert_eq!(reader.unfinished(&sink), 1);
}

/// The messages of a TURN stream, four a turn.
#[derive(Default)]
struct Messages(Vec<Vec<u8>>);

impl FrameSink for Messages {
    fn take(&mut self, bytes: &[u8]) -> (usize, Taken) {
        let mut used = 0;
        for _ in 0..4 {
            match channel_data::message_len(&bytes[used..]) {
                Ok(Some(len)) if used + len <= bytes.len() => {
                    self.0.push(bytes[used..used + len].to_vec());
                    used += len;
                }
                Ok(_) => return (used, Taken::All),
                Err(channel_data::NotTurn) => return (used, Taken::Malformed),
            }
        }
        (used, Taken::Some)
    }

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        panic!("this sink never blocks")
    }

    fn last_sent(&self) -> Option<Instant> {
        None
    }

    fn datagrams(&self, rest: &[u8]) -> u64 {
        u64::from(channel_data::parse(rest).is_some())
    }
}

/// The longest messages of either kind, several reads of them.
fn turn_messages() -> Vec<Vec<u8>> {
    let mut stun = b"\x01\x01\xff\xfc\x21\x12\xa4\x42".to_vec();
    stun.resize(channel_data::MAX_MESSAGE_LEN, 9);
    let lens = [65_535, 0, 1, 1200, 1200, 1200, 65_533, 7];
    let data = lens.map(|len: usize| {
        let mut message = Vec::new();
        channel_data::put_padded(&mut message, 0x4002, &vec![len as u8; len]);
        message
    });
    let once = [vec![stun.clone()], data.to_vec(), vec![stun]].concat();
    [once.clone(), once.clone(), once].concat()
}

#[tokio::test]
async fn a_turn_stream_comes_in_whole_messages() {
    let sent = turn_messages();
    let mut reader = reader();
    let (end, Messages(received)) = read_to_end(&sent.concat(), Messages::default(), &mut reader).await;
    assert!(matches!(end, ReadEnd::Closed), "{end:?}");
    assert!(received == sent, "{} messages of {}", received.len(), sent.len());
    assert_eq!(reader.rest.capacity(), 0, "an idle reader owns no buffer");
}

#[tokio::test]
async fn what_is_no_frame_ends_the_stream_behind_the_last_that_was() {
    let sent = turn_messages();
    let bytes = [&sent.concat()[..], b"SSH-2.0-OpenSSH_9.2"].concat();
    let (end, Messages(received)) = read_to_end(&bytes, Messages::default(), &mut reader()).await;
    assert!(matches!(end, ReadEnd::Malformed), "{end:?}");
    assert!(received == sent, "{} messages of {}", received.len(), sent.len());
}

#[tokio::test]
async fn control_is_written_behind_the_message_that_is_begun() {
    let flow = Flow::turn(1 << 22, Duration::from_secs(1), Arc::new(LiveCounters::default()));
    let mut builder = BatchBuilder::with_capacity(Framing::PaddedChannel(0x4002), 0);
    [9, 1200, 5].iter().for_each(|len| builder.push(&vec![*len as u8; *len], *len));
    let batch = builder.finish();
    let stun = bytes::Bytes::from_static(b"\x00\x04\x00\x00\x21\x12\xa4\x42transactions");
    let (begun, rest) = batch.frames.split_at(16 + 1204);
    let expected = [begun, &stun, rest].concat();
    flow.push(crate::flow::tests::any_instant(), batch);
    let (mut writer, mut stream) = (FrameWriter::default(), Taking::default());
    stream.takes.push_back(20);
    write(&flow, &mut writer, &mut stream).await;
    flow.push_control(stun).unwrap();
    stream.takes.extend([usize::MAX; 3]);
    write(&flow, &mut writer, &mut stream).await;
    assert_eq!(stream.written, expected);
}
