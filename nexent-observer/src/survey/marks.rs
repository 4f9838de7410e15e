//! Marks that an implementation of TLS leaves in a program even where nothing of it can be hooked, and versions.

use std::{fs::File, io::Read, path::Path};

use memchr::memmem;
use serde::Serialize;

/// Something that cannot be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
    /// What to do.
    pub advice: String,
}

impl Unseen {
    pub(super) fn new(what: &str, why: impl Into<String>, advice: &str) -> Self {
        Self { what: what.to_owned(), why: why.into(), advice: advice.to_owned() }
    }
}

/// Libraries by the beginning of their file name that no finder knows, or that their finder has left alone.
const LIBRARIES: &[(&str, &str, &str)] = &[
    (
        "libjvm.so",
        "Java's JSSE",
        "its TLS is byte code that the virtual machine compiles as it likes: there is no address to hook",
    ),
    ("libgnutls.so", "GnuTLS", "nothing of it could be hooked"),
    ("libssl3.so", "NSS", "this version does not know NSS"),
    ("libmbedtls.so", "Mbed TLS", "this version does not know Mbed TLS"),
    ("libwolfssl.so", "wolfSSL", "this version does not know wolfSSL"),
    ("libs2n.so", "s2n-tls", "this version does not know s2n-tls"),
];

/// What a program with TLS linked into it has in it, the most telling first: all of these.
const PROGRAMS: &[(&[&str], &str, &str)] = &[
    (&["rustls", "aws-lc"], "rustls with aws-lc", "its functions could not be found or proven in this build"),
    (&["rustls", "aws_lc"], "rustls with aws-lc", "its functions could not be found or proven in this build"),
    (
        &["rustls", "ring_core_"],
        "rustls with ring",
        "ring's functions take and give pieces of a record by its own conventions: nothing in them can be hooked safely",
    ),
    (
        &["rustls", "/ring-0."],
        "rustls with ring",
        "ring's functions take and give pieces of a record by its own conventions: nothing in them can be hooked safely",
    ),
    (
        &["third_party/boringssl"],
        "BoringSSL without symbols",
        "its functions could not be found or proven in this build",
    ),
    (&["BoringSSL"], "BoringSSL without symbols", "its functions could not be found or proven in this build"),
    (&["OpenSSL 3."], "OpenSSL without symbols", "its functions could not be found or proven in this build"),
    (&["OpenSSL 1."], "OpenSSL without symbols", "its functions could not be found or proven in this build"),
];

const ANOTHER_WAY: &str = "what it speaks without TLS can be observed: send it through a gateway on this host by plain HTTP (plain_http), \
                           or instrument it from inside (docs/hooks.md for Python, OpenTelemetry for others)";

/// What a mapped file stands for by its name, if that cannot be seen.
#[must_use]
pub fn of_library(path: &Path) -> Option<Unseen> {
    let name = path.file_name()?.to_string_lossy();
    let (_, what, why) = LIBRARIES.iter().find(|(begin, ..)| name.starts_with(begin))?;
    Some(Unseen::new(what, format!("{why} ({name} is loaded)"), ANOTHER_WAY))
}

/// Most bytes of a program that are searched. Bun has 100 MB.
const SEARCHED: u64 = 512 << 20;
const PIECE: usize = 4 << 20;
/// Longer than any mark or version.
const OVERLAP: usize = 64;

/// What is in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// A library and its version, as it names itself: `OpenSSL 3.0.17`, `go1.22.3`.
    pub version: Option<String>,
    found: Vec<&'static str>,
}

impl Marks {
    /// Searches a file. One that cannot be read has none.
    #[must_use]
    pub fn search(file: File) -> Self {
        let mut wanted: Vec<&'static str> = PROGRAMS.iter().flat_map(|(marks, ..)| marks.iter().copied()).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut marks = Self::default();
        let (mut file, mut piece) = (file.take(SEARCHED), Vec::with_capacity(PIECE + OVERLAP));
        loop {
            let before = piece.len();
            match file.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) | Err(_) => return marks,
                Ok(_) => {}
            }
            let found: Vec<&'static str> =
                wanted.iter().copied().filter(|mark| memmem::find(&piece, mark.as_bytes()).is_some()).collect();
            wanted.retain(|mark| !found.contains(mark));
            marks.found.extend(found);
            if marks.version.is_none() {
                marks.version = version(&piece);
            }
            let keep = piece.len().saturating_sub(OVERLAP.min(before + PIECE));
            piece.drain(..keep);
        }
    }

    /// What the program has linked into it that cannot be seen.
    #[must_use]
    pub fn unseen(&self) -> Option<Unseen> {
        let (_, what, why) = PROGRAMS.iter().find(|(marks, ..)| marks.iter().all(|mark| self.found.contains(mark)))?;
        Some(Unseen::new(what, *why, ANOTHER_WAY))
    }
}

