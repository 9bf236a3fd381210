use super::super::messages::{PASSWORD_ALGORITHMS, Refresh};
use super::*;
use crate::credentials::UserPassword;
use crate::flow::tests::any_instant;
use crate::relay::accounts::short_lived_password;
use crate::stun::{Draft, Integrity, Seal, raw};

pub(super) const ID: TransactionId = TransactionId(*b"abcdefghijkl");
pub(super) const OWN_ID: TransactionId = TransactionId(*b"relayrelayre");
const REALM: &str = "example.org";
pub(super) const SHARED_KEY: &str = "north";
/// Seconds since 1970.
pub(super) const WALL: u64 = 1_700_000_000;
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A connection at the relay, and the side that it comes from.
pub(super) struct Bench {
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) connection: Connection,
    pub(super) challenge: Option<Challenge>,
}

pub(super) fn remote() -> SocketAddr {
    "192.0.2.1:32853".parse().unwrap()
}

fn shared() -> Arc<Shared> {
    let mut accounts = Accounts::new(REALM).unwrap();
    for user in ["alice", "bob"] {
        accounts.insert(&UserPassword::new(user, "secret")).unwrap();
    }
    accounts.set_shared_key(SHARED_KEY.into()).unwrap();
    let nonces = NonceKey([7; 32]);
    Arc::new(Shared::new(accounts, nonces, MAX_LIFETIME, || OWN_ID))
}

pub(super) fn join() -> Join {
    Join {
        pair: PairId::new(*b"pair").unwrap(),
        side: SideId::new("left").unwrap(),
        instance: Instance([1; 8]),
        lifetime: None,
    }
}

pub(super) fn peer(status: PeerStatus) -> Peer {
    Peer { status, side: SideId::new("right"), user: None, retry_after: None }
}

pub(super) fn joined(is_peer_there: bool) -> JoinAnswer {
    JoinAnswer::Joined { is_peer_there }
}

impl Bench {
    pub(super) fn new() -> Self {
        let start = any_instant();
        let connection = Connection::new(start, 1, remote(), shared());
        Self { start, now: start, connection, challenge: None }
    }

