//! Precedence, defaults and errors of the resolved configuration, and the agreement of docs/config.md with the keys.

use std::path::{Path, PathBuf};

use super::*;
use crate::config::{
    Endpoint, Environment, JsonlTarget, LogFormat, Semconv, file,
    keys::KEYS,
    raw::{Layer, Raw},
    write_json, write_yaml,
};

const FILE: &str = "/etc/observer.yaml";

fn flags(given: &[(&str, &str)]) -> Layer {
    let mut layer = Layer::default();
    for (name, value) in given {
        let key = keys::find(name).unwrap();
        let origin = Origin::Flag { name: format!("--{}", key.flag()) };
        layer.insert(key, Raw { values: vec![(*value).to_owned()], origin });
    }
    layer
}

fn resolve_all<const N: usize>(
    given: &[(&str, &str)],
    variables: [(&str, &str); N],
    yaml: &str,
) -> Result<Config, ConfigError> {
    let environment = Environment::from(variables);
    resolve(&RawConfig([flags(given), environment.layer()?, file::parse(Path::new(FILE), yaml)?]))
}

fn shown(config: &Config, name: &str) -> (String, String) {
    let setting = config.settings().iter().find(|s| s.key.name == name).unwrap();
    (setting.value.to_string(), setting.origin.to_string())
}

