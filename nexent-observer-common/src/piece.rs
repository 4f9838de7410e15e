//! How one call is cut into records. Pure, so that the same decision is tested on the host and verified in the kernel.

use crate::record::MAX_PIECE;

/// Most records that one call is cut into; what is left after them becomes one header-only record. 40 pieces are 638 KiB:
/// twice the largest single call seen of a real client (300 KB), and a bound that the verifier can walk.
pub const MAX_PIECES: u32 = 40;

/// Which bytes of a call are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Bytes kept from the beginning of the call.
    pub head: u64,
    /// Bytes kept from its end.
    pub tail: u64,
}

impl Window {
    /// Keep all.
    pub const ALL: Self = Self { head: u64::MAX, tail: 0 };

    /// What is kept of a written call of `n` bytes, when `written` bytes of the same turn went before and the caps of a turn
    /// are `head_cap` and `tail_cap`. The end of a turn is not known in advance, so the tail of every call is kept.
    #[must_use]
    #[inline(always)]
    pub fn of_write(written: u64, head_cap: u64, tail_cap: u64) -> Self {
        Self { head: head_cap.saturating_sub(written), tail: tail_cap }
    }
}

/// The next piece of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Bytes to copy: 0 for a header-only record.
    pub copy: u64,
    /// Bytes of the call that the record stands for.
    pub stands_for: u64,
    /// The bytes are left out on purpose.
    pub capped: bool,
}

/// The piece of a call of `n` bytes that begins at `at` (less than `n`).
#[must_use]
#[inline(always)]
pub fn next_piece(n: u64, at: u64, window: Window) -> Piece {
    let tail_begins = n.saturating_sub(window.tail);
    let head_ends = if window.head >= n { n } else { window.head };
    if at >= head_ends && at < tail_begins {
        let middle = clamp_u32(tail_begins - at);
        return Piece { copy: 0, stands_for: middle, capped: true };
    }
    // Head and tail may touch: then the piece runs across.
    let end = if at < head_ends && head_ends < tail_begins { head_ends } else { n };
    let rest = end - at;
    let copy = if rest > MAX_PIECE as u64 { MAX_PIECE as u64 } else { rest };
    Piece { copy, stands_for: copy, capped: false }
}

/// `n` as far as a record can say it.
#[must_use]
#[inline(always)]
pub fn clamp_u32(n: u64) -> u64 {
    if n > u32::MAX as u64 { u32::MAX as u64 } else { n }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts a call and checks what must hold of any cut; gives (copied head, left out, copied tail).
    fn cut(n: u64, window: Window) -> (u64, u64, u64) {
        let (mut at, mut head, mut out, mut tail, mut pieces) = (0, 0, 0, 0, 0);
        while at < n {
            let piece = next_piece(n, at, window);
            assert!(piece.stands_for > 0 && at + piece.stands_for <= n, "{piece:?} at {at} of {n}");
            assert!(piece.copy <= MAX_PIECE as u64);
            match (piece.capped, out) {
                (true, _) => out += piece.stands_for,
                (false, 0) => head += piece.copy,
                (false, _) => tail += piece.copy,
            }
            at += piece.stands_for;
            pieces += 1;
        }
        assert_eq!(at, n);
        assert!(pieces <= n / MAX_PIECE as u64 + 3);
        (head, out, tail)
    }

    #[test]
    fn a_read_is_copied_whole() {
        for n in [1, 200, 201, 16_328, 16_329, 300_069, 638 * 1024] {
            assert_eq!(cut(n, Window::ALL), (n, 0, 0));
        }
    }

    #[test]
    fn a_large_write_keeps_its_head_and_tail() {
        let window = Window { head: 32_768, tail: 65_536 };
        assert_eq!(cut(300_069, window), (32_768, 300_069 - 32_768 - 65_536, 65_536));
        assert_eq!(cut(98_304, window), (98_304, 0, 0), "head and tail that touch leave nothing out");
        assert_eq!(cut(98_305, window), (32_768, 1, 65_536));
        assert_eq!(cut(10, window), (10, 0, 0));
    }

    #[test]
    fn later_writes_of_a_turn_have_no_head_left() {
        assert_eq!(Window::of_write(0, 100, 50), Window { head: 100, tail: 50 });
        assert_eq!(Window::of_write(60, 100, 50), Window { head: 40, tail: 50 });
        assert_eq!(Window::of_write(u64::MAX, 100, 50), Window { head: 0, tail: 50 });
        assert_eq!(cut(200_000, Window { head: 0, tail: 50 }), (0, 199_950, 50));
        assert_eq!(cut(40, Window { head: 0, tail: 50 }), (40, 0, 0));
    }

    #[test]
    fn any_window_cuts_any_call_exactly() {
        let sizes = [1, 2, 49, 50, 51, 16_327, 16_328, 16_329, 40_000, 1_000_000, u32::MAX as u64 + 5];
        for n in sizes {
            for head in [0, 1, 50, 16_328, 70_000, u64::MAX] {
                for tail in [0, 1, 50, 16_328, 70_000, u64::MAX] {
                    if n > 1_000_000 && (head > 70_000 || tail > 70_000) {
                        continue;
                    }
                    let (kept_head, out, kept_tail) = cut(n, Window { head, tail });
                    assert_eq!(kept_head + out + kept_tail, n);
                    assert_eq!(out, n.saturating_sub(head.saturating_add(tail)));
                }
            }
        }
    }
}
