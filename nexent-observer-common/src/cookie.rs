//! What user space tells a probe at one attachment point (`bpf_get_attach_cookie`).

/// Scope of an attachment. A process is observed through exactly one scope at a time, so that a switch from one to the other
/// neither counts twice nor leaves a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scope {
    /// One attachment per process.
    PerProcess = 1,
    /// One attachment for all processes, filtered by the table of targets.
    Filtered = 2,
}

/// Where the hooked function says how many bytes it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Length {
    /// It returns the number, or 0 or less on failure (`SSL_read`).
    Returned = 0,
    /// It returns 1 on success and stores a `size_t` through its 3rd argument (`EVP_AEAD_CTX_open`).
    ThirdArgument = 2,
    /// It returns 1 on success and stores a `size_t` through its 4th argument (`SSL_read_ex`, `ssl_read_internal`).
    FourthArgument = 3,
    /// The same through its 5th argument (`ssl_write_internal` of OpenSSL 3.3 and later, which has flags before it).
    FifthArgument = 4,
}

/// A cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie {
    /// Scope of the attachment.
    pub scope: Scope,
    /// Where the length is.
    pub length: Length,
}

impl Cookie {
    /// As a number for the kernel.
    #[must_use]
    pub const fn encode(self) -> u64 {
        (self.scope as u64) | ((self.length as u64) << 8)
    }
}

/// Scope bits of an encoded cookie.
#[must_use]
#[inline(always)]
pub const fn scope_of(cookie: u64) -> u64 {
    cookie & 0xff
}

/// Index of the argument that points to the length; 0: the length is returned.
#[must_use]
#[inline(always)]
pub const fn length_of(cookie: u64) -> u64 {
    (cookie >> 8) & 0xff
}
