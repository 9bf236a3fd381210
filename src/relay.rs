//! The TCP relay.

pub(crate) mod attributes;
pub(crate) mod messages;
