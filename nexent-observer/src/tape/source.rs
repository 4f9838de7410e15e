//! Reads the file of a recording, entry by entry.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use nexent_observer_core::tape::{
    entry::{self, Entry, Malformed},
    frame::{self, Broken, Kind, Unpacker},
};

use crate::error::RunError;

/// How a reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// With the end of the recording.
    Whole,
    /// The file ends before it.
    Cut,
    /// Damaged from some block on.
    Broken(Broken),
    /// Whoever took the entries wanted no more.
    Stopped,
}

/// What was read beside its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) ending: Ending,
    pub(super) entries: u64,
    /// Entries that could not be read, though their block was whole.
    pub(super) malformed: u64,
}

/// Reads a whole file; `each` gets every entry and says whether it wants more.
///
/// # Errors
/// The file cannot be read, or its beginning is not that of a recording.
pub(super) fn read(path: &Path, mut each: impl FnMut(Kind, Entry<'_>) -> bool) -> Result<Report, RunError> {
    let failed = |error| RunError::caused(format!("cannot read {}", path.display()), error);
    let mut file = File::open(path).map_err(failed)?;
    let mut unpacker = Unpacker::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut report = Report { ending: Ending::Cut, entries: 0, malformed: 0 };
    loop {
        let block = match unpacker.next_block() {
            Ok(block) => block,
            Err(broken) if report.entries == 0 => return Err(failed(io::Error::other(broken))),
            Err(broken) => return Ok(Report { ending: Ending::Broken(broken), ..report }),
        };
        let Some(block) = block else {
            if unpacker.has_ended() {
                return Ok(Report { ending: Ending::Whole, ..report });
            }
            let wants = unpacker.wants().clamp(1, buffer.len());
            let got = match file.read(buffer.get_mut(..wants).unwrap_or_default()) {
                Ok(0) => return Ok(report),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            unpacker.push(buffer.get(..got).unwrap_or_default());
            continue;
        };
        let Some(kind) = unpacker.kind() else { return Ok(report) };
        for bytes in frame::entries(&block) {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(broken) => return Ok(Report { ending: Ending::Broken(broken), ..report }),
            };
            report.entries += 1;
            match entry::read(bytes, |entry| each(kind, entry)) {
                Ok(true) => {}
                Ok(false) => return Ok(Report { ending: Ending::Stopped, ..report }),
                Err(Malformed) => report.malformed += 1,
            }
        }
    }
}
