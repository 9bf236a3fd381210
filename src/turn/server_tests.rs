//! Not tests but what they talk to: a TURN server that follows the RFCs and can be told to break them. It writes
//! with stun-types, so that another implementation is asked what is right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use turn_server_proto::types::attribute::{
    ChannelNumber, ConnectionId, Lifetime, XorPeerAddress, XorRelayedAddress,
};
use turn_server_proto::types::stun::attribute::{
    Attribute, AttributeStaticType, AttributeWrite, ErrorCode, MessageIntegrity, MessageIntegritySha256,
    RawAttribute, Userhash, Username, XorMappedAddress,
};
use turn_server_proto::types::stun::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageIntegrityCredentials,
    MessageType, MessageWrite, MessageWriteExt, MessageWriteVec, Method as TheirMethod, TransactionId,
};

use crate::stun::Method;

pub(super) const LIFETIME: u16 = 0x000d;
pub(super) const REALM: u16 = 0x0014;
pub(super) const NONCE: u16 = 0x0015;
pub(super) const XOR_PEER_ADDRESS: u16 = 0x0012;
pub(super) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
pub(super) const PASSWORD_ALGORITHM: u16 = 0x001d;
pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub(super) const CONNECTION_ID: u16 = 0x002a;
pub(super) const PASSWORD_ALGORITHMS: u16 = 0x8002;
pub(super) const ALTERNATE_SERVER: u16 = 0x8023;
/// SHA-256 before MD5.
pub(super) const BOTH_ALGORITHMS: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

pub(super) fn relayed() -> SocketAddr {
    ([198, 51, 100, 1], 49_152).into()
}

pub(super) fn mapped() -> SocketAddr {
    ([203, 0, 113, 1], 5000).into()
}

/// What came from the client, read by stun-types.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) bytes: Vec<u8>,
    pub(super) at: Instant,
}

impl Asked {
    pub(super) fn message(&self) -> Message<'_> {
        Message::from_bytes(&self.bytes).expect("the client writes messages")
    }

    pub(super) fn method(&self) -> Method {
        Method(self.message().method().value())
    }

    pub(super) fn raw(&self, kind: u16) -> Option<Vec<u8>> {
        Some(self.message().raw_attribute(kind.into())?.value.to_vec())
    }

    pub(super) fn lifetime(&self) -> Option<u32> {
        self.message().attribute::<Lifetime>().ok().map(|lifetime| lifetime.seconds())
    }

    pub(super) fn peers(&self) -> Vec<SocketAddr> {
        let message = self.message();
        let id = message.transaction_id();
        (0..).map_while(|nth| Some(message.nth_attribute::<XorPeerAddress>(nth).ok()?.addr(id))).collect()
    }

    pub(super) fn integrity(&self) -> Option<IntegrityAlgorithm> {
        let message = self.message();
        if message.has_attribute(MessageIntegritySha256::TYPE) {
            return Some(IntegrityAlgorithm::Sha256);
        }
        message.has_attribute(MessageIntegrity::TYPE).then_some(IntegrityAlgorithm::Sha1)
    }
}

/// How an answer is sealed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sealing {
    No,
    With(LongTermKeyCredentials, IntegrityAlgorithm),
    /// As above, and a byte of it changed.
    Broken(LongTermKeyCredentials, IntegrityAlgorithm),
}

/// A message before it is written.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) class: MessageClass,
    pub(super) method: Method,
    pub(super) id: TransactionId,
    pub(super) attributes: Vec<(u16, Vec<u8>)>,
    pub(super) sealing: Sealing,
}

impl Answer {
    /// A message that nobody asked for.
    pub(super) fn unasked(class: MessageClass, method: Method) -> Self {
        Self { class, method, id: 9u128.into(), attributes: Vec::new(), sealing: Sealing::No }
    }

    pub(super) fn put(&mut self, attribute: &dyn AttributeWrite) {
        let raw = attribute.to_raw();
        self.attributes.push((raw.get_type().value(), raw.value.to_vec()));
    }

    pub(super) fn put_raw(&mut self, kind: u16, value: &[u8]) {
        self.attributes.push((kind, value.to_vec()));
    }

