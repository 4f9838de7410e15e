//! From the kernel's monotonic clock to wall-clock time. The only place where the two meet.

use nexent_observer_core::event::MonoNs;

/// The offset is measured anew when it is older than this, in ns.
const MAX_AGE_NS: u64 = 1_000_000_000;
/// Measurements per refresh; the one with the smallest window is taken.
const ATTEMPTS: usize = 3;

/// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`, in ns, at one moment.
///
/// All times of one span are converted with one offset: when the wall clock is stepped while a span is open, the span
/// moves as a whole and its inner distances stay exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset(pub i64);

impl Offset {
    /// Wall-clock time in ns since the Unix epoch.
    #[must_use]
    pub fn unix_ns(self, at: MonoNs) -> u64 {
        at.0.saturating_add_signed(self.0)
    }
}

/// Keeps the offset, measured again at most once a second.
#[derive(Debug, Default)]
pub struct WallClock {
    measured: Option<(u64, Offset)>,
    fixed: Option<Offset>,
}

impl WallClock {
    /// A clock whose offset was recorded: that of another time, maybe of another machine.
    #[must_use]
    pub fn fixed(offset: Offset) -> Self {
        Self { measured: None, fixed: Some(offset) }
    }

    /// The present offset.
    pub fn offset(&mut self) -> Offset {
        if let Some(offset) = self.fixed {
            return offset;
        }
        let now = read(libc::CLOCK_MONOTONIC);
        match self.measured {
            Some((at, offset)) if now.saturating_sub(at) < MAX_AGE_NS => offset,
            _ => {
                let offset = measure(read);
                self.measured = Some((now, offset));
                offset
            }
        }
    }
}

/// Now, on the monotonic clock, in ns.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Reads the wall clock between two reads of the monotonic one, so that the error is at most half the window; the
/// process can be preempted in between, hence several attempts.
fn measure(read: impl Fn(libc::clockid_t) -> u64) -> Offset {
    let mut best = (u64::MAX, Offset(0));
    for _ in 0..ATTEMPTS {
        let before = read(libc::CLOCK_MONOTONIC);
        let wall = read(libc::CLOCK_REALTIME);
        let after = read(libc::CLOCK_MONOTONIC);
        let window = after.saturating_sub(before);
        if window < best.0 {
            best = (window, Offset(wall.wrapping_sub(before.midpoint(after)) as i64)); // the difference fits for centuries
        }
    }
    best.1
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one timespec to a pointer that is valid for that; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::SystemTime};

    use super::*;

    #[test]
    fn now_on_the_monotonic_clock_converts_to_now_on_the_wall() {
        let unix = WallClock::default().offset().unix_ns(MonoNs(read(libc::CLOCK_MONOTONIC)));
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(unix.abs_diff(wall) < 50_000_000, "{unix} {wall}");
    }

    #[test]
    fn the_attempt_with_the_smallest_window_wins() {
        // The first attempt was preempted for 1 ms between the reads; the others took 20 ns.
        let reads =
            [1000, 501_000_000, 1_001_000, 2_000_000, 502_000_010, 2_000_020, 3_000_000, 503_000_010, 3_000_020];
        let next = Cell::new(0);
        let offset = measure(|_| {
            let i = next.replace(next.get() + 1);
            reads[i]
        });
        assert_eq!(offset, Offset(500_000_000));
    }

    #[test]
    fn a_wall_clock_before_the_boot_time_gives_a_negative_offset() {
        assert_eq!(Offset(-5).unix_ns(MonoNs(7)), 2);
        assert_eq!(Offset(-5).unix_ns(MonoNs(3)), 0);
        assert_eq!(measure(|clock| if clock == libc::CLOCK_REALTIME { 10 } else { 100 }), Offset(-90));
    }
}
