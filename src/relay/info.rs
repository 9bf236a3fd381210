//! What a relay says of itself.

use std::fmt;
use std::net::SocketAddr;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::config::ChildId;
use crate::counters::RelayCounters;

/// The answer to [`GetRelay`](super::GetRelay).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RelayInfo {
    /// The relay's name.
    pub name: ChildId,
    /// Where sides connect to, with the ports the system chose.
    pub local_tcp: Vec<SocketAddr>,
    /// Connections that have not joined, those included whose PROXY header has not come.
    pub unjoined: usize,
    /// Sides that have.
    pub sides: usize,
    /// Their pairs, those with one side included.
    pub pairs: usize,
    /// What was forwarded and dropped since the relay was first started, restarts included.
    pub counters: RelayCounters,
}

/// One pair, in the answer to [`GetPairs`](super::GetPairs).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PairInfo {
    /// Stands for its PAIR-ID.
    pub pair: PairLabel,
    /// The sides that are there: one or two.
    pub sides: Vec<SideInfo>,
    /// What was forwarded and dropped since its first side came.
    pub counters: RelayCounters,
}

/// One side of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SideInfo {
    /// Its name (SIDE-ID).
    pub side: String,
    /// Whose it is.
    pub user: String,
    /// Where it calls from.
    pub peer: SocketAddr,
}

/// Stands for a pair where people see it: who knows a PAIR-ID may meet its sides, so that is shown to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PairLabel([u8; 4]);

impl PairLabel {
    pub(crate) fn of(pair: &[u8]) -> Self {
        let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(pair));
        Self([a, b, c, d])
    }
}

impl fmt::Display for PairLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for PairLabel {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
