//! What may stay of names: the words that APIs themselves are made of. A text made of these words alone says nothing that its API's
//! documentation does not.

/// Longest name that is looked at, in bytes; a longer one is never kept.
pub(super) const NAME_BYTES: usize = 256;

/// Whether a text is made of words of APIs only: runs of letters and digits, a capital after a small letter beginning a new one,
/// with `_`, `-`, `.`, `:` and `/` between them.
pub(super) fn is_known(text: &[u8]) -> bool {
    let mut any = false;
    let known = words(text, |word| {
        any = true;
        WORDS.binary_search(&word).is_ok()
    });
    known && any
}

/// Hands the words of a text, in small letters, to `each`; false when there is something between them that does not belong, or `each`
/// says so.
pub(super) fn words(text: &[u8], mut each: impl FnMut(&str) -> bool) -> bool {
    let mut word = [0_u8; 24];
    let mut len = 0;
    let mut small = false;
    let mut done = |word: &[u8]| word.is_empty() || std::str::from_utf8(word).is_ok_and(&mut each);
    for &byte in text {
        let inside = byte.is_ascii_alphanumeric();
        if !inside && !matches!(byte, b'_' | b'-' | b'.' | b':' | b'/') {
            return false;
        }
        if !inside || (byte.is_ascii_uppercase() && small) {
            if !done(word.get(..len).unwrap_or_default()) {
                return false;
            }
            len = 0;
        }
        small = byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if inside {
            let Some(place) = word.get_mut(len) else { return false };
            *place = byte.to_ascii_lowercase();
            len += 1;
        }
    }
    done(word.get(..len).unwrap_or_default())
}

/// Whether a text reads as a machine's name for something: starts with a letter, then letters, digits, `_`, `-`, `.`; at most
/// 64 bytes. As the later stages ask it (`llm::name`).
pub(super) fn is_identifier(text: &[u8]) -> bool {
    text.len() <= 64
        && text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Whether a text may be the name of a model.
pub(super) fn is_model(text: &[u8]) -> bool {
    text.len() <= NAME_BYTES
        && text.first().is_some_and(u8::is_ascii_alphanumeric)
        && text.iter().all(|b| b.is_ascii_alphanumeric() || b"_-.:/@+% ".contains(b))
        && !is_credential(text)
}

/// Whether a text begins as keys of well-known services do.
pub(super) fn is_credential(text: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 14] = [
        b"sk-", b"sk_", b"pk-", b"xai-", b"gsk_", b"hf_", b"AIza", b"AKIA", b"ASIA", b"ghp_", b"gho_", b"xox", b"eyJ", b"Bearer",
    ];
    BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
}

