//! Records: the smallest class that fits, straight into the ring, without a wake-up.

use core::{
    mem::MaybeUninit,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::bpf_probe_read_user,
    maps::RingBuf,
};
use nexent_observer_common::{
    counters::Counter,
    piece::{self, MAX_PIECES, Window},
    record::{CLASS_BYTES, HEADER_BYTES, MAX_PIECE, Peer, RecordHeader, flag, kind},
    state::SockCall,
};

use crate::{
    inflight::Returned,
    maps::{READS, WOKEN, WRITES, count, read_wake_bytes, write_wake_bytes},
};

/// One of the two rings.
#[derive(Clone, Copy)]
pub struct Ring {
    index: u32,
    made: Counter,
    lost: Counter,
}

/// The ring of reads.
pub const READ_RING: Ring = Ring { index: 0, made: Counter::ReadRecords, lost: Counter::ReadLost };
/// The ring of writes.
pub const WRITE_RING: Ring = Ring { index: 1, made: Counter::WriteRecords, lost: Counter::WriteLost };

impl Ring {
    #[inline(always)]
    fn map(self) -> &'static RingBuf {
        if self.index == 0 { &READS } else { &WRITES }
    }

    /// Flags for a submission: no wake-up, unless the ring is over a quarter full and user space was not woken since its
    /// last drain. A wake-up per record would cost the observed process about 13 us each (measured).
    #[inline(always)]
    fn submit_flags(self) -> u64 {
        let limit = if self.index == 0 { read_wake_bytes() } else { write_wake_bytes() };
        if self.map().query(u64::from(BPF_RB_AVAIL_DATA)) < limit {
            return u64::from(BPF_RB_NO_WAKEUP);
        }
        wake_once(self.index)
    }
}

/// Flags for a submission that wakes user space, if it was not woken for this before.
#[inline(always)]
fn wake_once(reason: u32) -> u64 {
    let Some(woken) = WOKEN.get_ptr_mut(reason) else { return u64::from(BPF_RB_NO_WAKEUP) };
    // SAFETY: an aligned word of a map. Two programs may both see 0 and both wake: harmless.
    unsafe {
        if core::ptr::read_volatile(woken) != 0 {
            return u64::from(BPF_RB_NO_WAKEUP);
        }
        core::ptr::write_volatile(woken, 1);
    }
    count(Counter::Wakeups);
    u64::from(BPF_RB_FORCE_WAKEUP)
}

/// Why `WOKEN` says that user space was woken: a process runs another program.
const EXECUTED: u32 = 2;

/// A record of one class.
#[repr(C)]
struct Slot<const ROOM: usize> {
    header: RecordHeader,
    payload: [MaybeUninit<u8>; ROOM],
}

const ROOM_0: usize = CLASS_BYTES[0] - HEADER_BYTES;
const ROOM_1: usize = CLASS_BYTES[1] - HEADER_BYTES;
const ROOM_2: usize = CLASS_BYTES[2] - HEADER_BYTES;
const ROOM_3: usize = CLASS_BYTES[3] - HEADER_BYTES;
const ROOM_4: usize = MAX_PIECE;

/// Puts one record of a class: `len` bytes (at most `ROOM`) from the user address `from`.
#[inline(always)]
fn put<const ROOM: usize>(ring: Ring, header: &RecordHeader, from: u64, len: u64) {
    let Some(mut entry) = ring.map().reserve::<Slot<ROOM>>(0) else {
        count(ring.lost);
        return;
    };
    let slot = entry.as_mut_ptr();
    // SAFETY: the entry has room for a `Slot<ROOM>`; every field of the header is written here, and user space reads only
    // `len` bytes of the payload.
    unsafe {
        (&raw mut (*slot).header).write(*header);
        (*slot).header.len = len as u32;
        if len > 0 && len <= ROOM as u64 {
            let to = (&raw mut (*slot).payload).cast::<core::ffi::c_void>();
            if bpf_probe_read_user(to, len as u32, from as *const core::ffi::c_void) != 0 {
                // Never zeros in the place of bytes: the record says that they are unknown.
                (*slot).header.len = 0;
                (*slot).header.flags |= flag::FAULT;
                count(Counter::UserFault);
            }
        } else {
            (*slot).header.len = 0;
        }
    }
    let flags = ring.submit_flags();
    entry.submit(flags);
    count(ring.made);
}

/// Puts one record, in the smallest class with room for `len` bytes.
#[inline(always)]
fn put_smallest(ring: Ring, header: &RecordHeader, from: u64, len: u64) {
    if len <= ROOM_0 as u64 {
        put::<ROOM_0>(ring, header, from, len);
    } else if len <= ROOM_1 as u64 {
        put::<ROOM_1>(ring, header, from, len);
    } else if len <= ROOM_2 as u64 {
        put::<ROOM_2>(ring, header, from, len);
    } else if len <= ROOM_3 as u64 {
        put::<ROOM_3>(ring, header, from, len);
    } else {
        put::<ROOM_4>(ring, header, from, len);
    }
}

