//! Carries UDP where only TCP gets through, as supervised [actix] actors.
//!
//! A *session* forwards the datagrams of local UDP applications through a TCP stream to its twin, and back.
//! A *supervisor* starts sessions, restarts what failed and tells subscribers what happened. On the stream
//! stand RFC 4571 frames, a 16-bit length before each datagram, so the twin may be any program that speaks
//! them.
//!
//! A *TURN client* (RFC 8656) keeps an allocation on a TURN server: datagrams to and from UDP peers, or connections
//! with TCP peers (RFC 6062), which a session can run on too, so that any TURN server serves as a TCP relay.
//!
//! ```
//! use actix::prelude::*;
//! use actix_relay::config::{SessionConfig, SupervisorConfig};
//! use actix_relay::session::GetSession;
//! use actix_relay::supervisor::{Shutdown, StartSession, SupervisorActor};
//!
//! # #[actix::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let any = "127.0.0.1:0".parse()?;
//! let service = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
//! let supervisor = SupervisorActor::new(SupervisorConfig::default()).start();
//! // The far side waits for peers and forwards to the service, the near side calls it.
//! let config = SessionConfig::listen("far", any).udp_forward(service.local_addr()?);
//! let far = supervisor.send(StartSession { config }).await??;
//! let listening = far.send(GetSession).await?.local_tcp[0];
//! let config = SessionConfig::connect("near", listening).local_udp(any);
//! let near = supervisor.send(StartSession { config }).await??;
//! // What an application sends to the near side's UDP port reaches the service.
//! let entry = near.send(GetSession).await?.local_udp.expect("it has one");
//! tokio::net::UdpSocket::bind(any).await?.send_to(b"hello", entry).await?;
//! let mut buffer = [0; 1500];
//! let (len, _) = service.recv_from(&mut buffer).await?;
//! assert_eq!(&buffer[..len], b"hello");
//! supervisor.send(Shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to look
//!
//! - [`config`]: what sessions, TURN clients, relays and a supervisor are told.
//! - [`credentials`]: user names and passwords for TURN servers.
//! - [`supervisor`]: the messages that start and stop sessions and subscribe to events.
//! - [`session`]: the messages a session takes: [`Connect`](session::Connect), [`Listen`](session::Listen),
//!   [`Disconnect`](session::Disconnect), [`GetSession`](session::GetSession).
//! - [`event`]: what a subscriber hears.
//! - [`counters`]: what was carried, and what was dropped for which reason.
//! - [`udp`], [`tcp`]: the actors at the two ends of a link; a session starts them.
//! - [`turn`]: the messages a TURN client takes, and [`RelayStream`](turn::RelayStream).
//! - [`relay`]: the messages a TCP relay takes, where sides that can only call out meet.
//!
//! *The seeds*, in the documentation of single items, are the two descriptions that this crate follows: wodVPN's
//! TCPHandler, which is a session here, and the observer of icey's TURN client. What stands for something of theirs
//! names it.
//!
//! # What it does not do
//!
//! Without [`tls`](config::SessionConfig::tls) the stream is neither encrypted nor authenticated: whoever reaches a
//! listening port reaches the service behind it, unless [`allow`](config::SessionConfig::allow), or the pins of
//! [`listen_tls`](config::SessionConfig::listen_tls), keep him out. Carry what protects itself, such as WireGuard, DTLS
//! or QUIC.

pub mod config;
pub mod counters;
pub mod credentials;
pub mod event;
pub mod relay;
pub mod session;
pub mod subscribers;
pub mod supervisor;
pub mod tcp;
#[cfg(feature = "test-panic")]
#[doc(hidden)]
pub mod test_panic;
pub mod turn;
pub mod udp;

mod accept;
mod clock;
mod datagrams;
mod dial;
mod flow;
mod handshakes;
mod lane;
mod link;
mod link_stream;
mod links;
mod listen;
mod relay_accept;
mod relay_arrival;
mod relay_buffers;
mod relay_conn;
mod relay_desk;
mod relay_link;
mod relay_paths;
mod relay_proxied;
mod relay_pump;
mod renew;
mod session_relay;
mod session_tls;
mod session_turn;
mod slots;
mod sockets;
mod sockopt;
mod stream;
mod stun;
mod tls;
mod tls_files;
mod tls_stream;
mod transport;
mod turn_data;
mod turn_dial;
mod turn_forwards;
mod turn_handlers;
mod turn_io;
mod turn_outputs;
mod turn_path;
mod turn_stream;
mod turn_tcp;
mod udp_io;
mod udp_relayed;
mod workers;
