//! Every configuration key, once: the flags, the variables, the file, the help text and docs/config.md follow from this
//! table.

/// How often a key may be given and what a bare flag means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One value.
    One,
    /// Several values. The flag is repeated, the file holds a sequence, the variable separates by this character.
    Many {
        /// Separator in an environment variable.
        separator: char,
    },
    /// `true` or `false`; the bare flag means `true`.
    Switch,
}

/// One configuration key.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Name in the file, snake_case. The flag is `--kebab-case`, the variable `NEXENT_OBSERVER_UPPER_CASE`.
    pub name: &'static str,
    /// Name in the Nexent environment, read when the `NEXENT_OBSERVER_*` variable is not set.
    pub alias: Option<&'static str>,
    /// Arity.
    pub kind: Kind,
    /// Placeholder in help.
    pub value_name: &'static str,
    /// Value when no source sets the key, written as a user would write it; `None`: unset.
    pub default: Option<&'static str>,
    /// What is allowed; completes the sentence "expected ...".
    pub allowed: &'static str,
    /// What the key does, as one sentence without its final period.
    pub meaning: &'static str,
    /// Part of the short help (`-h`).
    pub common: bool,
    /// The value is shown nowhere, not even in an error.
    pub secret: bool,
}

/// What every variable of the observer's own begins with.
pub const ENV_PREFIX: &str = "NEXENT_OBSERVER_";

impl Key {
    /// The flag without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The observer's own variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.to_ascii_uppercase())
    }
}

const BASE: Key = Key {
    name: "",
    alias: None,
    kind: Kind::One,
    value_name: "VALUE",
    default: None,
    allowed: "",
    meaning: "",
    common: false,
    secret: false,
};

