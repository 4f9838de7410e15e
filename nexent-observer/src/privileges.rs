//! Capabilities: what is kept of them once the kernel half is loaded and files and ports are open, and in which thread.
//!
//! The loop's thread keeps what reading `/proc` of other users' processes takes. The one that attaching takes stays permitted,
//! because processes, forks and late libraries keep coming, and is in effect only while something is attached ([`raise`]).
//! The threads that open files of processes keep those that finding and opening them takes ([`keep_opening`]), and every other thread (the endpoint, the
//! exporters, the writers, those that look into files) keeps none ([`shed`]): capabilities belong to a thread (capabilities(7)), and a new
//! one inherits those of the thread that starts it.

use std::{fmt, io};

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// `/proc/PID/{maps,exe}` of other users' processes; their `environ` and executables that only their owner may read.
const READING: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);
/// Executables that only their owner may read, paths below `/proc/PID/root`, and leases on files of other users.
const OPENING: CapabilitySet = READING.union(CapabilitySet::LEASE);
/// `perf_event_open` for a uprobe, and opening a file through `/proc/PID/map_files`.
const ATTACHING: CapabilitySet = CapabilitySet::SYS_ADMIN;
/// Kernels before 5.19 want it, or CAP_SYS_ADMIN, for every use of a map where `kernel.unprivileged_bpf_disabled` is set.
const MAPS: CapabilitySet = CapabilitySet::BPF;

/// What the loop's thread holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    always: CapabilitySet,
    attaching: CapabilitySet,
    /// Without CAP_SETPCAP the bounding set stays what it was. It has no effect then either: no_new_privs is set.
    bounding_set_is_empty: bool,
}

