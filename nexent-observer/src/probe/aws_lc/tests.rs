//! Tests on the code of Deno 2.9.6, which has frame pointers and no table for unwinding, and on hand-written code.

use super::{
    refs::{by_prologue, by_table, references, starts, strings_ending_in},
    shape::{Function, Wanted},
};
use crate::probe::elf::Section;

/// Where the name of the source file lies in that program.
const SOURCE: u64 = 0x0048_4a03;

const SEAL: u64 = 0x05ab_62b9;
const SEAL_CODE: &str = "554889e5415741564154534883ec404989ce4889d34989f74c8b65184c8b17410fb64a024c01e17311488d0d1ae79cfa6a1e5f6a\
    755a6a77eb1a4c89c04d89f04d29e0733f488d0dfee69cfa6a1e5f6a675a6a7c415831f6e82af4feff4531e44d85f6740d4c89ff31f64c89f2e87511040031c0\
    4c89234883c4405b415c415e415f5dc3488b4d104c39f974294b8d143e4839ca7620498d140c4c39fa7617488d0da4e69cfa6a1e5f6a735a31f641b881000000\
    eba2488b75284c8b5d204b8d142748897424304c895c24280f57c00f114424184c8964241048894c24084c890c24488d4dd84c89fe4989c141ff523085c00f84\
    65ffffff4c0365d86a0158e970ffffff";

const OPEN: u64 = 0x05ab_64cc;
const OPEN_CODE: &str = "554889e5415741564155415453504989ce4889d34989f74c8b6518488b45104839f074554b8d0c3e4839c1764c498d0c044c39f976\
    43488d0dfae49cfa6a1e5f6a735a31f641b8bf000000e824f2feff4531e44d85f6740d4c89ff31f64c89f2e86f0f040031c04c89234883c4085b415c415d415e\
    415f5dc34c8b5d284c8b5520488b0f4c8b69284d85ed74204c89fe4889da4c89f14153415241545041ffd54883c42085c074a86a0158ebbd440fb6af41020000\
    4d85ed74794d29ec731a488d0d71e49cfa6a1e5f6a655a31f641b8d0000000e972ffffff4d39e6731a488d0d52e49cfa6a1e5f6a675a31f641b8d6000000e953\
    ffffff4889c14c01e148894dd04c89fe4c89c24c89c94989c04d89e1415341524155ff75d0e8330000004883c42085c00f8425ffffff6a0158e934ffffff488d\
    3df9db9ffa488d35f6e39cfa488d0d45de95fabacd000000e8f20a0400";

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let digits: Vec<u8> = hex.bytes().filter_map(digit).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// `fn() {}` with a frame pointer.
const OTHER: [u8; 6] = [0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3];

/// What is found in `before` and a function behind it that begins at `start`.
fn found(before: &[u8], start: u64, code: &str) -> Vec<(u64, Vec<u64>, [bool; 3])> {
    let code = [before, &bytes(code), &OTHER].concat();
    let text = Section { address: start - before.len() as u64, bytes: &code };
    by_prologue(text, &references(text, SOURCE))
        .into_iter()
        .map(|(start, candidate)| {
            let fits = [Wanted::Open, Wanted::Seal, Wanted::SealScatter]
                .map(|wanted| wanted.fits(&candidate.function, &candidate.errors));
            (start, candidate.errors.into_iter().collect(), fits)
        })
        .collect()
}

#[test]
fn the_functions_are_told_by_their_errors_and_their_arguments() {
    assert_eq!(found(&OTHER, SEAL, SEAL_CODE), [(SEAL, vec![103, 115, 117], [false, true, false])]);
    assert_eq!(found(&OTHER, OPEN, OPEN_CODE), [(OPEN, vec![101, 103, 115], [true, false, false])]);
}

#[test]
fn no_other_address_in_them_is_taken_for_their_beginning() {
    for (start, code, wanted) in [(SEAL, SEAL_CODE, Wanted::Seal), (OPEN, OPEN_CODE, Wanted::Open)] {
        let code = bytes(code);
        let whole = Function::decode(&code, start);
        let text = Section { address: start, bytes: &code };
        let errors = references(text, SOURCE).into_iter().filter_map(|at| whole.error_at(at)).collect();
        assert!(wanted.fits(&whole, &errors));
        for into in 1..code.len() {
            let later = Function::decode(&code[into..], start + into as u64);
            assert!(!wanted.fits(&later, &errors), "{into} bytes into {wanted:?}");
        }
    }
}

