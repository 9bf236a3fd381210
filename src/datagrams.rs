//! Datagrams received together: one batch, one allocation, one age.

use bytes::{Bytes, BytesMut};

use crate::tcp::framing;

/// Datagrams of one UDP source that came out of one receive call, already framed for the stream, so that
/// they are copied once and written as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) frames: Bytes,
    pub(crate) datagrams: u64,
}

/// Collects a [`Batch`].
#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    frames: BytesMut,
    datagrams: u64,
}

impl BatchBuilder {
    /// With room for `bytes` bytes of frames, so that what is queued holds no more memory than it weighs.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { frames: BytesMut::with_capacity(bytes), datagrams: 0 }
    }

    /// Adds what one receive buffer holds: datagrams of `stride` bytes each, the last one may be shorter. A
    /// lone empty datagram has stride 0 (so kernel and quinn-udp say it).
    pub(crate) fn push(&mut self, received: &[u8], stride: usize) {
        if received.is_empty() {
            framing::put_frame(&mut self.frames, received);
            self.datagrams += 1;
            return;
        }
        received.chunks(stride.max(1)).for_each(|datagram| framing::put_frame(&mut self.frames, datagram));
        self.datagrams += datagrams_in(received.len(), stride) as u64;
    }

    /// What was collected.
    pub(crate) fn finish(self) -> Batch {
        Batch { frames: self.frames.freeze(), datagrams: self.datagrams }
    }
}

/// How many datagrams of `stride` bytes a receive buffer with `len` bytes holds.
fn datagrams_in(len: usize, stride: usize) -> usize {
    len.div_ceil(stride.max(1)).max(1)
}

/// The bytes of the frames of what one receive buffer holds.
pub(crate) fn framed_len(len: usize, stride: usize) -> usize {
    len + datagrams_in(len, stride) * framing::HEADER_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_needed_is_known_before() {
        for (len, stride) in [(0, 0), (1, 1), (5, 2), (6, 2), (65_507, 65_507), (100, 0)] {
            let mut builder = BatchBuilder::default();
            builder.push(&vec![1; len], stride);
            assert_eq!(builder.finish().frames.len(), framed_len(len, stride), "{len} {stride}");
        }
    }

    #[test]
    fn a_receive_buffer_is_cut_at_its_stride() {
        let mut builder = BatchBuilder::default();
        builder.push(b"aabbc", 2);
        builder.push(b"", 0);
        builder.push(b"zz", 2);
        let batch = builder.finish();
        assert_eq!(batch.datagrams, 5);
        assert_eq!(&batch.frames[..], b"\x00\x02aa\x00\x02bb\x00\x01c\x00\x00\x00\x02zz");
    }
}
