//! Against a relay that says what a good one would not, or not yet.

use super::*;
use crate::config::{ClientTls, RelayRemote, ServerCertificate, ServerTls, SessionConfig, SupervisorConfig};
use crate::credentials::UserPassword;
use crate::event::Event;
use crate::relay::messages::SideId;
use crate::relay::messages::{
    Alternate, Challenge, Closing, Granted, Instance, Join, Peer, PeerStatus, Reason, Refresh, Refusal,
};
use crate::session::{GetSession, SessionState};
use crate::slots::tests::{Observer, observe};
use crate::stun::{Algorithm, Key, Method, TransactionId};
use crate::supervisor::{Shutdown, StartSession, SupervisorActor};
use crate::tls::{Acceptor, RELAY_PROTOCOL};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc::UnboundedReceiver;

const REALM: &str = "example.org";
const ID: TransactionId = TransactionId([9; 12]);

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn remote(relay: SocketAddr) -> RelayRemote {
    RelayRemote::new(relay.into(), UserPassword::new("alice", "hunter2"), "pair", "a")
}

fn key() -> Key {
    Key::long_term("alice", REALM, "hunter2", Algorithm::Sha256).unwrap()
}

/// A session, and what is told of it.
struct Scene {
    supervisor: Addr<SupervisorActor>,
    session: Addr<RelaySessionActor>,
    events: UnboundedReceiver<Event>,
    _observer: Addr<Observer>,
}

impl Scene {
    async fn new(config: SessionConfig) -> Self {
        let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
        let (_observer, events) = observe(&supervisor).await;
        let session = supervisor.send(StartSession { config }).await.unwrap().unwrap();
        Self { supervisor, session, events, _observer }
    }

    /// Applications send to it, and it goes to this relay.
    async fn near(remote: RelayRemote) -> Self {
        Self::new(SessionConfig::connect("near", remote).local_udp(any())).await
    }

    async fn event<T>(&mut self, find: impl Fn(&EventKind) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let Some(found) = find(&event.kind) {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), search).await.expect("the event did not come")
    }

    async fn failed(&mut self) -> String {
        self.event(|kind| match kind {
            EventKind::ConnectFailed { error, .. } => Some(error.clone()),
            _ => None,
        })
        .await
    }

    async fn ended(&mut self) -> (Cause, Option<Duration>) {
        self.event(|kind| match kind {
            EventKind::PeerDisconnected { cause, retry_in, .. } => Some((*cause, *retry_in)),
            _ => None,
        })
        .await
    }

    async fn state(&self) -> SessionState {
        self.session.send(GetSession).await.unwrap().state
    }

    async fn local_udp(&self) -> SocketAddr {
        self.session.send(GetSession).await.unwrap().local_udp.unwrap()
    }

    async fn end(self) {
        self.supervisor.send(Shutdown).await.unwrap();
    }
}

/// The relay's end of a connection.
struct Relay<S> {
    stream: S,
    read: Vec<u8>,
}

