//! Proves what a function without a name is: pure decisions on decoded instructions.
//!
//! Two things must fit. The errors that it reports, which no other function of its source file has in this combination; and the
//! arguments that it takes from the stack, counted from its entry: they fit only if the entry itself is right, for from any other
//! address the same instructions would reach for other places.

use std::collections::BTreeSet;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// `ERR_LIB_CIPHER` of aws-lc (include/openssl/err.h).
const LIB_CIPHER: u64 = 0x1e;

/// Reasons of errors (include/openssl/cipher.h).
const BAD_DECRYPT: u64 = 101;
const BUFFER_TOO_SMALL: u64 = 103;
const CTRL_NOT_IMPLEMENTED: u64 = 104;
const INVALID_OPERATION: u64 = 112;
const OUTPUT_ALIASES_INPUT: u64 = 115;
const TOO_LARGE: u64 = 117;

/// Instructions around a reference to the source file within which the other arguments of the error report are set.
const BEFORE: usize = 4;
const BEHIND: usize = 8;

/// A function that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// `EVP_AEAD_CTX_open`
    Open,
    /// `EVP_AEAD_CTX_seal`
    Seal,
    /// `EVP_AEAD_CTX_seal_scatter`
    SealScatter,
}

impl Wanted {
    /// The errors that it reports.
    fn errors(self) -> BTreeSet<u64> {
        match self {
            Self::Open => BTreeSet::from([OUTPUT_ALIASES_INPUT, BAD_DECRYPT, BUFFER_TOO_SMALL]),
            Self::Seal => BTreeSet::from([TOO_LARGE, BUFFER_TOO_SMALL, OUTPUT_ALIASES_INPUT]),
            Self::SealScatter => BTreeSet::from([OUTPUT_ALIASES_INPUT, INVALID_OPERATION]),
        }
    }

    /// Arguments that come on the stack, words above the return address. All are passed on.
    const fn stack_arguments(self) -> u64 {
        match self {
            Self::Open | Self::Seal => 4,
            Self::SealScatter => 7,
        }
    }

    /// Whether a function is this one.
    pub(super) fn fits(self, function: &Function, errors: &BTreeSet<u64>) -> bool {
        let arguments: BTreeSet<u64> = (1..=self.stack_arguments()).map(|n| n * 8).collect();
        let (read, written) = function.stack_arguments();
        let mut reported = errors.clone();
        if self == Self::Open {
            // A compiler may put `EVP_AEAD_CTX_open_gather`, which it calls, into it. Nothing else tells of `BAD_DECRYPT` and a buffer.
            reported.remove(&CTRL_NOT_IMPLEMENTED);
        }
        reported == self.errors() && read == arguments && written.is_subset(&arguments)
    }
}

/// A function, decoded from its first instruction to its end.
#[derive(Debug)]
pub(super) struct Function {
    instructions: Vec<Instruction>,
}

impl Function {
    /// Decodes `code`, which begins at `address`, as far as it decodes.
    pub(super) fn decode(code: &[u8], address: u64) -> Self {
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        Self { instructions: decoder.iter().take_while(|insn| !insn.is_invalid()).collect() }
    }

    /// Where its last instruction ends.
    pub(super) fn end(&self) -> Option<u64> {
        self.instructions.last().map(Instruction::next_ip)
    }

    /// Whether an instruction begins at an address.
    pub(super) fn has(&self, address: u64) -> bool {
        self.instructions.binary_search_by_key(&address, Instruction::ip).is_ok()
    }

    /// Whether its last instruction ends at this address, and nothing goes on behind it.
    pub(super) fn ends_at(&self, address: u64) -> bool {
        self.instructions.last().is_some_and(|last| {
            last.next_ip() == address
                && (last.mnemonic() == Mnemonic::Nop
                    || !matches!(last.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch))
        })
    }