impl Held {
    /// Each capability (`CAP_SYS_ADMIN`) with when it is in effect: `always` or `attaching`.
    #[must_use]
    pub fn names(self) -> Vec<(String, &'static str)> {
        let of = |set: CapabilitySet, when| set.iter_names().map(move |(name, _)| (format!("CAP_{name}"), when));
        of(self.always, "always").chain(of(self.attaching, "attaching")).collect()
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |wanted: &str| {
            let names: Vec<_> = self.names().into_iter().filter(|(_, when)| *when == wanted).map(|(n, _)| n).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let bounding = if self.bounding_set_is_empty { "empty" } else { "unchanged (no CAP_SETPCAP)" };
        write!(
            f,
            "always {}; while attaching {}; in other threads none, or of CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE and CAP_LEASE what is given, to open files; no_new_privs set; \
             bounding set {bounding}",
            list("always"),
            list("attaching")
        )
    }
}

/// Drops in this thread whatever it does not need from now on. `uses_maps` says whether a map of the kernel half can be used
/// with what is in effect then.
///
/// # Errors
/// As the kernel gives them; what was dropped until then stays dropped.
pub fn confine(mut uses_maps: impl FnMut() -> bool) -> io::Result<Held> {
    let bounding_set_is_empty = give_up_gaining()?;
    let permitted = capabilities(None)?.permitted & (READING | ATTACHING | MAPS);
    // The least that works comes first: what is still permitted can be put into effect again.
    for extra in [CapabilitySet::empty(), MAPS, ATTACHING] {
        let always = (READING | extra) & permitted;
        set(permitted, always)?;
        if uses_maps() || extra == ATTACHING {
            set((always | ATTACHING) & permitted, always)?;
            break;
        }
    }
    let now = capabilities(None)?;
    Ok(Held { always: now.effective, attaching: now.permitted - now.effective, bounding_set_is_empty })
}

/// Puts what attaching takes into effect, until the value is dropped. Nested and before [`confine`] it changes nothing.
#[must_use]
pub fn raise() -> Raised {
    let raised = capabilities(None).and_then(|now| {
        let wanted = now.effective | (now.permitted & ATTACHING);
        if wanted != now.effective {
            set(now.permitted, wanted)?;
        }
        Ok(wanted != now.effective)
    });
    // Should it fail, attaching fails with the kernel's own words.
    Raised(raised.unwrap_or_default())
}

/// See [`raise`].
#[derive(Debug)]
pub struct Raised(bool);

impl Drop for Raised {
    fn drop(&mut self) {
        if self.0
            && let Err(error) = capabilities(None).and_then(|now| set(now.permitted, now.effective - ATTACHING))
        {
            tracing::warn!(%error, "A capability could not be put out of effect.");
        }
    }
}

/// Drops every capability of this thread: for threads that only use what is open already.
pub fn shed() {
    keep(CapabilitySet::empty());
}

/// Drops every capability of this thread but those of finding files by any path, opening those that only their owner may read, and leasing
/// them: for threads that do this for the loop.
pub fn keep_opening() {
    keep(OPENING);
}

fn keep(wanted: CapabilitySet) {
    let done = give_up_gaining().and_then(|_| {
        let kept = capabilities(None)?.permitted & wanted;
        Ok(set(kept, kept)?)
    });
    if let Err(error) = done {
        tracing::warn!(%error, "The capabilities of a thread could not be dropped.");
    }
}

/// Nothing that this thread may ever execute gains a capability. Gives whether the bounding set is empty.
fn give_up_gaining() -> io::Result<bool> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    // A capability that this kernel does not know is in no set.
    let bounding = (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .take_while(|capability| capability_is_in_bounding_set(*capability).is_ok())
        .filter(|capability| capability_is_in_bounding_set(*capability) == Ok(true));
    for capability in bounding {
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn set(permitted: CapabilitySet, effective: CapabilitySet) -> rustix::io::Result<()> {
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a thread of its own: what it drops is lost to nobody else.
    fn apart<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(test).join().unwrap())
    }

    fn now() -> CapabilitySets {
        capabilities(None).unwrap()
    }

    #[test]
    fn a_shed_thread_has_nothing_and_its_neighbours_keep_theirs() {
        let before = now();
        let (left, can_gain) = apart(|| {
            shed();
            (now(), !rustix::thread::no_new_privs().unwrap())
        });
        assert!((left.effective | left.permitted | left.inheritable).is_empty(), "{left:?}");
        assert!(!can_gain);
        assert_eq!(now().permitted, before.permitted);
    }

    #[test]
    fn attaching_is_in_effect_only_while_it_is_raised() {
        let may = now().permitted;
        apart(|| {
            let held = confine(|| true).unwrap();
            assert_eq!(now().effective, may & READING);
            assert_eq!(now().permitted, may & (READING | ATTACHING));
            assert_eq!((held.always, held.attaching), (may & READING, may & ATTACHING));
            {
                let _raised = raise();
                let _nested = raise();
                assert_eq!(now().effective, may & (READING | ATTACHING));
            }
            assert_eq!(now().effective, may & READING);
        });
    }

    #[test]
    fn where_maps_need_a_capability_the_least_that_works_stays_in_effect() {
        let may = now().permitted;
        let with =
            |wanted| apart(move || confine(|| now().effective.contains(wanted)).map(|held| held.always).unwrap());
        assert_eq!(with(MAPS & may), may & (READING | MAPS));
        assert_eq!(apart(|| confine(|| false).unwrap().always), may & (READING | ATTACHING));
    }

    #[test]
    fn what_is_held_is_said_in_one_line() {
        let held = Held { always: READING, attaching: ATTACHING, bounding_set_is_empty: false };
        assert_eq!(
            held.to_string(),
            "always CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE; while attaching CAP_SYS_ADMIN; in other threads none, or \
             of CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE and CAP_LEASE what is given, to open files; no_new_privs set; bounding set unchanged (no CAP_SETPCAP)"
        );
        let none = Held { always: CapabilitySet::empty(), attaching: CapabilitySet::empty(), ..held };
        assert!(none.to_string().starts_with("always none; while attaching none;"), "{none}");
    }
}
