//! What a recording says about itself and about the processes in it, as JSON.

use nexent_observer_core::limits::Limits;
use serde::{Deserialize, Serialize};

use crate::export::Service;

/// About a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Version of the observer that wrote it.
    pub observer: String,
    /// Release of the kernel, where it could be read.
    pub kernel: Option<String>,
    /// Architecture.
    pub architecture: String,
    /// When it began, in ns since the Unix epoch.
    pub began_unix_ns: u64,
    /// Limits that influence numbers.
    pub limits: RecordedLimits,
    /// Calls were joined to what caused them by their content, too.
    #[serde(default)]
    pub join_by_content: bool,
}

/// The limits of the core while it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedLimits {
    connections: usize,
    idle_ns: u64,
    timeline_bytes: usize,
    content_bytes: usize,
}

/// Most memory that a recording may ask for by its limits: beyond, those of this program hold.
const MOST: Limits =
    Limits { connections: 1 << 20, idle_ns: u64::MAX, timeline_bytes: 1 << 24, content_bytes: 1 << 24 };

impl From<&Limits> for RecordedLimits {
    fn from(limits: &Limits) -> Self {
        let Limits { connections, idle_ns, timeline_bytes, content_bytes } = *limits;
        Self { connections, idle_ns, timeline_bytes, content_bytes }
    }
}

impl RecordedLimits {
    /// As the core takes them, and no more than a file may ask for.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.connections.min(MOST.connections),
            idle_ns: self.idle_ns,
            timeline_bytes: self.timeline_bytes.min(MOST.timeline_bytes),
            content_bytes: self.content_bytes.min(MOST.content_bytes),
        }
    }
}

/// About a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedService {
    pid: u32,
    name: String,
    namespace: Option<String>,
    instance_id: Option<String>,
    attributes: Vec<(String, String)>,
}

impl RecordedService {
    /// `all`: with its attributes. A recording without content has its name and namespace only.
    #[must_use]
    pub fn of(service: &Service, all: bool) -> Self {
        let Service { name, pid, namespace, instance_id, attributes } = service.clone();
        Self {
            pid,
            name,
            namespace,
            instance_id: instance_id.filter(|_| all),
            attributes: if all { attributes } else { Vec::new() },
        }
    }
}

impl From<RecordedService> for Service {
    fn from(recorded: RecordedService) -> Self {
        let RecordedService { pid, name, namespace, instance_id, attributes } = recorded;
        Self { name, pid, namespace, instance_id, attributes }
    }
}
