//! Every coding whole, cut, flushed, damaged and as a bomb.

use std::io::Write;

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use proptest::prelude::*;
use zstd_safe::{CCtx, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective};

use super::*;

const ALL: [(Coding, bool); 5] = [
    (Coding::Gzip, false),
    (Coding::Deflate, false),
    (Coding::Deflate, true),
    (Coding::Brotli, false),
    (Coding::Zstd, false),
];

/// Compresses pieces and flushes behind each: what came out for each piece, and for the end.
fn flushed(coding: Coding, raw: bool, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    fn run<W: Write>(
        mut encoder: W,
        pieces: &[&[u8]],
        taken: impl Fn(&mut W) -> Vec<u8>,
        end: impl FnOnce(W) -> Vec<u8>,
    ) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for piece in pieces {
            encoder.write_all(piece).unwrap();
            encoder.flush().unwrap();
            all.push(taken(&mut encoder));
        }
        all.push(end(encoder));
        all
    }
    let (to, level) = (Vec::new(), Compression::default());
    match coding {
        Coding::Gzip => {
            run(GzEncoder::new(to, level), pieces, |e| std::mem::take(e.get_mut()), |e| e.finish().unwrap())
        }
        Coding::Deflate if raw => {
            run(DeflateEncoder::new(to, level), pieces, |e| std::mem::take(e.get_mut()), |e| e.finish().unwrap())
        }
        Coding::Deflate => {
            run(ZlibEncoder::new(to, level), pieces, |e| std::mem::take(e.get_mut()), |e| e.finish().unwrap())
        }
        Coding::Brotli => {
            let encoder = ::brotli::CompressorWriter::new(to, 4096, 5, 22);
            run(encoder, pieces, |e| std::mem::take(e.get_mut()), ::brotli::CompressorWriter::into_inner)
        }
        Coding::Zstd => {
            let mut context = CCtx::create();
            let mut out = |piece: &[u8], directive| {
                let mut to = vec![0; 2 * piece.len() + 1000];
                let mut into = OutBuffer::around(&mut to[..]);
                let left = context.compress_stream2(&mut into, &mut InBuffer::around(piece), directive).unwrap();
                assert_eq!(left, 0);
                let n = into.pos();
                to.truncate(n);
                to
            };
            let mut all: Vec<_> = pieces.iter().map(|p| out(p, ZSTD_EndDirective::ZSTD_e_flush)).collect();
            all.push(out(b"", ZSTD_EndDirective::ZSTD_e_end));
            all
        }
    }
}

fn whole(coding: Coding, raw: bool, body: &[u8]) -> Vec<u8> {
    flushed(coding, raw, &[body]).concat()
}

fn decode(codings: &[Coding], bytes: &[u8], size: usize) -> (Result<bool, Defect>, Vec<u8>) {
    let (mut decoder, mut out) = (Decoder::new(codings), Vec::new());
    for piece in bytes.chunks(size.max(1)) {
        if let Err(defect) = decoder.feed(piece, &mut |b| out.extend_from_slice(b)) {
            return (Err(defect), out);
        }
    }
    (Ok(decoder.is_complete()), out)
}

/// A stream of events, as servers compress it.
fn events(n: usize) -> Vec<Vec<u8>> {
    let event =
        |i| format!("data: {{\"id\":\"chatcmpl-1\",\"choices\":[{{\"delta\":{{\"content\":\" word{i}\"}}}}]}}\n\n");
    (0..n).map(|i| event(i).into_bytes()).collect()
}

