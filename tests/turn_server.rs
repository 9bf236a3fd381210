//! The embedded TURN server allocates and relays: what the other tests rely on.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::net::SocketAddr;
use std::time::Duration;

use support::turn_server::{Config, TurnServer};
use support::{Echo, any, own_ip, receive, soon, vacant_tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use turn_server_proto::stun::auth::{Feature, LongTermClientAuth};
use turn_server_proto::types::attribute::{
    ChannelNumber, ConnectionId, Lifetime, RequestedTransport, XorPeerAddress, XorRelayedAddress,
};
use turn_server_proto::types::message::{
    ALLOCATE, CHANNEL_BIND, CONNECT, CONNECTION_ATTEMPT, CONNECTION_BIND, CREATE_PERMISSION, REFRESH,
};
use turn_server_proto::types::stun::attribute::ErrorCode;
use turn_server_proto::types::stun::message::{
    IntegrityAlgorithm, LongTermCredentials, Message, MessageClass, MessageType, MessageWriteVec, Method,
    TransactionId,
};
use turn_server_proto::types::stun::prelude::{MessageWrite, MessageWriteExt};

mod support;

const CHANNEL: u16 = 0x4001;

/// How a client reaches a server.
enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Wire {
    async fn udp(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((server.ip(), 0)).await.unwrap();
        socket.connect(server).await.unwrap();
        Self::Udp(socket)
    }

    async fn tcp(server: SocketAddr) -> Self {
        Self::Tcp(TcpStream::connect(server).await.unwrap())
    }

    async fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Udp(socket) => assert_eq!(socket.send(bytes).await.unwrap(), bytes.len()),
            Self::Tcp(stream) => stream.write_all(bytes).await.unwrap(),
        }
    }

    /// One STUN or ChannelData message, over TCP with its padding.
    async fn receive(&mut self) -> Vec<u8> {
        soon("a message", async {
            match self {
                Self::Udp(socket) => {
                    let mut bytes = vec![0; 1 << 16];
                    let len = socket.recv(&mut bytes).await.unwrap();
                    bytes.truncate(len);
                    bytes
                }
                Self::Tcp(stream) => {
                    let mut bytes = vec![0; 4];
                    stream.read_exact(&mut bytes).await.unwrap();
                    let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
                    let rest = if bytes[0] >> 6 == 0 { 16 + len } else { len.next_multiple_of(4) };
                    bytes.resize(4 + rest, 0);
                    stream.read_exact(&mut bytes[4..]).await.unwrap();
                    bytes
                }
            }
        })
        .await
    }
}

/// What a request carries.
enum Attribute {
    Transport(u8),
    Lifetime(u32),
    Peer(SocketAddr),
    Channel(u16),
    Connection(u32),
}

use Attribute::{Channel, Connection, Peer, Transport};

/// A client that does one thing at a time.
struct Client {
    wire: Wire,
    auth: LongTermClientAuth,
}

impl Client {
    fn new(wire: Wire, password: &str) -> Self {
        let mut auth = LongTermClientAuth::new();
        auth.set_credentials(LongTermCredentials::new("user".into(), password.into()));
        Self { wire, auth }
    }

    fn request(&mut self, method: Method, attributes: &[Attribute]) -> Vec<u8> {
        let id = TransactionId::generate();
        let kind = MessageType::from_class_method(MessageClass::Request, method);
        let mut message = Message::builder(kind, id, MessageWriteVec::new());
        for attribute in attributes {
            match *attribute {
                Transport(protocol) => message.add_attribute(&RequestedTransport::new(protocol)),
                Attribute::Lifetime(seconds) => message.add_attribute(&Lifetime::new(seconds)),
                Peer(peer) => message.add_attribute(&XorPeerAddress::new(peer, id)),
                Channel(number) => message.add_attribute(&ChannelNumber::new(number)),
                Connection(number) => message.add_attribute(&ConnectionId::new(number)),
            }
            .unwrap();
        }
        self.auth.sign_outgoing_message(message).unwrap().finish()
    }

    /// Asks, and again if asked who it is; the error code if it is refused.
    async fn ask(&mut self, method: Method, attributes: &[Attribute]) -> Result<Vec<u8>, u16> {
        loop {
            let request = self.request(method, attributes);
            self.wire.send(&request).await;
            let answer = self.wire.receive().await;
            let message = Message::from_bytes(&answer).unwrap();
            assert_eq!(message.method(), method);
            let verdict = self.auth.validate_incoming_message(&message);
            match message.attribute::<ErrorCode>().map(|error| error.code()) {
                Ok(401 | 438) if verdict.is_ok() => {}
                Ok(code) => return Err(code),
                Err(_) => {
                    verdict.expect("a success is sealed");
                    return Ok(answer);
                }
            }
        }
    }

