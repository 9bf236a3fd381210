//! What is asked of a request, in the order of the protocol, as far as its connection does not matter: 401 without
//! integrity, 400 where credentials lack something, 401 for user or password, 438, and then, to be answered sealed, 420
//! and 400.

use super::accounts::{Account, Accounts};
use super::attributes::unknown_required;
use super::messages::{Join, PASSWORD_ALGORITHMS, Refresh};
use crate::stun::{Message, raw};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// ERROR-CODE.
    pub(super) code: u16,
    /// With 420: what was not understood.
    pub(super) unknown: Vec<u16>,
}

impl Fault {
    pub(super) fn of(code: u16) -> Self {
        Self { code, unknown: Vec::new() }
    }
}

/// Who sealed this request, at `wall` seconds after 1970, by a nonce that `is_fresh`.
///
/// # Errors
/// 401, 400 or 438. An unknown user costs what a wrong password costs, and is told by nothing.
pub(super) fn authenticate(
    accounts: &Accounts,
    wall: u64,
    is_fresh: impl Fn(&[u8]) -> bool,
    request: &Message<'_>,
) -> Result<Account, Fault> {
    if !request.has_sha256() {
        return Err(Fault::of(401));
    }
    let nonce = request.attribute(raw::NONCE).ok_or(Fault::of(400))?;
    let has = |kind| request.attribute(kind).is_some();
    // Whoever returns another list was told another one, by someone in between.
    let is_ours = |kind| request.attribute(kind) == Some(&PASSWORD_ALGORITHMS);
    if ![raw::REALM, raw::USERNAME].into_iter().all(has)
        || ![raw::PASSWORD_ALGORITHM, raw::PASSWORD_ALGORITHMS].into_iter().all(is_ours)
    {
        return Err(Fault::of(400));
    }
    let account = accounts.authenticate(wall, request).ok_or(Fault::of(401))?;
    if is_fresh(nonce) { Ok(account) } else { Err(Fault::of(438)) }
}

/// # Errors
/// 420 or 400.
pub(super) fn read_join(request: &Message<'_>) -> Result<Join, Fault> {
    understood(request)?;
    Join::read(request).map_err(|_| Fault::of(400))
}

/// # Errors
/// 420 or 400.
pub(super) fn read_refresh(request: &Message<'_>) -> Result<Refresh, Fault> {
    understood(request)?;
    Refresh::read(request).map_err(|_| Fault::of(400))
}

/// # Errors
/// 420 if something is there that must be understood and is not.
pub(super) fn understood(request: &Message<'_>) -> Result<(), Fault> {
    let unknown = unknown_required(request);
    if unknown.is_empty() { Ok(()) } else { Err(Fault { code: 420, unknown }) }
}
