//! Where exactly a probe sits in a function: pure decisions on decoded instructions.
//!
//! The kernel emulates `push`, `nop`, `call rel`, `jmp rel` and `jcc` when a breakpoint hits them; everything else it copies
//! aside and single-steps, which costs the target about 9 us instead of 0.5 us (docs/overhead.md; arch/x86/kernel/uprobes.c).
//! So the first cheap instruction that every call passes with its arguments and its stack pointer intact is hooked; and where
//! a public function has none, the inner function behind it, if its shape is proven. A wrong address can crash the target:
//! only instruction boundaries that follow from the function's own entry are ever used.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use nexent_observer_common::cookie::Length;

/// What a hit costs the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Cost {
    /// The instruction is emulated: about 0.5 us, 0.85 us with a return probe.
    Emulated,
    /// The instruction is single-stepped: about 9 us.
    SingleStepped,
}

/// A place in a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the function's first instruction.
    pub delta: u64,
    /// What a hit costs.
    pub cost: Cost,
}

/// Why a place could not be chosen, or an inner function not proven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// The bytes at the address are no instructions.
    #[error("the bytes at the function's address do not decode as instructions")]
    Undecodable,
    /// No direct call near the beginning.
    #[error("no direct call near the beginning of the function")]
    NoCall,
    /// The two public functions call different functions.
    #[error("the two public functions do not call the same inner function")]
    Disagree,
    /// The length pointer could not be followed through the calls.
    #[error("the register with the length pointer could not be told")]
    NoLengthPointer,
    /// The inner function does not begin like one.
    #[error("the inner function does not begin with a push")]
    Prologue,
}

/// Most instructions looked at from the beginning of a function.
const LOOK: usize = 40;

fn decode(code: &[u8], address: u64) -> Decoder<'_> {
    Decoder::with_ip(64, code, address, DecoderOptions::NONE)
}

/// Whether the kernel emulates this instruction under a uprobe (push_setup_xol_ops, branch_setup_xol_ops).
fn is_emulated(insn: &Instruction) -> bool {
    match insn.code() {
        Code::Push_r64 => insn.len() <= 2,
        Code::Nopd => insn.len() == 1,
        Code::Call_rel32_64 | Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => true,
        _ => insn.flow_control() == FlowControl::ConditionalBranch && insn.is_jcc_short_or_near(),
    }
}

/// Whether an instruction may be passed over: it changes neither memory, nor registers, nor the stack.
fn is_transparent(insn: &Instruction) -> bool {
    match insn.mnemonic() {
        Mnemonic::Endbr64 | Mnemonic::Nop => true,
        Mnemonic::Test | Mnemonic::Cmp => (0..insn.op_count()).all(|op| insn.op_kind(op) != OpKind::Memory),
        _ => false,
    }
}

/// Chooses the place for a probe in the function whose first bytes are `code`. At the place arguments and stack pointer are as
/// at entry, so a return probe is as safe as at the first instruction.
///
/// # Errors
/// [`NotProven::Undecodable`] when the first instruction does not decode.
pub fn place(code: &[u8], address: u64) -> Result<Place, NotProven> {
    let mut decoder = decode(code, address);
    let mut insn = Instruction::default();
    for index in 0..8 {
        if !decoder.can_decode() {
            break;
        }
        decoder.decode_out(&mut insn);
        if insn.is_invalid() {
            if index == 0 {
                return Err(NotProven::Undecodable);
            }
            break;
        }
        if is_emulated(&insn) {
            return Ok(Place { delta: insn.ip() - address, cost: Cost::Emulated });
        }
        if !is_transparent(&insn) {
            break;
        }
    }
    if code.is_empty() {
        return Err(NotProven::Undecodable);
    }
    Ok(Place { delta: 0, cost: Cost::SingleStepped })
}

/// A call from a public function to an inner one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InnerCall {
    target: u64,
    length: Length,
}

/// Whether the caller passes its own length pointer on, or the address of a local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// `SSL_read`, `SSL_write`: `int f(ssl, buf, int num)`; the pointer is the address of a local.
    ReturnsLength,
    /// `SSL_read_ex`, `SSL_write_ex`: `int f(ssl, buf, size_t num, size_t *out)`; the pointer comes in as the 4th argument.
    StoresLength,
}

/// What a register holds, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// An argument of the public function, by index.
    Argument(usize),
    /// The address of a local.
    Stack,
    /// Something else.
    Other,
}