    /// Whether one of its instructions jumps to a place in `range`.
    pub(super) fn jumps_to(&self, range: &std::ops::Range<u64>) -> bool {
        self.instructions.iter().any(|insn| {
            matches!(insn.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
                && range.contains(&insn.near_branch64())
        })
    }

    /// The reason of the error of `ERR_LIB_CIPHER` that is reported with the reference at `address`: the 1st argument of the report is
    /// the library, the 3rd the reason.
    pub(super) fn error_at(&self, address: u64) -> Option<u64> {
        let at = self.instructions.binary_search_by_key(&address, Instruction::ip).ok()?;
        let straight = |insn: &&Instruction| insn.flow_control() == FlowControl::Next;
        let before = self.instructions.get(..at)?.iter().rev().take(BEFORE).take_while(straight);
        let mut around: Vec<&Instruction> = before.collect();
        around.reverse();
        around.extend(self.instructions.get(at..)?.iter().take(BEHIND).take_while(straight));
        let (mut library, mut reason, mut pushed) = (None, None, None);
        for insn in around {
            let (register, value) = match insn.code() {
                Code::Mov_r32_imm32 => (insn.op0_register().full_register(), Some(insn.immediate(1))),
                Code::Pushq_imm8 => {
                    pushed = Some(insn.immediate(0));
                    continue;
                }
                Code::Pop_r64 => (insn.op0_register(), pushed.take()),
                _ => continue,
            };
            match register {
                Register::RDI => library = value,
                Register::RDX => reason = value,
                _ => {}
            }
        }
        reason.filter(|_| library == Some(LIB_CIPHER))
    }

    /// Places above the return address that it reads, and that it writes to, bytes from the stack pointer at its entry.
    fn stack_arguments(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let (mut read, mut written) = (BTreeSet::new(), BTreeSet::new());
        let mut frame = Frame::default();
        for insn in &self.instructions {
            let reads = insn.op0_kind() != OpKind::Memory
                || matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Call);
            if reads { &mut read } else { &mut written }.extend(frame.argument(insn));
            frame.step(insn);
        }
        (read, written)
    }
}

/// Where the stack pointer stands, followed from the entry in the order in which the instructions lie.
#[derive(Debug, Default)]
struct Frame {
    /// Bytes below its value at entry.
    depth: i64,
    /// The same at the first branch or call, when all that is saved has been saved: what lies behind a jump or a return goes on from there.
    settled: Option<i64>,
    /// The same of RBP, if it is a frame pointer.
    pointer: Option<i64>,
}

impl Frame {
    /// The argument on the stack that an instruction reaches for, if it does: bytes above the stack pointer at entry.
    fn argument(&self, insn: &Instruction) -> Option<u64> {
        let memory = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory);
        if !memory || insn.mnemonic() == Mnemonic::Nop || insn.memory_index() != Register::None {
            return None;
        }
        let base = match insn.memory_base() {
            Register::RSP => self.depth,
            Register::RBP => self.pointer?,
            _ => return None,
        };
        let above = insn.memory_displacement64().cast_signed().wrapping_sub(base);
        u64::try_from(above).ok().filter(|above| *above >= 8)
    }

    fn step(&mut self, insn: &Instruction) {
        match insn.flow_control() {
            FlowControl::Next => {}
            FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                self.depth = self.settled.unwrap_or(self.depth);
                return;
            }
            _ => {
                self.settled.get_or_insert(self.depth);
                return;
            }
        }
        match insn.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64
                if insn.op0_register() == Register::RBP && insn.op1_register() == Register::RSP =>
            {
                self.pointer = Some(self.depth);
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if insn.op0_register() == Register::RSP => {
                self.depth = self.depth.wrapping_add(insn.immediate(1).cast_signed());
            }
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if insn.op0_register() == Register::RSP => {
                self.depth = self.depth.wrapping_sub(insn.immediate(1).cast_signed());
            }
            _ => self.depth = self.depth.wrapping_sub(i64::from(insn.stack_pointer_increment())),
        }
    }
}
