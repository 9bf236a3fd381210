//! The attributes of our own, and what is in them.

use std::fmt;
use std::time::Duration;

use crate::stun::{Draft, Message, raw};

pub(super) const PAIR_ID: u16 = 0x7f01;
pub(super) const SIDE_ID: u16 = 0x7f02;
pub(super) const PEER_STATUS: u16 = 0x7f03;
pub(super) const REASON: u16 = 0x7f04;
pub(super) const INSTANCE: u16 = 0x7f05;
/// The only one that a reader may pass over.
pub(super) const RETRY_AFTER: u16 = 0xff01;
/// Those of them that a reader must understand.
pub(super) const REQUIRED: [u16; 5] = [PAIR_ID, SIDE_ID, PEER_STATUS, REASON, INSTANCE];

/// The longest PAIR-ID and SIDE-ID, in bytes.
const MAX_ID_LEN: usize = 64;
/// The longest RETRY-AFTER that a side believes.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// A message lacks an attribute, or has one that is malformed; says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is missing or malformed")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// PAIR-ID: 1 to 64 bytes. Who knows it may meet whoever else does, so `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PairId(Vec<u8>);

impl PairId {
    /// `None` if it is empty or longer than 64 bytes.
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Option<Self> {
        Some(Self(bytes.into())).filter(|id| (1..=MAX_ID_LEN).contains(&id.0.len()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairId(…)")
    }
}

/// SIDE-ID: the name of one side of a pair; 1 to 64 bytes, no control characters, compared as bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SideId(String);

impl SideId {
    /// `None` if it is empty, longer than 64 bytes, or has a control character.
    pub(crate) fn new(text: impl Into<String>) -> Option<Self> {
        Some(Self(text.into()))
            .filter(|Self(id)| (1..=MAX_ID_LEN).contains(&id.len()) && !id.contains(char::is_control))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SideId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// INSTANCE: random, one value per session object. A session that is superseded sees by it whether that was itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Instance(pub(crate) [u8; 8]);

/// PEER-STATUS: whether the other side is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerStatus {
    Absent = 0,
    Present = 1,
    /// It was there, and has left.
    Gone = 2,
}

/// REASON: why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The same side has joined on another connection.
    Superseded = 1,
    /// The relay restarts; RETRY-AFTER says when to come back.
    Restarting = 2,
    /// Nothing came any more, not even an answer.
    Idle = 3,
    /// Nobody came while LIFETIME ran.
    LifetimeOver = 4,
    /// What came could not be understood.
    ProtocolError = 5,
    /// One of the relay's limits.
    Limit = 6,
}

impl Reason {
    pub(super) fn of(number: u32) -> Option<Self> {
        use Reason::{Idle, LifetimeOver, Limit, ProtocolError, Restarting, Superseded};
        let all = [Superseded, Restarting, Idle, LifetimeOver, ProtocolError, Limit];
        all.into_iter().find(|reason| *reason as u32 == number)
    }
}

/// The attributes that must be understood and are not.
pub(crate) fn unknown_required(message: &Message<'_>) -> Vec<u16> {
    message.unknown_required(&REQUIRED)
}

pub(super) fn understood(message: &Message<'_>) -> Result<(), Malformed> {
    match unknown_required(message)[..] {
        [] => Ok(()),
        _ => Err(Malformed("an attribute that must be understood")),
    }
}

pub(super) fn with_u32(draft: Draft, kind: u16, value: Option<u32>) -> Draft {
    match value {
        Some(value) => draft.with_u32(kind, value),
        None => draft,
    }
}

pub(super) fn with_bytes(draft: Draft, kind: u16, text: Option<&str>) -> Draft {
    match text {
        Some(text) => draft.with(kind, text.as_bytes()),
        None => draft,
    }
}

pub(super) fn with_retry_after(draft: Draft, after: Option<Duration>) -> Draft {
    with_u32(draft, RETRY_AFTER, after.map(|after| after.as_millis().try_into().unwrap_or(u32::MAX)))
}

pub(super) fn u32_of(message: &Message<'_>, kind: u16) -> Result<Option<u32>, Malformed> {
    let Some(value) = message.attribute(kind) else { return Ok(None) };
    let value = value.try_into().map_err(|_| Malformed("a number of 32 bits"))?;
    Ok(Some(u32::from_be_bytes(value)))
}

pub(super) fn lifetime_of(message: &Message<'_>) -> Result<Option<u32>, Malformed> {
    u32_of(message, raw::LIFETIME).map_err(|_| Malformed("LIFETIME"))
}

pub(super) fn status_of(message: &Message<'_>) -> Result<PeerStatus, Malformed> {
    match u32_of(message, PEER_STATUS) {
        Ok(Some(0)) => Ok(PeerStatus::Absent),
        Ok(Some(1)) => Ok(PeerStatus::Present),
        Ok(Some(2)) => Ok(PeerStatus::Gone),
        _ => Err(Malformed("PEER-STATUS")),
    }
}

pub(super) fn side_of(message: &Message<'_>) -> Result<Option<SideId>, Malformed> {
    let Some(value) = message.attribute(SIDE_ID) else { return Ok(None) };
    str::from_utf8(value).ok().and_then(SideId::new).ok_or(Malformed("SIDE-ID")).map(Some)
}

pub(super) fn instance_of(message: &Message<'_>) -> Result<Option<Instance>, Malformed> {
    let Some(value) = message.attribute(INSTANCE) else { return Ok(None) };
    value.try_into().map(|value| Some(Instance(value))).map_err(|_| Malformed("INSTANCE"))
}

/// RETRY-AFTER, at most [`MAX_RETRY_AFTER`]. A malformed one is passed over, as any optional attribute.
pub(super) fn retry_after_of(message: &Message<'_>) -> Option<Duration> {
    let millis = u32_of(message, RETRY_AFTER).ok()??;
    Some(Duration::from_millis(millis.into()).min(MAX_RETRY_AFTER))
}

/// `None` if there is none, or it is not UTF-8.
pub(super) fn text_of(message: &Message<'_>, kind: u16) -> Option<String> {
    str::from_utf8(message.attribute(kind)?).ok().map(str::to_owned)
}

/// The same, where it is shown to people: `None` also if it has control characters.
pub(super) fn name_of(message: &Message<'_>, kind: u16) -> Option<String> {
    text_of(message, kind).filter(|text| !text.contains(char::is_control))
}