    /// One that has its challenge.
    pub(super) fn challenged() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.refusal(&Join::encode_first(ID)).code, 401);
        bench
    }

    /// One that has joined as alice, and waits.
    pub(super) fn waiting() -> Self {
        let mut bench = Self::challenged();
        bench.asks_to_join();
        bench.connection.join_answered(bench.now, joined(false));
        assert_eq!(bench.granted().peer, PeerStatus::Absent);
        bench
    }

    /// One that has joined as alice, and whose peer is there.
    pub(super) fn paired() -> Self {
        let mut bench = Self::waiting();
        bench.peer(PeerStatus::Present);
        assert!(bench.connection.may_forward());
        bench
    }

    pub(super) fn seal(&self, user: &str, password: &str) -> Seal {
        let challenge = self.challenge.clone().unwrap_or_else(|| Challenge::new(REALM, "none"));
        challenge.seal(&UserPassword::new(user, password)).unwrap()
    }

    pub(super) fn alice(&self) -> Seal {
        self.seal("alice", "secret")
    }

    pub(super) fn encoded_join(&self) -> Vec<u8> {
        join().encode(ID, &self.alice()).unwrap()
    }

    pub(super) fn encoded_refresh(&self, lifetime: Option<u32>) -> Vec<u8> {
        Refresh { lifetime }.encode(ID, &self.alice()).unwrap()
    }

    pub(super) fn asks_to_join(&mut self) {
        let bytes = self.encoded_join();
        let outputs = self.gives(&bytes);
        assert!(matches!(outputs[..], [Output::Join(_)]), "{outputs:?}");
    }

    pub(super) fn peer(&mut self, status: PeerStatus) {
        self.connection.peer(self.now, &peer(status));
        assert_eq!(self.outputs(), [Output::Send(peer(status).encode(OWN_ID))]);
    }

    pub(super) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.connection.poll_output()).collect()
    }

    pub(super) fn gives(&mut self, bytes: &[u8]) -> Vec<Output> {
        self.connection.heard(self.now, bytes.len());
        self.connection.handle_message(self.now, WALL, bytes);
        self.outputs()
    }

    /// The next output, which must be an error response. Its challenge is kept.
    pub(super) fn refusal_from(&mut self, outputs: &[Output]) -> Refusal {
        let Some(Output::Send(bytes)) = outputs.first() else { panic!("{outputs:?}") };
        let message = messages::decode(bytes).unwrap();
        assert_eq!((message.class, message.id), (Class::Error, ID));
        let refusal = Refusal::read(&message).unwrap();
        let is_late = !matches!(refusal.code, 401 | 438);
        assert_eq!(refusal.challenge.is_some(), !is_late);
        assert!(!message.has_sha256() || message.is_sealed_with(&self.alice().key));
        self.challenge = refusal.challenge.clone().or(self.challenge.take());
        refusal
    }

    pub(super) fn refusal(&mut self, bytes: &[u8]) -> Refusal {
        let outputs = self.gives(bytes);
        assert_eq!(outputs.len(), 1, "{outputs:?}");
        self.refusal_from(&outputs)
    }

    /// The code that these bytes are refused with, and whether that was sealed.
    pub(super) fn refused(&mut self, bytes: &[u8]) -> (u16, bool) {
        let outputs = self.gives(bytes);
        let code = self.refusal_from(&outputs).code;
        let Output::Send(bytes) = &outputs[0] else { unreachable!() };
        (code, messages::decode(bytes).unwrap().has_sha256())
    }

    /// The next output, which must be a sealed success.
    pub(super) fn granted(&mut self) -> Granted {
        let outputs = self.outputs();
        self.granted_from(&outputs)
    }

    pub(super) fn granted_from(&self, outputs: &[Output]) -> Granted {
        let Some(Output::Send(bytes)) = outputs.first() else { panic!("{outputs:?}") };
        let message = messages::decode(bytes).unwrap();
        assert_eq!((message.class, message.id), (Class::Success, ID));
        assert!(message.is_sealed_with(&self.alice().key));
        assert_eq!(message.attribute(raw::NONCE), None);
        Granted::read(&message).unwrap()
    }

    pub(super) fn refreshes(&mut self, lifetime: Option<u32>) -> Granted {
        let bytes = self.encoded_refresh(lifetime);
        let outputs = self.gives(&bytes);
        if self.is_stale(&outputs) {
            return self.refreshes(lifetime);
        }
        self.granted_from(&outputs)
    }

    /// Whether these are a 438; its nonce is kept.
    pub(super) fn is_stale(&mut self, outputs: &[Output]) -> bool {
        let Some(Output::Send(bytes)) = outputs.first() else { return false };
        let refusal = messages::decode(bytes).ok().and_then(|message| Refusal::read(&message).ok());
        let is_stale = refusal.is_some_and(|refusal| refusal.code == 438);
        is_stale && self.refusal_from(outputs).code == 438
    }

    /// Lets time pass, and timers fire when they are due.
    pub(super) fn runs_until(&mut self, until: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(due) = self.connection.poll_timeout().filter(|due| *due <= until) {
            assert!(due >= self.now, "a deadline stays due");
            self.now = due;
            self.connection.handle_timeout(due);
            outputs.extend(self.outputs());
        }
        self.now = until;
        outputs
    }

    /// The same, while the side answers every ping.
    pub(super) fn stays_until(&mut self, until: Instant) -> Vec<Output> {
        let mut others = Vec::new();
        while self.now < until {
            others.extend(self.runs_until(until.min(self.now + SECOND)));
            self.connection.heard(self.now, 1);
        }
        others.retain(|output| *output != Output::Send(messages::ping(OWN_ID)));
        others
    }

    pub(super) fn ends(&mut self, outputs: &[Output], ending: Ending, closing: Option<Closing>) {
        let told = closing.map(|closing| Output::Send(closing.encode(OWN_ID)));
        let expected: Vec<_> = told.into_iter().chain([Output::Close(ending)]).collect();
        assert_eq!(outputs, expected);
        assert_eq!(self.connection.poll_timeout(), None);
        assert!(!self.connection.may_forward() && !self.connection.is_joined());
        // Nothing follows, whatever happens.
        let bytes = self.encoded_join();
        assert_eq!(self.gives(&bytes), []);
        self.connection.handle_timeout(self.now + SECOND * 10_000);
        self.connection.join_answered(self.now, joined(true));
        self.connection.peer(self.now, &peer(PeerStatus::Present));
        self.connection.close(Closing::new(Reason::Limit));
        self.connection.protocol_error(ProtocolError::TooLong);
        self.connection.heard(self.now, 10_000);
        assert_eq!(self.outputs(), []);
    }
}

