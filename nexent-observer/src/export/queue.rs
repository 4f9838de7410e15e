//! A budget in bytes beside a channel that is bounded by count: an exchange can be a hundred bytes or a megabyte.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Bytes that queued items may hold together.
#[derive(Debug, Clone)]
pub(super) struct ByteBudget {
    cap: usize,
    used: Arc<AtomicUsize>,
}

/// A share of a budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    bytes: usize,
    used: Arc<AtomicUsize>,
}

impl ByteBudget {
    pub(super) fn new(cap: usize) -> Self {
        Self { cap, used: Arc::default() }
    }

    /// Takes `bytes` from the budget, or nothing.
    pub(super) fn take(&self, bytes: usize) -> Option<Held> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.cap)
            })
            .ok()?;
        Some(Held { bytes, used: Arc::clone(&self.used) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_never_passed_and_comes_back() {
        let budget = ByteBudget::new(10);
        let a = budget.take(6).unwrap();
        assert!(budget.take(5).is_none());
        let b = budget.take(4).unwrap();
        assert!(budget.take(1).is_none());
        drop((a, b));
        assert!(budget.take(10).is_some());
        assert!(budget.take(usize::MAX).is_none());
    }
}