    /// The relayed address.
    async fn allocate(&mut self, protocol: u8) -> Result<SocketAddr, u16> {
        let answer = self.ask(ALLOCATE, &[Transport(protocol)]).await?;
        let message = Message::from_bytes(&answer).unwrap();
        Ok(message.attribute::<XorRelayedAddress>().unwrap().addr(message.transaction_id()))
    }

    /// A connection of its own, bound to a peer's.
    async fn bind(&mut self, server: SocketAddr, id: u32) -> Result<TcpStream, u16> {
        let control = std::mem::replace(&mut self.wire, Wire::tcp(server).await);
        let bound = self.ask(CONNECTION_BIND, &[Connection(id)]).await;
        let Wire::Tcp(stream) = std::mem::replace(&mut self.wire, control) else { unreachable!() };
        bound.map(|_| stream)
    }
}

fn connection_id(message: &[u8]) -> u32 {
    Message::from_bytes(message).unwrap().attribute::<ConnectionId>().unwrap().id()
}

const UDP: u8 = RequestedTransport::UDP;
const TCP: u8 = RequestedTransport::TCP;

async fn server() -> TurnServer {
    TurnServer::start((own_ip(), 0).into(), &Config::new("user", "pass")).await.unwrap()
}

fn channel_data(payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap();
    [&CHANNEL.to_be_bytes()[..], &len.to_be_bytes(), payload].concat()
}

/// A datagram whose length is not a multiple of four, there and back over a channel.
async fn relays(client: &mut Client, is_padded: bool) {
    let echo = Echo::start().await;
    client.ask(CHANNEL_BIND, &[Channel(CHANNEL), Peer(echo.addr)]).await.unwrap();
    let mut framed = channel_data(b"hello");
    if is_padded {
        framed.resize(12, 0);
    }
    client.wire.send(&framed).await;
    client.wire.send(&framed).await;
    assert_eq!(client.wire.receive().await, framed);
    assert_eq!(client.wire.receive().await, framed);
}

#[tokio::test]
async fn it_relays_datagrams_of_a_client_over_udp_until_the_allocation_is_deleted() {
    let server = server().await;
    let mut client = Client::new(Wire::udp(server.addr()).await, "pass");
    let relayed = client.allocate(UDP).await.unwrap();
    assert_eq!(server.relayed(), [relayed]);
    assert_eq!(client.allocate(UDP).await, Err(437));
    relays(&mut client, false).await;
    client.ask(REFRESH, &[Attribute::Lifetime(0)]).await.unwrap();
    assert_eq!(server.relayed(), []);
}