const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Follows a public function to its first direct call and tells where the length pointer stands there.
fn inner_call(code: &[u8], address: u64, caller: Caller) -> Result<InnerCall, NotProven> {
    let mut decoder = decode(code, address);
    let mut insn = Instruction::default();
    let mut values = [0, 1, 2, 3, 4, 5].map(|index| {
        let given = if caller == Caller::StoresLength { 4 } else { 3 };
        if index < given { Value::Argument(index) } else { Value::Other }
    });
    for _ in 0..LOOK {
        if !decoder.can_decode() {
            return Err(NotProven::NoCall);
        }
        decoder.decode_out(&mut insn);
        if insn.is_invalid() {
            return Err(NotProven::Undecodable);
        }
        if insn.code() == Code::Call_rel32_64 {
            let object = values[0] == Value::Argument(0) && values[1] == Value::Argument(1);
            let pointer = |value| match caller {
                Caller::ReturnsLength => value == Value::Stack,
                Caller::StoresLength => value == Value::Argument(3),
            };
            let length = match (object, pointer(values[3]), pointer(values[4])) {
                (true, true, false) => Length::FourthArgument,
                (true, false, true) => Length::FifthArgument,
                _ => return Err(NotProven::NoLengthPointer),
            };
            return Ok(InnerCall { target: insn.near_branch64(), length });
        }
        match insn.flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            _ => return Err(NotProven::NoCall),
        }
        track(&insn, &mut values);
    }
    Err(NotProven::NoCall)
}

/// Follows copies of the registers that matter through one instruction.
fn track(insn: &Instruction, values: &mut [Value; 6]) {
    let written = insn.op0_register().full_register();
    let Some(slot) = ARGUMENTS.iter().position(|register| *register == written) else { return };
    if matches!(insn.mnemonic(), Mnemonic::Test | Mnemonic::Cmp | Mnemonic::Push) {
        return; // reads only
    }
    let source = insn.op1_register().full_register();
    values[slot] = match (insn.mnemonic(), insn.op1_kind()) {
        (Mnemonic::Mov, OpKind::Register) if source == Register::RSP => Value::Stack,
        (Mnemonic::Mov, OpKind::Register) if insn.op0_register().size() == 8 => ARGUMENTS
            .iter()
            .position(|register| *register == source)
            .and_then(|index| values.get(index).copied())
            .unwrap_or(Value::Other),
        (Mnemonic::Lea, _) if matches!(insn.memory_base(), Register::RSP | Register::RBP) => Value::Stack,
        _ => Value::Other,
    };
}

/// An inner function that is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Virtual address.
    pub address: u64,
    /// Where it stores the length.
    pub length: Length,
}

/// The inner function behind `SSL_x` and `SSL_x_ex`, each given as (first bytes, virtual address). Proven when both lead to the
/// same function with the TLS object and the buffer untouched and the length pointer in the same register.
///
/// # Errors
/// [`NotProven`] says which part of the proof fails.
pub fn inner(plain: (&[u8], u64), extended: (&[u8], u64)) -> Result<Inner, NotProven> {
    let a = inner_call(plain.0, plain.1, Caller::ReturnsLength)?;
    let b = inner_call(extended.0, extended.1, Caller::StoresLength)?;
    if a != b {
        return Err(NotProven::Disagree);
    }
    Ok(Inner { address: a.target, length: a.length })
}