    pub(super) fn remove(&mut self, kind: u16) {
        self.attributes.retain(|(it, _)| *it != kind);
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let kind = MessageType::from_class_method(self.class, TheirMethod::new(self.method.0));
        let mut message = Message::builder(kind, self.id, MessageWriteVec::new());
        for (kind, value) in &self.attributes {
            message.add_attribute(&RawAttribute::new((*kind).into(), value)).unwrap();
        }
        match &self.sealing {
            Sealing::No => message.finish(),
            Sealing::With(credentials, algorithm) => {
                let credentials = MessageIntegrityCredentials::LongTerm(credentials.clone());
                message.add_message_integrity(&credentials, *algorithm).unwrap();
                message.finish()
            }
            Sealing::Broken(credentials, algorithm) => {
                let sealing = Sealing::With(credentials.clone(), *algorithm);
                let mut bytes = Self { sealing, ..self.clone() }.write();
                *bytes.last_mut().unwrap() ^= 1;
                bytes
            }
        }
    }
}

/// How the server departs from the RFCs.
pub(super) enum Fault {
    /// The request does not arrive.
    LoseRequest,
    /// The answer does not.
    LoseAnswer,
    /// An error, sealed, instead of what was asked for.
    Refuse(u16),
    /// 401 or 438 with a new nonce.
    Challenge(u16),
    /// 401 or 438 with the nonce that was used.
    ChallengeAgain(u16),
    /// The right answer, changed.
    Change(Box<dyn Fn(&mut Answer)>),
}

/// What the server asks of its users.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Login {
    /// Nothing.
    None,
    Sha1,
    /// PASSWORD-ALGORITHMS, and if `anonymous` USERHASH.
    Sha256 {
        anonymous: bool,
    },
}

/// The one allocation.
#[derive(Debug)]
pub(super) struct Held {
    id: TransactionId,
    user: (Option<String>, Option<[u8; 32]>),
    pub(super) until: Instant,
    pub(super) permissions: BTreeMap<IpAddr, Instant>,
    pub(super) channels: BTreeMap<u16, (SocketAddr, Instant)>,
    /// Those that wait to be bound, and those that are.
    pub(super) unbound: BTreeMap<u32, SocketAddr>,
    pub(super) bound: BTreeMap<u32, SocketAddr>,
}

pub(super) struct Server {
    pub(super) login: Login,
    pub(super) realm: String,
    pub(super) user: (String, String),
    pub(super) nonce: String,
    nonces: u32,
    /// A nonce is good for this long.
    pub(super) nonce_lifetime: Option<Duration>,
    nonce_since: Option<Instant>,
    /// What it grants, in seconds.
    pub(super) lifetime: u32,
    pub(super) held: Option<Held>,
    /// To these it relays nothing: 403.
    pub(super) forbidden: BTreeSet<IpAddr>,
    rules: Vec<(Method, usize, Fault)>,
    /// All that the client sent, also what was lost.
    pub(super) log: Vec<Asked>,
    pub(super) next_connection: u32,
    /// What the client returns need not be what was sent: somebody may have changed it on the way.
    pub(super) is_lenient: bool,
}

impl Server {
    pub(super) fn new(login: Login) -> Self {
        let mut server = Self {
            login,
            realm: "example.org".into(),
            user: ("alice".into(), "secret".into()),
            nonce: String::new(),
            nonces: 0,
            nonce_lifetime: None,
            nonce_since: None,
            lifetime: 600,
            held: None,
            forbidden: BTreeSet::new(),
            rules: Vec::new(),
            log: Vec::new(),
            next_connection: 100,
            is_lenient: false,
        };
        server.renew_nonce();
        server
    }

    /// The next so many requests of a method meet this.
    pub(super) fn fault(&mut self, method: Method, times: usize, fault: Fault) {
        self.rules.push((method, times, fault));
    }

    pub(super) fn change(&mut self, method: Method, times: usize, change: impl Fn(&mut Answer) + 'static) {
        self.fault(method, times, Fault::Change(Box::new(change)));
    }

    /// No more faults.
    pub(super) fn mend(&mut self) {
        self.rules.clear();
    }

    /// Another server at the same address, with the same users.
    pub(super) fn replace(&mut self) {
        self.held = None;
        self.renew_nonce();
    }

    pub(super) fn renew_nonce(&mut self) {
        self.nonces += 1;
        let features = match self.login {
            Login::None | Login::Sha1 => "",
            Login::Sha256 { anonymous: false } => "obMatJos2gAAA",
            Login::Sha256 { anonymous: true } => "obMatJos2wAAA",
        };
        self.nonce = format!("{features}nonce-{}", self.nonces);
        self.nonce_since = None;
    }

    pub(super) fn credentials(&self) -> LongTermKeyCredentials {
        let (user, password) = self.user.clone();
        LongTermKeyCredentials::new(user, password, self.realm.clone())
    }

    pub(super) fn algorithm(&self) -> IntegrityAlgorithm {
        match self.login {
            Login::Sha256 { .. } => IntegrityAlgorithm::Sha256,
            _ => IntegrityAlgorithm::Sha1,
        }
    }