/// The first version in a piece of a file.
fn version(bytes: &[u8]) -> Option<String> {
    ["LibreSSL ", "OpenSSL "].iter().find_map(|name| number(bytes, name)).or_else(|| go_version(bytes))
}

/// A name with a version behind it, wherever in the bytes.
fn number(bytes: &[u8], name: &str) -> Option<String> {
    memmem::find_iter(bytes, name.as_bytes()).find_map(|at| {
        let rest = bytes.get(at + name.len()..)?;
        let number: String = rest
            .iter()
            .take(16)
            .take_while(|b| b.is_ascii_alphanumeric() || **b == b'.')
            .map(|b| char::from(*b))
            .collect();
        let whole = number.starts_with(|c: char| c.is_ascii_digit()) && number.matches('.').count() >= 2;
        whole.then(|| format!("{name}{number}"))
    })
}

/// The version in a Go program's build information (debug/buildinfo): since Go 1.18 its length and itself stand 32 bytes after
/// the mark.
fn go_version(bytes: &[u8]) -> Option<String> {
    let at = memmem::find(bytes, b"\xff Go buildinf:")?;
    let flags = *bytes.get(at + 15)?;
    let len = usize::from(*bytes.get(at + 32)?);
    let text = bytes.get(at + 33..at + 33 + len.min(31))?;
    let text = std::str::from_utf8(text).ok()?;
    (flags & 2 != 0 && len < 32 && text.starts_with("go") && text.is_ascii()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn search(name: &str, content: &[u8]) -> Marks {
        let path = std::env::temp_dir().join(format!("nexent-observer-marks-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(content).unwrap();
        let found = Marks::search(File::open(&path).unwrap());
        fs::remove_file(path).unwrap();
        found
    }

    #[test]
    fn what_is_linked_in_is_told_by_what_it_leaves() {
        for (content, what) in [
            ("x/rustls-0.23.12/src y ring_core_0_17_8_aes", Some("rustls with ring")),
            ("x/rustls-0.23.12/src /aws-lc-rs-1.8 and ring_core_", Some("rustls with aws-lc")),
            ("../third_party/boringssl/src/ssl/ssl_lib.cc", Some("BoringSSL without symbols")),
            ("OpenSSL 3.0.17 1 Jul 2025", Some("OpenSSL without symbols")),
            ("rustls alone", None),
            ("", None),
        ] {
            let found = search("what", content.as_bytes()).unseen();
            assert_eq!(found.as_ref().map(|unseen| unseen.what.as_str()), what, "{content}");
        }
        assert_eq!(of_library(Path::new("/usr/lib/jvm/lib/server/libjvm.so")).unwrap().what, "Java's JSSE");
        assert_eq!(of_library(Path::new("/usr/lib/libssl.so.3")), None);
    }

    #[test]
    fn versions_are_read_where_they_are_whole() {
        for (content, version) in [
            (&b"\0OpenSSL 3.0.17 1 Jul 2025\0"[..], Some("OpenSSL 3.0.17")),
            (b"OpenSSL 1.1.1w  11 Sep 2023", Some("OpenSSL 1.1.1w")),
            (b"OpenSSL \0 OpenSSL 3\0LibreSSL 3.8.2\0", Some("LibreSSL 3.8.2")),
            (b"OpenSSL internal error", None),
            (b"\xff Go buildinf:\x08\x020123456789abcdef\x08go1.22.3", Some("go1.22.3")),
            (b"\xff Go buildinf:\x08\x020123456789abcdef\xffgo1.22.3", None),
            (b"\xff Go buildinf:", None),
        ] {
            assert_eq!(search("version", content).version.as_deref(), version, "{}", content.escape_ascii());
        }
    }

    #[test]
    fn a_mark_across_two_pieces_is_found() {
        let mut content = vec![b'x'; PIECE - 5];
        content.extend_from_slice(b"OpenSSL 3.0.17 and more");
        let found = search("pieces", &content);
        assert_eq!(found.version.as_deref(), Some("OpenSSL 3.0.17"));
        assert!(found.unseen().is_some());
    }
}
