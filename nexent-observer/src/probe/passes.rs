//! What a function hands to the one that it calls: its own arguments, the address of a local, or something else. Followed along every
//! way from its beginning to the call.

use std::collections::HashSet;

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::xref::{ARGUMENTS, Function};

/// What a register holds, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Value {
    /// What came in as this argument.
    Argument(u8),
    /// An address in the stack frame.
    Local,
    /// Something else.
    Other,
}

/// All general registers, in the order of their numbers.
type Registers = [Value; 16];

/// Most states that are looked at in one function.
const MAX_STATES: usize = 8_192;

fn slot(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}

impl Function {
    /// What the six argument registers hold at the call at `call`, for each way that leads there.
    pub(super) fn handed_over(&self, call: u64) -> HashSet<[Value; 6]> {
        let mut registers = [Value::Other; 16];
        for (index, register) in ARGUMENTS.iter().enumerate() {
            if let Some(value) = registers.get_mut(register.number()) {
                *value = Value::Argument(index as u8);
            }
        }
        if let Some(value) = registers.get_mut(Register::RSP.number()) {
            *value = Value::Local;
        }
        let mut info = InstructionInfoFactory::new();
        let (mut seen, mut found) = (HashSet::new(), HashSet::new());
        let mut ways: Vec<(usize, Registers)> = vec![(0, registers)];
        while let Some((at, mut registers)) = ways.pop() {
            let Some(insn) = self.code.get(at) else { continue };
            if !seen.insert((at, registers)) || seen.len() > MAX_STATES {
                continue;
            }
            if insn.ip() == call {
                found.insert(
                    ARGUMENTS.map(|register| registers.get(register.number()).copied().unwrap_or(Value::Other)),
                );
                continue;
            }
            match insn.flow_control() {
                FlowControl::Next => step(insn, &mut registers, &mut info),
                FlowControl::Call | FlowControl::IndirectCall => {
                    for register in CLOBBERED {
                        set(&mut registers, register, Value::Other);
                    }
                }
                FlowControl::ConditionalBranch => {
                    ways.extend(self.index_of(insn.near_branch64()).map(|to| (to, registers)));
                }
                FlowControl::UnconditionalBranch => {
                    ways.extend(self.index_of(insn.near_branch64()).map(|to| (to, registers)));
                    continue;
                }
                _ => continue,
            }
            ways.push((at + 1, registers));
        }
        found
    }
}

/// Registers that a call may change (System V ABI).
const CLOBBERED: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

fn set(registers: &mut Registers, register: Register, to: Value) {
    if let Some(value) = slot(register).and_then(|slot| registers.get_mut(slot)) {
        *value = to;
    }
}

/// Follows copies through one instruction.
fn step(insn: &Instruction, registers: &mut Registers, info: &mut InstructionInfoFactory) {
    let get = |register: Register| slot(register).and_then(|slot| registers.get(slot).copied()).unwrap_or(Value::Other);
    // The stack pointer stays one, whatever is added to it.
    if slot(insn.op0_register()) == Some(Register::RSP.number()) {
        return;
    }
    let value = match (insn.mnemonic(), insn.op0_kind(), insn.op1_kind()) {
        (Mnemonic::Mov, OpKind::Register, OpKind::Register) if insn.op0_register().size() == 8 => {
            Some(get(insn.op1_register()))
        }
        // A number is made wider on its way.
        (Mnemonic::Movsxd, OpKind::Register, OpKind::Register) => Some(get(insn.op1_register())),
        (Mnemonic::Mov, OpKind::Register, OpKind::Register) if insn.op0_register().size() == 4 => {
            match get(insn.op1_register()) {
                number @ Value::Argument(2) => Some(number),
                _ => Some(Value::Other),
            }
        }
        (Mnemonic::Lea, OpKind::Register, OpKind::Memory) if get(insn.memory_base()) == Value::Local => {
            Some(Value::Local)
        }
        _ => None,
    };
    if let Some(value) = value {
        set(registers, insn.op0_register(), value);
        return;
    }
    for used in info.info(insn).used_registers() {
        let writes = matches!(
            used.access(),
            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
        );
        if writes && slot(used.register()) != Some(Register::RSP.number()) {
            set(registers, used.register(), Value::Other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the first call hands over.
    fn at_call(code: &[u8]) -> Vec<[Value; 6]> {
        let function = Function::of_bytes(code, 0x1000);
        let call = function.code.iter().find(|insn| insn.flow_control() == FlowControl::Call).map(Instruction::ip);
        call.map(|call| function.handed_over(call).into_iter().collect()).unwrap_or_default()
    }

    const A: fn(u8) -> Value = Value::Argument;

    #[test]
    fn what_is_not_touched_is_handed_on() {
        // sub rsp,8; call
        let all = at_call(&[0x48, 0x83, 0xec, 0x08, 0xe8, 0, 0, 0, 0]);
        assert_eq!(all, [[A(0), A(1), A(2), A(3), A(4), A(5)]]);
    }

    #[test]
    fn copies_and_addresses_of_locals_are_followed() {
        // push rbp; mov rbp,rdi; sub rsp,0x28; xor ecx,ecx; movsxd rdx,edx; lea r8,[rsp+0x18]; mov rdi,rbp; call (OpenSSL 4)
        let code = [
            0x55, 0x48, 0x89, 0xfd, 0x48, 0x83, 0xec, 0x28, 0x31, 0xc9, 0x48, 0x63, 0xd2, 0x4c, 0x8d, 0x44, 0x24, 0x18,
            0x48, 0x89, 0xef, 0xe8, 0, 0, 0, 0,
        ];
        assert_eq!(at_call(&code), [[A(0), A(1), A(2), Value::Other, Value::Local, A(5)]]);
    }

    #[test]
    fn every_way_to_the_call_counts() {
        // test edx,edx; js +3; mov rsi,rax; call
        let code = [0x85, 0xd2, 0x78, 0x03, 0x48, 0x89, 0xc6, 0xe8, 0, 0, 0, 0];
        let ways = at_call(&code);
        assert_eq!(ways.len(), 2);
        assert!(ways.iter().any(|way| way[1] == A(1)) && ways.iter().any(|way| way[1] == Value::Other));
    }

    #[test]
    fn half_a_pointer_is_none() {
        // mov edi,edi; call
        assert_eq!(at_call(&[0x89, 0xff, 0xe8, 0, 0, 0, 0])[0][0], Value::Other);
    }
}