    /// Takes a message from the control connection, or from a data connection.
    pub(super) fn receive(&mut self, now: Instant, bytes: &[u8], is_control: bool) -> Option<Vec<u8>> {
        let asked = Asked { bytes: bytes.to_vec(), at: now };
        if asked.message().class() != MessageClass::Request {
            return None;
        }
        self.log.push(asked.clone());
        let method = asked.method();
        assert_eq!(method != Method::CONNECTION_BIND, is_control);
        let rule = self.rules.iter().position(|(it, times, _)| *it == method && *times > 0);
        let Some(rule) = rule else { return Some(self.answer(now, &asked).write()) };
        self.rules[rule].1 -= 1;
        match self.rules[rule].2 {
            Fault::LoseRequest => None,
            Fault::LoseAnswer => {
                self.answer(now, &asked);
                None
            }
            Fault::Refuse(code) => Some(self.error(&asked, code).write()),
            Fault::Challenge(code) => {
                self.renew_nonce();
                Some(self.challenge(&asked, code).write())
            }
            Fault::ChallengeAgain(code) => Some(self.challenge(&asked, code).write()),
            Fault::Change(_) => {
                let mut answer = self.answer(now, &asked);
                if let Fault::Change(change) = &self.rules[rule].2 {
                    change(&mut answer);
                }
                Some(answer.write())
            }
        }
    }

    /// A peer has connected to the relayed address.
    pub(super) fn attempt(&mut self, peer: SocketAddr, class: MessageClass) -> Vec<u8> {
        let mut message = Answer::unasked(class, Method::CONNECTION_ATTEMPT);
        message.put(&ConnectionId::new(self.next_connection));
        message.put(&XorPeerAddress::new(peer, message.id));
        self.held.as_mut().unwrap().unbound.insert(self.next_connection, peer);
        self.next_connection += 1;
        message.write()
    }

    fn reply(&self, asked: &Asked, class: MessageClass) -> Answer {
        let sealing = match asked.integrity() {
            None => Sealing::No,
            Some(algorithm) => Sealing::With(self.credentials(), algorithm),
        };
        let (method, id) = (asked.method(), asked.message().transaction_id());
        Answer { class, method, id, attributes: Vec::new(), sealing }
    }

    fn error(&self, asked: &Asked, code: u16) -> Answer {
        let mut answer = self.reply(asked, MessageClass::Error);
        answer.put(&ErrorCode::new(code, "as told").unwrap());
        answer
    }

    fn challenge(&self, asked: &Asked, code: u16) -> Answer {
        let mut answer = self.error(asked, code);
        answer.sealing = Sealing::No;
        answer.put_raw(REALM, self.realm.as_bytes());
        answer.put_raw(NONCE, self.nonce.as_bytes());
        if matches!(self.login, Login::Sha256 { .. }) {
            answer.put_raw(PASSWORD_ALGORITHMS, &BOTH_ALGORITHMS);
        }
        answer
    }

    /// What is wrong with the credentials; checks that everything is returned that was sent.
    fn check(&mut self, now: Instant, asked: &Asked) -> Option<Answer> {
        if self.login == Login::None {
            return None;
        }
        if asked.integrity().is_none() {
            return Some(self.challenge(asked, 401));
        }
        if asked.raw(REALM) != Some(self.realm.clone().into_bytes()) {
            assert!(self.is_lenient, "another realm");
            return Some(self.challenge(asked, 401));
        }
        let since = *self.nonce_since.get_or_insert(now);
        if self.nonce_lifetime.is_some_and(|lifetime| now >= since + lifetime) {
            self.renew_nonce();
        }
        if asked.raw(NONCE) != Some(self.nonce.clone().into_bytes()) {
            return Some(self.challenge(asked, 438));
        }
        let message = asked.message();
        let name = message.attribute::<Username>().ok().map(|name| name.username().to_owned());
        let hash = message.attribute::<Userhash>().ok().map(|hash| *hash.hash());
        let is_named = match self.login {
            Login::Sha256 { anonymous: true } => hash == Some(Userhash::compute(&self.user.0, &self.realm)),
            _ => name.as_ref() == Some(&self.user.0),
        };
        assert!(name.is_some() != hash.is_some());
        let is_sealed = message.validate_integrity(&self.credentials().into()).ok() == Some(self.algorithm());
        let is_returned = asked.raw(PASSWORD_ALGORITHMS) == Some(BOTH_ALGORITHMS.to_vec())
            && asked.raw(PASSWORD_ALGORITHM) == Some(vec![0, 2, 0, 0]);
        if matches!(self.login, Login::Sha256 { .. }) && !is_returned {
            assert!(self.is_lenient, "other algorithms");
            return Some(Answer { sealing: Sealing::No, ..self.error(asked, 400) });
        }
        if !is_named || !is_sealed {
            return Some(self.challenge(asked, 401));
        }
        match &self.held {
            Some(held) if held.user != (name, hash) => Some(self.error(asked, 441)),
            _ => None,
        }
    }