#[tokio::test]
async fn it_relays_datagrams_of_a_client_over_tcp_until_its_connection_is_closed() {
    let server = server().await;
    let mut client = Client::new(Wire::tcp(server.addr()).await, "pass");
    client.allocate(UDP).await.unwrap();
    relays(&mut client, true).await;
    drop(client);
    soon("the end of the allocation", async {
        while !server.relayed().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn it_knows_sha_256_and_userhash_and_refuses_a_wrong_password() {
    let server = server().await;
    let mut client = Client::new(Wire::udp(server.addr()).await, "pass");
    client.auth.set_supported_integrity(IntegrityAlgorithm::Sha256);
    client.auth.set_anonymous_username(Feature::Required);
    client.allocate(UDP).await.unwrap();
    let mut stranger = Client::new(Wire::udp(server.addr()).await, "wrong");
    assert_eq!(stranger.allocate(UDP).await, Err(401));
}

#[tokio::test]
async fn its_nonces_expire_with_its_clock() {
    let server = server().await;
    let mut client = Client::new(Wire::udp(server.addr()).await, "pass");
    client.allocate(UDP).await.unwrap();
    server.advance(Duration::from_secs(3601));
    let request = client.request(REFRESH, &[]);
    client.wire.send(&request).await;
    let answer = client.wire.receive().await;
    assert_eq!(Message::from_bytes(&answer).unwrap().attribute::<ErrorCode>().unwrap().code(), 438);
    soon("the end of the allocation", async {
        while !server.relayed().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// 8 MiB towards a reader that does not hurry, and the other way, with nothing lost.
async fn carries_both_ways(near: TcpStream, far: TcpStream) {
    const LEN: usize = 8 << 20;
    let send = |mut stream: tokio::net::tcp::OwnedWriteHalf| async move {
        for number in 0..LEN / 1024 {
            stream.write_all(&[number as u8; 1024]).await.unwrap();
        }
        stream
    };
    let take = |mut stream: tokio::net::tcp::OwnedReadHalf| async move {
        let mut read = [0; 1024];
        for number in 0..LEN / 1024 {
            stream.read_exact(&mut read).await.unwrap();
            assert_eq!(read, [number as u8; 1024]);
        }
        stream
    };
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    let (_near, _far, mut end, closing) = soon("8 MiB each way", async {
        tokio::join!(send(to_near), take(from_near), take(from_far), send(to_far))
    })
    .await;
    drop((closing, _near));
    drop(_far);
    assert_eq!(soon("the end", end.read(&mut [0; 8])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn it_connects_to_a_peer_for_a_client_that_permits_it() {
    let server = server().await;
    let mut client = Client::new(Wire::tcp(server.addr()).await, "pass");
    let relayed = client.allocate(TCP).await.unwrap();
    let listener = TcpListener::bind((own_ip(), 0)).await.unwrap();
    let peer = listener.local_addr().unwrap();
    client.ask(CREATE_PERMISSION, &[Peer(peer)]).await.unwrap();
    let connected = client.ask(CONNECT, &[Peer(peer)]).await.unwrap();
    let (mut far, from) = soon("the connection", listener.accept()).await.unwrap();
    assert_eq!(from, relayed);
    far.write_all(b"early").await.unwrap();
    assert_eq!(client.ask(CONNECT, &[Peer(peer)]).await, Err(446));
    let mut near = client.bind(server.addr(), connection_id(&connected)).await.unwrap();
    let mut early = [0; 5];
    near.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
    carries_both_ways(near, far).await;
    let nobody = vacant_tcp();
    client.ask(CREATE_PERMISSION, &[Peer(nobody)]).await.unwrap();
    assert_eq!(client.ask(CONNECT, &[Peer(nobody)]).await, Err(447));
}

#[tokio::test]
async fn it_announces_the_connections_of_permitted_peers_and_resets_others() {
    let server = server().await;
    let mut client = Client::new(Wire::tcp(server.addr()).await, "pass");
    let relayed = client.allocate(TCP).await.unwrap();
    let mut stranger = TcpStream::connect(relayed).await.unwrap();
    assert!(soon("the reset", stranger.read(&mut [0; 8])).await.is_err());
    client.ask(CREATE_PERMISSION, &[Peer(any())]).await.unwrap();
    let mut far = TcpStream::connect(relayed).await.unwrap();
    // An end that comes before the client has bound.
    far.write_all(b"early").await.unwrap();
    far.shutdown().await.unwrap();
    let attempt = client.wire.receive().await;
    let message = Message::from_bytes(&attempt).unwrap();
    assert_eq!(message.method(), CONNECTION_ATTEMPT);
    let from = message.attribute::<XorPeerAddress>().unwrap().addr(message.transaction_id());
    assert_eq!(from, far.local_addr().unwrap());
    let mut near = client.bind(server.addr(), connection_id(&attempt)).await.unwrap();
    let mut all = Vec::new();
    soon("the end", near.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all, b"early");
    assert!(client.bind(server.addr(), 77).await.is_err());
}

#[tokio::test]
async fn it_is_silent_when_told_and_forgets_all_when_stopped() {
    let server = server().await;
    let addr = server.addr();
    let mut client = Client::new(Wire::udp(addr).await, "pass");
    let relayed = client.allocate(UDP).await.unwrap();
    server.set_silent(true);
    let request = client.request(REFRESH, &[]);
    client.wire.send(&request).await;
    let Wire::Udp(socket) = &client.wire else { unreachable!() };
    let mut answer = [0; 1500];
    assert!(tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut answer)).await.is_err());
    server.set_silent(false);
    client.ask(REFRESH, &[]).await.unwrap();
    server.stop().await;
    assert!(UdpSocket::bind(relayed).await.is_ok(), "the relayed address is free");
    let _server = TurnServer::start(addr, &Config::new("user", "pass")).await.unwrap();
    // To it a nonce that it does not know is a bad request.
    assert_eq!(client.ask(REFRESH, &[]).await, Err(400));
    let mut client = Client::new(client.wire, "pass");
    let peer = UdpSocket::bind((own_ip(), 0)).await.unwrap();
    client.allocate(UDP).await.unwrap();
    client.ask(CHANNEL_BIND, &[Channel(CHANNEL), Peer(peer.local_addr().unwrap())]).await.unwrap();
    client.wire.send(&channel_data(b"again")).await;
    assert_eq!(receive(&peer).await.0, b"again");
}
