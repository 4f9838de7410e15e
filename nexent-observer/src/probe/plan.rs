//! What a file holds that can be hooked: its implementations of TLS, each with hooks of its own, and what was found but is left
//! alone, with the reason. One finder per family, all in [`FINDERS`].

use std::fmt;

use nexent_observer_common::cookie::Length;
use serde::{Deserialize, Serialize};

use super::{aws_lc, boringssl, elf::Elf, gnutls, go, hookpoint::Cost, hooks, openssl, static_openssl};

/// A family of TLS implementations that share functions and their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// OpenSSL, LibreSSL, BoringSSL, by the names of their functions.
    OpenSsl,
    /// OpenSSL in a program, without names.
    StaticOpenSsl,
    /// BoringSSL in a program, without names.
    BoringSsl,
    /// GnuTLS.
    GnuTls,
    /// Go's `crypto/tls`.
    Go,
    /// rustls, by the functions of aws-lc that seal and open its records.
    Rustls,
    /// The probe point of the in-process hooks. No TLS.
    Hooks,
}

impl Family {
    /// Name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenSsl => "OpenSSL",
            Self::StaticOpenSsl => "OpenSSL without symbols",
            Self::BoringSsl => "BoringSSL without symbols",
            Self::GnuTls => "GnuTLS",
            Self::Go => "Go crypto/tls",
            Self::Rustls => "rustls",
            Self::Hooks => "in-process hooks",
        }
    }
}

impl Family {
    /// Whether it is found by looking through all of a file, so that the finding is worth keeping.
    #[must_use]
    pub const fn is_searched(self) -> bool {
        matches!(self, Self::StaticOpenSsl | Self::BoringSsl | Self::Rustls)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which programs of the kernel half a hook runs; the table of these stands in `kernel.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Program {
    /// Entry and return of a read.
    Read,
    /// Entry and return of a write.
    Write,
    /// Return of the function that makes a TLS object.
    New,
    /// Entry of the function that frees a TLS object.
    Free,
    /// Entry of the function that makes a TLS object begin anew.
    Clear,
    /// GnuTLS: entry and return of a write.
    GnuTlsWrite,
    /// GnuTLS: entry and return of the function that writes what was kept back.
    GnuTlsUncork,
    /// GnuTLS: entry and return of the function that makes a session.
    GnuTlsInit,
    /// Go: entry of a read.
    GoReadEnter,
    /// Go: a return of a read.
    GoReadReturn,
    /// Go: entry of a write.
    GoWriteEnter,
    /// Go: a return of a write.
    GoWriteReturn,
    /// Go: entry of a function in which a connection begins.
    GoBegin,
    /// Go: entry of the function that ends a connection.
    GoClose,
    /// aws-lc: entry of `EVP_AEAD_CTX_seal`.
    AeadSeal,
    /// aws-lc: entry of `EVP_AEAD_CTX_seal_scatter`.
    AeadSealScatter,
    /// aws-lc: entry and return of `EVP_AEAD_CTX_open`.
    AeadOpen,
    /// In-process hooks: entry of the function that announces.
    Announce,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// What runs there.
    pub program: Program,
    /// The function, for people: a public name, or `public name -> inner`.
    pub function: String,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Where the hooked function says how many bytes it moved.
    #[serde(with = "LengthName")]
    pub length: Length,
    /// What a hit costs.
    pub cost: Cost,
}

/// One implementation of TLS in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyPlan {
    /// Which.
    pub family: Family,
    /// Hooks; reads and writes at least.
    pub hooks: Vec<Hook>,
    /// What is not as cheap or as complete as it could be, and why: one sentence each, without its full stop.
    pub notes: Vec<String>,
    /// Parts of the file that prove it, of a family that is searched for.
    pub proof: Vec<Part>,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// A function begins so many bytes behind its start; `None`: it is no function.
    pub function: Option<u64>,
}

impl Part {
    /// Whether a hook at this offset is at the beginning of this function, behind an `endbr64` (4 bytes) and a test (3 bytes) or not.
    #[must_use]
    pub fn is_hooked_at(&self, offset: u64) -> bool {
        let begins = self.function.and_then(|function| self.offset.checked_add(function));
        begins.and_then(|begins| offset.checked_sub(begins)).is_some_and(|into| matches!(into, 0 | 3 | 4 | 7))
    }
}

/// [`Length`] by name, for findings on disk.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Length")]
enum LengthName {
    Returned,
    FourthArgument,
    FifthArgument,
    ThirdArgument,
}

/// Why an implementation that seems to be in a file is not hooked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyNot {
    /// A function is not there or cannot be found.
    #[error("{0} is not found")]
    Missing(String),
    /// More than one place could be the function.
    #[error("{what} could be at {candidates} places")]
    Ambiguous {
        /// Which function.
        what: String,
        /// How many places.
        candidates: usize,
    },
    /// What is there does not look as the function must.
    #[error("{what} is not proven: {why}")]
    Unproven {
        /// Which function.
        what: String,
        /// Which part of the proof fails.
        why: String,
    },
    /// A version, or a way of building it, that cannot be hooked.
    #[error("{0}")]
    Unsupported(String),
}

/// What was found in a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What can be hooked.
    pub implementations: Vec<FamilyPlan>,
    /// What is there, or seems to be, and is not hooked.
    pub refused: Vec<(Family, WhyNot)>,
    /// GNU build id, in hexadecimal.
    pub build_id: Option<String>,
}

/// Looks for one family in a file: a plan, or nothing of that family, or why it cannot be hooked.
pub type Finder = fn(&Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot>;

/// All finders. Each is asked about every file, so that several implementations in one file are all found.
pub const FINDERS: &[(Family, Finder)] = &[
    (Family::OpenSsl, openssl::plan),
    (Family::StaticOpenSsl, static_openssl::plan),
    (Family::BoringSsl, boringssl::plan),
    (Family::GnuTls, gnutls::plan),
    (Family::Go, go::plan),
    (Family::Rustls, aws_lc::plan),
    (Family::Hooks, hooks::plan),
];

impl Plan {
    /// Asks every finder about a file.
    #[must_use]
    pub fn of(elf: &Elf<'_>) -> Self {
        let mut plan = Self { build_id: elf.build_id(), ..Self::default() };
        for (family, find) in FINDERS {
            plan.add(*family, find(elf));
        }
        plan
    }

    /// Takes in what a finder says.
    pub(super) fn add(&mut self, family: Family, found: Result<Option<FamilyPlan>, WhyNot>) {
        match found {
            Ok(Some(found)) => self.implementations.push(found),
            Ok(None) => {}
            Err(why) => self.refused.push((family, why)),
        }
    }

    /// Whether there is TLS that can be hooked.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.implementations.iter().any(|found| found.family != Family::Hooks)
    }

    /// Whether what it sees makes sense only together with what happens on sockets.
    #[must_use]
    pub fn needs_sockets(&self) -> bool {
        self.implementations.iter().any(|found| found.family == Family::Rustls)
    }

    /// Whether there is anything to hook.
    #[must_use]
    pub fn is_hookable(&self) -> bool {
        !self.implementations.is_empty()
    }
}