/// In order.
const WORDS: &[&str] = &[
    "0", "1h", "2", "5m", "abort", "accept", "accepted", "account", "added", "agent", "agents", "aigc", "aiplatform", "alaw",
    "alpha", "amazon", "annotation", "annotations", "anthropic", "api", "application", "applied", "apply", "approval", "arg",
    "args", "argument", "arguments", "array", "assistant", "at", "audio", "authentication", "authorization", "auto", "avg", "aws",
    "azure", "b64", "background", "bad", "badrequest", "balance", "base64", "batch", "bedrock", "behavior", "beta", "billed",
    "billing", "bison", "blob", "block", "blocked", "blocklist", "blocks", "bool", "boundary", "budget", "buffer", "by", "bytes",
    "cache", "cached", "call", "called", "caller", "calls", "cancel", "cancelled", "candidate", "candidates", "capacity",
    "category", "cerebras", "char", "chat", "choice", "choices", "chunk", "chunks", "citation", "citations", "clear", "cleared",
    "closed", "code", "coding", "cohere", "command", "commit", "committed", "compat", "compatible", "complete", "completed",
    "completion", "completions", "computed", "computer", "concise", "config", "connect", "connection", "container", "content",
    "contents", "context", "conversation", "converse", "cost", "cot", "count", "cpp", "create", "created", "creation", "critic",
    "custom", "dashscope", "data", "deepinfra", "deepseek", "default", "delta", "deltas", "denied", "deployment", "deployments",
    "detail", "detailed", "details", "detection", "developer", "disable", "document", "documents", "done", "duration", "e",
    "eager", "edit", "edits", "effort", "embed", "embedding", "embeddinginput", "embeddings", "encoding", "end", "entity",
    "entry", "eos", "ephemeral", "epoch", "error", "errors", "eval", "evaluated", "event", "events", "exceeded", "exception",
    "exec", "executable", "execution", "exhausted", "extra", "failed", "false", "fetch", "file", "files", "filter", "filtered",
    "filters", "fim", "final", "find", "fingerprint", "finish", "finished", "first", "flag", "float", "format", "found",
    "frequency", "from", "fully", "function", "functions", "g711", "gateway", "gemini", "gen", "general", "generate", "generated",
    "generating", "generation", "generations", "generic", "gl", "google", "googleapis", "groq", "grounding", "guardrail",
    "guardrails", "guess", "h2", "harm", "hf", "hidden", "high", "hit", "hour", "http", "id", "ids", "image", "images", "in",
    "include", "includes", "including", "incomplete", "incremental", "index", "inference", "inferences", "info", "inline",
    "input", "inputs", "instructions", "insufficient", "int", "internal", "internalservererror", "interpreter", "intervened",
    "invalid", "invocation", "invoke", "is", "item", "items", "iteration", "iterations", "jpeg", "json", "jsonrpc", "k", "key",
    "keys", "kind", "kv", "language", "large", "last", "len", "length", "level", "limit", "limited", "limits", "list", "listed",
    "listing", "llama", "llm", "load", "local", "location", "locations", "logprob", "logprobs", "long", "loop", "low", "maas",
    "malformed", "management", "many", "max", "mcp", "mean", "medium", "message", "messages", "meta", "metadata", "method",
    "metric", "metrics", "mime", "min", "minimal", "minute", "miss", "missing", "mistral", "ml", "modalities", "modality", "mode",
    "model", "models", "moderation", "mp3", "ms", "much", "multimodal", "n", "name", "native", "new", "no", "noise", "none",
    "not", "notfound", "ns", "null", "num", "number", "obfuscation", "object", "of", "off", "ok", "ollama", "on", "openai",
    "openapi", "options", "opus", "order", "original", "other", "out", "outcome", "output", "outputs", "over", "overload",
    "overloaded", "p", "paas", "parallel", "param", "parameters", "params", "parsed", "part", "partial", "parts", "patch", "pcm16",
    "penalty", "per", "permission", "phase", "ping", "plan", "png", "point", "policy", "position", "pre", "predict", "predicted",
    "prediction", "predictions", "prefill", "presence", "previous", "probability", "process", "processing", "progress",
    "prohibited", "projects", "prompt", "prompts", "provider", "publishers", "q", "queries", "queue", "queued", "quota", "rank",
    "rate", "rating", "ratings", "raw", "read", "realtime", "reason", "reasoning", "recipient", "recitation", "redacted",
    "reduction", "ref", "refusal", "refused", "rejected", "request", "requests", "required", "rerank", "reset", "resource",
    "response", "responses", "result", "results", "retrieved", "retry", "retryable", "role", "safe", "safety", "sample",
    "sampling", "schema", "score", "search", "sec", "second", "seconds", "seed", "semantic", "sensitive", "sequence", "server",
    "serverless", "service", "services", "serviceunavailable", "session", "setting", "settings", "severity", "sglang", "shell",
    "short", "shot", "signature", "size", "small", "source", "special", "speech", "speed", "spii", "start", "started", "state",
    "stats", "status", "step", "stop", "stopped", "stopping", "store", "stored", "stream", "streaming", "strict", "string",
    "structured", "summary", "support", "supports", "system", "tag", "temperature", "test", "text", "textgeneration", "tgi",
    "thinking", "thinkingconfig", "third", "thought", "thoughts", "throttle", "throttled", "throttling", "tier", "time",
    "timeout", "timestamp", "timing", "timings", "to", "token", "tokens", "too", "tool", "toolcall", "tools", "top", "total",
    "tps", "trace", "transcript", "transcription", "true", "truncated", "truncation", "turn", "type", "ulaw", "unavailable",
    "unexpected", "unit", "units", "unknown", "unsafe", "unspecified", "updated", "upgrade", "upstream", "url", "us", "usage",
    "usd", "use", "used", "user", "utf", "v1", "v1alpha", "v1beta", "v1beta1", "v1beta2", "v2", "v3", "vad", "validation",
    "value", "values", "verbosity", "version", "vertex", "video", "violation", "vllm", "voice", "warning", "warnings", "wav",
    "web", "websocket", "weight", "window", "with", "write", "x", "xhigh", "yes",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_in_order_and_short_enough() {
        for pair in WORDS.windows(2) {
            assert!(matches!(pair, [a, b] if a < b), "{pair:?}");
        }
        assert!(WORDS.iter().all(|word| word.len() <= 24 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())));
    }

    #[test]
    fn names_of_apis_are_known_and_other_words_are_not() {
        for known in [
            "response.output_text.delta", "content_block_start", "MAX_TOKENS", "cacheReadInputTokenCount", "topP", "message-end",
            "chat.completion.chunk", "x_groq", "amazon-bedrock-invocationMetrics", "partial_image_b64", "2.0",
        ] {
            assert!(is_known(known.as_bytes()), "{known}");
        }
        for unknown in ["", "_", "secret", "output_secret", "textsecret", "text secret", "t\u{e9}xt", "text\"", "api_key_of_alice"] {
            assert!(!is_known(unknown.as_bytes()), "{unknown}");
        }
    }

    #[test]
    fn keys_of_services_pass_for_no_model() {
        assert!(is_model(b"anthropic.claude-3-5-sonnet-20241022-v2:0") && is_model(b"meta-llama/Llama-3.1-8B"));
        for bad in [b"".as_slice(), b"sk-proj-abc", b"eyJhbGciOi", b"AKIAIOSFODNN7", b"a\\u0041", b"-x", b"a\"b"] {
            assert!(!is_model(bad));
        }
    }
}
