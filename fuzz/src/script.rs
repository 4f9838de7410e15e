//! Input of the targets that test conversations: plain bytes, with marks that begin with `~`. So seeds are readable, and a
//! mutation moves a mark or a byte and leaves the rest as it was.

/// One step of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op<'a> {
    /// Bytes up to the next mark; at least one.
    Bytes(&'a [u8]),
    /// `~` and a letter, with the number after it where the mark takes one (else 0).
    Mark(u8, u8),
}

/// Reads a script. `numbered` are the marks that are followed by a number: one byte, counted from `0`.
pub(crate) fn parse<'a>(mut script: &'a [u8], numbered: &[u8]) -> Vec<Op<'a>> {
    let mut ops = Vec::new();
    while !script.is_empty() {
        let at = script.iter().position(|&b| b == b'~').unwrap_or(script.len());
        let (bytes, rest) = script.split_at(at);
        if !bytes.is_empty() {
            ops.push(Op::Bytes(bytes));
        }
        script = match rest {
            [_, mark, number, rest @ ..] if numbered.contains(mark) => {
                ops.push(Op::Mark(*mark, number.wrapping_sub(b'0')));
                rest
            }
            [_, mark, rest @ ..] => {
                ops.push(Op::Mark(*mark, 0));
                rest
            }
            _ => &[],
        };
    }
    ops
}
