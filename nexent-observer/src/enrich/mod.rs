//! Who a process is: pid to service. Read once when it is attached; its environment and name are its own to choose, so all of
//! it is bounded and cleaned before it becomes a label or an attribute.

use std::path::Path;

use crate::probe::process::Process;

/// A process as people know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `service.name`.
    pub service: String,
    /// `service.namespace`, where the process says it.
    pub namespace: Option<String>,
    /// More resource attributes.
    pub attributes: Vec<(String, String)>,
}

/// Longest value taken over, in bytes.
const VALUE_BYTES: usize = 256;
/// Most attributes taken over from `OTEL_RESOURCE_ATTRIBUTES`.
const ATTRIBUTES: usize = 64;

/// Identity of a running process. Its name is, first of what is set: `OTEL_SERVICE_NAME`, `SERVICE_NAME` and `service.name` in
/// `OTEL_RESOURCE_ATTRIBUTES` of its environment, then `default`, then the file name of its executable.
#[must_use]
pub fn identify(pid: u32, default: Option<&str>) -> Identity {
    let executable = Process::executable_path(pid);
    of_environment(&Process::environment(pid), executable.as_deref(), default)
}

fn of_environment(environment: &[(String, String)], executable: Option<&Path>, default: Option<&str>) -> Identity {
    let get = |wanted: &str| {
        let (_, value) = environment.iter().find(|(name, _)| name == wanted)?;
        clean(value)
    };
    let mut attributes = get("OTEL_RESOURCE_ATTRIBUTES").map(|list| resource_attributes(&list)).unwrap_or_default();
    let mut taken = |wanted: &str| {
        let at = attributes.iter().position(|(name, _)| name == wanted)?;
        Some(attributes.swap_remove(at).1)
    };
    let (named, namespace) = (taken("service.name"), taken("service.namespace"));
    let executable = executable
        .and_then(Path::file_name)
        .and_then(|name| clean(name.to_string_lossy().trim_end_matches(" (deleted)")));
    let service = get("OTEL_SERVICE_NAME")
        .or_else(|| get("SERVICE_NAME"))
        .or(named)
        .or_else(|| default.and_then(clean))
        .or_else(|| executable.clone())
        .unwrap_or_else(|| "unknown_service".to_owned());
    if let Some(executable) = executable {
        attributes.push(("process.executable.name".to_owned(), executable));
    }
    Identity { service, namespace, attributes }
}

/// `key=value` pairs separated by commas, values percent-encoded (OpenTelemetry resource SDK, W3C Baggage).
fn resource_attributes(list: &str) -> Vec<(String, String)> {
    list.split(',')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((clean(key)?, clean(&percent_decoded(value.trim()))?))
        })
        .take(ATTRIBUTES)
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A value without control characters, trimmed and bounded; `None` when nothing is left.
fn clean(text: &str) -> Option<String> {
    let mut out: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if out.len() > VALUE_BYTES {
        let end = (0..=VALUE_BYTES).rev().find(|at| out.is_char_boundary(*at)).unwrap_or(0);
        out.truncate(end);
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pairs: &[(&str, &str)], default: Option<&str>) -> Identity {
        let environment: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        of_environment(&environment, Some(Path::new("/usr/bin/python3.11")), default)
    }

    #[test]
    fn the_target_names_itself_before_anyone_else_does() {
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=c,service.namespace=shop,team=a%2Cb,bad");
        let all = [("OTEL_SERVICE_NAME", "a"), ("SERVICE_NAME", "b"), attributes];
        assert_eq!(named(&all, Some("d")).service, "a");
        assert_eq!(named(&all[1..], Some("d")).service, "b");
        assert_eq!(named(&all[2..], Some("d")).service, "c");
        assert_eq!(named(&[], Some("d")).service, "d");
        assert_eq!(named(&[], None).service, "python3.11");
        assert_eq!(named(&[("SERVICE_NAME", "  ")], None).service, "python3.11", "empty is unset");
        let identity = named(&all[2..], None);
        assert_eq!(identity.namespace.as_deref(), Some("shop"));
        assert!(identity.attributes.contains(&("team".to_owned(), "a,b".to_owned())), "{identity:?}");
    }

    #[test]
    fn hostile_names_are_cleaned_and_bounded() {
        let long = "é".repeat(1000);
        let identity = named(&[("SERVICE_NAME", &long)], None);
        assert!(identity.service.len() <= VALUE_BYTES && identity.service.chars().all(|c| c == 'é'));
        assert_eq!(named(&[("SERVICE_NAME", "a\u{1b}[31m\nb")], None).service, "a[31mb");
        let many: String = (0..10_000).map(|i| format!("k{i}=%zz%4,")).collect();
        assert!(named(&[("OTEL_RESOURCE_ATTRIBUTES", &many)], None).attributes.len() <= ATTRIBUTES + 1);
    }
}