    fn answer(&mut self, now: Instant, asked: &Asked) -> Answer {
        if let Some(error) = self.check(now, asked) {
            return error;
        }
        self.held.take_if(|held| held.until <= now);
        if asked.method() == Method::ALLOCATE {
            return self.allocate(now, asked);
        }
        let answer = self.reply(asked, MessageClass::Success);
        let Some(held) = &mut self.held else { return self.error(asked, 437) };
        held.permissions.retain(|_, until| *until > now);
        if asked.peers().iter().any(|peer| self.forbidden.contains(&peer.ip())) {
            return self.error(asked, 403);
        }
        match asked.method() {
            Method::REFRESH => self.refresh(now, asked, answer),
            Method::CREATE_PERMISSION => {
                let until = now + Duration::from_secs(300);
                held.permissions.extend(asked.peers().into_iter().map(|peer| (peer.ip(), until)));
                answer
            }
            Method::CHANNEL_BIND => self.bind_channel(now, asked, answer),
            Method::CONNECT => {
                let peer = asked.peers()[0];
                if held.unbound.values().chain(held.bound.values()).any(|it| *it == peer) {
                    return self.error(asked, 446);
                }
                let mut answer = answer;
                held.unbound.insert(self.next_connection, peer);
                answer.put(&ConnectionId::new(self.next_connection));
                self.next_connection += 1;
                answer
            }
            Method::CONNECTION_BIND => {
                let id = asked.message().attribute::<ConnectionId>().unwrap().id();
                let Some(peer) = held.unbound.remove(&id) else { return self.error(asked, 400) };
                held.bound.insert(id, peer);
                answer
            }
            method => panic!("{method:?}"),
        }
    }

    fn allocate(&mut self, now: Instant, asked: &Asked) -> Answer {
        let id = asked.message().transaction_id();
        if self.held.as_ref().is_some_and(|held| held.id != id) {
            return self.error(asked, 437);
        }
        let message = asked.message();
        self.held.get_or_insert_with(|| Held {
            id,
            user: (
                message.attribute::<Username>().ok().map(|name| name.username().to_owned()),
                message.attribute::<Userhash>().ok().map(|hash| *hash.hash()),
            ),
            until: now + Duration::from_secs(self.lifetime.into()),
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
            unbound: BTreeMap::new(),
            bound: BTreeMap::new(),
        });
        let mut answer = self.reply(asked, MessageClass::Success);
        answer.put(&XorRelayedAddress::new(relayed(), id));
        answer.put(&XorMappedAddress::new(mapped(), id));
        answer.put(&Lifetime::new(self.lifetime));
        answer
    }

    fn refresh(&mut self, now: Instant, asked: &Asked, mut answer: Answer) -> Answer {
        if asked.lifetime() == Some(0) {
            self.held = None;
            answer.put(&Lifetime::new(0));
        } else if let Some(held) = &mut self.held {
            held.until = now + Duration::from_secs(self.lifetime.into());
            answer.put(&Lifetime::new(self.lifetime));
        }
        answer
    }

    /// 400 if number and peer do not fit (RFC 8656 §12.2); the guard time must have been kept.
    fn bind_channel(&mut self, now: Instant, asked: &Asked, answer: Answer) -> Answer {
        const GUARD: Duration = Duration::from_secs(300);
        let (number, peer) =
            (asked.message().attribute::<ChannelNumber>().unwrap().channel(), asked.peers()[0]);
        assert!((0x4000..=0x4fff).contains(&number));
        let held = self.held.as_mut().unwrap();
        let clash = held.channels.iter().find(|(it, (to, _))| (**it == number) != (*to == peer));
        if let Some((_, (_, until))) = clash.filter(|(_, (_, until))| *until + GUARD > now) {
            assert!(*until > now, "the guard time was not kept");
            return self.error(asked, 400);
        }
        held.channels.retain(|_, (_, until)| *until + GUARD > now);
        held.channels.insert(number, (peer, now + Duration::from_secs(600)));
        held.permissions.insert(peer.ip(), now + Duration::from_secs(300));
        answer
    }
}
