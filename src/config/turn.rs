//! What a TURN client is told. A placeholder.

use super::{ChildId, ConfigError};

/// One TURN client.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TurnConfig {
    /// Names the client in events and messages.
    pub name: ChildId,
}

impl TurnConfig {
    /// A TURN client that does nothing yet.
    pub fn new(name: impl Into<ChildId>) -> Self {
        Self { name: name.into() }
    }

    /// Whether all values make sense together.
    ///
    /// # Errors
    /// One sentence that names the field and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}
