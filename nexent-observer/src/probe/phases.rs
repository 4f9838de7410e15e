//! Phases of connections: the tracepoints of TCP that tell of them, attached while a process is observed.

use aya::Ebpf;

use super::{
    btf::{BtfError, Members},
    kernel::KernelError,
    plain::{self, PlainLinks},
};

/// Programs of the tracepoints. What ends a socket comes first, what begins one last, so that none is known whose end is not seen.
/// `sock_send_length`, `sock_recv_length` and `sk_data_ready` exist since Linux 6.3.
const PROGRAMS: [(&str, &str); 6] = [
    ("flow_destroyed", "tcp_destroy_sock"),
    ("flow_retransmitted", "tcp_retransmit_skb"),
    ("flow_arrived", "sk_data_ready"),
    ("flow_received", "sock_recv_length"),
    ("flow_sent", "sock_send_length"),
    ("flow_state_changed", "inet_sock_set_state"),
];

/// Offsets that they need beside those of [`plain::Offsets`], by the name of their global.
///
/// # Errors
/// [`BtfError`].
pub(super) fn offsets(btf: &Members<'_>) -> Result<[(&'static str, u64); 3], BtfError> {
    Ok([
        ("SOCK_COOKIE_OFFSET", btf.offset("sock_common", "skc_cookie")?),
        ("TCP_RCV_NXT_OFFSET", btf.offset("tcp_sock", "rcv_nxt")?),
        ("TCP_COPIED_SEQ_OFFSET", btf.offset("tcp_sock", "copied_seq")?),
    ])
}

/// Attaches the tracepoints.
///
/// # Errors
/// [`KernelError`]; nothing stays attached then.
pub(super) fn attach(ebpf: &mut Ebpf) -> Result<PlainLinks, KernelError> {
    plain::attach_all(ebpf, &PROGRAMS)
}