/// Processes by number.
pub const PID: Key = Key {
    name: "pid",
    kind: Kind::Many { separator: ',' },
    value_name: "PID",
    allowed: "a process number from 1 to 4194304",
    meaning: "Process to observe; may be given several times",
    common: true,
    ..BASE
};
/// Processes by executable.
pub const EXE: Key = Key {
    name: "exe",
    kind: Kind::Many { separator: ':' },
    value_name: "PATH",
    allowed: "an absolute path",
    meaning: "Observe all present and future processes of this executable; may be given several times",
    common: true,
    ..BASE
};
/// Every process of the host.
pub const ALL: Key = Key {
    name: "all",
    kind: Kind::Switch,
    value_name: "BOOL",
    default: Some("false"),
    allowed: "true or false",
    meaning: "Observe every process that talks to an LLM: those that have TLS or listen on a TCP port are looked at, and let go while they are busy with something else",
    common: true,
    ..BASE
};
/// Filter by executable.
pub const ONLY_EXE: Key = Key {
    name: "only_exe",
    kind: Kind::Many { separator: ':' },
    value_name: "PATTERN",
    allowed: PATTERN_ALLOWED,
    meaning: "Of the processes that all and exe find, only those whose executable fits: its path, or, for a pattern without a slash, its file name; * stands for any characters, ? for one; may be given several times, and one has to fit",
    ..BASE
};
const PATTERN_ALLOWED: &str = "1 to 4096 characters";
/// Filter by user.
pub const ONLY_USER: Key = Key {
    name: "only_user",
    kind: Kind::Many { separator: ',' },
    value_name: "USER",
    allowed: "a user's name or number",
    meaning: "Likewise, only those of this user",
    ..BASE
};
/// Filter by container.
pub const ONLY_CONTAINER: Key = Key {
    name: "only_container",
    kind: Kind::Many { separator: ',' },
    value_name: "PATTERN",
    allowed: PATTERN_ALLOWED,
    meaning: "Likewise, only those in a container of this name, or whose id begins so (12 digits at least)",
    ..BASE
};
/// Filter by namespace.
pub const ONLY_NAMESPACE: Key = Key {
    name: "only_namespace",
    kind: Kind::Many { separator: ',' },
    value_name: "PATTERN",
    allowed: PATTERN_ALLOWED,
    meaning: "Likewise, only those in a pod of this Kubernetes namespace",
    ..BASE
};
/// Filter by pod.
pub const ONLY_POD: Key = Key {
    name: "only_pod",
    kind: Kind::Many { separator: ',' },
    value_name: "PATTERN",
    allowed: PATTERN_ALLOWED,
    meaning: "Likewise, only those in a pod of this name",
    ..BASE
};
/// Filter by label.
pub const ONLY_LABEL: Key = Key {
    name: "only_label",
    kind: Kind::Many { separator: ',' },
    value_name: "KEY[=PATTERN]",
    allowed: PATTERN_ALLOWED,
    meaning: "Likewise, only those in a pod with this label",
    ..BASE
};
/// Only those that ask for it.
pub const OPT_IN: Key = Key {
    name: "opt_in",
    kind: Kind::Switch,
    value_name: "BOOL",
    default: Some("false"),
    allowed: "true or false",
    meaning: "Of the processes that all and exe find, only those with ENABLE_TELEMETRY=true in their own environment",
    ..BASE
};
/// How long a process is listened to before it is let go.
pub const TRIAL_SECONDS: Key = Key {
    name: "trial_seconds",
    value_name: "SECONDS",
    default: Some("10"),
    allowed: "a whole number of seconds from 1 to 86400",
    meaning: "A process that all has found, and that is busy for so long (20 records or a new connection a second) without a call of an LLM, is let go; it is looked at again a minute later, then less and less often, at least every 10 minutes",
    ..BASE
};
/// Where a node's pods are listed.
pub const KUBELET_URL: Key = Key {
    name: "kubelet_url",
    value_name: "URL",
    default: Some("auto"),
    allowed: "auto, off, or a URL that begins with http:// or https:// and names a host",
    meaning: "Where the names of pods come from: the kubelet (https://NODE:10250), or another list of pods as a whole URL; auto: the API server, in a pod with a service account and node_name",
    ..BASE
};
/// Token for it.
pub const KUBELET_TOKEN_FILE: Key = Key {
    name: "kubelet_token_file",
    value_name: "FILE",
    default: Some("/var/run/secrets/kubernetes.io/serviceaccount/token"),
    allowed: "an absolute path",
    meaning: "Bearer token for kubelet_url, where the file exists",
    ..BASE
};
/// Certificates for it.
pub const KUBELET_CA_FILE: Key = Key {
    name: "kubelet_ca_file",
    value_name: "FILE",
    default: Some("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"),
    allowed: "an absolute path",
    meaning: "Certificates that kubelet_url is proven by, where the file exists; else those of the system",
    ..BASE
};
/// The node's name.
pub const NODE_NAME: Key = Key {
    name: "node_name",
    value_name: "NAME",
    allowed: "a name without spaces, up to 253 characters",
    meaning: "Name of this Kubernetes node, by which the API server lists its pods (from the downward API: spec.nodeName)",
    ..BASE
};
/// The host's file system.
pub const HOST_ROOT: Key = Key {
    name: "host_root",
    value_name: "PATH",
    default: Some("/"),
    allowed: "an absolute path",
    meaning: "Where the file system of the host is seen: users are looked up there, and names of containers in the state of Docker, podman, CRI-O and containerd",
    ..BASE
};
/// Whether sockets are looked at.
pub const PLAIN_HTTP: Key = Key {
    name: "plain_http",
    value_name: "WHEN",
    default: Some("auto"),
    allowed: "auto, on or off",
    meaning: "Observe HTTP without TLS; auto: of processes without a TLS library and of those that listen on a TCP port; while one is observed, calls on sockets cost every process of the host a little more (docs/overhead.md)",
    common: true,
    ..BASE
};
/// Whether connections are followed into their sockets.
pub const PHASES: Key = Key {
    name: "phases",
    value_name: "BOOL",
    default: Some("true"),
    allowed: "true or false",
    meaning: "Find the socket of each connection, and by it connect, TLS handshake, request sent, causes of stalls and retransmits; while a process is observed, calls on sockets cost every process of the host a little more (docs/overhead.md)",
    ..BASE
};
/// Address of the metrics endpoint.
pub const LISTEN: Key = Key {
    name: "listen",
    value_name: "ADDR",
    default: Some("127.0.0.1:9464"),
    allowed: "IP:PORT (an IPv6 address in brackets) or off",
    meaning: "Address of the HTTP endpoint with the live page and /metrics; off: no endpoint",
    common: true,
    ..BASE
};
/// Port of the metrics endpoint.
pub const PROMETHEUS_PORT: Key = Key {
    name: "prometheus_port",
    alias: Some("PROMETHEUS_PORT"),
    value_name: "PORT",
    allowed: "a port from 1 to 65535",
    meaning: "Port of the HTTP endpoint; replaces the port of listen unless listen comes from the same or a stronger source",
    ..BASE
};
/// Whether there is a page.
pub const WEB_PAGE: Key = Key {
    name: "web_page",
    value_name: "WHEN",
    default: Some("auto"),
    allowed: "auto, on or off",
    meaning: "Serve the live page and its API at the address of listen; auto: on a loopback address, and elsewhere when a token is set; on: refuse to start where that would need a token and none is set",
    ..BASE
};
/// Who may see the page.
pub const WEB_TOKEN: Key = Key {
    name: "web_token",
    value_name: "TOKEN",
    allowed: "16 to 256 printable ASCII characters without spaces",
    meaning: "Token without which nobody sees the page and its API; needed where listen is not a loopback address. A flag shows in the list of processes: prefer web_token_file",
    secret: true,
    ..BASE
};
/// Where that token is.
pub const WEB_TOKEN_FILE: Key = Key {
    name: "web_token_file",
    value_name: "FILE",
    allowed: "an absolute path",
    meaning: "File whose first line is the token, in the place of web_token",
    ..BASE
};
/// OTLP endpoint.
pub const OTLP: Key = Key {
    name: "otlp",
    value_name: "URL",
    allowed: "a URL that begins with http:// or https:// and names a host",
    meaning: "OTLP endpoint for spans and metrics; takes the place of OTEL_EXPORTER_OTLP_ENDPOINT",
    common: true,
    ..BASE
};
/// File of JSON lines.
pub const JSONL: Key = Key {
    name: "jsonl",
    value_name: "FILE",
    allowed: "a path, or - for standard output",
    meaning: "Write one JSON object per exchange to this file; - is standard output",
    common: true,
    ..BASE
};
/// Whether generated text is kept.
pub const CAPTURE_CONTENT: Key = Key {
    name: "capture_content",
    kind: Kind::Switch,
    value_name: "BOOL",
    default: Some("false"),
    allowed: "true or false",
    meaning: "Keep and export generated text; without it no text leaves the process, but in a recording with content",
    common: true,
    ..BASE
};
/// Whether texts of requests are compared.
pub const JOIN_BY_CONTENT: Key = Key {
    name: "join_by_content",
    kind: Kind::Switch,
    value_name: "BOOL",
    default: Some("false"),
    allowed: "true or false",
    meaning: "Tell which inbound request a call is for by a long text that is in the JSON of both, too; compared in memory, nothing is kept (docs/tracing.md)",
    ..BASE
};
/// Name of the observed service.
pub const SERVICE_NAME: Key = Key {
    name: "service_name",
    alias: Some("SERVICE_NAME"),
    value_name: "NAME",
    allowed: "a name of 1 to 255 bytes without control characters",
    meaning: "Service name of a target whose own environment names none; unset: its pod's app label, its container's name, else the file name of its executable",
    common: true,
    ..BASE
};
/// Whether to observe at all.
pub const ENABLE_TELEMETRY: Key = Key {
    name: "enable_telemetry",
    alias: Some("ENABLE_TELEMETRY"),
    kind: Kind::Switch,
    value_name: "BOOL",
    default: Some("true"),
    allowed: "true or false",
    meaning: "false: the observer says so and exits with code 0",
    ..BASE
};
/// Share of spans kept.
pub const TELEMETRY_SAMPLE_RATE: Key = Key {
    name: "telemetry_sample_rate",
    alias: Some("TELEMETRY_SAMPLE_RATE"),
    value_name: "RATIO",
    default: Some("1.0"),
    allowed: "a number from 0 to 1",
    meaning: "Share of spans that is exported; errors, stalls and slow calls always are",
    ..BASE
};
/// From which duration on a call is slow.
pub const SLOW_REQUEST_THRESHOLD_SECONDS: Key = Key {
    name: "slow_request_threshold_seconds",
    alias: Some("LLM_SLOW_REQUEST_THRESHOLD_SECONDS"),
    value_name: "SECONDS",
    default: Some("5.0"),
    allowed: "a number of seconds over 0, up to 86400",
    meaning: "A call that takes longer counts as slow",
    ..BASE
};
/// Under which decode rate a call is slow.
pub const SLOW_TOKEN_RATE_THRESHOLD: Key = Key {
    name: "slow_token_rate_threshold",
    alias: Some("LLM_SLOW_TOKEN_RATE_THRESHOLD"),
    value_name: "RATE",
    default: Some("10.0"),
    allowed: "a number of tokens per second from 0 to 1000000",
    meaning: "A call with a lower decode rate, in tokens per second, counts as slow",
    ..BASE
};
/// Jaeger collector.
pub const JAEGER_ENDPOINT: Key = Key {
    name: "jaeger_endpoint",
    alias: Some("JAEGER_ENDPOINT"),
    value_name: "URL",
    allowed: "a URL that begins with http:// or https:// and names a host",
    meaning: "Jaeger collector; its OTLP endpoint is used for spans when otlp is unset",
    ..BASE
};
/// Names of the GenAI conventions.
pub const SEMCONV: Key = Key {
    name: "semconv",
    value_name: "NAMES",
    default: Some("v1.41"),
    allowed: "v1.41, 2026 or both",
    meaning: "OpenTelemetry's GenAI names in spans and OTLP metrics: those of semantic conventions v1.41, those of 2026 (semantic-conventions-genai 0.1), or both; OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental means 2026",
    ..BASE
};
/// Whether tokens are counted.
pub const TOKENIZER: Key = Key {
    name: "tokenizer",
    value_name: "WHEN",
    default: Some("auto"),
    allowed: "auto or off",
    meaning: "Count the tokens of generated text of models whose tokenizer is known (OpenAI's, and those of tokenizer_files): the count where the provider gives none, and a check where it does; off: such streams are counted by their chunks",
    ..BASE
};
/// Tokenizers of other models.
pub const TOKENIZER_FILES: Key = Key {
    name: "tokenizer_files",
    kind: Kind::Many { separator: ',' },
    value_name: "MODEL=FILE",
    allowed: "MODEL=FILE, where MODEL is the name of a model, with * at its beginning or end for any text",
    meaning: "Tokenizer of these models, a tokenizer.json as models on Hugging Face have it; may be given several times, the first that fits counts, and it goes before what is built in",
    ..BASE
};
/// Ring of what targets read.
pub const READ_RING_BYTES: Key = Key {
    name: "read_ring_bytes",
    value_name: "BYTES",
    default: Some("8MiB"),
    allowed: RING_ALLOWED,
    meaning: "Kernel ring buffer for what targets read, closes and timing",
    ..BASE
};
/// Ring of what targets write.
pub const WRITE_RING_BYTES: Key = Key {
    name: "write_ring_bytes",
    value_name: "BYTES",
    default: Some("8MiB"),
    allowed: RING_ALLOWED,
    meaning: "Kernel ring buffer for what targets write",
    ..BASE
};
const RING_ALLOWED: &str = "a power of two from 64KiB to 1GiB";
/// Kept head of a written turn.
pub const WRITE_HEAD_BYTES: Key = Key {
    name: "write_head_bytes",
    value_name: "BYTES",
    default: Some("32KiB"),
    allowed: WRITE_CAP_ALLOWED,
    meaning: "Bytes copied from the head of each written turn (a request)",
    ..BASE
};
/// Kept tail of a written turn.
pub const WRITE_TAIL_BYTES: Key = Key {
    name: "write_tail_bytes",
    value_name: "BYTES",
    default: Some("64KiB"),
    allowed: WRITE_CAP_ALLOWED,
    meaning: "Bytes copied from the tail of each written call",
    ..BASE
};
const WRITE_CAP_ALLOWED: &str = "a size from 1KiB to 16MiB";
/// Time between two drains of the rings.
pub const DRAIN_INTERVAL_MS: Key = Key {
    name: "drain_interval_ms",
    value_name: "MS",
    default: Some("100"),
    allowed: "a whole number of milliseconds from 1 to 1000",
    meaning: "Time between two drains of the rings; stamps are taken in the kernel and do not depend on it",
    ..BASE
};
/// Connection table.
pub const MAX_CONNECTIONS: Key = Key {
    name: "max_connections",
    value_name: "N",
    default: Some("65536"),
    allowed: "a whole number from 1 to 4194304",
    meaning: "Connections followed at once; over it the one silent longest goes first",
    ..BASE
};
/// Idle connections.
pub const CONNECTION_IDLE_SECONDS: Key = Key {
    name: "connection_idle_seconds",
    value_name: "SECONDS",
    default: Some("900"),
    allowed: "a whole number of seconds from 1 to 604800",
    meaning: "A connection silent for so long is let go",
    ..BASE
};
/// Timeline of one exchange.
pub const TIMELINE_BYTES: Key = Key {
    name: "timeline_bytes",
    value_name: "BYTES",
    default: Some("64KiB"),
    allowed: "a size from 1KiB to 16MiB",
    meaning: "Longest packed token timeline of one exchange; over it the timeline is marked truncated",
    ..BASE
};
/// Kept text of one exchange.
pub const CONTENT_BYTES: Key = Key {
    name: "content_bytes",
    value_name: "BYTES",
    default: Some("1MiB"),
    allowed: "a size from 1KiB to 64MiB",
    meaning: "Longest generated text kept of one exchange with capture_content",
    ..BASE
};
/// Distinct label values.
pub const MAX_LABEL_VALUES: Key = Key {
    name: "max_label_values",
    value_name: "N",
    default: Some("200"),
    allowed: "a whole number from 1 to 100000",
    meaning: "Distinct values of one metric label; further ones become other and are counted",
    ..BASE
};
/// Attachments per library.
pub const PER_PID_ATTACH_LIMIT: Key = Key {
    name: "per_pid_attach_limit",
    value_name: "N",
    default: Some("8"),
    allowed: "a whole number from 0 to 64",
    meaning: "Processes of one library file that get probes of their own; beyond it one filtered attachment serves all",
    ..BASE
};
/// Where findings are kept.
pub const CACHE_DIR: Key = Key {
    name: "cache_dir",
    value_name: "DIR",
    default: Some("/var/cache/nexent-observer"),
    allowed: "an absolute path or off",
    meaning: "Directory in which the places of functions without symbols are kept from one run to the next, closed to other users (mode 0700)",
    ..BASE
};
/// Log level.
pub const LOG_LEVEL: Key = Key {
    name: "log_level",
    value_name: "LEVEL",
    default: Some("info"),
    allowed: "off, error, warn, info, debug or trace",
    meaning: "Least severe level that is logged to standard error",
    common: true,
    ..BASE
};
/// Log format.
pub const LOG_FORMAT: Key = Key {
    name: "log_format",
    value_name: "FORMAT",
    default: Some("text"),
    allowed: "text or json",
    meaning: "Form of a log line",
    ..BASE
};

