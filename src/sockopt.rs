//! Sockets as this crate wants them: marked, tuned, bound and with room for bursts.
//!
//! Everything here is synchronous and returns nonblocking sockets; who registers them with a runtime is
//! another room's business.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket};
use std::sync::Once;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::{RelayConfig, SessionConfig, TurnConfig};
use crate::tls::TlsError;

/// What the kernel may hold unsent per connection, bytes: `wire.md` "Queues".
#[cfg(any(target_os = "linux", target_os = "android"))]
const NOTSENT_LOWAT: u32 = 16 << 10;
/// The same for one that takes 50 MB/s: 3 ms.
#[cfg(any(target_os = "linux", target_os = "android"))]
const QUICK_NOTSENT_LOWAT: u32 = 128 << 10;

/// A peer that acknowledges nothing for this long, or does not read, is dead: `wire.md` "Queues".
#[cfg(any(target_os = "linux", target_os = "android"))]
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// An idle connection is probed after this long.
const KEEP_ALIVE_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// And then this often; on Linux until `USER_TIMEOUT`, which takes the place of a number of probes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// Connections the kernel may hold for us until they are accepted.
const BACKLOG: i32 = 1024;

/// The receive buffer of a socket that serves everybody, in bytes.
const SHARED_UDP_BUFFER: usize = 4 << 20;

/// The receive buffer of a socket that serves one peer out of many, in bytes.
const PEER_UDP_BUFFER: usize = 1 << 20;

/// The largest segment towards a TURN server, which matters over loopback only. There one may have 64 KiB, coturn's
/// receive window has less, and what does not fit waits for TCP's persist timer, 200 ms: measured, 13 thousand
/// datagrams of 1200 bytes a second instead of 80.
const SERVER_SEGMENT: u32 = 16 << 10;

/// What the configuration says about TCP sockets. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpOptions {
    /// The local address of outgoing connections; the port is the system's choice. Listeners ignore it.
    pub(crate) bind: Option<IpAddr>,
    /// `SO_MARK`: Linux, needs `CAP_NET_ADMIN`; elsewhere an error.
    pub(crate) fwmark: Option<u32>,
    /// `TCP_CONGESTION`, at most 15 characters: Linux; elsewhere an error.
    pub(crate) congestion: Option<String>,
    /// `TCP_MAXSEG`, bytes.
    pub(crate) max_segment: Option<u32>,
}

impl From<&SessionConfig> for TcpOptions {
    fn from(config: &SessionConfig) -> Self {
        let congestion = config.congestion.clone();
        Self { bind: config.bind, fwmark: config.fwmark, congestion, max_segment: None }
    }
}

impl From<&TurnConfig> for TcpOptions {
    fn from(config: &TurnConfig) -> Self {
        let congestion = config.congestion.clone();
        Self { bind: config.bind, fwmark: config.fwmark, congestion, max_segment: Some(SERVER_SEGMENT) }
    }
}

impl From<&RelayConfig> for TcpOptions {
    fn from(config: &RelayConfig) -> Self {
        let congestion = config.congestion.clone();
        Self { bind: None, fwmark: config.fwmark, congestion, max_segment: None }
    }
}

