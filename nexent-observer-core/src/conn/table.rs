//! The table of connections: bounded, and what is silent longest goes first.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::{
    event::{ConnId, MonoNs},
    limits::Limits,
    stats::{DropReason, Stats},
};

/// Values by connection, at most [`Limits::connections`] of them. Looking up, touching, inserting and evicting are O(1): a
/// slab whose used slots form a list from the one silent longest to the one heard last.
///
/// What is evicted is handed back, so that the caller can close it.
#[derive(Debug)]
pub struct Table<T> {
    index: HashMap<ConnId, u32, BuildHasherDefault<IdHasher>>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// Connections of each process, so that the end of a process without any costs nothing.
    per_pid: HashMap<u32, u32>,
    oldest: u32,
    newest: u32,
    capacity: usize,
    idle_ns: u64,
}

#[derive(Debug)]
struct Slot<T> {
    conn: ConnId,
    pid: u32,
    heard: MonoNs,
    older: u32,
    newer: u32,
    value: Option<T>,
}

/// End of the list.
const NONE: u32 = u32::MAX;

impl<T> Table<T> {
    /// An empty table with the caps of `limits`; it holds at least one connection.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            index: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            per_pid: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            capacity: limits.connections.clamp(1, NONE as usize),
            idle_ns: limits.idle_ns,
        }
    }

    /// Connections in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The value of `conn`, which is thereby heard at `now`; `None` when it is not in the table.
    pub fn touch(&mut self, conn: ConnId, now: MonoNs) -> Option<&mut T> {
        let at = *self.index.get(&conn)?;
        if at != self.newest {
            self.unlink(at);
            self.link_newest(at);
        }
        let slot = self.slots.get_mut(at as usize)?;
        slot.heard = slot.heard.max(now);
        slot.value.as_mut()
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    /// The value of `conn`, without touching it.
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&T> {
        let at = *self.index.get(&conn)?;
        self.slots.get(at as usize)?.value.as_ref()
    }

    /// The value of `conn`, without touching it.
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut T> {
        let at = *self.index.get(&conn)?;
        self.slots.get_mut(at as usize)?.value.as_mut()
    }

    /// Connections that were not heard since `before` and their processes, the one silent longest first.
    pub fn silent(&self, before: MonoNs) -> impl Iterator<Item = (ConnId, u32, &T)> {
        let mut at = self.oldest;
        std::iter::from_fn(move || {
            let slot = self.slots.get(at as usize).filter(|slot| slot.heard < before)?;
            at = slot.newer;
            Some((slot.conn, slot.pid, slot.value.as_ref()?))
        })
    }

    /// Puts a connection in, heard at `now`. Returns what had to go: the former value of `conn`, or, of a full table, the
    /// connection silent longest (counted [`DropReason::ConnectionsFull`]).
    pub fn insert(&mut self, conn: ConnId, pid: u32, now: MonoNs, value: T, stats: &mut Stats) -> Option<(ConnId, T)> {
        let mut gone = self.remove(conn).map(|old| (conn, old));
        if self.len() >= self.capacity {
            stats.count(DropReason::ConnectionsFull);
            gone = self.pop_oldest();
        }
        let slot = Slot { conn, pid, heard: now, older: NONE, newer: NONE, value: Some(value) };
        let at = match self.free.pop() {
            Some(at) => {
                if let Some(free) = self.slots.get_mut(at as usize) {
                    *free = slot;
                }
                at
            }
            None => {
                // Below the capacity, which fits.
                let at = self.slots.len() as u32;
                self.slots.push(slot);
                at
            }
        };
        self.link_newest(at);
        self.index.insert(conn, at);
        *self.per_pid.entry(pid).or_default() += 1;
        gone
    }

    /// Takes a connection out.
    pub fn remove(&mut self, conn: ConnId) -> Option<T> {
        let at = self.index.remove(&conn)?;
        self.unlink(at);
        self.free.push(at);
        let slot = self.slots.get_mut(at as usize)?;
        let value = slot.value.take();
        let pid = slot.pid;
        if let Some(count) = self.per_pid.get_mut(&pid) {
            *count -= 1;
            if *count == 0 {
                self.per_pid.remove(&pid);
            }
        }
        value
    }

    /// Takes all connections of a process out, the one silent longest first.
    pub fn remove_pid(&mut self, pid: u32) -> Vec<(ConnId, T)> {
        let count = self.per_pid.get(&pid).map_or(0, |n| *n as usize);
        let mut found = Vec::with_capacity(count);
        let mut at = self.oldest;
        while found.len() < count
            && let Some(slot) = self.slots.get(at as usize)
        {
            if slot.pid == pid {
                found.push(slot.conn);
            }
            at = slot.newer;
        }
        found.into_iter().filter_map(|conn| Some((conn, self.remove(conn)?))).collect()
    }

    /// When the connection silent longest becomes idle.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<MonoNs> {
        let slot = self.slots.get(self.oldest as usize)?;
        Some(MonoNs(slot.heard.0.saturating_add(self.idle_ns)))
    }

    /// Takes out one connection that is idle at `now` (counted [`DropReason::Idle`]); call until `None`.
    pub fn pop_idle(&mut self, now: MonoNs, stats: &mut Stats) -> Option<(ConnId, T)> {
        if self.poll_timeout()? > now {
            return None;
        }
        stats.count(DropReason::Idle);
        self.pop_oldest()
    }

    /// Takes out the connection silent longest.
    pub fn pop_oldest(&mut self) -> Option<(ConnId, T)> {
        let conn = self.slots.get(self.oldest as usize)?.conn;
        Some((conn, self.remove(conn)?))
    }

    fn unlink(&mut self, at: u32) {
        let Some(slot) = self.slots.get_mut(at as usize) else { return };
        let (older, newer) = (slot.older, slot.newer);
        (slot.older, slot.newer) = (NONE, NONE);
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let older = std::mem::replace(&mut self.newest, at);
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
        if let Some(slot) = self.slots.get_mut(at as usize) {
            (slot.older, slot.newer) = (older, NONE);
        }
    }
}

