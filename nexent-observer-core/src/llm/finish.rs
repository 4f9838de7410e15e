//! Finish reasons in the words of OpenTelemetry's GenAI conventions.

/// The well-known word for a provider's finish reason: `stop`, `length`, `content_filter`, `tool_calls` or `error`. A reason
/// that has none is given back as it is.
///
/// Sources: the lists of finish reasons in the API references of OpenAI, Anthropic, Gemini, Bedrock, Cohere, Mistral,
/// DeepSeek, Ollama, vLLM, TGI and llama.cpp.
#[must_use]
pub fn well_known_finish_reason(reason: &str) -> &str {
    match reason {
        "stop" | "end_turn" | "stop_sequence" | "STOP" | "COMPLETE" | "STOP_SEQUENCE" | "FINISH" | "FINISHED"
        | "completed" | "eos" | "eos_token" | "word" => "stop",
        "length"
        | "max_tokens"
        | "MAX_TOKENS"
        | "LENGTH"
        | "max_output_tokens"
        | "limit"
        | "model_length"
        | "model_context_window_exceeded" => "length",
        "tool_calls" | "tool_use" | "tool_call" | "TOOL_CALL" | "function_call" => "tool_calls",
        "content_filter"
        | "content_filtered"
        | "CONTENT_FILTERED"
        | "refusal"
        | "guardrail_intervened"
        | "SAFETY"
        | "RECITATION"
        | "LANGUAGE"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "MODEL_ARMOR"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION"
        | "ERROR_TOXIC" => "content_filter",
        "error"
        | "ERROR"
        | "TIMEOUT"
        | "abort"
        | "failed"
        | "cancelled"
        | "insufficient_system_resource"
        | "MALFORMED_FUNCTION_CALL"
        | "UNEXPECTED_TOOL_CALL"
        | "TOO_MANY_TOOL_CALLS"
        | "MISSING_THOUGHT_SIGNATURE"
        | "MALFORMED_RESPONSE" => "error",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_ends_in_the_same_words() {
        for (word, reasons) in [
            ("stop", ["stop", "end_turn", "STOP", "COMPLETE", "FINISH", "completed", "eos_token"]),
            ("length", ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "limit", "model_length", "LENGTH"]),
            (
                "tool_calls",
                ["tool_calls", "tool_use", "TOOL_CALL", "function_call", "tool_call", "tool_use", "tool_use"],
            ),
            (
                "content_filter",
                ["content_filter", "refusal", "SAFETY", "guardrail_intervened", "SPII", "BLOCKLIST", "RECITATION"],
            ),
            ("error", ["error", "ERROR", "abort", "MALFORMED_FUNCTION_CALL", "TIMEOUT", "cancelled", "failed"]),
        ] {
            for reason in reasons {
                assert_eq!(well_known_finish_reason(reason), word, "{reason}");
            }
        }
        assert_eq!(well_known_finish_reason("OTHER"), "OTHER");
        assert_eq!(well_known_finish_reason("unload"), "unload");
    }
}