/// The step in making a socket that failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No descriptor, or a family this machine does not speak.
    #[error("socket for {addr}: {source}")]
    Create {
        /// What the socket was for.
        addr: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// An option was refused.
    #[error("{option} {value}{}: {source}", hint(option))]
    Option {
        /// Its name in C.
        option: &'static str,
        /// The value asked for.
        value: String,
        /// The system's answer; `Unsupported` where the system has no such option.
        source: io::Error,
    },
    /// The local address is in use, or not ours.
    #[error("bind to {addr}: {source}")]
    Bind {
        /// The local address.
        addr: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The certificates or keys for TLS are no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A bound socket could not be made to listen.
    #[error("listen at {addr}: {source}")]
    Listen {
        /// The local address.
        addr: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A UDP socket could not be connected: no route, as a rule.
    #[error("connect UDP to {to}: {source}")]
    ConnectUdp {
        /// The service.
        to: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

fn hint(option: &str) -> &'static str {
    match option {
        "SO_MARK" => " (needs CAP_NET_ADMIN)",
        "TCP_CONGESTION" => " (see net.ipv4.tcp_available_congestion_control)",
        _ => "",
    }
}

/// Names the option in the error of setting it.
fn refused(option: &'static str, value: impl ToString) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Option { option, value: value.to_string(), source }
}

impl TcpOptions {
    /// A nonblocking TCP socket, not inherited by child processes, from which to connect to `to`: marked and
    /// with its congestion control before the first SYN, bound to `bind` if there is one.
    ///
    /// # Errors
    /// [`SocketError::Create`], `Option` or `Bind`; the last also when `bind` and `to` are of different families.
    pub(crate) fn socket_for(&self, to: SocketAddr) -> Result<Socket, SocketError> {
        let socket = self.new_socket(to)?;
        if let Some(ip) = self.bind {
            let local = match (ip, to) {
                // A link-local address means nothing without its interface, which only the far end names.
                (IpAddr::V6(ip), SocketAddr::V6(to)) => SocketAddrV6::new(ip, 0, 0, to.scope_id()).into(),
                _ => SocketAddr::new(ip, 0),
            };
            socket.bind(&local.into()).map_err(|source| SocketError::Bind { addr: local, source })?;
        }
        Ok(socket)
    }

    /// Tries the options on a socket that goes nowhere, so that what can never work is said at the start. The
    /// address to bind may come later, with its interface.
    pub(crate) fn check(&self) -> Result<(), SocketError> {
        self.new_socket((Ipv4Addr::LOCALHOST, 0).into()).map(drop)
    }

    fn new_socket(&self, addr: SocketAddr) -> Result<Socket, SocketError> {
        let socket = nonblocking(addr, Type::STREAM, Protocol::TCP)?;
        if let Some(mark) = self.fwmark {
            set_mark(&socket, mark).map_err(refused("SO_MARK", mark))?;
        }
        if let Some(name) = &self.congestion {
            set_congestion(&socket, name).map_err(refused("TCP_CONGESTION", name))?;
        }
        if let Some(bytes) = self.max_segment {
            socket.set_tcp_mss(bytes).map_err(refused("TCP_MAXSEG", bytes))?;
        }
        Ok(socket)
    }
}

fn nonblocking(addr: SocketAddr, kind: Type, protocol: Protocol) -> Result<Socket, SocketError> {
    Socket::new(Domain::for_address(addr), kind, Some(protocol))
        .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        .map_err(|source| SocketError::Create { addr, source })
}

#[cfg(target_os = "linux")]
fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    socket.set_mark(mark)
}

#[cfg(not(target_os = "linux"))]
fn set_mark(_: &Socket, _: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn set_congestion(socket: &Socket, name: &str) -> io::Result<()> {
    socket.set_tcp_congestion(name.as_bytes())
}

#[cfg(not(target_os = "linux"))]
fn set_congestion(_: &Socket, _: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes a TCP connection, dialed or accepted, fit for datagrams: nothing waits to be merged, little is held
/// unsent, and a dead peer is noticed within 10 s (`wire.md` "Queues"). Low-water mark and user timeout are
/// left out where the system has none.
///
/// # Errors
/// [`SocketError::Option`]; some systems refuse options to a connection that is already reset.
pub(crate) fn tune_tcp<'s>(connection: impl Into<SockRef<'s>>) -> Result<(), SocketError> {
    let socket = connection.into();
    socket.set_tcp_nodelay(true).map_err(refused("TCP_NODELAY", 1))?;
    let keep_alive =
        TcpKeepalive::new().with_time(KEEP_ALIVE_IDLE_TIMEOUT).with_interval(KEEP_ALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keep_alive).map_err(refused("SO_KEEPALIVE", 1))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT).map_err(refused("TCP_NOTSENT_LOWAT", NOTSENT_LOWAT))?;
        socket
            .set_tcp_user_timeout(Some(USER_TIMEOUT))
            .map_err(refused("TCP_USER_TIMEOUT", USER_TIMEOUT.as_millis()))?;
    }
    Ok(())
}

/// Lets the kernel hold more of a tuned connection unsent as long as that is quick: fewer and larger writes. A system that
/// refuses it goes on as before.
pub(crate) fn set_quick<'s>(connection: impl Into<SockRef<'s>>, is_quick: bool) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let lowat = if is_quick { QUICK_NOTSENT_LOWAT } else { NOTSENT_LOWAT };
        let _ = connection.into().set_tcp_notsent_lowat(lowat);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (connection.into(), is_quick);
}

/// Lets a tuned connection wait: whoever is sent bytes, not datagrams, may read them when it likes, or pause for hours.
/// Whether it is still there keep-alive finds out.
///
/// # Errors
/// [`SocketError::Option`].
pub(crate) fn be_patient<'s>(connection: impl Into<SockRef<'s>>) -> Result<(), SocketError> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    connection.into().set_tcp_user_timeout(None).map_err(refused("TCP_USER_TIMEOUT", 0))?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = connection.into();
    Ok(())
}