#[test]
fn every_default_is_allowed_and_equals_the_cores_own_limits() {
    let config = resolve_all(&[], [], "").unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.listen, Listen::On("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.otlp, None);
    assert!(config.enable_telemetry && !config.capture_content);
    assert_eq!(config.telemetry_sample_rate, 1.0);
    assert_eq!(config.slow_request_threshold_seconds, 5.0);
    assert_eq!(config.slow_token_rate_threshold, 10.0);
    assert_eq!((config.read_ring_bytes, config.write_ring_bytes), (8 << 20, 8 << 20));
    assert_eq!((config.write_head_bytes, config.write_tail_bytes), (32 << 10, 64 << 10));
    assert_eq!(config.drain_interval, Duration::from_millis(100));
    assert_eq!(config.per_pid_attach_limit, 8);
    assert_eq!(config.log_format, LogFormat::Text);
    assert!(config.settings().iter().all(|s| s.origin == Origin::Default));
}

#[test]
fn the_page_needs_a_token_where_others_reach_it() {
    let token = ("web_token", "0123456789abcdef");
    for (given, want) in [
        (&[][..], Ok(true)),
        (&[("listen", "[::1]:0"), ("web_page", "on")], Ok(true)),
        (&[("listen", "off"), ("web_page", "on")], Ok(false)),
        (&[("web_page", "off"), token], Ok(false)),
        (&[("listen", "0.0.0.0:9464")], Ok(false)),
        (&[("listen", "0.0.0.0:9464"), ("web_page", "on")], Err(64)),
        (&[("listen", "0.0.0.0:9464"), ("web_page", "on"), token], Ok(true)),
        (&[("listen", "0.0.0.0:9464"), ("web_token_file", "/run/token")], Ok(true)),
    ] {
        let served = resolve_all(given, [], "").unwrap().serves_page();
        assert_eq!(served.map_err(|error| error.exit_code()), want, "{given:?}");
    }
}

#[test]
fn a_token_shows_in_no_output_and_in_no_error() {
    let config = resolve_all(&[("web_token", "s3cret-s3cret-s3cret")], [], "").unwrap();
    assert_eq!(shown(&config, "web_token").0, "\"REDACTED\"");
    assert!(!format!("{config:?}").contains("s3cret"));
    for bad in ["s3cret", "s3cret s3cret s3cret", "s3cret-s3cret-s3crét"] {
        let error = resolve_all(&[("web_token", bad)], [], "").unwrap_err().to_string();
        assert!(!error.contains("s3cr") && error.contains("16 to 256"), "{error}");
    }
}

#[test]
fn every_key_is_resolved_once_and_in_order() {
    let config = resolve_all(&[], [], "").unwrap();
    let names: Vec<_> = config.settings().iter().map(|s| s.key.name).collect();
    assert_eq!(names, KEYS.map(|key| key.name));
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let both = [("NEXENT_OBSERVER_SERVICE_NAME", "own"), ("SERVICE_NAME", "nexent")];
    let yaml = "service_name: filed\n";
    for (given, variables, yaml, value, origin) in [
        (&[][..], &[][..], "", "null", "default"),
        (&[], &[], yaml, "\"filed\"", "file /etc/observer.yaml, line 1"),
        (&[], &both[1..], yaml, "\"nexent\"", "environment variable SERVICE_NAME"),
        (&[], &both[..1], yaml, "\"own\"", "environment variable NEXENT_OBSERVER_SERVICE_NAME"),
        (&[], &both[..], yaml, "\"own\"", "environment variable NEXENT_OBSERVER_SERVICE_NAME"),
        (&[("service_name", "flagged")], &both[..], yaml, "\"flagged\"", "flag --service-name"),
    ] {
        let config = match variables {
            [] => resolve_all(given, [], yaml),
            [one] => resolve_all(given, [*one], yaml),
            _ => resolve_all(given, both, yaml),
        };
        assert_eq!(shown(&config.unwrap(), "service_name"), (value.to_owned(), origin.to_owned()));
    }
}

#[test]
fn every_key_can_be_set_by_its_flag_its_variable_and_the_file() {
    for key in KEYS {
        let (text, want) = match key.name {
            "pid" => ("7", "[7]"),
            "exe" => ("/bin/sh", "[\"/bin/sh\"]"),
            "all" | "opt_in" => ("true", "true"),
            "only_exe" | "only_user" | "only_container" | "only_namespace" | "only_pod" | "only_label" => {
                ("a", "[\"a\"]")
            }
            "kubelet_url" => ("https://h:10250", "\"https://h:10250\""),
            "kubelet_token_file" | "kubelet_ca_file" | "host_root" => ("/f", "\"/f\""),
            "node_name" => ("node", "\"node\""),
            "plain_http" | "web_page" => ("off", "\"off\""),
            "web_token" => ("0123456789abcdef", "\"REDACTED\""),
            "web_token_file" => ("/run/token", "\"/run/token\""),
            "phases" => ("false", "false"),
            "listen" => ("[::1]:1", "\"[::1]:1\""),
            "prometheus_port" => ("9100", "9100"),
            "otlp" | "jaeger_endpoint" => ("http://h:1", "\"http://h:1\""),
            "jsonl" => ("-", "\"-\""),
            "cache_dir" => ("/x/y", "\"/x/y\""),
            "capture_content" | "join_by_content" => ("true", "true"),
            "service_name" => ("name", "\"name\""),
            "enable_telemetry" => ("false", "false"),
            "telemetry_sample_rate" => ("0.5", "0.5"),
            "slow_request_threshold_seconds" | "slow_token_rate_threshold" => ("2.5", "2.5"),
            "semconv" => ("2026", "\"2026\""),
            "tokenizer" => ("off", "\"off\""),
            "tokenizer_files" => ("qwen*=/t.json", "[\"qwen*=/t.json\"]"),
            "log_level" => ("debug", "\"debug\""),
            "log_format" => ("json", "\"json\""),
            name if name.ends_with("_bytes") => ("65536", "65536"),
            _ => ("33", "33"),
        };
        let variable = key.variable();
        let yaml = format!("{}: '{text}'\n", key.name);
        for config in [
            resolve_all(&[(key.name, text)], [], ""),
            resolve_all(&[], [(variable.as_str(), text)], ""),
            resolve_all(&[], [], &yaml),
        ] {
            let (value, origin) = shown(&config.unwrap(), key.name);
            assert_eq!(value, want, "{}", key.name);
            assert_ne!(origin, "default", "{}", key.name);
        }
    }
}

#[test]
fn the_names_of_2026_need_no_quotes_in_the_file() {
    assert_eq!(resolve_all(&[], [], "semconv: 2026\n").unwrap().semconv, Semconv::V2026);
    assert_eq!(resolve_all(&[], [], "").unwrap().semconv, Semconv::V1_41);
    let error = resolve_all(&[], [], "semconv: latest\n").unwrap_err().to_string();
    assert!(error.contains("v1.41, 2026 or both"), "{error}");
}

#[test]
fn a_list_is_taken_from_one_source_and_loses_its_repetitions() {
    let config = resolve_all(&[], [("NEXENT_OBSERVER_PID", "3, 4,3")], "pid: [1, 2]\nexe: [/a, /a, /b]\n").unwrap();
    assert_eq!(config.pids, [3, 4]);
    assert_eq!(config.exes, [PathBuf::from("/a"), PathBuf::from("/b")]);
    let config = resolve_all(&[], [("NEXENT_OBSERVER_EXE", "/a:/b,c")], "").unwrap();
    assert_eq!(config.exes, [PathBuf::from("/a"), PathBuf::from("/b,c")]);
}

#[test]
fn prometheus_port_replaces_the_port_of_a_weaker_listen_only() {
    for (given, variables, yaml, want) in [
        (&[][..], [("PROMETHEUS_PORT", "9100")], "", "127.0.0.1:9100"),
        (&[], [("PROMETHEUS_PORT", "9100")], "listen: 0.0.0.0:1\n", "0.0.0.0:9100"),
        (&[("listen", "0.0.0.0:2")], [("PROMETHEUS_PORT", "9100")], "", "0.0.0.0:2"),
        (&[("prometheus_port", "9")], [("NEXENT_OBSERVER_LISTEN", "[::]:2")], "", "[::]:9"),
        (&[], [("SHELL", "/bin/sh")], "listen: 0.0.0.0:1\nprometheus_port: 5\n", "0.0.0.0:1"),
    ] {
        let config = resolve_all(given, variables, yaml).unwrap();
        assert_eq!(config.listen, Listen::On(want.parse().unwrap()));
    }
    let off = resolve_all(&[], [("PROMETHEUS_PORT", "9100")], "listen: off\n").unwrap();
    assert_eq!(off.listen, Listen::Off);
}

#[test]
fn a_bad_value_is_named_with_key_origin_and_what_is_allowed() {
    for (given, variable, yaml, want, code) in [
        (
            &[][..],
            ("LLM_SLOW_REQUEST_THRESHOLD_SECONDS", "five"),
            "",
            "slow_request_threshold_seconds in environment variable LLM_SLOW_REQUEST_THRESHOLD_SECONDS is \"five\"; \
             expected a number of seconds over 0, up to 86400",
            78,
        ),
        (
            &[],
            ("TELEMETRY_SAMPLE_RATE", "1.5"),
            "",
            "telemetry_sample_rate in environment variable TELEMETRY_SAMPLE_RATE is \"1.5\"; expected a number from 0 to 1",
            78,
        ),
        (
            &[],
            ("SHELL", ""),
            "\nread_ring_bytes: 3MiB\n",
            "read_ring_bytes in file /etc/observer.yaml, line 2 is \"3MiB\"; expected a power of two from 64KiB to 1GiB",
            78,
        ),
        (
            &[("pid", "0")],
            ("SHELL", ""),
            "",
            "pid in flag --pid is \"0\"; expected a process number from 1 to 4194304",
            64,
        ),
        (&[("exe", "python3")], ("SHELL", ""), "", "exe in flag --exe is \"python3\"; expected an absolute path", 64),
        (&[("all", "maybe")], ("SHELL", ""), "", "all in flag --all is \"maybe\"; expected true or false", 64),
        (
            &[("node_name", "a/b")],
            ("SHELL", ""),
            "",
            "node_name in flag --node-name is \"a/b\"; expected a name without spaces, up to 253 characters",
            64,
        ),
        (
            &[("otlp", "ftp://u:s3cret@h")],
            ("SHELL", ""),
            "",
            "otlp in flag --otlp is \"ftp://REDACTED@h\"; expected a URL that begins with http:// or https:// and names a host",
            64,
        ),
    ] {
        let error = resolve_all(given, [variable], yaml).unwrap_err();
        assert_eq!(error.to_string(), want);
        assert_eq!(error.exit_code(), code);
    }
}

#[test]
fn a_bad_value_of_a_weaker_source_does_not_matter() {
    let config = resolve_all(&[("telemetry_sample_rate", "0")], [("TELEMETRY_SAMPLE_RATE", "nonsense")], "").unwrap();
    assert_eq!(config.telemetry_sample_rate, 0.0);
}

#[test]
fn targets_are_checked_on_their_own() {
    let none = resolve_all(&[], [], "").unwrap().check_targets().unwrap_err();
    assert_eq!((none.exit_code(), none.clone()), (64, ConfigError::NoTarget));
    let missing = resolve_all(&[], [], "exe: /no/such/file\n").unwrap().check_targets().unwrap_err();
    assert_eq!(missing.exit_code(), 78);
    assert!(missing.to_string().starts_with("exe in file /etc/observer.yaml, line 1: /no/such/file cannot be found: "));
    let folder = resolve_all(&[("exe", "/")], [], "").unwrap().check_targets().unwrap_err();
    assert_eq!((folder.exit_code(), folder.to_string()), (64, "exe in flag --exe: / is not a file".to_owned()));
    resolve_all(&[("pid", "1")], [], "").unwrap().check_targets().unwrap();
}

#[test]
fn the_printed_yaml_resolves_to_the_same_configuration() {
    let yaml = "pid: [3, 4]\nexe: '/a \"b\"'\nlisten: off\njsonl: '-'\nservice_name: 'x: #y'\notlp: http://h:1/v1\n\
                slow_request_threshold_seconds: 2.5\nwrite_head_bytes: 1MiB\nlog_level: trace\n";
    let first = resolve_all(&[], [], yaml).unwrap();
    let mut printed = Vec::new();
    write_yaml(&mut printed, &first, &Environment::default()).unwrap();
    let second = resolve_all(&[], [], std::str::from_utf8(&printed).unwrap()).unwrap();
    assert_eq!(Config { settings: Vec::new(), ..second }, Config { settings: Vec::new(), ..first });
}

#[test]
fn printing_tells_origins_and_keeps_secrets() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer s3cret"),
        ("NEXENT_OBSERVER_JSONL", "/tmp/x"),
        ("JAEGER_ENDPOINT", "http://user:s3cret@jaeger:14268/api/traces"),
    ];
    let config = resolve_all(&[("otlp", "https://u:s3cret@h?k=s3cret")], variables, "").unwrap();
    assert_eq!(config.otlp.as_ref().map(Endpoint::expose), Some("https://u:s3cret@h?k=s3cret"));
    assert_eq!(config.jsonl, Some(JsonlTarget::File("/tmp/x".into())));
    let (mut yaml, mut json) = (Vec::new(), Vec::new());
    write_yaml(&mut yaml, &config, &Environment::from(variables)).unwrap();
    write_json(&mut json, &config, &Environment::from(variables)).unwrap();
    let (yaml, json) = (String::from_utf8(yaml).unwrap(), String::from_utf8(json).unwrap());
    for text in [&yaml, &json, &format!("{config:?}")] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert!(yaml.contains("otlp: \"https://REDACTED@h?REDACTED\"  # flag --otlp\n"), "{yaml}");
    assert!(yaml.contains("jsonl: \"/tmp/x\"  # environment variable NEXENT_OBSERVER_JSONL\n"), "{yaml}");
    assert!(yaml.contains("# service_name is unset\n"), "{yaml}");
    assert!(yaml.contains("# OTEL_EXPORTER_OTLP_HEADERS=authorization=REDACTED\n"), "{yaml}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["settings"]["otlp"]["origin"], serde_json::json!({ "kind": "flag", "name": "--otlp" }));
    assert_eq!(json["otel"]["OTEL_EXPORTER_OTLP_HEADERS"], "authorization=REDACTED");
}

#[test]
fn docs_config_md_is_the_table_of_the_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, rest) = text.split_once("<!-- keys: begin -->\n").unwrap();
    let (table, _) = rest.split_once("<!-- keys: end -->").unwrap();
    let mut want = String::from("| key | variables | default | allowed | meaning |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let alias = key.alias.map_or(String::new(), |alias| format!(", `{alias}`"));
        let default = key.default.map_or_else(|| "unset".to_owned(), |default| format!("`{default}`"));
        want.push_str(&format!(
            "| `{}`, `--{}` | `{}`{alias} | {default} | {} | {} |\n",
            key.name,
            key.flag(),
            key.variable(),
            key.allowed,
            key.meaning
        ));
    }
    assert!(table == want, "the table in docs/config.md differs from config/keys.rs; it should be:\n{want}");
}
