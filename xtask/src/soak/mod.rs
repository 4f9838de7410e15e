//! Proofs that take long: real probes, and everything around them that can go wrong. `cargo xtask soak` runs them for minutes, the
//! integration tests for seconds.

mod clock;
mod collector;
mod comings;
mod exports;
mod load;
mod many;
mod watched;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use watched::{Taken, breakpoints};

/// What a proof needs.
#[derive(Debug)]
pub struct Bed {
    /// The observer.
    pub observer: PathBuf,
    /// A copy of `fake_tls` that is the proof's own, so that probes on it are, too.
    pub fake_tls: PathBuf,
    /// Where its logs go.
    pub dir: PathBuf,
    /// How long its load is to last, s; what has to be there at all (10,000 streams, say) takes what it takes.
    pub seconds: u64,
}

impl Bed {
    /// Makes a proof's place below `dir`, which is emptied, with a copy of `fake_tls`.
    pub fn make(observer: &Path, fake_tls: &Path, dir: &Path, seconds: u64) -> Result<Self> {
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let copy = dir.join("fake_tls");
        std::fs::copy(fake_tls, &copy).with_context(|| format!("cannot copy {}", fake_tls.display()))?;
        Ok(Self { observer: observer.to_owned(), fake_tls: copy, dir: dir.to_owned(), seconds })
    }
}

/// What a proof came to; that it came to something at all says that what it claims holds.
#[derive(Debug, Default)]
pub struct Figures {
    /// What was done, with its numbers.
    pub done: String,
    /// What was seen, with its numbers.
    pub seen: String,
    /// Streams that the target made.
    pub streams: u64,
    /// Calls of TLS functions that it made; `None` where the clients do not count them.
    pub calls: Option<u64>,
    /// What the observer took; of several the last one. `None` where there are too many to tell.
    pub taken: Option<Taken>,
}

/// A proof.
#[derive(Debug)]
pub struct Proof {
    /// As it is asked for by `--only`.
    pub name: &'static str,
    /// What holds.
    pub claim: &'static str,
    run: fn(&Bed) -> Result<Figures>,
}

impl Proof {
    /// Runs it.
    pub fn run(&self, bed: &Bed) -> Result<Figures> {
        (self.run)(bed).with_context(|| format!("{}; see {}", self.name, bed.dir.display()))
    }
}

/// All proofs, those first that say most.
pub const PROOFS: &[Proof] = &[
    Proof {
        name: "overflow",
        claim: "A ring that is too small loses records: each is counted, what lacks them is marked incomplete and kept out of the histograms.",
        run: load::overflow,
    },
    Proof {
        name: "stopped",
        claim: "An observer that is stopped (SIGSTOP) under load and goes on: what was lost is counted, and what comes afterwards is right.",
        run: load::stopped,
    },
    Proof {
        name: "lost-ends",
        claim: "A connection whose end was lost with a full ring is known to have ended within seconds, while its process lives.",
        run: load::lost_ends,
    },
    Proof {
        name: "killed",
        claim: "Observers that are killed (SIGKILL) at random moments under load leave no breakpoint, their target gets what it has to, and the next one starts.",
        run: comings::killed,
    },
    Proof {
        name: "collector",
        claim: "A collector that is slow, refuses, is dead and comes back: memory is bounded, and every span was delivered or is counted as given up.",
        run: exports::collector,
    },
    Proof {
        name: "clock-steps",
        claim: "A wall clock that is stepped moves spans as a whole and changes no duration.",
        run: clock::steps,
    },
    Proof {
        name: "full-disk",
        claim: "A full disk costs lines, which are counted; when there is room again, lines are written, and each is whole.",
        run: exports::full_disk,
    },
    Proof { name: "streams", claim: "10,000 streams at once are followed, each chunk of them.", run: many::streams },
    Proof {
        name: "connections",
        claim: "A million short connections leave nothing: no entry in a table, no memory.",
        run: many::connections,
    },
    Proof {
        name: "labels",
        claim: "A new model with each call, with a name that would colour a terminal: the number of series is bounded, and no escape sequence gets out.",
        run: many::labels,
    },
    Proof {
        name: "hostile",
        claim: "A header line, an event and an unpacked body of 1 GB each: counted, with bounded memory, and what comes next is right.",
        run: many::hostile,
    },
    Proof {
        name: "cycles",
        claim: "Observers come and go on busy real clients, every fourth is killed: what the clients get is what the server sent.",
        run: comings::cycles,
    },
];

/// A number in what a target says.
fn number(said: &Value, key: &str) -> u64 {
    said[key].as_u64().unwrap_or(0)
}

/// The target got what its functions give.
fn ensure_unharmed(said: &Value) -> Result<()> {
    ensure!(said["wrong"] == 0, "calls of the target gave something else: {said}");
    Ok(())
}

/// Answers in JSON lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Answers {
    /// That say they are whole.
    whole: u64,
    /// Output chunks of these.
    chunks: u64,
    /// That say they are not.
    incomplete: u64,
}

/// Counts answers; an error when one that says it is whole has not as many chunks as its server says.
fn answers(lines: &[Value]) -> Result<Answers> {
    let mut all = Answers::default();
    for line in lines {
        if line["outcome"] != "completed" || line["bytes_lost"] != 0 {
            all.incomplete += 1;
            continue;
        }
        let chunks = line["chunks"].as_array().map(|chunks| chunks.len() as u64);
        ensure!(chunks.is_some() && chunks == line["usage"]["output"].as_u64(), "is called whole and is not: {line}");
        all.whole += 1;
        all.chunks += chunks.unwrap_or(0);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_that_claims_to_be_whole_has_to_be() {
        let line = |outcome, lost, output| json!({"outcome": outcome, "bytes_lost": lost, "chunks": [[1, 1, false]], "usage": {"output": output}});
        let counted = answers(&[line("completed", 0, 1), line("incomplete", 7, 5), line("completed", 3, 5)]).unwrap();
        assert_eq!(counted, Answers { whole: 1, chunks: 1, incomplete: 2 });
        assert!(answers(&[line("completed", 0, 2)]).is_err());
    }

    #[test]
    fn proofs_have_names_of_their_own() {
        let names: std::collections::BTreeSet<&str> = PROOFS.iter().map(|proof| proof.name).collect();
        assert_eq!(names.len(), PROOFS.len());
    }
}