/// Whether a proven inner function begins as a function does, and where in it the probe sits.
///
/// # Errors
/// [`NotProven::Prologue`] when it does not begin with a `push` (after `endbr64`).
pub fn inner_place(code: &[u8], address: u64) -> Result<Place, NotProven> {
    let mut decoder = decode(code, address);
    let mut insn = Instruction::default();
    for _ in 0..2 {
        if !decoder.can_decode() {
            break;
        }
        decoder.decode_out(&mut insn);
        match insn.code() {
            Code::Push_r64 => return place(code, address),
            Code::Endbr64 => {}
            _ => break,
        }
    }
    Err(NotProven::Prologue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(code: &[u8]) -> Result<Place, NotProven> {
        place(code, 0x1000)
    }

    #[test]
    fn the_first_cheap_instruction_is_hooked() {
        let cheap = |delta| Ok(Place { delta, cost: Cost::Emulated });
        assert_eq!(at(&[0x55, 0x48, 0x89, 0xe5]), cheap(0), "push rbp");
        assert_eq!(at(&[0x41, 0x55, 0x41, 0x54]), cheap(0), "push r13");
        assert_eq!(at(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x57]), cheap(4), "endbr64; push r15");
        assert_eq!(at(&[0x48, 0x85, 0xff, 0x0f, 0x84, 0x97, 0x03, 0, 0]), cheap(3), "test rdi,rdi; je");
        assert_eq!(at(&[0x90, 0x90]), cheap(0), "nop");
    }

    #[test]
    fn a_function_without_a_cheap_beginning_is_hooked_at_its_entry() {
        let slow = Ok(Place { delta: 0, cost: Cost::SingleStepped });
        assert_eq!(at(&[0x48, 0x83, 0xec, 0x18, 0x55]), slow, "sub rsp,0x18; push: the stack moved");
        assert_eq!(at(&[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x83, 0xec, 0x08]), slow, "endbr64; sub");
        assert_eq!(at(&[0x89, 0xd0, 0x55]), slow, "mov eax,edx; push");
        assert_eq!(at(&[0x48, 0x39, 0x07, 0x55]), slow, "cmp [rdi],rax reads memory");
    }

    #[test]
    fn bytes_that_are_no_code_are_refused() {
        assert_eq!(at(&[]), Err(NotProven::Undecodable));
        assert_eq!(at(&[0x06, 0x06]), Err(NotProven::Undecodable));
    }

    /// Debian 12, OpenSSL 3.0: SSL_read and SSL_read_ex as they stand in the library (call targets made relative to 0).
    const SSL_READ_30: [u8; 35] = [
        0x48, 0x83, 0xec, 0x18, 0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, 0x48, 0x89, 0x44, 0x24, 0x08, 0x31, 0xc0,
        0x85, 0xd2, 0x78, 0x2f, 0x48, 0x89, 0xe1, 0x48, 0x63, 0xd2, 0xe8, 0xdd, 0x0f, 0, 0,
    ];
    const SSL_READ_EX_30: [u8; 9] = [0x48, 0x83, 0xec, 0x08, 0xe8, 0xf7, 0x0e, 0, 0];

    #[test]
    fn the_inner_function_is_found_when_both_public_ones_agree() {
        // 0x1000 + 35 + 0xfdd == 0x2000 == 0x1100 + 9 + 0xef7
        let found = inner((&SSL_READ_30, 0x1000), (&SSL_READ_EX_30, 0x1100));
        assert_eq!(found, Ok(Inner { address: 0x2000, length: Length::FourthArgument }));
        let apart = inner((&SSL_READ_30, 0x1000), (&SSL_READ_EX_30, 0x1101));
        assert_eq!(apart, Err(NotProven::Disagree));
    }

    #[test]
    fn flags_before_the_length_pointer_are_seen() {
        // OpenSSL 3.3 shape. SSL_write: sub rsp,8; lea r8,[rsp]; xor ecx,ecx; movsxd rdx,edx; call
        let plain =
            [0x48, 0x83, 0xec, 0x08, 0x4c, 0x8d, 0x04, 0x24, 0x31, 0xc9, 0x48, 0x63, 0xd2, 0xe8, 0xee, 0x0f, 0, 0];
        // SSL_write_ex: sub rsp,8; mov r8,rcx; xor ecx,ecx; call
        let extended = [0x48, 0x83, 0xec, 0x08, 0x49, 0x89, 0xc8, 0x31, 0xc9, 0xe8, 0xf2, 0x0e, 0, 0];
        let found = inner((&plain, 0x1000), (&extended, 0x1100));
        assert_eq!(found, Ok(Inner { address: 0x2000, length: Length::FifthArgument }));
    }

    #[test]
    fn a_call_that_does_not_pass_the_object_on_is_no_proof() {
        // xor edi,edi; call
        let extended = [0x31, 0xff, 0xe8, 0xf9, 0x0e, 0, 0];
        assert_eq!(inner((&SSL_READ_30, 0x1000), (&extended, 0x1100)), Err(NotProven::NoLengthPointer));
        // jmp elsewhere
        assert_eq!(inner((&[0xeb, 0x10], 0x1000), (&SSL_READ_EX_30, 0x1100)), Err(NotProven::NoCall));
    }

    #[test]
    fn an_inner_function_must_begin_like_one() {
        assert_eq!(inner_place(&[0x41, 0x56], 0), Ok(Place { delta: 0, cost: Cost::Emulated }));
        assert_eq!(inner_place(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55], 0), Ok(Place { delta: 4, cost: Cost::Emulated }));
        assert_eq!(inner_place(&[0x48, 0x83, 0xec, 0x18], 0), Err(NotProven::Prologue));
        assert_eq!(inner_place(&[0xc3], 0), Err(NotProven::Prologue));
    }
}
