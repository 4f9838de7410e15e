//! The error of a whole command, with the exit code that the command line promises.

use crate::config::ConfigError;

/// Why a command failed. The message is one sentence that says what to do, where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration or the command line; exit code 78 or 64.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Anything that failed while running; exit code 1.
    #[error("{message}")]
    Runtime {
        /// What failed and what to do about it.
        message: String,
        /// Why.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl RunError {
    /// A failure with nothing below it.
    #[must_use]
    pub fn runtime(message: impl Into<String>) -> Self {
        Self::Runtime { message: message.into(), source: None }
    }

    /// A failure caused by another error.
    #[must_use]
    pub fn caused(message: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Runtime { message: message.into(), source: Some(source.into()) }
    }

    /// Exit code of the process: 64 usage, 78 configuration, 1 runtime.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(error) => error.exit_code(),
            Self::Runtime { .. } => 1,
        }
    }
}
