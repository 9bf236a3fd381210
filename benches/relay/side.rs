//! A side of a pair, on a blocking socket: it joins at a relay, sends datagrams and takes them.
//!
//! Through a plain proxy, or with nothing between, the same bytes go without the join.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::Outcome;
use crate::stun::{self, HEADER_LEN, Stun};
use crate::tls::{Believer, TlsStream};

pub(crate) const REALM: &str = "bench";
pub(crate) const USER: &str = "user";
pub(crate) const PASSWORD: &str = "password";

/// Of all datagrams.
const CHANNEL: u16 = 0x4000;
pub(crate) const DATA_HEADER_LEN: usize = 4;

/// SHA-256 (RFC 8489 §18.5.1).
const ALGORITHM: &[u8] = &[0, 2, 0, 0];

/// For whatever is waited for.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A side that waits for its peer needs no more than for a message; one in full flow reads much at once.
const SMALL_BUFFER_LEN: usize = 2 << 10;
const LARGE_BUFFER_LEN: usize = 256 << 10;

/// Appends a ChannelData message (RFC 8656 §12.4) of a datagram of `size` bytes, which begins with `stamp`.
pub(crate) fn put_datagram(bytes: &mut Vec<u8>, size: usize, stamp: u64) -> Outcome<()> {
    bytes.extend_from_slice(&CHANNEL.to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(size)?.to_be_bytes());
    bytes.extend_from_slice(&stamp.to_be_bytes());
    bytes.resize(bytes.len() + (size - 8).next_multiple_of(4), 0x5a);
    Ok(())
}

/// Where a side can be made.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) addr: SocketAddr,
    pub(crate) tls: Option<Believer>,
}

