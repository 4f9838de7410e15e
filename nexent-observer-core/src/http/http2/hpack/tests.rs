//! HPACK against the examples of RFC 7541 and against two other implementations.

use httlib_hpack::Encoder;
use proptest::prelude::*;

use super::{Decoder, Fields, integer};
use crate::{http::Side, limits};

type Field = (Vec<u8>, Vec<u8>);

fn list(fields: &Fields) -> Vec<Field> {
    fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn text(fields: &Fields) -> Vec<String> {
    fields.iter().map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v))).collect()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter_map(|b| (b as char).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[test]
fn the_requests_of_rfc_7541_appendix_c_are_read_with_and_without_huffman() {
    let base = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
    let third = [":method: GET", ":scheme: https", ":path: /index.html", ":authority: www.example.com"];
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let mut decoder = Decoder::new();
        let got: Vec<_> = blocks.iter().map(|block| text(&decoder.decode(&hex(block)).unwrap())).collect();
        assert_eq!(got[0], base);
        assert_eq!(got[1], [&base[..], &["cache-control: no-cache"]].concat());
        assert_eq!(got[2], [&third[..], &["custom-key: custom-value"]].concat());
    }
}

#[test]
fn an_index_that_was_never_seen_is_left_out_and_the_rest_is_read() {
    let mut decoder = Decoder::new();
    // :method POST, unknown, a name that is unknown with a literal value (inserted), x: y (inserted).
    let fields = decoder.decode(b"\x83\xc5\x7f\x00\x02vv\x40\x01x\x01y").unwrap();
    assert_eq!(text(&fields), [":method: POST", "x: y"]);
    assert_eq!(fields.side(), Some(Side::Request));
    // The latest insertion, the one before, one before all that were seen.
    assert_eq!(text(&decoder.decode(b"\xbe\xbf\xc0").unwrap()), ["x: y"]);
    decoder.forget();
    assert_eq!(text(&decoder.decode(b"\xbe\x88").unwrap()), [":status: 200"]);
}

#[test]
fn a_field_larger_than_the_table_moves_no_index() {
    let mut decoder = Decoder::new();
    let mut block = b"\x40\x01a\x01b\x40\x01L\x7f\x81\x3f".to_vec();
    block.extend_from_slice(&[b'v'; 8192]);
    block.extend_from_slice(b"\x40\x01c\x01d\xbe\xbf\xc0");
    let fields = list(&decoder.decode(&block).unwrap());
    assert_eq!(fields.len(), 4, "what was before the large one is gone, and nothing stands for it");
    assert_eq!(fields[3], (b"c".to_vec(), b"d".to_vec()));
}

#[test]
fn credentials_are_given_out_once_and_not_kept() {
    let mut decoder = Decoder::new();
    let block = b"\x40\x01a\x01b\x57\x04Bear\x40\x09x-api-key\x03sk-";
    let fields = decoder.decode(block).unwrap();
    assert_eq!(text(&fields), ["a: b", "authorization: Bear", "x-api-key: sk-"]);
    assert_eq!(text(&decoder.decode(b"\xbe\xbf\xc0").unwrap()), ["a: b"]);
    let kept = format!("{decoder:?}");
    assert!(!kept.contains("66, 101, 97, 114"), "{kept}");
}

#[test]
fn a_block_cannot_blow_up() {
    let mut decoder = Decoder::new();
    let mut block = vec![0x40, 1, b'n', 0x7f, 0xa1, 0x1e];
    block.extend_from_slice(&[b'v'; 4000]);
    decoder.decode(&block).unwrap();
    let fields = decoder.decode(&vec![0xbe; limits::HEAD_BYTES]).unwrap();
    assert!(fields.too_long && fields.octets.len() < limits::HEAD_BYTES + 5000 && fields.octets.capacity() < 200_000);
    let many = decoder.decode(&[0x82; limits::HEAD_FIELDS + 1]).unwrap();
    assert!(many.too_long && many.iter().count() == limits::HEAD_FIELDS);
    // However large a table is announced, what is kept has a cap.
    let mut insert = b"\x3f\xff\xff\xff\x7f".to_vec();
    for n in 0..20_u8 {
        insert.extend_from_slice(&[0x40, 1, n, 0x7f, 0xa1, 0x1e]);
        insert.extend_from_slice(&[b'v'; 4000]);
    }
    decoder.decode(&insert).unwrap();
    assert!(decoder.table.kept() <= limits::HPACK_TABLE_BYTES);
}

#[test]
fn what_is_no_header_block_is_an_error_and_forgets_the_table() {
    for bad in [
        &b"\x80"[..],
        b"\xff",
        b"\xff\x80\x80\x80\x80\x80\x01",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x40",
        b"\x40\x05a",
        b"\x40\x01a\x7f\xff\xff\xff\xff\x0f",
        b"\x40\x81\xff\x01a",
        b"\x3f",
    ] {
        let mut decoder = Decoder::new();
        decoder.decode(b"\x40\x01a\x01b").unwrap();
        assert!(decoder.decode(bad).is_err(), "{bad:x?}");
        assert_eq!(text(&decoder.decode(b"\xbe").unwrap()), [""; 0]);
    }
}

