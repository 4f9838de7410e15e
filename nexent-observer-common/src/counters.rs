//! What the kernel half counts: indices of its per-CPU counter array.

/// One counter of the kernel half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Counter {
    /// Records put into the ring of reads.
    ReadRecords = 0,
    /// Records put into the ring of writes.
    WriteRecords = 1,
    /// Records of reads lost because the ring was full.
    ReadLost = 2,
    /// Records of writes lost because the ring was full.
    WriteLost = 3,
    /// Calls whose entry could not be kept: their bytes are a gap of unknown size.
    InflightFull = 4,
    /// Connections that could not be numbered because the table was full: their bytes are not seen.
    ConnectionsFull = 5,
    /// Payloads that could not be read from the process's memory.
    UserFault = 6,
    /// Calls whose return was never seen.
    ReturnMissed = 7,
    /// Times the kernel half woke user space because a ring was over a quarter full.
    Wakeups = 8,
    /// Bytes left uncopied because of a verdict.
    SkippedBytes = 9,
    /// Process events lost because the ring was full.
    ProcessLost = 10,
    /// Bytes of plain sockets that were looked at and are no HTTP: nothing of them was copied.
    PlainOtherBytes = 11,
    /// Socket operations of plain HTTP whose bytes cannot be seen (splice, sendfile, io_uring).
    PlainUnseen = 12,
    /// Sockets that could not be followed because a table was full.
    SocketsFull = 13,
    /// TLS records of rustls that belong to no socket that is known: their bytes are not seen.
    AeadUnjoined = 14,
    /// Connections of rustls whose socket turned out to carry another one already: their beginning stands apart.
    AeadRejoined = 15,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: u32 = 16;

    /// All, by index.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::ReadRecords,
        Self::WriteRecords,
        Self::ReadLost,
        Self::WriteLost,
        Self::InflightFull,
        Self::ConnectionsFull,
        Self::UserFault,
        Self::ReturnMissed,
        Self::Wakeups,
        Self::SkippedBytes,
        Self::ProcessLost,
        Self::PlainOtherBytes,
        Self::PlainUnseen,
        Self::SocketsFull,
        Self::AeadUnjoined,
        Self::AeadRejoined,
    ];
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn every_counter_stands_at_its_index() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