#[test]
fn a_function_with_another_error_or_another_argument_is_not_taken_for_it() {
    // BUFFER_TOO_SMALL becomes 0x66; the last argument is not passed on.
    for (from, to) in [("6a675a", "6a665a"), ("488b7528", "488b75f8"), ("6a1e5f6a755a", "6a1f5f6a755a")] {
        assert!(SEAL_CODE.contains(from));
        for (_, _, fits) in found(&OTHER, SEAL, &SEAL_CODE.replace(from, to)) {
            assert_eq!(fits, [false; 3], "{from} -> {to}");
        }
    }
}

#[test]
fn the_function_that_open_calls_may_be_part_of_it() {
    let (open, seal) = (Function::decode(&bytes(OPEN_CODE), OPEN), Function::decode(&bytes(SEAL_CODE), SEAL));
    assert!(Wanted::Open.fits(&open, &[101, 103, 104, 115].into()), "as in Codex 0.171");
    assert!(!Wanted::Open.fits(&open, &[101, 103, 105, 115].into()));
    assert!(!Wanted::Open.fits(&open, &[104, 115].into()), "EVP_AEAD_CTX_open_gather by itself");
    assert!(!Wanted::Seal.fits(&seal, &[103, 104, 115, 117].into()));
}

#[test]
fn what_precedes_a_beginning_must_end_a_function() {
    let runs_on = [0x55, 0x48, 0x89, 0xe5, 0x31, 0xc0]; // ...; xor eax, eax
    let cut = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x8b]; // the rest of the instruction is the beginning itself
    for before in [&runs_on[..], &cut, &[], &[0xc3]] {
        assert_eq!(found(before, SEAL, SEAL_CODE), [], "{before:x?}");
    }
    let padded = [&OTHER[..], &[0xcc; 5]].concat();
    assert_eq!(found(&padded, SEAL, SEAL_CODE).len(), 1);
}

/// `.eh_frame_hdr` at 0x100 with entries for functions at these addresses.
fn table(functions: &[i32]) -> Vec<u8> {
    let mut table = vec![1, 0x1b, 0x03, 0x3b, 0, 0, 0, 0];
    table.extend((functions.len() as u32).to_le_bytes());
    for function in functions {
        table.extend((function - 0x100).to_le_bytes());
        table.extend([0; 4]);
    }
    table
}

#[test]
fn the_table_for_unwinding_is_read_or_refused() {
    let of = |bytes: &[u8]| starts(Section { address: 0x100, bytes });
    assert_eq!(of(&table(&[0x40, 0x1000, 0x2000])), Some(vec![0x40, 0x1000, 0x2000]));
    assert_eq!(of(&table(&[0x1000, 0x40])), None, "not sorted");
    let whole = table(&[0x40, 0x1000]);
    for cut in 0..whole.len() {
        assert_eq!(of(&whole[..cut]), None, "{cut} bytes");
    }
    let mut other = whole;
    other[3] = 0x3c;
    assert_eq!(of(&other), None, "another encoding");
    let mut many = table(&[]);
    many[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(of(&many), None);
}

#[test]
fn a_part_that_lies_elsewhere_belongs_to_the_one_function_that_jumps_there() {
    // 0x1000: jae 0x1040 (0f 83); ret. 0x1020: ret, or the same jump. 0x1040: lea rcx, [0x2000]; mov edx, 115; mov edi, 30; int3
    let mut code = vec![0xcc; 0x60];
    code[..7].copy_from_slice(&[0x0f, 0x83, 0x3a, 0, 0, 0, 0xc3]);
    code[0x20] = 0xc3;
    code[0x40..0x51].copy_from_slice(&[0x48, 0x8d, 0x0d, 0xb9, 0x0f, 0, 0, 0xba, 115, 0, 0, 0, 0xbf, 30, 0, 0, 0]);
    let owners = |code: &[u8]| {
        let text = Section { address: 0x1000, bytes: code };
        let found = by_table(text, &references(text, 0x2000), &[0x1000, 0x1020, 0x1040]);
        found.into_iter().map(|(start, it)| (start, it.errors.into_iter().collect::<Vec<_>>())).collect::<Vec<_>>()
    };
    assert_eq!(owners(&code), [(0x1000, vec![115]), (0x1040, vec![115])]);
    code[0x20..0x27].copy_from_slice(&[0x0f, 0x83, 0x1a, 0, 0, 0, 0xc3]);
    assert_eq!(owners(&code), [(0x1040, vec![115])], "two functions jump there");
}

#[test]
fn every_copy_of_the_name_is_found_from_its_first_byte() {
    let bytes = b"/a/aead.c\0other\0/b/aead.c\0aead.cc\0/c/aead.c";
    let found = strings_ending_in(Section { address: 0x1000, bytes }, b"/aead.c\0");
    assert_eq!(found, [0x1000, 0x1010]);
    assert!(strings_ending_in(Section { address: 0, bytes: b"nothing\0" }, b"/aead.c\0").is_empty());
}
