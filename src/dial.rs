//! Makes one TCP connection: resolves the name, races its addresses (RFC 8305), within one deadline.
//!
//! The attempts are plain futures inside the one that [`dial`] returns: dropping it closes every socket.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::Instant;

use crate::config::HostPort;
use crate::sockopt::{SocketError, TcpOptions, tune_tcp};

mod race;

use race::{Race, Step};

/// The step of a [`dial`] that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The name could not be resolved, or not within its share of the deadline.
    #[error("resolving '{host}': {source}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's answer; `TimedOut` when there was none in time.
        source: io::Error,
    },
    /// The name has no address, or none of the family of [`TcpOptions::bind`].
    #[error("'{host}' has no {wanted}")]
    NoAddress {
        /// The name, or the address.
        host: String,
        /// "address", "IPv4 address" or "IPv6 address".
        wanted: &'static str,
    },
    /// Every address refused, or could not be reached.
    #[error("connecting to {}: {source}{}", spelled_out(remote, to), count(*failed))]
    Connect {
        /// What was asked for.
        remote: HostPort,
        /// The address whose failure tells most.
        to: SocketAddr,
        /// How many addresses failed, this one included.
        failed: usize,
        /// Why this one did.
        source: io::Error,
    },
    /// The trouble is on this side: a socket could not be made as configured.
    #[error("socket to connect to {remote}: {source}{}", count(*failed))]
    Socket {
        /// What was asked for.
        remote: HostPort,
        /// How many addresses failed, this one included.
        failed: usize,
        /// The option, or the local address, that was refused.
        source: SocketError,
    },
    /// Nobody answered in time.
    #[error("connecting to {remote}: no answer within {after:?}")]
    Timeout {
        /// What was asked for.
        remote: HostPort,
        /// The deadline of the whole attempt.
        after: Duration,
    },
}

fn spelled_out(remote: &HostPort, to: &SocketAddr) -> String {
    let (remote, to) = (remote.to_string(), to.to_string());
    if remote == to { remote } else { format!("{remote} at {to}") }
}

fn count(failed: usize) -> String {
    if failed > 1 { format!(" ({failed} addresses failed)") } else { String::new() }
}

/// Connects to `remote` and gives back the tuned connection and the address that won.
///
/// A name is resolved afresh, for which three quarters of `timeout` may be used; `timeout` bounds everything.
/// With [`TcpOptions::bind`], addresses of the other family are left out.
///
/// # Errors
/// See [`DialError`]. When several addresses fail, the most telling failure is reported: one on this side,
/// else the last that is not just an address without a route.
pub(crate) async fn dial(
    remote: &HostPort,
    options: &TcpOptions,
    timeout: Duration,
) -> Result<(TcpStream, SocketAddr), DialError> {
    within(remote, timeout, async {
        let addresses = resolve(remote, options, timeout / 4 * 3).await?;
        connect_any(remote, addresses, |to| connect(options, to)).await
    })
    .await
}

async fn within<T>(
    remote: &HostPort,
    after: Duration,
    work: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    match tokio::time::timeout(after, work).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout { remote: remote.clone(), after }),
    }
}

/// The addresses of a name, in the resolver's order, those that can be reached from [`TcpOptions::bind`]; never none.
///
/// # Errors
/// [`DialError::Resolve`] or `NoAddress`.
pub(crate) async fn resolve(
    remote: &HostPort,
    options: &TcpOptions,
    timeout: Duration,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Ok(ip) = remote.host.parse::<IpAddr>() {
        return of_family(&remote.host, vec![SocketAddr::new(ip, remote.port)], options.bind);
    }
    // An address with a zone (fe80::1%eth0) goes this way too: only getaddrinfo knows the interfaces.
    let answer = match tokio::time::timeout(timeout, lookup_host((remote.host.as_str(), remote.port))).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}"))),
    };
    match answer {
        Ok(addresses) => of_family(&remote.host, addresses.collect(), options.bind),
        Err(source) => Err(DialError::Resolve { host: remote.host.clone(), source }),
    }
}

