//! Recordings (docs/recording.md): `recorder` writes one while the observer runs, `replay` gives its exchanges again, anywhere and without
//! privileges, and `serve` makes a server of one recorded answer.

pub mod info;
pub mod recorder;
pub mod replay;
pub mod serve;
mod source;
