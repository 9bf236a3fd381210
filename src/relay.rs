//! The TCP relay, and what its clients need of it.

pub(crate) mod attributes;
pub(crate) mod channels;
pub(crate) mod messages;
pub(crate) mod side;
