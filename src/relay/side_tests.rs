use super::*;
use crate::config::ClientTls;
use crate::credentials::UserPassword;
use crate::event::Cause;
use crate::flow::tests::any_instant;
use crate::relay::messages::Alternate;
use crate::stun::{Algorithm, Draft, Integrity, Key, Message, raw};

pub(super) const REALM: &str = "example.org";
pub(super) const NONCE: &str = "obMatJos2gAAAone";
const INSTANCE: Instance = Instance([7; 8]);
pub(super) const SECOND: Duration = Duration::from_secs(1);

fn remote() -> RelayRemote {
    let relay = "relay.example.org:443".parse().unwrap();
    RelayRemote::new(relay, UserPassword::new("alice", "hunter2"), "pair", "b")
}

pub(super) fn key() -> Key {
    Key::long_term("alice", REALM, "hunter2", Algorithm::Sha256).unwrap()
}

fn ids() -> Ids {
    let mut count = 0;
    Ids::new(move || {
        count += 1;
        TransactionId([count; 12])
    })
}

/// A side, the time, and what a relay would say to it.
pub(super) struct Scene {
    pub(super) side: Side,
    pub(super) now: Instant,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::of(remote())
    }

    fn of(remote: RelayRemote) -> Self {
        let now = any_instant();
        let relay = ([192, 0, 2, 9], 443).into();
        Self { side: Side::new(now, Setup { remote, relay, instance: INSTANCE, ids: ids() }), now }
    }

    /// Let in, no peer there, LIFETIME 600.
    pub(super) fn joined() -> Self {
        let mut scene = Self::new();
        scene.challenge(401, NONCE);
        scene.grant(600, PeerStatus::Absent);
        assert_eq!(scene.output(), Output::Joined { lifetime: 600 * SECOND });
        scene
    }

    pub(super) fn paired() -> Self {
        let mut scene = Self::joined();
        scene.peer(PeerStatus::Present, Some("a"));
        assert!(matches!(scene.output(), Output::PeerPresent(_)));
        assert_eq!(scene.output(), Output::MaySend);
        scene
    }

    pub(super) fn output(&mut self) -> Output {
        self.side.poll_output().expect("there is something to be done")
    }

    pub(super) fn nothing(&mut self) {
        assert_eq!(self.side.poll_output(), None);
    }

    pub(super) fn sent(&mut self) -> Vec<u8> {
        match self.output() {
            Output::Send(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn error(&mut self) -> SideError {
        match self.output() {
            Output::Ended(error) => error,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn say(&mut self, bytes: &[u8]) {
        self.side.heard(self.now);
        self.side.handle_message(self.now, bytes);
    }

    /// The request that was sent, and its answer.
    fn answer(&mut self, with: impl FnOnce(Method, TransactionId) -> Vec<u8>) {
        let sent = self.sent();
        let request = messages::decode(&sent).unwrap();
        assert_eq!(request.class, Class::Request);
        self.say(&with(request.method, request.id));
    }

    pub(super) fn challenge(&mut self, code: u16, nonce: &str) {
        self.challenge_with(code, Challenge::new(REALM, nonce));
    }

    fn challenge_with(&mut self, code: u16, challenge: Challenge) {
        let refusal = Refusal { challenge: Some(challenge), ..Refusal::new(code) };
        self.answer(|method, id| refusal.encode(method, id, None));
    }

    pub(super) fn refuse(&mut self, refusal: &Refusal, key: Option<&Key>) {
        self.answer(|method, id| refusal.encode(method, id, key));
    }

    pub(super) fn grant(&mut self, lifetime: u32, peer: PeerStatus) {
        self.answer(|method, id| Granted { lifetime, peer }.encode(method, id, &key()));
    }

    pub(super) fn peer(&mut self, status: PeerStatus, side: Option<&str>) {
        let side = side.map(|side| SideId::new(side).unwrap());
        self.say(&Peer { status, side, user: None, retry_after: None }.encode(TransactionId([9; 12])));
    }

    fn closing(&mut self, closing: Closing) {
        self.say(&closing.encode(TransactionId([9; 12])));
    }

    /// To the next deadline, and what is done then.
    pub(super) fn wait(&mut self) -> Duration {
        let due = self.side.poll_timeout().expect("it waits for something");
        let waited = due.saturating_duration_since(self.now);
        self.now = due;
        self.side.handle_timeout(self.now);
        waited
    }
}

pub(super) fn request(bytes: &[u8]) -> (Method, Message<'_>) {
    let message = messages::decode(bytes).unwrap();
    (message.method, message)
}

#[test]
fn the_first_join_says_nothing_and_the_second_says_whom_to_meet() {
    let mut scene = Scene::new();
    let first = scene.sent();
    assert_eq!((request(&first).0, first.len()), (Method::JOIN, 20));
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    let second = scene.sent();
    let (method, message) = request(&second);
    assert_eq!(method, Method::JOIN);
    assert!(message.is_sealed_with(&key()));
    let join = Join::read(&message).unwrap();
    let pair = PairId::new(remote().pair_id(REALM)).unwrap();
    let expected = Join { pair, side: SideId::new("b").unwrap(), instance: INSTANCE, lifetime: None };
    assert_eq!(join, expected);
    for (kind, value) in [(raw::USERNAME, "alice"), (raw::REALM, REALM), (raw::NONCE, NONCE)] {
        assert_eq!(message.attribute(kind), Some(value.as_bytes()));
    }
    assert!(!scene.side.is_joined());
}

#[test]
fn a_side_waits_is_joined_and_waits_again() {
    let mut scene = Scene::joined();
    assert!(scene.side.is_joined());
    scene.nothing();
    let user = Some("bob".to_owned());
    let peer =
        Peer { status: PeerStatus::Present, side: SideId::new("a"), user: user.clone(), retry_after: None };
    scene.say(&peer.encode(TransactionId([9; 12])));
    let side = SideId::new("a").unwrap();
    let present = Present { side: side.clone(), user, slowed: None };
    assert_eq!([scene.output(), scene.output()], [Output::PeerPresent(present.clone()), Output::MaySend]);
    let slowed = Some(2 * SECOND);
    scene.say(&Peer { retry_after: slowed, ..peer }.encode(TransactionId([9; 12])));
    assert_eq!(
        [scene.output(), scene.output()],
        [Output::PeerPresent(Present { slowed, ..present }), Output::MaySend]
    );
    scene.nothing();
    scene.peer(PeerStatus::Gone, None);
    assert_eq!(scene.output(), Output::PeerGone);
    let refresh = scene.sent();
    let (method, message) = request(&refresh);
    assert_eq!((method, Refresh::read(&message)), (Method::REFRESH, Ok(Refresh { lifetime: None })));
    assert!(message.is_sealed_with(&key()));
    scene.nothing();
    let granted = Granted { lifetime: 600, peer: PeerStatus::Present };
    scene.peer(PeerStatus::Present, Some("c"));
    assert!(matches!(scene.output(), Output::PeerPresent(Present { side, .. }) if side.as_str() == "c"));
    // What is sent now goes to "c" only if the relay had the Refresh after it had said that "a" went.
    scene.nothing();
    scene.say(&granted.encode(Method::REFRESH, message.id, &key()));
    assert_eq!(scene.output(), Output::MaySend);
}

#[test]
fn a_weak_challenge_is_not_answered() {
    let strong = Challenge::new(REALM, NONCE);
    for challenge in [
        Challenge { nonce: "n0nce".into(), ..strong.clone() },
        // The cookie without the bit.
        Challenge { nonce: "obMatJos2AAAAone".into(), ..strong.clone() },
        Challenge { algorithms: vec![0, 1, 0, 0], ..strong.clone() },
        Challenge { algorithms: Vec::new(), ..strong.clone() },
    ] {
        let mut scene = Scene::new();
        scene.challenge_with(401, challenge.clone());
        assert!(matches!(scene.error(), SideError::WeakChallenge(_)), "{challenge:?}");
        scene.nothing();
        assert_eq!(scene.side.poll_timeout(), None);
    }
    let mut scene = Scene::new();
    scene.refuse(&Refusal::new(401), None);
    assert!(matches!(scene.error(), SideError::BadAnswer { .. }));
}

#[test]
fn a_wrong_password_is_said_without_what_may_be_one() {
    for (user, shown) in
        [("alice", "alice"), ("alice:hunter2", "alice:…"), ("1735689600:bob", "1735689600:bob")]
    {
        let credentials = UserPassword::new(user, "x");
        let mut scene = Scene::of(RelayRemote { credentials, ..remote() });
        scene.challenge(401, NONCE);
        scene.challenge(401, NONCE);
        assert_eq!(scene.error(), SideError::Unauthorized { user: shown.into() });
    }
    let mut scene = Scene::of(RelayRemote { credentials: UserPassword::new("a\u{7}", "x"), ..remote() });
    scene.challenge(401, NONCE);
    assert!(matches!(scene.error(), SideError::UnusableCredentials(_)));
}

#[test]
fn a_relay_that_closes_without_an_answer_may_speak_tls() {
    let over_tls = remote().tls(ClientTls::default());
    let asked = |remote| {
        let mut scene = Scene::of(remote);
        let _ = scene.sent();
        scene
    };
    for (mut scene, is_asked) in [(asked(remote()), true), (asked(over_tls), false), (Scene::joined(), false)]
    {
        scene.side.lost(SideError::Closed);
        let error = scene.error();
        assert_eq!(error.to_string().contains("does it speak TLS?"), is_asked, "{error}");
        assert_eq!(error.cause(), Cause::Closed);
    }
}

#[test]
fn a_stale_nonce_is_replaced_but_not_for_ever() {
    let mut scene = Scene::joined();
    scene.peer(PeerStatus::Present, Some("a"));
    scene.peer(PeerStatus::Gone, None);
    let _ = (scene.output(), scene.output(), scene.output());
    scene.challenge(438, "obMatJos2gAAAtwo");
    let again = scene.sent();
    let (method, message) = request(&again);
    assert_eq!(method, Method::REFRESH);
    assert_eq!(message.attribute(raw::NONCE), Some(&b"obMatJos2gAAAtwo"[..]));
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    (0..=MAX_STALE).for_each(|_| scene.challenge(438, NONCE));
    assert!(matches!(scene.error(), SideError::BadAnswer { request: "Join", .. }));
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    scene.challenge_with(438, Challenge::new("elsewhere.org", NONCE));
    assert!(matches!(scene.error(), SideError::WeakChallenge(_)));
}

#[test]
fn a_success_that_is_not_sealed_is_not_believed() {
    let strange = Key::long_term("alice", REALM, "other", Algorithm::Sha256).unwrap();
    let granted = Granted { lifetime: 600, peer: PeerStatus::Absent };
    for forge in [
        Box::new(|method, id| Draft::new(method, Class::Success, id).unsealed())
            as Box<dyn FnOnce(Method, TransactionId) -> Vec<u8>>,
        Box::new(move |method, id| granted.encode(method, id, &strange)),
        Box::new(|method, id| Draft::new(method, Class::Success, id).sealed(&key(), Integrity::Sha1)),
    ] {
        let mut scene = Scene::new();
        scene.challenge(401, NONCE);
        scene.answer(forge);
        scene.nothing();
        assert!(!scene.side.is_joined());
        assert_eq!(scene.wait(), JOIN_TIMEOUT);
        let error = SideError::NoAnswer { request: "Join", after: JOIN_TIMEOUT, unbelieved: true };
        assert_eq!(scene.error(), error);
    }
}

#[test]
fn a_success_that_means_nothing_ends_the_connection() {
    let mut scene = Scene::new();
    scene.answer(|method, id| Draft::new(method, Class::Success, id).unsealed());
    assert!(matches!(scene.error(), SideError::BadAnswer { .. }));
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    scene.answer(|method, id| Draft::new(method, Class::Success, id).sealed(&key(), Integrity::Sha256));
    let SideError::BadAnswer { why, .. } = scene.error() else { panic!() };
    assert_eq!(why, "LIFETIME is missing or malformed");
}

#[test]
fn a_sealed_refusal_ends_the_connection_and_an_unsealed_one_is_not_believed() {
    for code in [403, 409, 420, 437, 441, 486, 508] {
        let refusal = Refusal { retry_after: Some(3 * SECOND), ..Refusal::new(code) };
        let mut scene = Scene::new();
        scene.challenge(401, NONCE);
        scene.refuse(&refusal, Some(&key()));
        let expected = SideError::Refused { request: "Join", code, retry_after: Some(3 * SECOND) };
        assert_eq!(scene.error(), expected);
        let mut scene = Scene::new();
        scene.challenge(401, NONCE);
        scene.refuse(&refusal, None);
        scene.nothing();
    }
    // Before the relay knows who asks it can seal nothing.
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    scene.refuse(&Refusal::new(400), None);
    assert_eq!(scene.error(), SideError::Refused { request: "Join", code: 400, retry_after: None });
    let mut scene = Scene::new();
    scene.refuse(&Refusal::new(508), None);
    assert_eq!(scene.error(), SideError::Refused { request: "Join", code: 508, retry_after: None });
}

#[test]
fn only_a_sealed_redirection_counts() {
    let to = ([192, 0, 2, 7], 443).into();
    let alternate = Alternate { server: to, domain: Some("b.example.org".into()) };
    let refusal = Refusal { alternate: Some(alternate), ..Refusal::new(300) };
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    scene.refuse(&refusal, Some(&key()));
    assert_eq!(scene.error(), SideError::Redirected { to, domain: Some("b.example.org".into()) });
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    scene.refuse(&refusal, None);
    scene.nothing();
    let mut scene = Scene::new();
    scene.refuse(&refusal, None);
    assert!(matches!(scene.error(), SideError::Refused { code: 300, .. }));
    let mut scene = Scene::new();
    scene.challenge(401, NONCE);
    scene.refuse(&Refusal::new(300), Some(&key()));
    assert!(matches!(scene.error(), SideError::Refused { code: 300, .. }));
}

#[test]
fn what_the_relay_says_at_the_end_is_told() {
    for make in [Scene::new, Scene::joined, Scene::paired] {
        for (instance, own) in [(Some(INSTANCE), true), (Some(Instance([8; 8])), false), (None, false)] {
            let mut scene = make();
            scene.side.outputs.clear();
            scene.closing(Closing { instance, ..Closing::new(Reason::Superseded) });
            assert_eq!(scene.error(), SideError::Superseded { own });
        }
        let mut scene = make();
        scene.side.outputs.clear();
        scene.closing(Closing { retry_after: Some(SECOND), ..Closing::new(Reason::Restarting) });
        assert_eq!(scene.error(), SideError::Restarting { retry_after: Some(SECOND) });
        for (reason, error) in [
            (Reason::Idle, SideError::HeardNothing),
            (Reason::LifetimeOver, SideError::LifetimeOver),
            (Reason::ProtocolError, SideError::NotUnderstood),
            (Reason::Limit, SideError::Limit),
        ] {
            let mut scene = make();
            scene.side.outputs.clear();
            scene.closing(Closing::new(reason));
            assert_eq!(scene.error(), error);
            scene.closing(Closing::new(reason));
            scene.nothing();
        }
    }
}

#[test]
fn a_silent_relay_is_asked_and_then_given_up() {
    for make in [Scene::joined, Scene::paired] {
        let mut scene = make();
        assert_eq!(scene.wait(), PING_INTERVAL);
        let ping = scene.sent();
        assert_eq!(request(&ping).0, Method::BINDING);
        // Any byte will do, the answer to the ping too.
        scene.now += SECOND;
        scene.say(&messages::pong(request(&ping).1.id, ([192, 0, 2, 1], 1).into()));
        scene.nothing();
        assert_eq!(scene.wait(), PING_INTERVAL);
        assert_eq!(request(&scene.sent()).0, Method::BINDING);
        assert_eq!(scene.wait(), PONG_TIMEOUT);
        let closing = scene.sent();
        assert_eq!(Closing::read(&request(&closing).1), Ok(Closing::new(Reason::Idle)));
        assert_eq!(scene.error(), SideError::Silent(25 * SECOND));
        assert_eq!(scene.side.poll_timeout(), None);
    }
}

#[test]
fn pings_are_answered_in_every_phase_and_what_is_unknown_is_not_understood() {
    for make in [Scene::new, Scene::joined, Scene::paired] {
        let mut scene = make();
        scene.side.outputs.clear();
        let id = TransactionId([3; 12]);
        scene.say(&messages::ping(id));
        assert_eq!(scene.sent(), messages::pong(id, ([192, 0, 2, 9], 443).into()));
        scene.say(&Draft::new(Method::ALLOCATE, Class::Request, id).unsealed());
        let answer = scene.sent();
        let (method, message) = request(&answer);
        assert_eq!((method, message.id), (Method::ALLOCATE, id));
        assert_eq!(Refusal::read(&message).unwrap().code, 400);
        // Strays and unknown indications.
        scene.say(&Draft::new(Method::DATA, Class::Indication, id).unsealed());
        scene.say(&Granted { lifetime: 600, peer: PeerStatus::Present }.encode(Method::JOIN, id, &key()));
        scene.say(&Refusal::new(403).encode(Method::REFRESH, id, Some(&key())));
        scene.nothing();
    }
}

#[test]
fn a_peer_that_cannot_be_is_none() {
    let mut scene = Scene::new();
    let _ = scene.sent();
    scene.peer(PeerStatus::Present, Some("a"));
    scene.nothing();
    let mut scene = Scene::joined();
    scene.peer(PeerStatus::Present, None);
    scene.peer(PeerStatus::Present, Some("b"));
    scene.peer(PeerStatus::Absent, Some("a"));
    scene.nothing();
}

#[test]
fn a_side_that_leaves_says_so() {
    for make in [Scene::joined, Scene::paired] {
        let mut scene = make();
        scene.side.leave(scene.now);
        scene.side.leave(scene.now);
        let leave = scene.sent();
        assert_eq!(Refresh::read(&request(&leave).1), Ok(Refresh { lifetime: Some(0) }));
        let id = request(&leave).1.id;
        scene.nothing();
        assert!(!scene.side.is_joined());
        // What comes in between changes nothing.
        scene.peer(PeerStatus::Gone, None);
        scene.nothing();
        scene.say(&Granted { lifetime: 0, peer: PeerStatus::Absent }.encode(Method::REFRESH, id, &key()));
        assert_eq!(scene.output(), Output::Left);
    }
    let mut scene = Scene::new();
    let _ = scene.sent();
    scene.side.leave(scene.now);
    assert_eq!(scene.output(), Output::Left);
    assert_eq!(scene.side.poll_timeout(), None);
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let mut scene = Scene::joined();
    let mut bytes = Closing::new(Reason::Limit).encode(TransactionId([9; 12]));
    bytes[23] = 5;
    scene.say(&bytes);
    assert_eq!(scene.error(), SideError::Malformed(messages::ProtocolError::CutShort));
    let mut scene = Scene::joined();
    scene.side.lost(SideError::Lost("was closed by the relay".into()));
    assert!(matches!(scene.error(), SideError::Lost(_)));
    scene.say(&messages::ping(TransactionId([9; 12])));
    scene.nothing();
}