/// All keys, in the order of help, `config` and docs/config.md.
pub const KEYS: [&Key; 50] = [
    &PID,
    &EXE,
    &ALL,
    &ONLY_EXE,
    &ONLY_USER,
    &ONLY_CONTAINER,
    &ONLY_NAMESPACE,
    &ONLY_POD,
    &ONLY_LABEL,
    &OPT_IN,
    &TRIAL_SECONDS,
    &PLAIN_HTTP,
    &PHASES,
    &LISTEN,
    &PROMETHEUS_PORT,
    &WEB_PAGE,
    &WEB_TOKEN,
    &WEB_TOKEN_FILE,
    &OTLP,
    &JSONL,
    &CAPTURE_CONTENT,
    &JOIN_BY_CONTENT,
    &SERVICE_NAME,
    &ENABLE_TELEMETRY,
    &TELEMETRY_SAMPLE_RATE,
    &SLOW_REQUEST_THRESHOLD_SECONDS,
    &SLOW_TOKEN_RATE_THRESHOLD,
    &JAEGER_ENDPOINT,
    &SEMCONV,
    &TOKENIZER,
    &TOKENIZER_FILES,
    &READ_RING_BYTES,
    &WRITE_RING_BYTES,
    &WRITE_HEAD_BYTES,
    &WRITE_TAIL_BYTES,
    &DRAIN_INTERVAL_MS,
    &MAX_CONNECTIONS,
    &CONNECTION_IDLE_SECONDS,
    &TIMELINE_BYTES,
    &CONTENT_BYTES,
    &MAX_LABEL_VALUES,
    &PER_PID_ATTACH_LIMIT,
    &KUBELET_URL,
    &KUBELET_TOKEN_FILE,
    &KUBELET_CA_FILE,
    &NODE_NAME,
    &HOST_ROOT,
    &CACHE_DIR,
    &LOG_LEVEL,
    &LOG_FORMAT,
];