impl Relay<TcpStream> {
    async fn accept(listener: &TcpListener) -> Self {
        Self { stream: listener.accept().await.unwrap().0, read: Vec::new() }
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(any()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Relay<S> {
    /// The next message, of either kind.
    async fn message(&mut self) -> Vec<u8> {
        loop {
            if let Some(len) =
                messages::message_len(&self.read).unwrap().filter(|len| *len <= self.read.len())
            {
                return self.read.drain(..len).collect();
            }
            let got = tokio::time::timeout(Duration::from_secs(30), self.stream.read_buf(&mut self.read));
            assert_ne!(got.await.expect("nothing came").unwrap(), 0, "closed");
        }
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Answers the next request.
    async fn answer(&mut self, with: impl FnOnce(Method, TransactionId) -> Vec<u8>) -> Vec<u8> {
        let request = self.message().await;
        let message = messages::decode(&request).unwrap();
        let answer = with(message.method, message.id);
        self.say(&answer).await;
        request
    }

    async fn refuse(&mut self, refusal: Refusal, key: Option<&Key>) -> Vec<u8> {
        self.answer(|method, id| refusal.encode(method, id, key)).await
    }

    async fn challenge(&mut self) {
        let challenge = Some(Challenge::new(REALM, "obMatJos2gAAAn"));
        self.refuse(Refusal { challenge, ..Refusal::new(401) }, None).await;
    }

    async fn grant(&mut self) -> Vec<u8> {
        let granted = Granted { lifetime: 600, peer: PeerStatus::Absent };
        self.answer(|method, id| granted.encode(method, id, &key())).await
    }

    async fn let_in(&mut self) -> Join {
        self.challenge().await;
        let join = self.grant().await;
        Join::read(&messages::decode(&join).unwrap()).unwrap()
    }

    async fn peer(&mut self, status: PeerStatus) {
        let peer = Peer { status, side: SideId::new("b"), user: None, retry_after: None };
        self.say(&peer.encode(ID)).await;
    }
}

fn data(channel: u16, datagram: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    crate::tcp::channel_data::put_padded(&mut bytes, channel, datagram);
    bytes
}

#[actix::test]
async fn a_redirection_is_followed_at_once_but_not_in_a_circle() {
    let ((first, first_addr), (second, second_addr)) = (Relay::listen().await, Relay::listen().await);
    let mut scene = Scene::near(remote(first_addr)).await;
    let to = |server| Refusal { alternate: Some(Alternate { server, domain: None }), ..Refusal::new(300) };
    let mut relay = Relay::accept(&first).await;
    relay.challenge().await;
    relay.refuse(to(second_addr), Some(&key())).await;
    let redirected = |kind: &EventKind| match kind {
        EventKind::Side(SideEvent::RelayRedirected { from, to, .. }) => Some((*from, *to)),
        _ => None,
    };
    assert_eq!(scene.event(redirected).await, (first_addr, second_addr));
    let mut relay = Relay::accept(&second).await;
    relay.challenge().await;
    relay.refuse(to(first_addr), Some(&key())).await;
    assert_eq!(scene.event(redirected).await, (second_addr, first_addr));
    let mut relay = Relay::accept(&first).await;
    relay.challenge().await;
    relay.refuse(to(second_addr), Some(&key())).await;
    let error = scene.failed().await;
    assert!(error.contains("is not followed: it sends in a circle"), "{error}");
    scene.end().await;
}

#[actix::test]
async fn a_redirection_leads_to_a_relay_that_lets_in() {
    let ((first, first_addr), (second, second_addr)) = (Relay::listen().await, Relay::listen().await);
    let mut scene = Scene::near(remote(first_addr)).await;
    let mut relay = Relay::accept(&first).await;
    relay.challenge().await;
    let alternate = Some(Alternate { server: second_addr, domain: None });
    relay.refuse(Refusal { alternate, ..Refusal::new(300) }, Some(&key())).await;
    let mut relay = Relay::accept(&second).await;
    relay.let_in().await;
    let joined = scene.event(|kind| match kind {
        EventKind::Side(SideEvent::RelayJoined { relay, .. }) => Some(*relay),
        _ => None,
    });
    assert_eq!(joined.await, second_addr);
    // Lost, it is the first that is asked again.
    drop(relay);
    Relay::accept(&first).await.let_in().await;
    scene.end().await;
}

#[actix::test]
async fn what_comes_byte_by_byte_is_the_same() {
    let (listener, addr) = Relay::listen().await;
    let scene = Scene::near(remote(addr)).await;
    let mut relay = Relay::accept(&listener).await;
    relay.stream.set_nodelay(true).unwrap();
    relay.let_in().await;
    let (app, entry) = (UdpSocket::bind(any()).await.unwrap(), scene.local_udp().await);
    relay.peer(PeerStatus::Present).await;
    app.send_to(b"up", entry).await.unwrap();
    assert_eq!(relay.message().await, data(0x4000, b"up"));
    let ping = messages::ping(TransactionId([3; 12]));
    let unknown = crate::stun::Draft::new(Method::DATA, crate::stun::Class::Indication, ID).unsealed();
    let all =
        [data(0x4000, b"one"), ping, data(0x4fff, b"x"), data(0x4002, b"y"), unknown, data(0x4000, b"three")];
    for byte in all.concat() {
        relay.say(&[byte]).await;
        tokio::task::yield_now().await;
    }
    let mut buffer = [0; 100];
    for expected in [&b"one"[..], b"three"] {
        let (len, _) = app.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], expected);
    }
    let pong = relay.message().await;
    assert_eq!(messages::decode(&pong).unwrap().id, TransactionId([3; 12]));
    // A number of ours that is not open, and the reserved one.
    assert_eq!(scene.session.send(GetSession).await.unwrap().counters.drops.no_application, 2);
    scene.end().await;
}

#[actix::test]
async fn random_bytes_end_the_connection_and_it_is_made_anew() {
    let (listener, addr) = Relay::listen().await;
    let mut scene = Scene::near(remote(addr)).await;
    Relay::accept(&listener).await.say(&[0xff; 5000]).await;
    let error = scene.failed().await;
    assert_eq!(error, "the relay sent neither a STUN message nor ChannelData; does it speak TLS?");
    let mut relay = Relay::accept(&listener).await;
    relay.let_in().await;
    relay.say(b"\x01\x01\x08\x04\x21\x12\xa4\x42").await;
    assert_eq!(scene.ended().await.0, Cause::Broken);
    let mut relay = Relay::accept(&listener).await;
    relay.let_in().await;
    drop(relay);
    assert_eq!(scene.ended().await.0, Cause::Closed);
    scene.end().await;
}

#[actix::test]
async fn nothing_goes_before_the_peer_is_there_and_refresh_is_the_first_that_goes_when_it_has_gone() {
    let (listener, addr) = Relay::listen().await;
    let scene = Scene::near(remote(addr)).await;
    let (app, entry) = (UdpSocket::bind(any()).await.unwrap(), scene.local_udp().await);
    app.send_to(b"held", entry).await.unwrap();
    let mut relay = Relay::accept(&listener).await;
    relay.let_in().await;
    relay.peer(PeerStatus::Present).await;
    assert_eq!(relay.message().await, data(0x4000, b"held"));
    for _ in 0..3 {
        relay.peer(PeerStatus::Gone).await;
        let refresh = relay.grant().await;
        assert_eq!(Refresh::read(&messages::decode(&refresh).unwrap()), Ok(Refresh { lifetime: None }));
        app.send_to(b"more", entry).await.unwrap();
        relay.peer(PeerStatus::Present).await;
        // The same flow has the same number.
        assert_eq!(relay.message().await, data(0x4000, b"more"));
    }
    scene.end().await;
}

#[actix::test]
async fn a_session_that_is_told_to_stop_leaves() {
    let (listener, addr) = Relay::listen().await;
    let mut scene = Scene::near(remote(addr)).await;
    let mut relay = Relay::accept(&listener).await;
    relay.let_in().await;
    scene.event(|kind| matches!(kind, EventKind::Side(SideEvent::RelayJoined { .. })).then_some(())).await;
    let ended = actix_rt::spawn(scene.end());
    let leave = relay
        .answer(|method, id| Granted { lifetime: 0, peer: PeerStatus::Absent }.encode(method, id, &key()));
    let leave = leave.await;
    assert_eq!(Refresh::read(&messages::decode(&leave).unwrap()), Ok(Refresh { lifetime: Some(0) }));
    assert_eq!(relay.stream.read(&mut [0; 9]).await.unwrap(), 0);
    ended.await.unwrap();
}

#[actix::test]
async fn with_tls_a_session_that_was_superseded_stays_away_and_without_it_comes_back() {
    let acceptor = Acceptor::new(&ServerTls::new(ServerCertificate::SelfSigned), RELAY_PROTOCOL).unwrap();
    let tls = ClientTls { pin: Some(acceptor.pin()), ..ClientTls::default() };
    let (listener, addr) = Relay::listen().await;
    let mut scene = Scene::near(remote(addr).tls(tls)).await;
    let accept = async || {
        let (tcp, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(tcp, Duration::from_secs(9)).await.unwrap();
        Relay { stream, read: Vec::new() }
    };
    let mut relay = accept().await;
    let own = relay.let_in().await.instance;
    let superseded = |instance| Closing { instance: Some(instance), ..Closing::new(Reason::Superseded) };
    // By itself: the connection that it has lost was still there.
    relay.say(&superseded(own).encode(ID)).await;
    let (cause, retry_in) = scene.ended().await;
    assert_eq!((cause, retry_in.is_some()), (Cause::Superseded, true));
    scene.end().await;
    let tls = ClientTls { pin: Some(acceptor.pin()), ..ClientTls::default() };
    let mut scene = Scene::near(remote(addr).tls(tls)).await;
    let mut relay = accept().await;
    assert_ne!(relay.let_in().await.instance, own);
    relay.say(&superseded(Instance([1; 8])).encode(ID)).await;
    assert_eq!(scene.ended().await, (Cause::Superseded, None));
    assert_eq!(scene.state().await, SessionState::Idle);
    scene.end().await;
}

#[actix::test]
async fn what_says_nothing_is_not_taken_for_a_relay_with_tls() {
    let (listener, addr) = Relay::listen().await;
    let mut scene = Scene::near(remote(addr).tls(ClientTls::default())).await;
    let mut relay = Relay::accept(&listener).await;
    let mut hello = [0; 3];
    relay.stream.read_exact(&mut hello).await.unwrap();
    // A handshake, and nothing else.
    assert_eq!(hello[..2], [22, 3]);
    relay.say(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let error = scene.failed().await;
    assert!(!error.is_empty());
    scene.end().await;
}