/// The addresses that can be reached from `bind`; never empty.
fn of_family(
    host: &str,
    mut addresses: Vec<SocketAddr>,
    bind: Option<IpAddr>,
) -> Result<Vec<SocketAddr>, DialError> {
    let wanted = match bind {
        None => "address",
        Some(IpAddr::V4(_)) => "IPv4 address",
        Some(IpAddr::V6(_)) => "IPv6 address",
    };
    addresses.retain(|addr| bind.is_none_or(|bind| bind.is_ipv4() == addr.is_ipv4()));
    if addresses.is_empty() {
        return Err(DialError::NoAddress { host: host.to_owned(), wanted });
    }
    Ok(addresses)
}

/// Why one address did not work out.
#[derive(Debug)]
enum Failure {
    Socket(SocketError),
    Connect(io::Error),
}

impl Failure {
    /// How much it says about what is wrong. A machine with one family only always fails for the other one.
    fn tells(&self) -> u8 {
        use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
        match self {
            Self::Socket(SocketError::Create { .. }) => 0,
            Self::Connect(error)
                if matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable) =>
            {
                0
            }
            Self::Connect(_) => 1,
            Self::Socket(_) => 2,
        }
    }

    fn into_error(self, remote: &HostPort, to: SocketAddr, failed: usize) -> DialError {
        let remote = remote.clone();
        match self {
            Self::Socket(source) => DialError::Socket { remote, failed, source },
            Self::Connect(source) => DialError::Connect { remote, to, failed, source },
        }
    }
}

async fn connect(options: &TcpOptions, to: SocketAddr) -> Result<TcpStream, Failure> {
    tracing::debug!(%to, "connecting");
    let socket = options.socket_for(to).map_err(Failure::Socket)?;
    connect_from(TcpSocket::from_std_stream(socket.into()), to).await
}

async fn connect_from(socket: TcpSocket, to: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = socket.connect(to).await.map_err(Failure::Connect)?;
    // Dialing a closed port of this machine again and again, the system one day picks that very port to dial
    // from, and TCP connects the socket with itself (RFC 9293 §3.5, simultaneous open).
    if stream.local_addr().map_err(Failure::Connect)? == to {
        return Err(Failure::Connect(io::ErrorKind::ConnectionRefused.into()));
    }
    tune_tcp(&stream).map_err(Failure::Socket)?;
    Ok(stream)
}

