//! The second stage of configuration: one typed value for each key, from the strongest source that sets it.

use std::time::Duration;

use nexent_observer_core::limits::Limits;

use super::{
    Config, ConfigError, Listen, Only, Origin, Setting,
    keys::{self, Key},
    raw::RawConfig,
    value::{self, Shown},
};

/// Resolves all keys. The first value that is not allowed is the error.
pub(super) fn resolve(raw: &RawConfig) -> Result<Config, ConfigError> {
    let mut r = Resolver { raw, settings: Vec::with_capacity(keys::KEYS.len()) };
    let mib64 = 64 << 20;
    let pids = r.list(&keys::PID, value::pid)?;
    let exes = r.list(&keys::EXE, value::absolute_path)?;
    let all = r.one(&keys::ALL, value::boolean)?;
    let only = Only {
        exes: r.list(&keys::ONLY_EXE, value::pattern)?,
        users: r.list(&keys::ONLY_USER, value::service_name)?,
        containers: r.list(&keys::ONLY_CONTAINER, value::pattern)?,
        namespaces: r.list(&keys::ONLY_NAMESPACE, value::pattern)?,
        pods: r.list(&keys::ONLY_POD, value::pattern)?,
        labels: r.list(&keys::ONLY_LABEL, value::pattern)?,
    };
    let opt_in = r.one(&keys::OPT_IN, value::boolean)?;
    let trial = Duration::from_secs(r.one(&keys::TRIAL_SECONDS, value::whole(1, 86_400))?);
    let plain_http = r.one(&keys::PLAIN_HTTP, value::plain_http)?;
    let phases = r.one(&keys::PHASES, value::boolean)?;
    let listen = r.one(&keys::LISTEN, value::listen)?;
    let port = r.optional(&keys::PROMETHEUS_PORT, value::port)?;
    let config = Config {
        pids,
        exes,
        all,
        only,
        opt_in,
        trial,
        plain_http,
        phases,
        listen: apply_port(raw, listen, port),
        web_page: r.one(&keys::WEB_PAGE, value::web_page)?,
        web_token: r.optional(&keys::WEB_TOKEN, value::secret)?,
        web_token_file: r.optional(&keys::WEB_TOKEN_FILE, value::absolute_path)?,
        otlp: r.optional(&keys::OTLP, value::endpoint)?,
        jsonl: r.optional(&keys::JSONL, value::jsonl)?,
        capture_content: r.one(&keys::CAPTURE_CONTENT, value::boolean)?,
        join_by_content: r.one(&keys::JOIN_BY_CONTENT, value::boolean)?,
        service_name: r.optional(&keys::SERVICE_NAME, value::service_name)?,
        enable_telemetry: r.one(&keys::ENABLE_TELEMETRY, value::boolean)?,
        telemetry_sample_rate: r.one(&keys::TELEMETRY_SAMPLE_RATE, value::number(0.0, 1.0))?,
        slow_request_threshold_seconds: r.one(&keys::SLOW_REQUEST_THRESHOLD_SECONDS, |text| {
            value::number(0.0, 86_400.0)(text).filter(|&seconds| seconds > 0.0)
        })?,
        slow_token_rate_threshold: r.one(&keys::SLOW_TOKEN_RATE_THRESHOLD, value::number(0.0, 1e6))?,
        jaeger_endpoint: r.optional(&keys::JAEGER_ENDPOINT, value::endpoint)?,
        semconv: r.one(&keys::SEMCONV, value::semconv)?,
        tokenizer: r.one(&keys::TOKENIZER, value::tokenizer)?.0,
        tokenizer_files: r.list(&keys::TOKENIZER_FILES, value::model_file)?,
        read_ring_bytes: r.one(&keys::READ_RING_BYTES, as_u32(value::ring_size))?,
        write_ring_bytes: r.one(&keys::WRITE_RING_BYTES, as_u32(value::ring_size))?,
        write_head_bytes: r.one(&keys::WRITE_HEAD_BYTES, value::size(1 << 10, 16 << 20))?,
        write_tail_bytes: r.one(&keys::WRITE_TAIL_BYTES, value::size(1 << 10, 16 << 20))?,
        drain_interval: Duration::from_millis(r.one(&keys::DRAIN_INTERVAL_MS, value::whole(1, 1000))?),
        limits: Limits {
            connections: r.one(&keys::MAX_CONNECTIONS, as_usize(value::whole(1, 4_194_304)))?,
            idle_ns: r.one(&keys::CONNECTION_IDLE_SECONDS, value::whole(1, 604_800))?.saturating_mul(1_000_000_000),
            timeline_bytes: r.one(&keys::TIMELINE_BYTES, as_usize(value::size(1 << 10, 16 << 20)))?,
            content_bytes: r.one(&keys::CONTENT_BYTES, as_usize(value::size(1 << 10, mib64)))?,
        },
        max_label_values: r.one(&keys::MAX_LABEL_VALUES, as_usize(value::whole(1, 100_000)))?,
        per_pid_attach_limit: r.one(&keys::PER_PID_ATTACH_LIMIT, as_usize(value::whole(0, 64)))?,
        kubelet: r.one(&keys::KUBELET_URL, value::kubelet)?,
        kubelet_token_file: r.one(&keys::KUBELET_TOKEN_FILE, value::absolute_path)?,
        kubelet_ca_file: r.one(&keys::KUBELET_CA_FILE, value::absolute_path)?,
        node_name: r.optional(&keys::NODE_NAME, value::node_name)?,
        host_root: r.one(&keys::HOST_ROOT, value::absolute_path)?,
        cache_dir: r.one(&keys::CACHE_DIR, value::cache_dir)?,
        log_level: r.one(&keys::LOG_LEVEL, value::log_level)?,
        log_format: r.one(&keys::LOG_FORMAT, value::log_format)?,
        warnings: Vec::new(),
        settings: Vec::new(),
    };
    Ok(Config { settings: r.settings, ..config })
}

