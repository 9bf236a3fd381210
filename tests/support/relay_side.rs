//! A side of a relay, spoken by hand: STUN by the RFCs and by nothing of the crate, so that both are tested.

use std::collections::VecDeque;
use std::net::SocketAddr;

use actix::Addr;
use actix_relay::config::RelayConfig;
use actix_relay::credentials::UserPassword;
use actix_relay::event::{EventKind, RelayEvent};
use actix_relay::relay::{GetPairs, GetRelay, PairInfo, RelayInfo, TcpRelayActor};
use actix_relay::supervisor::{InRelay, StartRelay};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{House, any, soon};

pub const REALM: &str = "example.org";
pub const USER: &str = "alice";
pub const PASSWORD: &str = "hunter2-of-alice";

pub const BINDING: u16 = 0x001;
pub const REFRESH: u16 = 0x004;
pub const JOIN: u16 = 0x0f1;
pub const PEER: u16 = 0x0f2;
pub const CLOSING: u16 = 0x0f3;

pub const USERNAME: u16 = 0x0006;
pub const ERROR_CODE: u16 = 0x0009;
pub const LIFETIME: u16 = 0x000d;
pub const REALM_ATTRIBUTE: u16 = 0x0014;
pub const NONCE: u16 = 0x0015;
pub const INTEGRITY: u16 = 0x001c;
pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub const PASSWORD_ALGORITHM: u16 = 0x001d;
pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
pub const PAIR_ID: u16 = 0x7f01;
pub const SIDE_ID: u16 = 0x7f02;
pub const PEER_STATUS: u16 = 0x7f03;
pub const REASON: u16 = 0x7f04;
pub const INSTANCE: u16 = 0x7f05;
pub const RETRY_AFTER: u16 = 0xff01;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Classes of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Request = 0b00,
    Indication = 0b01,
    Success = 0b10,
    Error = 0b11,
}

/// A STUN message that has come.
#[derive(Clone, Debug)]
pub struct Stun {
    pub method: u16,
    pub class: Class,
    pub id: [u8; 12],
    pub attributes: Vec<(u16, Vec<u8>)>,
    bytes: Vec<u8>,
}

/// What comes from a relay.
#[derive(Clone, Debug)]
pub enum Came {
    Stun(Stun),
    Data(u16, Vec<u8>),
    Fin,
}

impl Stun {
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(other, _)| *other == kind).map(|(_, value)| value.as_slice())
    }

    pub fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind).map(|value| u32::from_be_bytes(value.try_into().unwrap()))
    }

    /// The code of an error response.
    pub fn error(&self) -> Option<u16> {
        self.get(ERROR_CODE).map(|value| u16::from(value[2]) * 100 + u16::from(value[3]))
    }

    fn parse(bytes: &[u8]) -> Self {
        let kind = u16::from_be_bytes([bytes[0], bytes[1]]);
        let method = (kind & 0x3e00) >> 2 | (kind & 0xe0) >> 1 | kind & 0xf;
        let class = match (kind >> 8 & 1) << 1 | kind >> 4 & 1 {
            0 => Class::Request,
            1 => Class::Indication,
            2 => Class::Success,
            _ => Class::Error,
        };
        let (mut attributes, mut rest) = (Vec::new(), &bytes[20..]);
        while !rest.is_empty() {
            let len = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            attributes.push((u16::from_be_bytes([rest[0], rest[1]]), rest[4..4 + len].to_vec()));
            rest = &rest[4 + len.next_multiple_of(4)..];
        }
        let id = bytes[8..20].try_into().unwrap();
        Self { method, class, id, attributes, bytes: bytes.to_vec() }
    }

    /// Whether its MESSAGE-INTEGRITY-SHA256 is there, last, and right.
    pub fn is_sealed(&self, key: &[u8]) -> bool {
        let Some((INTEGRITY, mac)) = self.attributes.last().map(|(kind, mac)| (*kind, mac)) else {
            return false;
        };
        let mut expected = Hmac::<Sha256>::new_from_slice(key).unwrap();
        expected.update(&self.bytes[..self.bytes.len() - 36]);
        expected.verify_slice(mac).is_ok()
    }
}

