//! The function table, well-formed and damaged.

use super::pclntab::{Range, Table};

/// A table as Go 1.20 writes it, with functions at `starts` (the last is the end of the text).
fn table(names: &[&str], starts: &[u32]) -> Vec<u8> {
    const HEADER: usize = 72;
    let mut text = vec![];
    let offsets: Vec<u32> = names
        .iter()
        .map(|name| {
            let at = text.len() as u32;
            text.extend_from_slice(name.as_bytes());
            text.push(0);
            at
        })
        .collect();
    let functab = names.len() * 8 + 4;
    let mut bytes = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    for word in [names.len(), 0, 0x40_1000, HEADER, 0, 0, 0, HEADER + text.len()] {
        bytes.extend((word as u64).to_le_bytes());
    }
    bytes.extend(&text);
    for (index, start) in starts.iter().enumerate() {
        bytes.extend(start.to_le_bytes());
        if index < names.len() {
            bytes.extend(((functab + index * 8) as u32).to_le_bytes());
        }
    }
    for (offset, start) in offsets.iter().zip(starts) {
        bytes.extend(start.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes
}

#[test]
fn a_function_is_found_by_its_whole_name() {
    let bytes =
        table(&["main.main", "xcrypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Read", "z"], &[0, 16, 64, 200, 256]);
    let table = Table::parse(&bytes).unwrap();
    assert_eq!(table.text_start, 0x40_1000);
    assert_eq!(table.function("crypto/tls.(*Conn).Read"), Some(Range { start: 64, end: 200 }));
    assert_eq!(table.function("main.main"), Some(Range { start: 0, end: 16 }), "the first name");
    assert_eq!(table.function("z"), Some(Range { start: 200, end: 256 }), "the last function");
    assert_eq!(table.function("crypto/tls.(*Conn)"), None, "part of a name");
}

#[test]
fn two_functions_of_one_name_are_none() {
    let mut bytes = table(&["f", "g"], &[0, 16, 32]);
    let second = bytes.len() - 4;
    bytes[second..].copy_from_slice(&0u32.to_le_bytes());
    assert_eq!(Table::parse(&bytes).unwrap().function("f"), None);
}

#[test]
fn a_table_of_another_version_or_machine_is_none() {
    let good = table(&["f"], &[0, 16]);
    for (at, byte) in [(0, 0xfa), (7, 4), (6, 3), (4, 1)] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert!(Table::parse(&bytes).is_none(), "byte {at} = {byte:#x}");
    }
}

#[test]
fn damaged_tables_never_panic() {
    let good = table(&["main.main", "crypto/tls.(*Conn).Read"], &[0, 64, 200]);
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if let Some(table) = Table::parse(&bytes) {
                assert!(table.function("crypto/tls.(*Conn).Read").is_none_or(|range| range.start < range.end));
            }
        }
        if let Some(table) = Table::parse(&good[..at]) {
            assert!(table.function("crypto/tls.(*Conn).Read").is_none_or(|range| range.start < range.end));
        }
    }
}