/// `prometheus_port` is the weaker word of the two when both come from the same source: `listen` names a port as well,
/// and says more. `off` stays off: the variable is set for a whole deployment, the observer's own key is not.
fn apply_port(raw: &RawConfig, listen: Listen, port: Option<u16>) -> Listen {
    let rank = |key| raw.get(key).map_or(usize::MAX, |(rank, _)| rank);
    match (listen, port) {
        (Listen::On(mut address), Some(port)) if rank(&keys::PROMETHEUS_PORT) < rank(&keys::LISTEN) => {
            address.set_port(port);
            Listen::On(address)
        }
        (listen, _) => listen,
    }
}

fn as_u32(parse: impl Fn(&str) -> Option<u64>) -> impl Fn(&str) -> Option<u32> {
    move |text| parse(text).and_then(|n| u32::try_from(n).ok())
}

fn as_usize(parse: impl Fn(&str) -> Option<u64>) -> impl Fn(&str) -> Option<usize> {
    move |text| parse(text).and_then(|n| usize::try_from(n).ok())
}

struct Resolver<'a> {
    raw: &'a RawConfig,
    settings: Vec<Setting>,
}

impl Resolver<'_> {
    /// A key that has a default.
    fn one<T: Shown>(&mut self, key: &'static Key, parse: impl Fn(&str) -> Option<T>) -> Result<T, ConfigError> {
        let (texts, origin) = self.texts(key);
        let value = parse_one(key, &origin, &texts, parse)?;
        self.note(key, &value, origin);
        Ok(value)
    }

    /// A key that may stay unset.
    fn optional<T: Shown>(
        &mut self,
        key: &'static Key,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let (texts, origin) = self.texts(key);
        let value = if texts.is_empty() { None } else { Some(parse_one(key, &origin, &texts, parse)?) };
        self.note(key, &value, origin);
        Ok(value)
    }

    /// A key that holds several values; repetitions are taken out.
    fn list<T: PartialEq>(
        &mut self,
        key: &'static Key,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError>
    where
        Vec<T>: Shown,
    {
        let (texts, origin) = self.texts(key);
        let mut values = Vec::with_capacity(texts.len());
        for text in &texts {
            let value = parse(text).ok_or_else(|| not_allowed(key, &origin, text))?;
            if !values.contains(&value) {
                values.push(value);
            }
        }
        self.note(key, &values, origin);
        Ok(values)
    }

    fn texts(&self, key: &Key) -> (Vec<String>, Origin) {
        match self.raw.get(key) {
            Some((_, raw)) => (raw.values.clone(), raw.origin.clone()),
            None => (key.default.map(str::to_owned).into_iter().collect(), Origin::Default),
        }
    }

    fn note(&mut self, key: &'static Key, value: &impl Shown, origin: Origin) {
        self.settings.push(Setting { key, value: value.shown(), origin });
    }
}

fn parse_one<T>(
    key: &Key,
    origin: &Origin,
    texts: &[String],
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    match texts {
        [text] => parse(text).ok_or_else(|| not_allowed(key, origin, text)),
        _ => Err(ConfigError::value(key, origin.clone(), format!("{} values", texts.len()))),
    }
}

fn not_allowed(key: &Key, origin: &Origin, text: &str) -> ConfigError {
    const SHOWN_CHARS: usize = 200;
    if key.secret {
        return ConfigError::value(key, origin.clone(), value::REDACTED);
    }
    let redacted: String = value::redact_url(text).chars().take(SHOWN_CHARS).collect();
    ConfigError::value(key, origin.clone(), format!("{redacted:?}"))
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
