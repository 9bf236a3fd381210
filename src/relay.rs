//! The TCP relay, and what its clients need of it.

pub(crate) mod channels;
