//! stand-in
pub(crate) mod directory;
pub(crate) mod lobby;
pub(crate) mod messages;
