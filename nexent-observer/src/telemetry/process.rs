//! What the observer itself costs.

/// CPU seconds, user and system, of this process since its start.
pub(super) fn cpu_seconds() -> Option<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: getrusage writes one rusage to the pointer it is given, which is valid for that, and returns 0 if it did.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    Some(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

/// Resident memory of this process, in bytes.
pub(super) fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_memory_and_its_cpu_time_only_grows() {
        assert!(super::resident_bytes().unwrap() > 100_000);
        let before = super::cpu_seconds().unwrap();
        let mut x = 1u64;
        for i in 1..30_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(i));
        }
        assert!(super::cpu_seconds().unwrap() > before);
    }
}
