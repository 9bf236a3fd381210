//! Datagrams received together: one batch, one allocation, one age.

use bytes::{BufMut, Bytes, BytesMut};
use quinn_udp::RecvMeta;

use crate::tcp::{channel_data, framing};

/// One receive buffer holds at most this: a GRO train or one datagram. Smaller ones truncate silently.
pub(crate) const BUFFER_LEN: usize = 1 << 16;

/// What stands around each datagram of a [`Batch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Framing {
    /// RFC 4571: a frame for the stream of a link.
    #[default]
    Rfc4571,
    /// A ChannelData message of this channel, for UDP.
    Channel(u16),
    /// A ChannelData message of this channel, padded for a stream.
    PaddedChannel(u16),
}

impl Framing {
    /// The bytes of one datagram of `len` bytes, framed.
    fn framed_len(self, len: usize) -> usize {
        match self {
            Self::Rfc4571 => framing::HEADER_LEN + len,
            Self::Channel(_) => channel_data::HEADER_LEN + len,
            Self::PaddedChannel(_) => channel_data::HEADER_LEN + len + channel_data::padding(len),
        }
    }

    fn put(self, to: &mut impl BufMut, datagram: &[u8]) {
        match self {
            Self::Rfc4571 => framing::put_frame(to, datagram),
            Self::Channel(channel) => channel_data::put_message(to, channel, datagram),
            Self::PaddedChannel(channel) => channel_data::put_padded(to, channel, datagram),
        }
    }
}

/// Datagrams of one UDP sender that came out of one receive call, still in the buffers of the thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'r> {
    metas: &'r [RecvMeta],
    buffers: &'r [u8],
}

impl<'r> Received<'r> {
    /// For each of `metas` there is a buffer of [`BUFFER_LEN`] bytes.
    pub(crate) fn new(metas: &'r [RecvMeta], buffers: &'r [u8]) -> Self {
        Self { metas, buffers }
    }

    /// What each buffer holds, and its stride: datagrams of so many bytes each, the last one may be shorter. A
    /// lone empty datagram has stride 0 (so kernel and quinn-udp say it).
    pub(crate) fn trains(self) -> impl Iterator<Item = (&'r [u8], usize)> {
        let buffers = self.buffers.chunks(BUFFER_LEN);
        self.metas
            .iter()
            .zip(buffers)
            .map(|(meta, buffer)| (&buffer[..meta.len.min(BUFFER_LEN)], meta.stride))
    }

    /// The datagrams one by one.
    pub(crate) fn datagrams(self) -> impl Iterator<Item = &'r [u8]> {
        self.trains().flat_map(|(train, stride)| split(train, stride))
    }

    /// How many datagrams these are.
    pub(crate) fn count(self) -> u64 {
        self.trains().map(|(train, stride)| count(train.len(), stride) as u64).sum()
    }

    /// Copies the datagrams out, framed: the one copy on their way.
    pub(crate) fn batch(self, framing: Framing) -> Batch {
        let mut builder = BatchBuilder::with_capacity(framing, self.framed_len(framing));
        self.trains().for_each(|(train, stride)| builder.push(train, stride));
        builder.finish()
    }

    /// Appends the datagrams, framed, to `to`.
    pub(crate) fn put(self, framing: Framing, to: &mut Vec<u8>) {
        to.reserve(self.framed_len(framing));
        self.datagrams().for_each(|datagram| framing.put(to, datagram));
    }

    fn framed_len(self, framing: Framing) -> usize {
        self.trains().map(|(train, stride)| framed_len(framing, train.len(), stride)).sum()
    }
}

/// Datagrams of one UDP source, framed so that they are written as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) frames: Bytes,
    pub(crate) datagrams: u64,
    /// The bytes of the datagrams, without what stands around them.
    pub(crate) payload: u64,
}

impl Batch {
    /// The same datagrams in another framing. Those of this batch must be RFC 4571's.
    pub(crate) fn reframed(&self, framing: Framing) -> Self {
        let rooms = usize::try_from(self.datagrams).unwrap_or(0) * framing.framed_len(0);
        let mut builder = BatchBuilder::with_capacity(framing, self.frames.len() + rooms);
        let mut rest = &self.frames[..];
        while let Some(datagram) = framing::first_datagram(rest) {
            builder.push(datagram, datagram.len());
            rest = &rest[framing::HEADER_LEN + datagram.len()..];
        }
        builder.finish()
    }
}

/// Collects a [`Batch`].
#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    framing: Framing,
    frames: BytesMut,
    datagrams: u64,
    payload: u64,
}

