//! Recordings: what they hold, how it is written, and how content is taken out of it.
//!
//! A recording is a sequence of entries ([`entry`]) in compressed blocks ([`frame`]). It is of one of two kinds: all that the pipeline was
//! fed with, with every byte of content, or what a [`Tap`](crate::pipeline::Tap) was shown, after a [`Redactor`] took content and secrets
//! out. docs/recording.md describes the file. Bytes only: who writes and reads files stands elsewhere.

pub mod entry;
pub mod frame;
mod redact;
mod wire;

pub use redact::{Redactor, Secret};