/// Bytes that do not compress, always the same.
fn noise(n: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

#[test]
fn what_was_flushed_comes_out_with_the_bytes_that_carry_it() {
    let pieces = events(200);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    for (coding, raw) in ALL {
        let compressed = flushed(coding, raw, &pieces);
        let mut decoder = Decoder::new(&[coding]);
        for (piece, bytes) in pieces.iter().zip(&compressed) {
            let mut out = Vec::new();
            decoder.feed(bytes, &mut |b| out.extend_from_slice(b)).unwrap();
            assert_eq!(out, *piece, "{coding:?} raw {raw}");
        }
        assert!(!decoder.is_complete(), "{coding:?}");
        decoder.feed(compressed.last().unwrap(), &mut |_| panic!("nothing was left")).unwrap();
        assert!(decoder.is_complete(), "{coding:?}");
    }
}

#[test]
fn codings_upon_codings_flush_too() {
    let pieces = events(20);
    let mut decoder = Decoder::new(&[Coding::Gzip, Coding::Brotli]);
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let inner = flushed(Coding::Gzip, false, &pieces);
    let inner: Vec<&[u8]> = inner.iter().map(Vec::as_slice).collect();
    let outer = flushed(Coding::Brotli, false, &inner);
    for (i, bytes) in outer.iter().enumerate() {
        let mut out = Vec::new();
        decoder.feed(bytes, &mut |b| out.extend_from_slice(b)).unwrap();
        assert_eq!(out, pieces.get(i).copied().unwrap_or_default());
    }
    assert!(decoder.is_complete());
}

#[test]
fn every_size_of_pieces_gives_the_same() {
    let body = [events(50).concat(), noise(20_000), vec![b'a'; 50_000]].concat();
    for (coding, raw) in ALL {
        let bytes = whole(coding, raw, &body);
        for size in [1, 2, 3, 7, 1000, bytes.len()] {
            assert!(decode(&[coding], &bytes, size) == (Ok(true), body.clone()), "{coding:?} {raw} {size}");
        }
    }
}

#[test]
fn an_end_before_the_end_is_told_at_every_offset_and_gives_a_beginning() {
    let body = events(3).concat();
    for (coding, raw) in ALL {
        let bytes = whole(coding, raw, &body);
        for cut in 0..bytes.len() {
            let (state, out) = decode(&[coding], &bytes[..cut], 1000);
            assert_eq!(state, Ok(false), "{coding:?} {cut}");
            assert!(body.starts_with(&out));
        }
    }
}

#[test]
fn damage_that_a_checksum_covers_is_a_defect() {
    for (coding, raw) in [(Coding::Gzip, false), (Coding::Deflate, false)] {
        let bytes = whole(coding, raw, &events(300).concat());
        let first = if coding == Coding::Gzip { 10 } else { 2 };
        for at in (first..bytes.len()).step_by(37).chain([0, 1]) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x55;
            assert_ne!(decode(&[coding], &bad, 1000).0, Ok(true), "{coding:?} {at}");
        }
    }
    for (coding, _) in ALL {
        assert_ne!(decode(&[coding], &noise(1000), 1000).0, Ok(true));
    }
}

#[test]
fn a_wrong_checksum_comes_behind_what_it_is_about() {
    let mut bytes = whole(Coding::Gzip, false, b"hello");
    let at = bytes.len() - 6;
    bytes[at] ^= 1;
    assert_eq!(decode(&[Coding::Gzip], &bytes, 1000), (Err(Defect::Invalid), b"hello".to_vec()));
    let mut bytes = whole(Coding::Deflate, false, b"hello");
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(decode(&[Coding::Deflate], &bytes, 1).0, Err(Defect::Invalid));
}

#[test]
fn members_and_frames_in_a_row_are_one_body() {
    let gzip = |b: &[u8]| whole(Coding::Gzip, false, b);
    let three = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
    for size in 1..30 {
        assert_eq!(decode(&[Coding::Gzip], &three, size), (Ok(true), b"one two".to_vec()));
    }
    let zstd = |b: &[u8]| whole(Coding::Zstd, false, b);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let frames = [zstd(b"one "), skippable.to_vec(), zstd(b"two")].concat();
    for size in 1..30 {
        assert_eq!(decode(&[Coding::Zstd], &frames, size), (Ok(true), b"one two".to_vec()));
    }
}