impl BatchBuilder {
    /// With room for `bytes` bytes of frames, so that what is queued holds no more memory than it weighs.
    pub(crate) fn with_capacity(framing: Framing, bytes: usize) -> Self {
        Self { framing, frames: BytesMut::with_capacity(bytes), datagrams: 0, payload: 0 }
    }

    /// Adds what one receive buffer holds, see [`Received::trains`].
    pub(crate) fn push(&mut self, train: &[u8], stride: usize) {
        split(train, stride).for_each(|datagram| self.framing.put(&mut self.frames, datagram));
        self.datagrams += count(train.len(), stride) as u64;
        self.payload += train.len() as u64;
    }

    /// What was collected.
    pub(crate) fn finish(self) -> Batch {
        Batch { frames: self.frames.freeze(), datagrams: self.datagrams, payload: self.payload }
    }
}

/// Cuts a train into its datagrams; an empty one is one empty datagram.
pub(crate) fn split(train: &[u8], stride: usize) -> impl Iterator<Item = &[u8]> {
    let lone = train.is_empty().then_some(train);
    lone.into_iter().chain(train.chunks(stride.max(1)))
}

/// How many datagrams of `stride` bytes a train of `len` bytes holds.
pub(crate) fn count(len: usize, stride: usize) -> usize {
    len.div_ceil(stride.max(1)).max(1)
}

/// The bytes of the frames of a train.
fn framed_len(framing: Framing, len: usize, stride: usize) -> usize {
    let last = len - (count(len, stride) - 1) * stride.max(1);
    (count(len, stride) - 1) * framing.framed_len(stride.max(1)) + framing.framed_len(last)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const FRAMINGS: [Framing; 3] =
        [Framing::Rfc4571, Framing::Channel(0x4000), Framing::PaddedChannel(0x4fff)];

    /// Hands over what one receive call might have brought: trains and their strides.
    pub(crate) fn received<R>(trains: &[(&[u8], usize)], take: impl FnOnce(Received<'_>) -> R) -> R {
        let mut buffers = vec![0xee; trains.len() * BUFFER_LEN];
        let mut metas = Vec::new();
        for ((train, stride), buffer) in trains.iter().zip(buffers.chunks_mut(BUFFER_LEN)) {
            buffer[..train.len()].copy_from_slice(train);
            let mut meta = RecvMeta::default();
            (meta.len, meta.stride) = (train.len(), *stride);
            metas.push(meta);
        }
        take(Received::new(&metas, &buffers))
    }

    #[test]
    fn the_room_needed_is_known_before() {
        for (len, stride) in [(0, 0), (1, 1), (5, 2), (6, 2), (65_507, 65_507), (100, 0), (700, 130)] {
            for framing in FRAMINGS {
                let mut builder = BatchBuilder::with_capacity(framing, 0);
                builder.push(&vec![1; len], stride);
                let batch = builder.finish();
                assert_eq!(
                    batch.frames.len(),
                    framed_len(framing, len, stride),
                    "{len} {stride} {framing:?}"
                );
                assert_eq!(batch.payload, len as u64);
            }
        }
    }

    #[test]
    fn a_receive_buffer_is_cut_at_its_stride() {
        let trains: [(&[u8], usize); 3] = [(b"aabbc", 2), (b"", 0), (b"zz", 2)];
        received(&trains, |received| {
            let batch = received.batch(Framing::Rfc4571);
            assert_eq!((batch.datagrams, batch.payload), (5, 7));
            assert_eq!(&batch.frames[..], b"\x00\x02aa\x00\x02bb\x00\x01c\x00\x00\x00\x02zz");
            assert_eq!(received.datagrams().collect::<Vec<_>>(), [&b"aa"[..], b"bb", b"c", b"", b"zz"]);
        });
    }

    #[test]
    fn the_taker_chooses_the_framing() {
        received(&[(b"aaab", 3)], |received| {
            let frames = |framing| received.batch(framing).frames;
            assert_eq!(&frames(Framing::Channel(0x4001))[..], b"\x40\x01\x00\x03aaa\x40\x01\x00\x01b");
            let padded = frames(Framing::PaddedChannel(0x4001));
            assert_eq!(&padded[..], b"\x40\x01\x00\x03aaa\0\x40\x01\x00\x01b\0\0\0");
        });
    }

    #[test]
    fn a_batch_reframed_is_the_batch_framed_so_at_first() {
        let trains: [(&[u8], usize); 3] = [(b"aabbc", 2), (b"", 0), (&[7; 3000], 1472)];
        received(&trains, |received| {
            let held = received.batch(Framing::Rfc4571);
            for framing in FRAMINGS {
                assert_eq!(held.reframed(framing), received.batch(framing));
            }
        });
    }
}