/// A request by hand.
struct Forged {
    method: Method,
    attributes: Vec<(u16, Vec<u8>)>,
    seal: Seal,
    is_sealed: bool,
}

impl Forged {
    /// A good Join.
    fn new(bench: &Bench, method: Method) -> Self {
        let seal = bench.alice();
        let attributes: [(u16, &[u8]); 8] = [
            (0x7f01, b"pair"),
            (0x7f02, b"left"),
            (0x7f05, &[1; 8]),
            (raw::USERNAME, b"alice"),
            (raw::REALM, REALM.as_bytes()),
            (raw::NONCE, seal.nonce.as_bytes()),
            (raw::PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS),
            (raw::PASSWORD_ALGORITHM, &PASSWORD_ALGORITHMS),
        ];
        let attributes = attributes.map(|(kind, value)| (kind, value.to_vec())).into();
        Self { method, attributes, seal, is_sealed: true }
    }

    fn without(mut self, kind: u16) -> Self {
        self.attributes.retain(|(other, _)| *other != kind);
        self
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        match self.attributes.iter_mut().find(|(other, _)| *other == kind) {
            Some(attribute) => attribute.1 = value.to_vec(),
            None => self.attributes.push((kind, value.to_vec())),
        }
        self
    }

    /// Sealed with another password.
    fn wrong(mut self) -> Self {
        self.seal.key = Key::long_term("alice", REALM, "Secret", crate::stun::Algorithm::Sha256).unwrap();
        self
    }

    fn unsealed(self) -> Self {
        Self { is_sealed: false, ..self }
    }

    fn bytes(self) -> Vec<u8> {
        let draft = Draft::new(self.method, Class::Request, ID);
        let draft = self.attributes.iter().fold(draft, |draft, (kind, value)| draft.with(*kind, value));
        if self.is_sealed { draft.sealed(&self.seal.key, Integrity::Sha256) } else { draft.unsealed() }
    }
}

#[test]
fn a_side_is_challenged_joins_meets_its_peer_and_leaves() {
    let mut bench = Bench::challenged();
    let challenge = bench.challenge.clone().unwrap();
    assert!(challenge.is_strong() && challenge.realm == REALM);
    assert_eq!(challenge.algorithms, PASSWORD_ALGORITHMS);

    let bytes = bench.encoded_join();
    let request =
        JoinRequest { user: "alice".into(), pair: join().pair, side: join().side, instance: join().instance };
    assert_eq!(bench.gives(&bytes), [Output::Join(request)]);
    assert!(!bench.connection.is_joined());
    bench.connection.join_answered(bench.now, joined(true));
    assert_eq!(bench.granted(), Granted { lifetime: 600, peer: PeerStatus::Present });
    assert!(bench.connection.is_joined() && !bench.connection.may_forward(), "Peer 1 comes first");
    bench.peer(PeerStatus::Present);
    assert!(bench.connection.may_forward());

    let bytes = bench.encoded_refresh(Some(0));
    let outputs = bench.gives(&bytes);
    assert_eq!(bench.granted_from(&outputs), Granted { lifetime: 0, peer: PeerStatus::Present });
    bench.ends(&outputs[1..], Ending::Left, None);
}