/// Puts one record of a text of at most `MAX_PIECE` bytes into the ring of writes.
#[inline(always)]
pub fn text(header: &RecordHeader, from: u64, len: u64) {
    put_smallest(WRITE_RING, header, from, len);
}

/// Puts the records of a call at its return. `header` carries what all of them share, with the offset of the first byte; flags
/// that speak of what went before stand in the first record only.
#[inline(always)]
pub fn call<R: ToRing>(header: &RecordHeader, returned: &Returned, window: Window) {
    let (from, n) = (returned.call.buf, returned.bytes);
    if n <= MAX_PIECE as u64 && (n <= window.head || n <= window.tail) {
        let header = RecordHeader { orig_len: n as u32, ..*header };
        put_smallest(R::RING, &header, from, n);
        return;
    }
    let mut header = *header;
    let first_offset = header.offset;
    let lasting = header.flags & (flag::FROM_START | flag::SENT);
    // SAFETY: the call's own value in the map of calls in flight; only this thread touches it, and it is removed after this.
    let (moved, cut) = unsafe { (&raw mut (*returned.kept).moved, &raw mut (*returned.kept).cut) };
    // SAFETY: as above.
    unsafe {
        core::ptr::write_volatile(moved, n);
        core::ptr::write_volatile(cut, 0);
    }
    for _ in 0..MAX_PIECES {
        // SAFETY: as above.
        let (n, at) = unsafe { (core::ptr::read_volatile(moved), core::ptr::read_volatile(cut)) };
        if at >= n {
            return;
        }
        let piece = piece::next_piece(n, at, window);
        header.offset = first_offset.wrapping_add(at);
        header.orig_len = piece.stands_for as u32;
        if piece.capped {
            header.flags |= flag::CAPPED;
        }
        put_smallest(R::RING, &header, from.wrapping_add(at), piece.copy);
        header.flags = lasting;
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(cut, at.wrapping_add(piece.stands_for)) };
    }
    // SAFETY: as above.
    let at = unsafe { core::ptr::read_volatile(cut) };
    if at < n {
        // More than the bounded loop may copy: say how much was left out.
        header.offset = first_offset.wrapping_add(at);
        header.orig_len = piece::clamp_u32(n - at) as u32;
        put::<ROOM_0>(R::RING, &header, 0, 0);
    }
}

/// Iterations that may go into one call on a socket: its pieces, and one for each `iovec` that ends.
const MAX_GATHERED: u32 = MAX_PIECES + 24;

/// Puts the records of a call on a socket at its exit: `n` bytes, from one buffer or gathered from several. `call.base` and
/// `call.left` are the first buffer, `call.at` and `call.count` the `iovec`s behind it. All positions stay in the map (see [`call`]).
#[inline(always)]
pub fn gathered<R: ToRing>(header: &RecordHeader, call: *mut SockCall, n: u64, window: Window) {
    // SAFETY (all of this function): the call's own value in the map of system calls; only this thread touches it.
    let (base, left) = unsafe { (read_volatile(&raw const (*call).base), read_volatile(&raw const (*call).left)) };
    if n <= MAX_PIECE as u64 && n <= left && (n <= window.head || n <= window.tail) {
        let header = RecordHeader { orig_len: n as u32, ..*header };
        put_smallest(R::RING, &header, base, n);
        return;
    }
    let mut header = *header;
    let first_offset = header.offset;
    let lasting = header.flags & (flag::FROM_START | flag::SENT);
    // SAFETY: as above.
    unsafe {
        write_volatile(&raw mut (*call).moved, n);
        write_volatile(&raw mut (*call).cut, 0);
    }
    for _ in 0..MAX_GATHERED {
        // SAFETY: as above.
        let (n, at) = unsafe { (read_volatile(&raw const (*call).moved), read_volatile(&raw const (*call).cut)) };
        if at >= n {
            return;
        }
        // SAFETY: as above.
        let (base, left) = unsafe { (read_volatile(&raw const (*call).base), read_volatile(&raw const (*call).left)) };
        if left == 0 {
            if next_vector(call).is_none() {
                break;
            }
            continue;
        }
        let piece = piece::next_piece(n, at, window);
        let stands_for = if piece.stands_for > left { left } else { piece.stands_for };
        let copy = if piece.copy > left { left } else { piece.copy };
        header.offset = first_offset.wrapping_add(at);
        header.orig_len = piece::clamp_u32(stands_for) as u32;
        if piece.capped {
            header.flags |= flag::CAPPED;
        }
        put_smallest(R::RING, &header, base, copy);
        header.flags = lasting;
        // SAFETY: as above.
        unsafe {
            write_volatile(&raw mut (*call).cut, at.wrapping_add(stands_for));
            write_volatile(&raw mut (*call).base, base.wrapping_add(stands_for));
            write_volatile(&raw mut (*call).left, left.wrapping_sub(stands_for));
        }
    }
    // SAFETY: as above.
    let (n, at) = unsafe { (read_volatile(&raw const (*call).moved), read_volatile(&raw const (*call).cut)) };
    if at < n {
        // More than the bounded loop may copy, or a vector that cannot be read: say how much was left out.
        header.offset = first_offset.wrapping_add(at);
        header.orig_len = piece::clamp_u32(n - at) as u32;
        put::<ROOM_0>(R::RING, &header, 0, 0);
    }
}

