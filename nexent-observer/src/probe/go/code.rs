//! Where probes sit in a Go function: its stack check, whose branch the kernel emulates, and its returns.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Places in a function, as offsets from its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The branch of the stack check: arguments and stack pointer are as at entry there.
    pub(super) check: u64,
    /// Each `RET`.
    pub(super) returns: Vec<u64>,
}

/// Why a function is not hooked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotGo {
    /// It does not begin as the compiler makes functions begin.
    #[error("it does not begin with Go's stack check")]
    NoStackCheck,
    /// The bytes of its range are not all instructions.
    #[error("not all of its bytes decode as instructions")]
    Undecodable,
    /// It does not return, or too often for a function of its kind.
    #[error("it has {0} returns")]
    Returns(usize),
}

/// Most returns that a function may have.
const MAX_RETURNS: usize = 64;

/// Instructions in which the stack check must come.
const CHECK_WITHIN: usize = 6;

/// Whether an instruction is `cmp reg, [r14+0x10]`: the stack guard of the goroutine (`g.stackguard0`).
fn is_guard_compare(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Cmp
        && matches!(insn.op0_register(), Register::RSP | Register::R12 | Register::R13)
        && insn.op1_kind() == OpKind::Memory
        && insn.memory_base() == Register::R14
        && insn.memory_index() == Register::None
        && insn.memory_displacement64() == 0x10
}

/// Whether an instruction belongs to the stack check of a large frame: it touches the scratch registers only.
fn prepares_check(insn: &Instruction) -> bool {
    let scratch = matches!(insn.op0_register(), Register::R12 | Register::R13);
    let plain = matches!(insn.mnemonic(), Mnemonic::Lea | Mnemonic::Mov | Mnemonic::Sub);
    (scratch && plain) || insn.mnemonic() == Mnemonic::Jb
}

/// Finds the places in the function whose bytes are `code`, from its first to the beginning of the next.
///
/// # Errors
/// [`NotGo`]; the function must not be hooked then.
pub(super) fn places(code: &[u8], address: u64) -> Result<Places, NotGo> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let (mut check, mut compared) = (None, false);
    let mut returns = Vec::new();
    let mut insn = Instruction::default();
    let mut index = 0;
    while decoder.can_decode() {
        decoder.decode_out(&mut insn);
        if insn.is_invalid() {
            return Err(NotGo::Undecodable);
        }
        if check.is_none() {
            match () {
                () if index >= CHECK_WITHIN => return Err(NotGo::NoStackCheck),
                () if is_guard_compare(&insn) => compared = true,
                () if compared && insn.mnemonic() == Mnemonic::Jbe => check = Some(insn.ip() - address),
                () if !compared && prepares_check(&insn) => {}
                () => return Err(NotGo::NoStackCheck),
            }
        }
        match insn.code() {
            Code::Retnq => returns.push(insn.ip() - address),
            Code::Retnq_imm16 | Code::Retfq | Code::Retfd => return Err(NotGo::Undecodable),
            _ => {}
        }
        index += 1;
    }
    let check = check.ok_or(NotGo::NoStackCheck)?;
    if returns.is_empty() || returns.len() > MAX_RETURNS {
        return Err(NotGo::Returns(returns.len()));
    }
    Ok(Places { check, returns })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cmp rsp,[r14+0x10]; jbe +9; push rbp; mov rbp,rsp; nop; pop rbp; ret; call; jmp` as the compiler lays it out.
    const SMALL: [u8; 22] = [
        0x49, 0x3b, 0x66, 0x10, 0x76, 0x07, 0x55, 0x48, 0x89, 0xe5, 0x90, 0x5d, 0xc3, 0xe8, 0, 0, 0, 0, 0xeb, 0xec,
        0xcc, 0xcc,
    ];

    #[test]
    fn the_stack_check_and_every_return_are_found() {
        assert_eq!(places(&SMALL, 0x1000), Ok(Places { check: 4, returns: vec![12] }));
        // lea r12,[rsp-0x100]; cmp r12,[r14+0x10]; jbe; ret; ret
        let large = [0x4c, 0x8d, 0xa4, 0x24, 0x00, 0xff, 0xff, 0xff, 0x4d, 0x3b, 0x66, 0x10, 0x76, 0x01, 0xc3, 0xc3];
        assert_eq!(places(&large, 0x1000), Ok(Places { check: 12, returns: vec![14, 15] }));
    }

    #[test]
    fn a_function_without_a_stack_check_is_refused() {
        assert_eq!(places(&[0x55, 0x48, 0x89, 0xe5, 0xc3], 0), Err(NotGo::NoStackCheck));
        // cmp rbx,[r14+0x10] is no stack check
        assert_eq!(places(&[0x49, 0x3b, 0x5e, 0x10, 0x76, 0x00, 0xc3], 0), Err(NotGo::NoStackCheck));
        // the branch comes too late: a register was changed before it
        assert_eq!(places(&[0x49, 0x3b, 0x66, 0x10, 0x48, 0x89, 0xd8, 0x76, 0x00, 0xc3], 0), Err(NotGo::NoStackCheck));
        assert_eq!(places(&[], 0), Err(NotGo::NoStackCheck));
    }

    #[test]
    fn a_function_that_does_not_decode_or_does_not_return_is_refused() {
        assert_eq!(places(&SMALL[..12], 0), Err(NotGo::Returns(0)));
        assert_eq!(places(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x00, 0x06, 0xc3], 0), Err(NotGo::Undecodable));
        let mut many = SMALL[..6].to_vec();
        many.extend([0xc3; MAX_RETURNS + 1]);
        assert_eq!(places(&many, 0), Err(NotGo::Returns(MAX_RETURNS + 1)));
    }
}