#[test]
fn integers_are_those_of_rfc_7541_section_5_1() {
    for (bytes, bits, value) in
        [(&[0x0a][..], 5, 10), (&[0x1f, 0x9a, 0x0a], 5, 1337), (&[42], 8, 42), (&[0x7f, 0], 7, 127)]
    {
        let mut rest = bytes;
        assert_eq!((integer(&mut rest, bits), rest), (Some(value), &[][..]));
    }
    assert_eq!(integer(&mut &[0xff, 0x80, 0xfe, 0xff, 0xff, 0x0f][..], 8), Some(u32::MAX));
    assert_eq!(integer(&mut &[0xff, 0x81, 0xfe, 0xff, 0xff, 0x0f][..], 8), None);
}

/// A field of a block: name and value out of few, so that they repeat; how it is encoded; a size update before the block.
type Plan = Vec<(Option<u16>, Vec<(u8, u8, u8, Vec<u8>)>)>;

fn plan() -> impl Strategy<Value = Plan> {
    let field = (0_u8..12, 0_u8..6, 0_u8..8, prop::collection::vec(any::<u8>(), 0..12));
    prop::collection::vec((prop::option::weighted(0.1, 0_u16..=4096), prop::collection::vec(field, 1..12)), 1..12)
}

fn encode(plan: &Plan) -> Vec<(Vec<Field>, Vec<u8>)> {
    const NAMES: [&str; 12] = [
        ":method",
        ":path",
        ":status",
        "content-type",
        "date",
        "x-a",
        "x-b",
        "x-longer-name",
        ":authority",
        "server",
        "accept",
        "x-c",
    ];
    let mut encoder = Encoder::with_dynamic_size(4096);
    let mut blocks = Vec::new();
    for (resize, fields) in plan {
        let (mut block, mut all) = (Vec::new(), Vec::new());
        if let Some(size) = resize {
            encoder.update_max_dynamic_size(u32::from(*size), &mut block).unwrap();
        }
        for (name, value, how, octets) in fields {
            let name = NAMES[usize::from(*name)].as_bytes().to_vec();
            let value = match value {
                0 => b"GET".to_vec(),
                1 => b"/v1/chat/completions".to_vec(),
                2 => vec![b'z'; 900],
                3 => b"200".to_vec(),
                _ => octets.clone(),
            };
            let flags = [
                Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_VALUE,
                Encoder::BEST_FORMAT | Encoder::WITH_INDEXING,
                Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE,
                Encoder::BEST_FORMAT,
                Encoder::BEST_FORMAT | Encoder::NEVER_INDEXED | Encoder::HUFFMAN_VALUE,
                Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME,
                Encoder::HUFFMAN_VALUE,
                Encoder::BEST_FORMAT | Encoder::WITH_INDEXING,
            ];
            encoder.encode((name.clone(), value.clone(), flags[usize::from(*how)]), &mut block).unwrap();
            all.push((name, value));
        }
        blocks.push((all, block));
    }
    blocks
}

/// Whether `part` is `whole` with fields left out.
fn is_part_of(part: &[Field], whole: &[Field]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|field| rest.any(|other| other == field))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_another_implementation_encoded_is_decoded_as_a_third_decodes_it(plan in plan()) {
        let mut decoder = Decoder::new();
        let mut oracle = fluke_hpack::Decoder::new();
        oracle.set_max_allowed_table_size(4096);
        for (all, block) in encode(&plan) {
            let fields = decoder.decode(&block).unwrap();
            prop_assert_eq!(list(&fields), oracle.decode(&block).unwrap());
            prop_assert_eq!(list(&fields), all);
        }
    }

    #[test]
    fn a_decoder_that_came_late_or_missed_blocks_gives_no_wrong_value(plan in plan(), missed in any::<u16>()) {
        let mut decoder = Decoder::new();
        for (n, (all, block)) in encode(&plan).into_iter().enumerate() {
            if missed >> n & 1 == 1 {
                decoder.forget();
                continue;
            }
            let fields = list(&decoder.decode(&block).unwrap());
            prop_assert!(is_part_of(&fields, &all), "{:?} of {:?}", fields, all);
        }
    }

    #[test]
    fn no_block_whatsoever_does_harm(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            if let Ok(fields) = decoder.decode(&block) {
                prop_assert!(fields.side().is_none() || !fields.is_trailer());
                prop_assert!(fields.iter().count() <= limits::HEAD_FIELDS);
            }
            prop_assert!(decoder.table.kept() <= limits::HPACK_TABLE_BYTES);
        }
    }
}