#[test]
fn requests_are_checked_in_their_order() {
    /// What is wrong with a request, from the last check to the first: each hides all before it.
    type Wrong = fn(Forged) -> Forged;
    const UNKNOWN: u16 = 0x7f09;
    let stale: Wrong = |forged| forged.with(raw::NONCE, b"obMatJos2gAAAstale");
    let wrong_list: Wrong = |forged| forged.with(raw::PASSWORD_ALGORITHMS, &[0, 1, 0, 0, 0, 2, 0, 0]);
    let join: [(u16, bool, Wrong); 7] = [
        (437, true, |forged| forged),
        (400, true, |forged| forged.with(raw::LIFETIME, &[0; 4])),
        (420, true, |forged| forged.with(UNKNOWN, b"")),
        (438, false, stale),
        (401, false, Forged::wrong),
        (400, false, wrong_list),
        (401, false, Forged::unsealed),
    ];
    let refresh: [(u16, bool, Wrong); 7] = [
        (441, true, |forged| forged),
        (400, true, |forged| forged.with(raw::LIFETIME, &[0; 3])),
        join[2],
        join[3],
        join[4],
        join[5],
        join[6],
    ];
    for (method, checks) in [(Method::JOIN, join), (Method::REFRESH, refresh)] {
        for count in 1..=checks.len() {
            // Joined already; to Refresh, as another user.
            let mut bench = Bench::waiting();
            if let State::Joined(joined) = &mut bench.connection.state
                && method == Method::REFRESH
            {
                joined.user = "bob".into();
            }
            let forged = Forged::new(&bench, method);
            let forged = checks[..count].iter().fold(forged, |forged, (_, _, wrong)| wrong(forged));
            let (code, is_sealed, _) = checks[count - 1];
            assert_eq!(bench.refused(&forged.bytes()), (code, is_sealed), "{method:?} {count}");
            assert!(bench.connection.is_joined(), "a refusal changes nothing");
        }
    }
}

#[test]
fn a_join_or_refresh_that_lacks_a_part_is_refused_with_its_code() {
    let all: [u16; 9] = [
        raw::USERNAME,
        raw::REALM,
        raw::NONCE,
        raw::PASSWORD_ALGORITHM,
        raw::PASSWORD_ALGORITHMS,
        0x7f01,
        0x7f02,
        0x7f05,
        0,
    ];
    for kind in all {
        let mut bench = Bench::challenged();
        let bytes = Forged::new(&bench, Method::JOIN).without(kind).bytes();
        match kind {
            0 => assert!(matches!(bench.gives(&bytes)[..], [Output::Join(_)])),
            _ => assert_eq!(bench.refused(&bytes), (400, (0x7f01..0x8000).contains(&kind)), "{kind:#x}"),
        }
        let mut bench = Bench::waiting();
        let bytes = Forged::new(&bench, Method::REFRESH).without(kind).bytes();
        if kind == 0 || (0x7f01..0x8000).contains(&kind) {
            assert_eq!(bench.gives(&bytes).len(), 1);
            assert_eq!(bench.connection.refused, 0);
        } else {
            assert_eq!(bench.refused(&bytes), (400, false), "{kind:#x}");
        }
    }
}

#[test]
fn other_lists_and_a_user_hash_are_bad_requests() {
    for (kind, value) in [
        (raw::PASSWORD_ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0][..]),
        (raw::PASSWORD_ALGORITHMS, &[0, 1, 0, 0]),
        (raw::PASSWORD_ALGORITHMS, &[]),
        (raw::PASSWORD_ALGORITHM, &[0, 1, 0, 0]),
        (raw::PASSWORD_ALGORITHM, &[0, 2, 0, 4, 1, 2, 3, 4]),
    ] {
        let mut bench = Bench::challenged();
        let bytes = Forged::new(&bench, Method::JOIN).with(kind, value).bytes();
        assert_eq!(bench.refused(&bytes), (400, false), "{kind:#x} {value:?}");
    }
    let mut bench = Bench::challenged();
    let hash = crate::stun::user_hash("alice", REALM).unwrap();
    let bytes = Forged::new(&bench, Method::JOIN).without(raw::USERNAME).with(raw::USERHASH, &hash).bytes();
    assert_eq!(bench.refused(&bytes), (400, false));
}