/// A nonblocking listener whose connections inherit mark and congestion control; `[::]` also takes IPv4.
///
/// The port can be bound again at once after a restart (`SO_REUSEADDR`, on Unix: on Windows that option would
/// let others steal the port).
///
/// # Errors
/// [`SocketError::Create`], `Option`, `Bind` or `Listen`.
pub(crate) fn listen_tcp(
    addr: SocketAddr,
    beside_v4: bool,
    options: &TcpOptions,
) -> Result<TcpListener, SocketError> {
    let socket = options.new_socket(addr)?;
    socket.set_reuse_address(true).map_err(refused("SO_REUSEADDR", 1))?;
    if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(beside_v4).map_err(refused("IPV6_V6ONLY", u8::from(beside_v4)))?;
    }
    socket.bind(&addr.into()).map_err(|source| SocketError::Bind { addr, source })?;
    socket.listen(BACKLOG).map_err(|source| SocketError::Listen { addr, source })?;
    Ok(socket.into())
}

/// A nonblocking UDP socket at `addr` that asks for a receive buffer of 4 MiB; getting less is logged once.
///
/// # Errors
/// [`SocketError::Create`] or `Bind`.
pub(crate) fn bind_udp(addr: SocketAddr) -> Result<UdpSocket, SocketError> {
    udp_socket(addr, SHARED_UDP_BUFFER).map(UdpSocket::from)
}

/// A nonblocking UDP socket that speaks only with `to`, from a port and address of the system's choice; it
/// asks for a receive buffer of 1 MiB, as there may be many of these.
///
/// # Errors
/// [`SocketError::Create`], `Bind` or `ConnectUdp`.
pub(crate) fn connect_udp(to: SocketAddr) -> Result<UdpSocket, SocketError> {
    connect_udp_with(to, &UdpOptions { buffer: PEER_UDP_BUFFER, bind: None, fwmark: None })
}

/// The same towards a TURN server, through which everything goes: with mark and local address as for TCP, and
/// with a receive buffer of 4 MiB.
///
/// # Errors
/// [`SocketError::Create`], `Option`, `Bind` or `ConnectUdp`.
pub(crate) fn connect_udp_server(to: SocketAddr, options: &TcpOptions) -> Result<UdpSocket, SocketError> {
    let TcpOptions { bind, fwmark, .. } = *options;
    connect_udp_with(to, &UdpOptions { buffer: SHARED_UDP_BUFFER, bind, fwmark })
}

struct UdpOptions {
    buffer: usize,
    bind: Option<IpAddr>,
    fwmark: Option<u32>,
}

