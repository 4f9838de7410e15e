//! zstd (RFC 8878), any number of frames.

use std::fmt;

use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::{Decode, Defect, Step};
use crate::limits;

/// `ZSTD_error_frameParameter_windowTooLarge` (zstd_errors.h).
const WINDOW_TOO_LARGE: usize = 16;

/// Decoder of one body.
pub(super) struct Zstd {
    context: Option<DCtx<'static>>,
    /// Between frames, behind at least one.
    between: bool,
    /// A frame was complete.
    any: bool,
}

impl Zstd {
    pub(super) fn new() -> Self {
        let context = DCtx::try_create().and_then(|mut context| {
            context.set_parameter(DParameter::WindowLogMax(limits::ZSTD_WINDOW_LOG)).ok()?;
            Some(context)
        });
        Self { context, between: false, any: false }
    }
}

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zstd").field("between", &self.between).finish_non_exhaustive()
    }
}

impl Decode for Zstd {
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Defect> {
        if input.is_empty() && self.between {
            return Ok(Step { read: 0, written: 0 });
        }
        let Some(context) = &mut self.context else { return Err(Defect::TooLong) };
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(out));
        match context.decompress_stream(&mut to, &mut from) {
            Ok(hint) => {
                self.between = hint == 0;
                self.any |= self.between;
            }
            Err(code) if 0_usize.wrapping_sub(code) == WINDOW_TOO_LARGE => return Err(Defect::TooLong),
            // Garbage where the next frame could begin does not spoil those before it.
            Err(_) if self.any && self.between => return Err(Defect::Trailing),
            Err(_) => return Err(Defect::Invalid),
        }
        Ok(Step { read: from.pos(), written: to.pos() })
    }

    fn is_complete(&self) -> bool {
        self.between
    }
}