/// Goes on to the next `iovec` of a call: (address, length), two words (include/uapi/linux/uio.h). `None`: there is no other, or it
/// cannot be read.
#[inline(always)]
pub fn next_vector(call: *mut SockCall) -> Option<()> {
    // SAFETY: the call's own value in the map.
    let (at, vectors) = unsafe { (read_volatile(&raw const (*call).at), read_volatile(&raw const (*call).count)) };
    if vectors == 0 {
        return None;
    }
    let mut vector = [0u64; 2];
    // SAFETY: the helper checks the user address and writes 16 bytes to a local.
    if unsafe { bpf_probe_read_user((&raw mut vector).cast(), 16, at as *const core::ffi::c_void) } != 0 {
        count(Counter::UserFault);
        return None;
    }
    // SAFETY: as above.
    unsafe {
        write_volatile(&raw mut (*call).at, at.wrapping_add(16));
        write_volatile(&raw mut (*call).count, vectors.wrapping_sub(1));
        write_volatile(&raw mut (*call).base, vector[0]);
        write_volatile(&raw mut (*call).left, vector[1]);
    }
    Some(())
}

/// A direction's ring, as a type: the verifier wants to know the map at each call.
pub trait ToRing {
    /// The ring.
    const RING: Ring;
}

/// Reads.
pub struct ToReads;
impl ToRing for ToReads {
    const RING: Ring = READ_RING;
}

/// Writes.
pub struct ToWrites;
impl ToRing for ToWrites {
    const RING: Ring = WRITE_RING;
}

/// Puts a record whose payload is one word (close) or nothing (process events). An exec wakes user space, once a tick: what begins there may
/// have to be attached to, and costs a thousand times as much itself.
#[inline(always)]
pub fn note(header: &RecordHeader, word: Option<u64>) -> bool {
    let Some(mut entry) = READS.reserve::<Slot<ROOM_0>>(0) else { return false };
    let slot = entry.as_mut_ptr();
    // SAFETY: as in `put`.
    unsafe {
        (&raw mut (*slot).header).write(*header);
        if let Some(word) = word {
            (&raw mut (*slot).payload).cast::<u64>().write(word);
        }
    }
    let flags = if header.kind == kind::EXEC { wake_once(EXECUTED) } else { READ_RING.submit_flags() };
    entry.submit(flags);
    true
}

/// What a record without bytes of a stream is about.
#[derive(Clone, Copy)]
pub struct Fact {
    /// `kind`.
    pub kind: u16,
    /// Connection.
    pub conn: u64,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// From when, ns.
    pub from_ns: u64,
    /// Until when, ns.
    pub until_ns: u64,
    /// As `kind` has it.
    pub offset: u64,
}

/// What a `Fact` brings besides its header. A trait and not a closure: a closure is not surely inlined, and the name of its function would carry
/// a hash of the checkout's path.
pub trait Payload {
    /// Bytes that `write` writes.
    const LEN: u32;
    /// Writes them to a place in a ring that has room for a peer.
    fn write(self, to: *mut Peer);
}

/// No payload.
impl Payload for () {
    const LEN: u32 = 0;
    #[inline(always)]
    fn write(self, _to: *mut Peer) {}
}

/// Puts a record without bytes of a stream into a ring. Everything is written straight into the ring: these records are made where the stack
/// is full.
#[inline(always)]
pub fn fact<R: ToRing, P: Payload>(fact: Fact, payload: P) {
    let Some(mut entry) = R::RING.map().reserve::<Slot<ROOM_0>>(0) else {
        count(R::RING.lost);
        return;
    };
    let slot = entry.as_mut_ptr();
    // SAFETY: as in `put`; a peer has 64 bytes, and the smallest class has room for more.
    unsafe {
        (&raw mut (*slot).header.entry_ns).write(fact.from_ns);
        (&raw mut (*slot).header.return_ns).write(fact.until_ns);
        (&raw mut (*slot).header.conn).write(fact.conn);
        (&raw mut (*slot).header.offset).write(fact.offset);
        (&raw mut (*slot).header.tgid).write(fact.tgid);
        (&raw mut (*slot).header.tid).write(fact.tid);
        (&raw mut (*slot).header.len).write(P::LEN);
        (&raw mut (*slot).header.orig_len).write(P::LEN);
        (&raw mut (*slot).header.kind).write(fact.kind);
        (&raw mut (*slot).header.flags).write(0);
        (&raw mut (*slot).header.turn).write(0);
    }
    // SAFETY: as above; only the address is taken.
    payload.write(unsafe { &raw mut (*slot).payload }.cast::<Peer>());
    let flags = R::RING.submit_flags();
    entry.submit(flags);
    count(R::RING.made);
}