impl Gate {
    pub(crate) fn connect(&self) -> Outcome<Side> {
        Side::over(TcpStream::connect_timeout(&self.addr, READ_TIMEOUT)?, self.tls.as_ref())
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl Wire {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// One connection.
pub(crate) struct Side {
    stream: Wire,
    buffer: Vec<u8>,
    /// What has been read and not been taken stands from `taken` to `filled`.
    taken: usize,
    filled: usize,
    requests: u32,
    nonce: Vec<u8>,
}

/// A whole message.
enum Came<'a> {
    Data(&'a [u8]),
    Stun(Stun<'a>),
}

impl Side {
    /// A connection that was made, or taken; in TLS if somebody is to be believed.
    pub(crate) fn over(tcp: TcpStream, tls: Option<&Believer>) -> Outcome<Self> {
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(READ_TIMEOUT))?;
        let stream = match tls {
            None => Wire::Plain(tcp),
            Some(believer) => Wire::Tls(Box::new(believer.over(tcp)?)),
        };
        let buffer = vec![0; SMALL_BUFFER_LEN];
        Ok(Self { stream, buffer, taken: 0, filled: 0, requests: 0, nonce: Vec::new() })
    }

    /// Another handle of the same connection.
    pub(crate) fn stream(&self) -> Outcome<TcpStream> {
        Ok(self.stream.tcp().try_clone()?)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// For a side that is to take datagrams in full flow.
    pub(crate) fn enlarge(&mut self) {
        self.buffer.resize(LARGE_BUFFER_LEN, 0);
    }

    /// The first Join, which is refused with a challenge.
    pub(crate) fn ask(&mut self) -> Outcome<()> {
        let id = self.next_id();
        self.send(&stun::message(stun::JOIN_REQUEST, id, &[], None)?)
    }

    /// Takes the challenge, and joins. To be followed by `joined`.
    pub(crate) fn join(&mut self, pair: &[u8], side: &str) -> Outcome<()> {
        let challenge = self.wait_for_stun(stun::JOIN_ERROR, |challenge| {
            let nonce = challenge.attribute(stun::NONCE);
            nonce.map(<[u8]>::to_vec).ok_or_else(|| "a challenge without a nonce".into())
        })?;
        self.nonce = challenge;
        let key = Sha256::digest(format!("{USER}:{REALM}:{PASSWORD}"));
        let id = self.next_id();
        let attributes: [(u16, &[u8]); 8] = [
            (stun::USERNAME, USER.as_bytes()),
            (stun::REALM, REALM.as_bytes()),
            (stun::NONCE, &self.nonce),
            (stun::PASSWORD_ALGORITHM, ALGORITHM),
            (stun::PASSWORD_ALGORITHMS, ALGORITHM),
            (stun::PAIR_ID, pair),
            (stun::SIDE_ID, side.as_bytes()),
            (stun::INSTANCE, &[7; 8]),
        ];
        self.send(&stun::message(stun::JOIN_REQUEST, id, &attributes, Some(&key))?)
    }

    /// Whether the peer is there already.
    pub(crate) fn joined(&mut self) -> Outcome<bool> {
        self.wait_for_stun(stun::JOIN_SUCCESS, |success| {
            Ok(success.attribute(stun::PEER_STATUS) == Some(&[0, 0, 0, 1]))
        })
    }

    /// Until the relay says that the peer is there.
    pub(crate) fn wait_for_peer(&mut self) -> Outcome<()> {
        self.wait_for_stun(stun::PEER_INDICATION, |peer| match peer.attribute(stun::PEER_STATUS) {
            Some([0, 0, 0, 1]) => Ok(()),
            status => Err(format!("the peer's status is {status:?}").into()),
        })
    }

    /// Asks the relay for a sign of life, which is one of ours too, and waits for it.
    pub(crate) fn ping(&mut self) -> Outcome<()> {
        let id = self.next_id();
        self.send(&stun::message(stun::BINDING_REQUEST, id, &[], None)?)?;
        self.wait_for_stun(stun::BINDING_SUCCESS, |_| Ok(()))
    }

    /// Takes the datagrams that are there, after waiting for the first; `false` when none came in time, or the
    /// connection has ended.
    pub(crate) fn take_datagrams(&mut self, timeout: Duration, mut take: impl FnMut(&[u8])) -> Outcome<bool> {
        self.stream.tcp().set_read_timeout(Some(timeout))?;
        let mut is_any = false;
        while !is_any {
            let Some(request) = self.take_all(&mut take, &mut is_any) else {
                if !is_any && !self.fill()? {
                    return Ok(false);
                }
                continue;
            };
            self.answer(request)?;
        }
        Ok(true)
    }

    /// Whether the relay keeps the connection: what it has sent meanwhile is passed over.
    pub(crate) fn is_open(&mut self) -> Outcome<bool> {
        self.stream.tcp().set_nonblocking(true)?;
        let mut passed_over = [0; 512];
        loop {
            match self.stream.read(&mut passed_over) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) => return Ok(error.kind() == ErrorKind::WouldBlock),
            }
        }
    }

    fn next_id(&mut self) -> stun::Id {
        self.requests += 1;
        let number = self.requests.to_be_bytes();
        std::array::from_fn(|at| number[at % number.len()])
    }

    /// Takes whole messages; stops at a ping of the relay, and gives the id that its answer must have.
    fn take_all(&mut self, take: &mut impl FnMut(&[u8]), is_any: &mut bool) -> Option<stun::Id> {
        while let Some((len, came)) = first_message(&self.buffer[self.taken..self.filled]) {
            self.taken += len;
            match came {
                Came::Data(datagram) => {
                    take(datagram);
                    *is_any = true;
                }
                Came::Stun(stun) if stun.kind() == stun::BINDING_REQUEST => return Some(stun.id()),
                Came::Stun(_) => {}
            }
        }
        None
    }

    /// A relay does not look at the address that it is told.
    fn answer(&mut self, id: stun::Id) -> Outcome<()> {
        let address = (stun::XOR_MAPPED_ADDRESS, &[0, 1, 0, 0, 0, 0, 0, 0][..]);
        self.send(&stun::message(stun::BINDING_SUCCESS, id, &[address], None)?)
    }

    fn wait_for_stun<T>(&mut self, kind: u16, of: impl Fn(&Stun<'_>) -> Outcome<T>) -> Outcome<T> {
        self.stream.tcp().set_read_timeout(Some(READ_TIMEOUT))?;
        loop {
            while let Some((len, came)) = first_message(&self.buffer[self.taken..self.filled]) {
                self.taken += len;
                let Came::Stun(stun) = came else { continue };
                match stun.kind() {
                    came if came == kind => return of(&stun),
                    stun::BINDING_REQUEST => {
                        let id = stun.id();
                        self.answer(id)?;
                    }
                    // Pings' answers and news of the peer may come at any time.
                    stun::PEER_INDICATION | stun::BINDING_SUCCESS => {}
                    came => {
                        let code = stun.attribute(stun::ERROR_CODE);
                        return Err(format!("{came:#06x} came instead of {kind:#06x}, error {code:?}").into());
                    }
                }
            }
            if !self.fill()? {
                return Err(format!("nothing came instead of {kind:#06x}").into());
            }
        }
    }

    /// One read; `false` when nothing came in time, or the connection has ended.
    fn fill(&mut self) -> Outcome<bool> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        (self.taken, self.filled) = (0, self.filled - self.taken);
        match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(len) => {
                self.filled += len;
                Ok(len > 0)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The first message, if all of it is there, and its length.
fn first_message(bytes: &[u8]) -> Option<(usize, Came<'_>)> {
    let &[first, _, c, d] = bytes.first_chunk()?;
    let len = usize::from(u16::from_be_bytes([c, d]));
    if first < 0x40 {
        let whole = HEADER_LEN + len;
        return Some((whole, Came::Stun(Stun(bytes.get(..whole)?))));
    }
    let whole = DATA_HEADER_LEN + len.next_multiple_of(4);
    let datagram = &bytes.get(..whole)?[DATA_HEADER_LEN..DATA_HEADER_LEN + len];
    Some((whole, Came::Data(datagram)))
}