#[test]
fn only_a_whole_sha256_at_the_end_counts_as_credentials() {
    let bench = Bench::challenged();
    let good = Forged::new(&bench, Method::JOIN).unsealed().bytes();
    let mut cut = good.clone();
    let mac = Forged::new(&bench, Method::JOIN).bytes()[good.len() + 4..][..28].to_vec();
    raw_append(&mut cut, raw::MESSAGE_INTEGRITY_SHA256, &mac);
    let mut sha1 = good.clone();
    raw_append(&mut sha1, raw::MESSAGE_INTEGRITY, &[0; 20]);
    for bytes in [good, cut, sha1] {
        assert_eq!(Bench::challenged().refused(&bytes), (401, false));
    }
    // Behind the integrity nothing counts.
    for (kind, value) in
        [(0x7f01, &b"other"[..]), (raw::USERNAME, b"bob"), (0x7f09, b""), (raw::FINGERPRINT, &[0; 4])]
    {
        let mut bench = Bench::challenged();
        let mut bytes = bench.encoded_join();
        raw_append(&mut bytes, kind, value);
        let outputs = bench.gives(&bytes);
        let [Output::Join(request)] = &outputs[..] else { panic!("{kind:#x}: {outputs:?}") };
        assert_eq!((&*request.user, request.pair.as_bytes()), ("alice", b"pair".as_slice()));
    }
}

/// Appends an attribute, and mends the length.
fn raw_append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(kind.to_be_bytes());
    bytes.extend((value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let len = (bytes.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
}

#[test]
fn an_unknown_user_and_a_wrong_password_are_answered_alike() {
    let expired = format!("{}:carol", WALL - 1);
    let right = short_lived_password(&SHARED_KEY.into(), &expired);
    let lens: Vec<_> = [("alice", "Secret"), ("carol", "secret"), ("alice\u{e9}", "s"), (&expired, &right)]
        .into_iter()
        .map(|(user, password)| {
            let mut bench = Bench::challenged();
            let bytes = join().encode(ID, &bench.seal(user, password)).unwrap();
            let outputs = bench.gives(&bytes);
            assert_eq!(bench.refusal_from(&outputs).code, 401, "{user}");
            let Output::Send(bytes) = &outputs[0] else { unreachable!() };
            bytes.clone()
        })
        .collect();
    assert!(lens.iter().all(|bytes| *bytes == lens[0]), "to the letter, at the same time");
}

#[test]
fn a_nonce_is_of_its_connection_and_expires() {
    let mut bench = Bench::challenged();
    let mut other = Bench::challenged();
    other.connection.bound.number = 2;
    let bytes = bench.encoded_join();
    assert_eq!(other.refused(&bytes), (438, false));
    let bytes = other.encoded_join();
    assert!(matches!(other.gives(&bytes)[..], [Output::Join(_)]), "with the new nonce");

    bench.asks_to_join();
    bench.connection.join_answered(bench.now, joined(true));
    bench.outputs();
    bench.peer(PeerStatus::Present);
    assert_eq!(bench.stays_until(bench.start + SECOND * 600 - Duration::from_millis(1)), []);
    assert_eq!(bench.refreshes(None).lifetime, 600);
    bench.now = bench.start + SECOND * 600;
    let bytes = bench.encoded_refresh(None);
    assert_eq!(bench.refused(&bytes), (438, false));
    assert_eq!(bench.refreshes(None).lifetime, 600, "the 438 had a new one");
}