/// A message of these attributes, sealed with a key if there is one.
pub fn stun(
    method: u16,
    class: Class,
    id: [u8; 12],
    attributes: &[(u16, &[u8])],
    key: Option<&[u8]>,
) -> Vec<u8> {
    let class = class as u16;
    let kind =
        (method & 0xf80) << 2 | (method & 0x70) << 1 | method & 0xf | (class & 2) << 7 | (class & 1) << 4;
    let mut bytes = [&kind.to_be_bytes()[..], &[0, 0], &COOKIE, &id].concat();
    for (kind, value) in attributes {
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let set_len = |bytes: &mut Vec<u8>, more: usize| {
        let len = u16::try_from(bytes.len() - 20 + more).unwrap();
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
    };
    set_len(&mut bytes, 0);
    if let Some(key) = key {
        set_len(&mut bytes, 36);
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(&bytes);
        let mac = mac.finalize().into_bytes();
        bytes.extend_from_slice(&INTEGRITY.to_be_bytes());
        bytes.extend_from_slice(&[0, 32]);
        bytes.extend_from_slice(&mac);
    }
    bytes
}

/// A padded ChannelData message.
pub fn data(channel: u16, datagram: &[u8]) -> Vec<u8> {
    let len = u16::try_from(datagram.len()).unwrap();
    let mut bytes = [&channel.to_be_bytes()[..], &len.to_be_bytes(), datagram].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One connection to a relay.
pub struct Side {
    pub stream: TcpStream,
    read: Vec<u8>,
    held: VecDeque<Came>,
    nonce: Vec<u8>,
    key: Vec<u8>,
    user: String,
    ids: u32,
}

impl Side {
    pub async fn connect(relay: SocketAddr) -> Self {
        Self::over(TcpStream::connect(relay).await.unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let (read, held) = (Vec::new(), VecDeque::new());
        Self { stream, read, held, nonce: Vec::new(), key: Vec::new(), user: String::new(), ids: 0 }
    }

    /// A side of this pair, or the code of the refusal.
    pub async fn join(relay: SocketAddr, pair: &str, side: &str) -> Result<(Self, bool), u16> {
        let mut connection = Self::connect(relay).await;
        connection.log_in(USER, PASSWORD).await;
        let peer = connection.join_as(pair, side, &[7; 8], None).await?;
        Ok((connection, peer))
    }

    pub async fn joined(relay: SocketAddr, pair: &str, side: &str) -> Self {
        Self::join(relay, pair, side).await.unwrap().0
    }

    /// Both sides of a pair, with the news of each other taken.
    pub async fn pair(relay: SocketAddr, pair: &str) -> (Self, Self) {
        let mut a = Self::joined(relay, pair, "a").await;
        let (mut b, is_there) = Self::join(relay, pair, "b").await.unwrap();
        assert!(is_there);
        assert_eq!((a.peer().await, b.peer().await), (1, 1));
        (a, b)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        soon("sending", self.stream.write_all(bytes)).await.unwrap();
    }

    pub async fn send_data(&mut self, channel: u16, datagram: &[u8]) {
        self.send(&data(channel, datagram)).await;
    }

    /// Asks for a challenge, and knows from then on how to seal.
    pub async fn log_in(&mut self, user: &str, password: &str) {
        let id = self.next_id();
        self.send(&stun(JOIN, Class::Request, id, &[], None)).await;
        let refused = self.answer(id).await;
        assert_eq!(refused.error(), Some(401));
        assert_eq!(refused.get(PASSWORD_ALGORITHMS), Some(&[0, 2, 0, 0][..]));
        let realm = String::from_utf8(refused.get(REALM_ATTRIBUTE).unwrap().to_vec()).unwrap();
        self.nonce = refused.get(NONCE).unwrap().to_vec();
        assert!(self.nonce.starts_with(b"obMatJos2gAAA"), "{:?}", self.nonce);
        self.key = Sha256::digest(format!("{user}:{realm}:{password}")).to_vec();
        self.user = user.to_owned();
    }

    pub fn next_id(&mut self) -> [u8; 12] {
        self.ids += 1;
        std::array::from_fn(|at| self.ids.to_be_bytes()[at % 4])
    }

    /// A sealed request of these attributes.
    pub fn sealed(&mut self, method: u16, attributes: &[(u16, &[u8])]) -> ([u8; 12], Vec<u8>) {
        let id = self.next_id();
        let credentials: [(u16, &[u8]); 5] = [
            (USERNAME, self.user.as_bytes()),
            (REALM_ATTRIBUTE, REALM.as_bytes()),
            (NONCE, &self.nonce),
            (PASSWORD_ALGORITHM, &[0, 2, 0, 0]),
            (PASSWORD_ALGORITHMS, &[0, 2, 0, 0]),
        ];
        let all = [attributes, &credentials].concat();
        (id, stun(method, Class::Request, id, &all, Some(&self.key)))
    }

    pub async fn request(&mut self, method: u16, attributes: &[(u16, &[u8])]) -> Stun {
        let (id, bytes) = self.sealed(method, attributes);
        self.send(&bytes).await;
        self.answer(id).await
    }

    /// Whether the peer is there; or the refusal's code. Every answer but 401 must be sealed.
    pub async fn join_as(
        &mut self,
        pair: &str,
        side: &str,
        instance: &[u8; 8],
        lifetime: Option<u32>,
    ) -> Result<bool, u16> {
        let lifetime = lifetime.map(u32::to_be_bytes);
        let mut attributes: Vec<(u16, &[u8])> =
            vec![(PAIR_ID, pair.as_bytes()), (SIDE_ID, side.as_bytes()), (INSTANCE, instance)];
        attributes.extend(lifetime.as_ref().map(|lifetime| (LIFETIME, &lifetime[..])));
        let answer = self.request(JOIN, &attributes).await;
        if answer.error() != Some(401) {
            assert!(answer.is_sealed(&self.key), "{answer:?}");
        }
        match answer.error() {
            Some(code) => Err(code),
            None => Ok(answer.number(PEER_STATUS).unwrap() == 1),
        }
    }

    /// The granted lifetime, or the refusal's code.
    pub async fn refresh(&mut self, lifetime: u32) -> Result<u32, u16> {
        let mut answer = self.request(REFRESH, &[(LIFETIME, &lifetime.to_be_bytes())]).await;
        if self.is_stale(&answer) {
            answer = self.request(REFRESH, &[(LIFETIME, &lifetime.to_be_bytes())]).await;
        }
        assert!(answer.error() == Some(401) || answer.is_sealed(&self.key), "{answer:?}");
        answer.error().map_or_else(|| Ok(answer.number(LIFETIME).unwrap()), Err)
    }

    /// Whether this is a 438; its nonce is kept.
    pub fn is_stale(&mut self, answer: &Stun) -> bool {
        let is_stale = answer.error() == Some(438);
        if is_stale {
            self.nonce = answer.get(NONCE).unwrap().to_vec();
        }
        is_stale
    }

    /// The response to this request; what comes before it is kept.
    pub async fn answer(&mut self, id: [u8; 12]) -> Stun {
        let is_it = |came: &Came| matches!(came, Came::Stun(stun) if stun.id == id && matches!(stun.class, Class::Success | Class::Error));
        let mut before = VecDeque::new();
        loop {
            let came = self.next().await;
            if is_it(&came) {
                before.append(&mut self.held);
                self.held = before;
                let Came::Stun(answer) = came else { unreachable!() };
                return answer;
            }
            assert!(!matches!(came, Came::Fin), "closed instead of an answer, behind {before:?}");
            before.push_back(came);
        }
    }

    /// Whatever comes next, in order.
    pub async fn next(&mut self) -> Came {
        if let Some(came) = self.held.pop_front() {
            return came;
        }
        soon("something from the relay", async {
            loop {
                if let Some(came) = self.cut() {
                    return came;
                }
                if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                    assert!(self.read.is_empty(), "cut in the middle of a message");
                    return Came::Fin;
                }
            }
        })
        .await
    }

    /// What has come already, if anything has.
    pub fn try_next(&mut self) -> Option<Came> {
        if let Some(came) = self.held.pop_front() {
            return Some(came);
        }
        loop {
            if let Some(came) = self.cut() {
                return Some(came);
            }
            match self.stream.try_read_buf(&mut self.read) {
                Ok(0) => return Some(Came::Fin),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(_) => return Some(Came::Fin),
            }
        }
    }

    /// A round trip: what was sent before has been handled.
    pub async fn ping(&mut self) {
        let id = self.next_id();
        self.send(&stun(BINDING, Class::Request, id, &[], None)).await;
        assert!(self.answer(id).await.get(XOR_MAPPED_ADDRESS).is_some());
    }

    fn cut(&mut self) -> Option<Came> {
        let header = self.read.first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] < 0x40 {
            let message: Vec<u8> = self.read.get(..20 + len)?.to_vec();
            self.read.drain(..20 + len);
            return Some(Came::Stun(Stun::parse(&message)));
        }
        let channel = u16::from_be_bytes([header[0], header[1]]);
        self.read.get(..4 + len.next_multiple_of(4))?;
        let datagram = self.read[4..4 + len].to_vec();
        self.read.drain(..4 + len.next_multiple_of(4));
        Some(Came::Data(channel, datagram))
    }

    /// The next STUN message; data before it is passed over.
    pub async fn stun(&mut self) -> Stun {
        loop {
            match self.next().await {
                Came::Stun(stun) => return stun,
                Came::Data(..) => {}
                Came::Fin => panic!("closed"),
            }
        }
    }

    /// The next Peer's status.
    pub async fn peer(&mut self) -> u32 {
        let peer = self.stun().await;
        assert_eq!((peer.method, peer.class), (PEER, Class::Indication), "{peer:?}");
        peer.number(PEER_STATUS).unwrap()
    }

    /// The next datagram, and its channel.
    pub async fn datagram(&mut self) -> (u16, Vec<u8>) {
        match self.next().await {
            Came::Data(channel, datagram) => (channel, datagram),
            other => panic!("no data: {other:?}"),
        }
    }

    /// The Closing that ends the connection, and nothing but FIN behind it.
    pub async fn closing(&mut self) -> Stun {
        let closing = self.stun().await;
        assert_eq!((closing.method, closing.class), (CLOSING, Class::Indication), "{closing:?}");
        assert!(matches!(self.next().await, Came::Fin));
        closing
    }

    /// The reason of that Closing.
    pub async fn closed_for(&mut self) -> u32 {
        self.closing().await.number(REASON).unwrap()
    }

    pub async fn is_closed(&mut self) -> bool {
        loop {
            match self.next().await {
                Came::Fin => return true,
                Came::Stun(_) | Came::Data(..) => {}
            }
        }
    }
}

/// A relay for [`USER`] that nothing gets too old in.
pub fn config(name: &str) -> RelayConfig {
    let mut config = RelayConfig::new(name, any(), REALM).user(UserPassword::new(USER, PASSWORD));
    config.max_queue_delay = super::PATIENCE;
    config
}

impl House {
    pub async fn start_relay(&self, config: RelayConfig) -> (Addr<TcpRelayActor>, SocketAddr) {
        let relay = self.supervisor.send(StartRelay { config }).await.unwrap().unwrap();
        let addr = relay.send(GetRelay).await.unwrap().local_tcp[0];
        (relay, addr)
    }

    pub async fn relay_info(&self, relay: &str) -> RelayInfo {
        let ask = InRelay { relay: relay.into(), message: GetRelay };
        self.supervisor.send(ask).await.unwrap().unwrap()
    }

    pub async fn relay_pairs(&self, relay: &str) -> Vec<PairInfo> {
        let ask = InRelay { relay: relay.into(), message: GetPairs { max: 1000 } };
        self.supervisor.send(ask).await.unwrap().unwrap()
    }

    /// What no event tells, asked for again and again.
    pub async fn relay_when(&self, relay: &str, what: &str, is_so: impl Fn(&RelayInfo) -> bool) -> RelayInfo {
        soon(what, async {
            loop {
                let info = self.relay_info(relay).await;
                if is_so(&info) {
                    return info;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await
    }

    pub async fn relay_event<T>(&mut self, relay: &str, find: impl Fn(&RelayEvent) -> Option<T>) -> T {
        self.event(relay, |kind| match kind {
            EventKind::Relay(event) => find(event),
            _ => None,
        })
        .await
    }
}