/// The key of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.into_iter().find(|key| key.name == name)
}

/// The known name closest to `name`, when it is close enough to be meant.
#[must_use]
pub fn closest(name: &str) -> Option<&'static str> {
    // The distance costs the product of the lengths: a name longer than any key by this much is no typo.
    if name.len() > 64 {
        return None;
    }
    let wanted = name.to_ascii_lowercase().replace('-', "_");
    KEYS.into_iter()
        .map(|key| (edit_distance(&wanted, key.name), key.name))
        .min()
        .filter(|&(distance, known)| distance <= 2.max(known.len() / 3))
        .map(|(_, known)| known)
}

/// Levenshtein distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            *cell = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            diagonal = above;
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_snake_case_and_unique() {
        for (i, key) in KEYS.into_iter().enumerate() {
            assert!(key.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", key.name);
            assert!(KEYS.into_iter().skip(i + 1).all(|other| other.name != key.name), "{} twice", key.name);
            assert!(!key.allowed.is_empty() && !key.meaning.is_empty(), "{} lacks its words", key.name);
        }
    }

    #[test]
    fn a_typo_finds_its_key_and_noise_finds_none() {
        assert_eq!(closest("listne"), Some("listen"));
        assert_eq!(closest("sample_rate"), None);
        assert_eq!(closest("capture-contents"), Some("capture_content"));
        assert_eq!(closest("zzzzzz"), None);
        assert_eq!(closest(&"x".repeat(1 << 20)), None);
    }

    #[test]
    fn edit_distance_counts_insertions_deletions_and_changes() {
        for (a, b, n) in [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!(edit_distance(a, b), n, "{a} {b}");
        }
    }
}