/// Connection numbers are counted up by the kernel half: nobody outside chooses them, so a multiplication (by 2^64 divided
/// by the golden ratio) spreads them well enough.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(connections: usize) -> Table<&'static str> {
        Table::new(&Limits { connections, idle_ns: 100, ..Limits::default() })
    }

    #[test]
    fn a_full_table_lets_the_one_silent_longest_go() {
        let mut stats = Stats::default();
        let mut t = table(2);
        assert_eq!(t.insert(ConnId(1), 1, MonoNs(1), "a", &mut stats), None);
        assert_eq!(t.insert(ConnId(2), 1, MonoNs(2), "b", &mut stats), None);
        assert_eq!(t.touch(ConnId(1), MonoNs(3)), Some(&mut "a"));
        assert_eq!(t.insert(ConnId(3), 1, MonoNs(4), "c", &mut stats), Some((ConnId(2), "b")));
        assert_eq!(t.len(), 2);
        assert_eq!(stats.drops(DropReason::ConnectionsFull), 1);
        assert_eq!(t.touch(ConnId(2), MonoNs(5)), None);
    }

    #[test]
    fn the_silent_are_named_in_the_order_of_their_silence_and_stay() {
        let (mut t, mut stats) = (table(8), Stats::default());
        for n in 0..4 {
            t.insert(ConnId(n), 7, MonoNs(n * 10), "x", &mut stats);
        }
        t.touch(ConnId(0), MonoNs(50));
        let silent =
            |t: &Table<&str>, before| t.silent(MonoNs(before)).map(|(conn, pid, _)| (conn.0, pid)).collect::<Vec<_>>();
        assert_eq!(silent(&t, 30), [(1, 7), (2, 7)]);
        assert_eq!(silent(&t, 51), [(1, 7), (2, 7), (3, 7), (0, 7)]);
        assert_eq!((silent(&t, 10), t.len()), (vec![], 4));
    }

    #[test]
    fn the_idle_go_in_the_order_of_their_silence() {
        let mut stats = Stats::default();
        let mut t = table(9);
        assert_eq!(t.poll_timeout(), None);
        for (i, v) in ["a", "b", "c"].into_iter().enumerate() {
            t.insert(ConnId(i as u64), 1, MonoNs(i as u64), v, &mut stats);
        }
        t.touch(ConnId(0), MonoNs(50));
        assert_eq!(t.poll_timeout(), Some(MonoNs(101)));
        assert_eq!(t.pop_idle(MonoNs(100), &mut stats), None);
        assert_eq!(t.pop_idle(MonoNs(150), &mut stats), Some((ConnId(1), "b")));
        assert_eq!(t.pop_idle(MonoNs(150), &mut stats), Some((ConnId(2), "c")));
        assert_eq!(t.pop_idle(MonoNs(150), &mut stats), Some((ConnId(0), "a")));
        assert_eq!(t.pop_idle(MonoNs(u64::MAX), &mut stats), None);
        assert_eq!(stats.drops(DropReason::Idle), 3);
        assert!(t.is_empty());
    }

    #[test]
    fn a_process_takes_all_its_connections_with_it_and_no_others() {
        let mut stats = Stats::default();
        let mut t = table(9);
        for i in 0..6 {
            t.insert(ConnId(i), (i % 2) as u32, MonoNs(i), "x", &mut stats);
        }
        assert_eq!(t.remove_pid(1), [(ConnId(1), "x"), (ConnId(3), "x"), (ConnId(5), "x")]);
        assert_eq!(t.remove_pid(1), []);
        assert_eq!(t.len(), 3);
        assert_eq!(t.remove_pid(0).len(), 3);
        assert!(t.per_pid.is_empty());
    }

    #[test]
    fn it_stays_the_same_as_a_plain_list_under_random_use() {
        let mut stats = Stats::default();
        let mut t: Table<u64> = Table::new(&Limits { connections: 8, idle_ns: 20, ..Limits::default() });
        let mut model: Vec<(u64, u32, u64)> = Vec::new();
        let mut seed = 1_u64;
        for now in 0..20_000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let conn = (seed >> 33) % 16;
            let pid = (conn % 3) as u32;
            match (seed >> 60) % 8 {
                0..4 => {
                    let known = model.iter().position(|m| m.0 == conn);
                    assert_eq!(t.touch(ConnId(conn), MonoNs(now)).copied(), known.map(|_| conn));
                    if let Some(i) = known {
                        let mut entry = model.remove(i);
                        entry.2 = now;
                        model.push(entry);
                    } else {
                        let gone = t.insert(ConnId(conn), pid, MonoNs(now), conn, &mut stats);
                        let expected = (model.len() == 8).then(|| model.remove(0).0);
                        assert_eq!(gone.map(|g| g.1), expected);
                        model.push((conn, pid, now));
                    }
                }
                4 => {
                    let known = model.iter().position(|m| m.0 == conn).map(|i| model.remove(i).0);
                    assert_eq!(t.remove(ConnId(conn)), known);
                }
                5 if seed & 0xf00 == 0 => {
                    let expected: Vec<u64> = model.extract_if(.., |m| m.1 == pid).map(|m| m.0).collect();
                    assert_eq!(t.remove_pid(pid).into_iter().map(|g| g.1).collect::<Vec<_>>(), expected);
                }
                _ => {
                    while let Some((_, gone)) = t.pop_idle(MonoNs(now), &mut stats) {
                        let oldest = model.remove(0);
                        assert_eq!(gone, oldest.0);
                        assert!(oldest.2 + 20 <= now);
                    }
                    assert!(model.first().is_none_or(|m| m.2 + 20 > now));
                }
            }
            assert_eq!(t.len(), model.len());
        }
        assert!(t.slots.len() <= 8);
    }
}