#[test]
fn what_stands_behind_the_end_is_named_and_spoils_nothing() {
    for (coding, raw) in ALL {
        let bytes = [whole(coding, raw, b"hello"), b"<!-- -->".to_vec()].concat();
        for size in [1, 3, 1000] {
            assert_eq!(decode(&[coding], &bytes, size), (Err(Defect::Trailing), b"hello".to_vec()), "{coding:?}");
        }
    }
    let padded = [whole(Coding::Gzip, false, b"hello"), vec![0; 100]].concat();
    assert_eq!(decode(&[Coding::Gzip], &padded, 7), (Ok(true), b"hello".to_vec()));
}

#[test]
fn every_optional_part_of_a_gzip_header_is_passed_over() {
    let plain = whole(Coding::Gzip, false, b"hello");
    for flags in 0..32_u8 {
        let mut bytes = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255];
        for (bit, part) in [(4, &b"\x03\x00abc"[..]), (8, b"name\0"), (16, b"comment\0"), (2, b"xx")] {
            if flags & bit != 0 {
                bytes.extend(part);
            }
        }
        bytes.extend(&plain[10..]);
        for size in [1, 4, 1000] {
            assert_eq!(decode(&[Coding::Gzip], &bytes, size), (Ok(true), b"hello".to_vec()), "{flags}");
        }
    }
    let empty_extra = [&[0x1f, 0x8b, 8, 4, 1, 2, 3, 4, 0, 255, 0, 0], &plain[10..]].concat();
    assert_eq!(decode(&[Coding::Gzip], &empty_extra, 1), (Ok(true), b"hello".to_vec()));
    assert_eq!(decode(&[Coding::Gzip], &[0x1f, 0x8b, 8, 0x20], 9).0, Err(Defect::Invalid));
}

#[test]
fn a_bomb_ends_at_the_cap() {
    let zeros = vec![0; 6 * 1024 * 1024];
    for (coding, raw) in ALL {
        let bytes = whole(coding, raw, &zeros);
        let (state, out) = decode(&[coding], &bytes, 1000);
        assert_eq!(state, Err(Defect::TooLong), "{coding:?}");
        let cap = limits::DECODED_FREE_BYTES + bytes.len() as u64 * limits::DECODED_RATIO;
        assert!(out.len() as u64 <= cap, "{coding:?} {}", out.len());
    }
    // One upon another: what comes out between them counts too.
    let inner = whole(Coding::Gzip, false, &zeros);
    let bytes = whole(Coding::Gzip, false, &inner);
    assert_eq!(decode(&[Coding::Gzip, Coding::Gzip], &bytes, 100).0, Err(Defect::TooLong));
}

#[test]
fn a_body_has_a_cap_whatever_its_ratio() {
    let bytes = whole(Coding::Deflate, true, &noise(10_000));
    for (given, state) in [(10_001, Ok(())), (10_000, Ok(())), (9_999, Err(Defect::TooLong))] {
        let mut decoder = Decoder::new(&[Coding::Deflate]);
        decoder.budget = Budget { fed: limits::DECODED_BYTES, given: limits::DECODED_BYTES - given };
        assert_eq!(decoder.feed(&bytes, &mut |_| {}), state, "{given}");
    }
}

#[test]
fn a_zstd_window_over_the_cap_is_refused() {
    // A frame header (RFC 8878 section 3.1.1.1) with a window of 2^log bytes, and an empty last block.
    let frame = |log: u32| [0x28, 0xb5, 0x2f, 0xfd, 0, (log as u8 - 10) << 3, 1, 0, 0];
    assert_eq!(decode(&[Coding::Zstd], &frame(limits::ZSTD_WINDOW_LOG), 100).0, Ok(true));
    assert_eq!(decode(&[Coding::Zstd], &frame(limits::ZSTD_WINDOW_LOG + 1), 100).0, Err(Defect::TooLong));
}

#[test]
fn a_brotli_window_beyond_the_rfc_is_refused() {
    // 0x11 announces a large window, whose bits stand in the byte behind it.
    assert_eq!(decode(&[Coding::Brotli], &[0x11, 30, 3, 3], 100).0, Err(Defect::Invalid));
}

