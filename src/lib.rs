//! Carries UDP where only TCP gets through.

pub mod config;
pub mod counters;
pub mod event;
pub mod session;
pub mod subscribers;
pub mod supervisor;
pub mod tcp;
#[cfg(feature = "test-panic")]
#[doc(hidden)]
pub mod test_panic;
pub mod udp;

mod accept;
mod datagrams;
mod dial;
mod flow;
mod lane;
mod link;
mod links;
mod listen;
mod sockets;
mod sockopt;
mod stream;
mod udp_io;
mod workers;