/// Runs the race over `addresses`, of which there is at least one, with `connect` as the attempt to each.
async fn connect_any<T, F>(
    remote: &HostPort,
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(T, SocketAddr), DialError>
where
    F: Future<Output = Result<T, Failure>>,
{
    let began = Instant::now();
    let mut race = Race::new(addresses);
    let mut attempts = Attempts(Vec::new());
    let mut failed = 0;
    let mut telling: Option<(Failure, SocketAddr)> = None;
    loop {
        let ended = match race.poll(began.elapsed()) {
            Step::Start(to) => {
                attempts.0.push((to, Box::pin(connect(to))));
                continue;
            }
            Step::WaitUntil(at) => tokio::time::timeout_at(began + at, attempts.next()).await.ok(),
            Step::WaitForAttempts => Some(attempts.next().await),
            Step::Exhausted => break,
        };
        match ended {
            Some((to, Ok(connection))) => return Ok((connection, to)),
            Some((to, Err(failure))) => {
                race.failed(to);
                failed += 1;
                if telling.as_ref().is_none_or(|(known, _)| failure.tells() >= known.tells()) {
                    telling = Some((failure, to));
                }
            }
            None => {}
        }
    }
    Err(match telling {
        Some((failure, to)) => failure.into_error(remote, to, failed),
        None => DialError::NoAddress { host: remote.host.clone(), wanted: "address" },
    })
}

/// The attempts under way, at most [`race::MAX_ADDRESSES`]; so few that each wake may poll them all.
struct Attempts<F>(Vec<(SocketAddr, Pin<Box<F>>)>);

impl<F: Future> Attempts<F> {
    /// The next one to end; pending for ever when there is none. Dropping this future loses nothing.
    async fn next(&mut self) -> (SocketAddr, F::Output) {
        poll_fn(|cx| {
            for index in 0..self.0.len() {
                if let Poll::Ready(output) = self.0[index].1.as_mut().poll(cx) {
                    let (to, _) = self.0.remove(index);
                    return Poll::Ready((to, output));
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::pending;
    use std::net::Ipv6Addr;
    use std::rc::Rc;

    use tokio::net::TcpListener;

    use super::*;
    use crate::sockopt::listen_tcp;

    const TIMEOUT: Duration = Duration::from_secs(4);

    fn listener(ip: impl Into<IpAddr>) -> Result<TcpListener, SocketError> {
        let listener = listen_tcp(SocketAddr::new(ip.into(), 0), false, &TcpOptions::default())?;
        Ok(TcpListener::from_std(listener).unwrap())
    }

    /// Holds its port without listening, so connecting there is refused and nobody else gets it.
    fn refusing() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = socket.local_addr().unwrap();
        (socket, addr)
    }

    fn name() -> HostPort {
        HostPort { host: "relay.example".to_owned(), port: 443 }
    }

    fn documentation(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 443).into()
    }

    fn error(kind: io::ErrorKind) -> Failure {
        Failure::Connect(kind.into())
    }

    #[tokio::test]
    async fn a_literal_address_is_dialed_and_the_connection_tuned() {
        let listener = listener([127, 0, 0, 1]).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stream, to) = dial(&addr.into(), &TcpOptions::default(), TIMEOUT).await.unwrap();
        let (_, from) = listener.accept().await.unwrap();
        assert_eq!((to, from), (addr, stream.local_addr().unwrap()));
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn ipv6_is_dialed_too() {
        let Ok(listener) = listener(Ipv6Addr::LOCALHOST) else {
            eprintln!("skipped: this machine has no IPv6");
            return;
        };
        let addr = listener.local_addr().unwrap();
        let (_, to) = dial(&addr.into(), &TcpOptions::default(), TIMEOUT).await.unwrap();
        assert_eq!(to, addr);
    }

    #[tokio::test]
    async fn a_name_is_resolved_and_only_the_family_of_bind_is_tried() {
        let listener = listener([127, 0, 0, 1]).unwrap();
        let addr = listener.local_addr().unwrap();
        let remote = HostPort { host: "localhost".to_owned(), port: addr.port() };
        let options = TcpOptions { bind: Some([127, 0, 0, 2].into()), ..TcpOptions::default() };
        // Only Linux takes all of 127.0.0.0/8 for its own.
        if cfg!(target_os = "linux") {
            let (_, to) = dial(&remote, &options, TIMEOUT).await.unwrap();
            let (_, from) = listener.accept().await.unwrap();
            assert_eq!((to, from.ip()), (addr, IpAddr::from([127, 0, 0, 2])));
        }
    }

    #[tokio::test]
    async fn an_address_of_the_other_family_is_no_address() {
        let remote = HostPort { host: "::1".to_owned(), port: 1 };
        let options = TcpOptions { bind: Some([127, 0, 0, 1].into()), ..TcpOptions::default() };
        let error = dial(&remote, &options, TIMEOUT).await.unwrap_err();
        assert!(matches!(error, DialError::NoAddress { .. }));
        assert_eq!(error.to_string(), "'::1' has no IPv4 address");
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_zone_becomes_a_scope() {
        let remote = HostPort { host: "fe80::1%lo".to_owned(), port: 7 };
        let addresses = resolve(&remote, &TcpOptions::default(), TIMEOUT).await.unwrap();
        let SocketAddr::V6(addr) = addresses[0] else { panic!("{addresses:?}") };
        assert_ne!(addr.scope_id(), 0);
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_is_named() {
        // A NUL byte is refused before anybody is asked, so this needs no name server.
        let remote = HostPort { host: "no\0name".to_owned(), port: 1 };
        let error = dial(&remote, &TcpOptions::default(), TIMEOUT).await.unwrap_err();
        assert!(matches!(error, DialError::Resolve { .. }), "{error}");
        assert!(error.to_string().contains("no\0name"), "{error}");
    }

    #[tokio::test]
    async fn a_refused_address_is_followed_by_a_good_one() {
        let (_held, bad) = refusing();
        let listener = listener([127, 0, 0, 1]).unwrap();
        let good = listener.local_addr().unwrap();
        let options = TcpOptions::default();
        let (_, to) = connect_any(&name(), vec![bad, good], |to| connect(&options, to)).await.unwrap();
        assert_eq!(to, good);
    }

    #[tokio::test]
    async fn a_refusal_names_host_and_address() {
        let (_held, bad) = refusing();
        let options = TcpOptions::default();
        let error = connect_any(&name(), vec![bad], |to| connect(&options, to)).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("connecting to relay.example:443 at {bad}: ")), "{text}");
        let error = dial(&bad.into(), &options, TIMEOUT).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("connecting to {bad}: ")), "{error}");
    }

    #[tokio::test]
    async fn an_option_that_is_refused_is_named_with_the_remote() {
        let options = TcpOptions { congestion: Some("no-such-cc".to_owned()), ..TcpOptions::default() };
        let error = dial(&documentation(1).into(), &options, TIMEOUT).await.unwrap_err();
        assert!(matches!(error, DialError::Socket { .. }));
        let text = error.to_string();
        assert!(text.contains("192.0.2.1:443") && text.contains("TCP_CONGESTION no-such-cc"), "{text}");
    }

    #[tokio::test]
    async fn a_connection_with_itself_is_none() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let itself = socket.local_addr().unwrap();
        let Err(Failure::Connect(error)) = connect_from(socket, itself).await else { panic!("connected") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn the_most_telling_failure_is_reported_with_the_number_of_failures() {
        let addresses = vec![documentation(1), documentation(2), documentation(3)];
        let failing = |to| async move {
            let refused = to == documentation(2);
            let kind =
                if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::NetworkUnreachable };
            Err::<(), _>(error(kind))
        };
        let error = connect_any(&name(), addresses, failing).await.unwrap_err();
        assert!(matches!(error, DialError::Connect { to, failed: 3, .. } if to == documentation(2)));
        assert!(error.to_string().ends_with(" (3 addresses failed)"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_addresses_are_tried_250_ms_apart_until_the_deadline() {
        let began = Instant::now();
        let starts = RefCell::new(Vec::new());
        let silent = |to| {
            starts.borrow_mut().push((began.elapsed(), to));
            pending::<Result<(), Failure>>()
        };
        let addresses = (1..=3).map(documentation).collect();
        let error = within(&name(), TIMEOUT, connect_any(&name(), addresses, silent)).await.unwrap_err();
        assert_eq!(error.to_string(), "connecting to relay.example:443: no answer within 4s");
        assert_eq!(began.elapsed(), TIMEOUT);
        let at = |index: u64, last| (Duration::from_millis(index * 250), documentation(last));
        assert_eq!(*starts.borrow(), [at(0, 1), at(1, 2), at(2, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_can_still_win_over_a_later_one() {
        let began = Instant::now();
        let answering = |to| async move {
            let delay = if to == documentation(1) { 300 } else { 100 };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            Ok::<_, Failure>(to)
        };
        let addresses = vec![documentation(1), documentation(2)];
        let (answered, to) = connect_any(&name(), addresses, answering).await.unwrap();
        assert_eq!((answered, to), (documentation(1), documentation(1)));
        assert_eq!(began.elapsed(), Duration::from_millis(300));
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_dial_drops_every_attempt() {
        let alive = Rc::new(());
        let silent = |_| {
            let held = Rc::clone(&alive);
            async move {
                let _held = held;
                pending::<Result<(), Failure>>().await
            }
        };
        let remote = name();
        let mut dialing = Box::pin(connect_any(&remote, vec![documentation(1), documentation(2)], silent));
        let waited = tokio::time::timeout(Duration::from_secs(1), dialing.as_mut()).await;
        assert!(waited.is_err());
        assert_eq!(Rc::strong_count(&alive), 3);
        drop(dialing);
        assert_eq!(Rc::strong_count(&alive), 1);
    }
}