#[test]
fn codings_are_read_as_rfc_9110_writes_them() {
    use Coding::{Brotli, Deflate, Gzip, Zstd};
    let of = |fields: &[(&str, &[u8])]| codings(&Headers(fields)).map(|c| c.to_vec());
    let content = |value: &'static str| of(&[("Content-Encoding", value.as_bytes())]);
    assert_eq!(content("gzip"), Some(vec![Gzip]));
    assert_eq!(content(" GZip , br"), Some(vec![Gzip, Brotli]));
    assert_eq!(content("x-gzip"), Some(vec![Gzip]));
    assert_eq!(content("identity"), Some(vec![]));
    assert_eq!(content(""), Some(vec![]));
    assert_eq!(content("deflate,,zstd"), Some(vec![Deflate, Zstd]));
    for unknown in ["compress", "dcb", "chunked", "gzip;q=1", "gzip, gzip, gzip, gzip, gzip"] {
        assert_eq!(content(unknown), None, "{unknown}");
    }
    assert_eq!(content("gzip, gzip, gzip, gzip").map(|c| c.len()), Some(limits::CODINGS));
    assert_eq!(of(&[("transfer-encoding", b"chunked"), ("content-type", b"x")]), Some(vec![]));
    let both = of(&[("transfer-encoding", b"gzip, chunked"), ("content-encoding", b"br")]);
    assert_eq!(both, Some(vec![Brotli, Gzip]));
    assert_eq!(of(&[("content-encoding", b"gzip"), ("content-encoding", b"br")]), Some(vec![Gzip, Brotli]));
}

#[test]
fn a_magic_number_tells_a_coding_when_no_field_does() {
    let gzip = whole(Coding::Gzip, false, b"hello");
    assert_eq!((sniff(&gzip[..2]), sniff(&gzip)), (None, Some(Some(Coding::Gzip))));
    let zstd = whole(Coding::Zstd, false, b"hello");
    assert_eq!((sniff(&zstd[..3]), sniff(&zstd)), (None, Some(Some(Coding::Zstd))));
    for plain in [&b"{"[..], b"data: ", b"\x1f\x8c", b"(b)", b"\x28\xb5\x2f\xfc"] {
        assert_eq!(sniff(plain), Some(None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_cutting_gives_the_same(
        body in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'{'), any::<u8>()], 0..5000),
        flushes in proptest::collection::vec(0..5000_usize, 0..6),
        cuts in proptest::collection::vec(0..5000_usize, 0..10),
        which in 0..ALL.len(),
    ) {
        let (coding, raw) = ALL[which];
        let mut at: Vec<usize> = flushes.iter().map(|f| f % (body.len() + 1)).chain([0, body.len()]).collect();
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|w| &body[w[0]..w[1]]).collect();
        let bytes = flushed(coding, raw, &pieces).concat();
        let mut cut: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
        cut.sort_unstable();
        let (mut decoder, mut out) = (Decoder::new(&[coding]), Vec::new());
        for w in cut.windows(2) {
            decoder.feed(&bytes[w[0]..w[1]], &mut |b| out.extend_from_slice(b)).unwrap();
        }
        prop_assert!(decoder.is_complete());
        prop_assert_eq!(out, body);
    }

    #[test]
    fn damage_neither_panics_nor_depends_on_the_cutting(
        damage in proptest::collection::vec((0..4000_usize, any::<u8>()), 1..4),
        size in 1..100_usize,
        which in 0..ALL.len(),
    ) {
        let (coding, raw) = ALL[which];
        let mut bytes = whole(coding, raw, &events(60).concat());
        for (at, with) in damage {
            let at = at % bytes.len();
            bytes[at] = with;
        }
        let (all, pieces) = (decode(&[coding], &bytes, bytes.len()), decode(&[coding], &bytes, size));
        prop_assert_eq!(all.0, pieces.0);
        // How far a decoder comes before it notices may differ; what it gave does not.
        prop_assert!(all.1.starts_with(&pieces.1) || pieces.1.starts_with(&all.1));
    }
}
