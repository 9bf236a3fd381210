//! The TCP relay.

pub(crate) mod attributes;
pub(crate) mod directory;
pub(crate) mod lobby;
pub(crate) mod messages;