fn connect_udp_with(to: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, SocketError> {
    let any: IpAddr = match to.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = udp_socket(SocketAddr::new(options.bind.unwrap_or(any), 0), options.buffer)?;
    if let Some(mark) = options.fwmark {
        set_mark(&socket, mark).map_err(refused("SO_MARK", mark))?;
    }
    socket.connect(&to.into()).map_err(|source| SocketError::ConnectUdp { to, source })?;
    Ok(socket.into())
}

fn udp_socket(local: SocketAddr, buffer: usize) -> Result<Socket, SocketError> {
    let socket = nonblocking(local, Type::DGRAM, Protocol::UDP)?;
    ask_for_receive_buffer(&socket, buffer);
    socket.bind(&local.into()).map_err(|source| SocketError::Bind { addr: local, source })?;
    Ok(socket)
}

/// A small buffer costs datagrams, not the session, so nothing here is an error. Linux clips the value in
/// silence, the BSDs refuse it; either way what counts is what the socket then has. The send buffer stays as
/// it is: a large one would only hold datagrams until they are old.
fn ask_for_receive_buffer(socket: &Socket, asked: usize) {
    static WARNED: Once = Once::new();
    let limit = if cfg!(target_os = "linux") { "net.core.rmem_max" } else { "kern.ipc.maxsockbuf" };
    let _ = socket.set_recv_buffer_size(asked);
    let Ok(got) = socket.recv_buffer_size().map(usable) else { return };
    if got < asked {
        WARNED.call_once(|| {
            tracing::warn!(
                "the UDP receive buffer is {got} bytes instead of {asked}: bursts will be lost; \
                 set {limit} to {SHARED_UDP_BUFFER} or more"
            );
        });
    }
}

/// Linux doubles the value for its own bookkeeping and reports the double (`socket(7)`).
fn usable(reported: usize) -> usize {
    if cfg!(target_os = "linux") { reported / 2 } else { reported }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// A connected pair. The listener is nonblocking, but a connect over loopback returns with the
    /// connection already in the backlog.
    fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        (dialed, accepted)
    }

    #[test]
    fn a_tuned_connection_has_the_values_of_wire_md() {
        let listener = listen_tcp(V4, false, &TcpOptions::default()).unwrap();
        let (dialed, accepted) = pair(&listener);
        for connection in [&dialed, &accepted] {
            tune_tcp(connection).unwrap();
            let socket = SockRef::from(connection);
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            #[cfg(target_os = "linux")]
            {
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), 16_384);
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(10)));
                be_patient(connection).unwrap();
                assert_eq!(socket.tcp_user_timeout().unwrap(), None);
                assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(5));
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(2));
            }
        }
    }

    #[test]
    fn a_listener_does_not_block_and_its_port_can_be_bound_again() {
        let listener = listen_tcp(V4, false, &TcpOptions::default()).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let addr = listener.local_addr().unwrap();
        let (dialed, accepted) = pair(&listener);
        // Our side closes first and so keeps the port in TIME_WAIT, which must not keep it from us.
        drop((listener, accepted, dialed));
        listen_tcp(addr, false, &TcpOptions::default()).unwrap();
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = listen_tcp(V4, false, &TcpOptions::default()).unwrap();
        let addr = listener.local_addr().unwrap();
        let error = listen_tcp(addr, false, &TcpOptions::default()).unwrap_err();
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }

    #[test]
    fn the_ipv6_wildcard_also_takes_ipv4() {
        let Ok(listener) = listen_tcp((Ipv6Addr::UNSPECIFIED, 0).into(), false, &TcpOptions::default())
        else {
            eprintln!("skipped: this machine has no IPv6");
            return;
        };
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(listener.accept().is_ok());
    }

    #[test]
    fn a_socket_is_bound_to_the_address_asked_for() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let options = TcpOptions { bind: Some(ip), ..TcpOptions::default() };
        let socket = options.socket_for(([127, 0, 0, 1], 9).into()).unwrap();
        assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().ip(), ip);
        let error = options.socket_for((Ipv6Addr::LOCALHOST, 9).into()).unwrap_err();
        assert!(matches!(error, SocketError::Bind { .. } | SocketError::Create { .. }), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn accepted_connections_inherit_the_congestion_control() {
        // Reno is part of every kernel and the default of few.
        let options = TcpOptions { congestion: Some("reno".to_owned()), ..TcpOptions::default() };
        let listener = listen_tcp(V4, false, &options).unwrap();
        let (_dialed, accepted) = pair(&listener);
        let name = SockRef::from(&accepted).tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno\0") || name == b"reno", "{name:?}");
    }

    #[test]
    fn a_refused_option_names_itself_and_its_value() {
        let options = TcpOptions { congestion: Some("no-such-cc".to_owned()), ..TcpOptions::default() };
        let error = options.socket_for(([127, 0, 0, 1], 9).into()).unwrap_err();
        assert!(error.to_string().starts_with("TCP_CONGESTION no-such-cc"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_mark_is_set_or_the_missing_capability_is_named() {
        let options = TcpOptions { fwmark: Some(51), ..TcpOptions::default() };
        match options.socket_for(([127, 0, 0, 1], 9).into()) {
            Ok(socket) => assert_eq!(socket.mark().unwrap(), 51),
            Err(error) => {
                assert!(error.to_string().starts_with("SO_MARK 51 (needs CAP_NET_ADMIN): "), "{error}");
            }
        }
    }

    #[test]
    fn a_connected_udp_socket_hears_only_its_peer() {
        let service = bind_udp(V4).unwrap();
        let stranger = bind_udp(V4).unwrap();
        let to = service.local_addr().unwrap();
        let socket = connect_udp(to).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), to);
        let local = socket.local_addr().unwrap();
        assert_eq!(local.ip(), to.ip());
        stranger.send_to(b"stranger", local).unwrap();
        service.send_to(b"service", local).unwrap();
        let mut buffer = [0; 16];
        // Over loopback a datagram is there when the send returns.
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"service");
        assert_eq!(socket.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn udp_sockets_get_the_buffers_they_ask_for_up_to_the_limit() {
        let Ok(limit) = std::fs::read_to_string("/proc/sys/net/core/rmem_max") else {
            eprintln!("skipped: net.core.rmem_max cannot be read here");
            return;
        };
        let limit: usize = limit.trim().parse().unwrap();
        let shared = bind_udp(V4).unwrap();
        let got = usable(SockRef::from(&shared).recv_buffer_size().unwrap());
        assert_eq!(got, limit.min(4 << 20));
        let peer = connect_udp(shared.local_addr().unwrap()).unwrap();
        assert_eq!(usable(SockRef::from(&peer).recv_buffer_size().unwrap()), limit.min(1 << 20));
    }
}
