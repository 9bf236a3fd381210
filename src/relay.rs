//! The TCP relay.

pub(crate) mod accounts;
pub(crate) mod attributes;
mod checks;
pub(crate) mod connection;
pub(crate) mod messages;
pub(crate) mod nonce;
