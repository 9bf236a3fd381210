//! The TCP relay.

pub(crate) mod accounts;
pub(crate) mod attributes;
pub(crate) mod messages;
