//! Every OTLP metric under the names of v1.41 and under those of 2026, and which measurement goes where.

use super::config::Names;

/// Advisory buckets of the times, in seconds.
pub(super) const TIMES: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Advisory buckets of token counts.
pub(super) const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// One metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instrument {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) shape: Shape,
    names: Of,
    calls: Calls,
    /// What is recorded in it, and with which attribute.
    takes: &'static [(Measure, Extra)],
    pub(super) description: &'static str,
}

/// What its points are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// A histogram with these bounds.
    Histogram(&'static [f64]),
    /// A sum that only grows.
    Counter,
}

/// What is measured of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// The whole call.
    Duration,
    /// To the first data event.
    FirstChunk,
    /// Between reads with output.
    PerChunk,
    /// To the first generated payload.
    FirstToken,
    /// Tokens, as the provider counted them.
    Input,
    /// Likewise, reasoning included.
    Output,
    /// Likewise, part of the input.
    CacheRead,
    /// Likewise, part of the output.
    Reasoning,
}

/// The attribute that a point has beyond those that all metrics of a call share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extra {
    /// None.
    No,
    /// `error.type`, where the call failed.
    ErrorType,
    /// `gen_ai.token.type`.
    TokenType(&'static str),
    /// `gen_ai.token.modality`: no provider's split by modality is decoded, and for that the conventions have `unknown`.
    Modality,
}

/// Whose name it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Ours.
    Nexent,
    V1_41,
    V2026,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    All,
    /// All but embeddings.
    Inference,
    Embeddings,
}

impl Instrument {
    /// Whether it is exported under these names at all.
    fn is_of(&self, names: Names) -> bool {
        match self.names {
            Of::Nexent => true,
            Of::V1_41 => names.has_v1_41(),
            Of::V2026 => names.has_v2026(),
        }
    }

    fn takes(&self, operation: &str) -> bool {
        match self.calls {
            Calls::All => true,
            Calls::Inference => operation != EMBEDDINGS,
            Calls::Embeddings => operation == EMBEDDINGS,
        }
    }

    /// How docs/metrics.md names the set.
    #[cfg(test)]
    pub(super) fn names(&self) -> &'static str {
        match self.names {
            Of::Nexent => "both",
            Of::V1_41 => "v1.41",
            Of::V2026 => "2026",
        }
    }
}

/// `gen_ai.operation.name` of embeddings.
const EMBEDDINGS: &str = "embeddings";
const S: Shape = Shape::Histogram(TIMES);
const T: Shape = Shape::Histogram(TOKENS);
const C: Shape = Shape::Counter;

/// All metrics, in the order of docs/metrics.md. `gen_ai.client.operation.duration` is left in 2026 for operations only that are
/// neither inference nor embeddings; none of those is decoded.
pub(super) const INSTRUMENTS: [Instrument; 16] = {
    use {Calls::*, Extra::*, Measure::*, Of::*};
    const fn i(
        (name, unit, shape): (&'static str, &'static str, Shape),
        names: Of,
        calls: Calls,
        takes: &'static [(Measure, Extra)],
        description: &'static str,
    ) -> Instrument {
        Instrument { name, unit, shape, names, calls, takes, description }
    }
    const TOKEN: &str = "{token}";
    [
        i(
            ("nexent.gen_ai.client.time_to_first_token", "s", S),
            Nexent,
            All,
            &[(FirstToken, No)],
            "Time from the request to the first generated payload.",
        ),
        i(
            ("gen_ai.client.operation.duration", "s", S),
            V1_41,
            All,
            &[(Duration, ErrorType)],
            "GenAI operation duration.",
        ),
        i(
            ("gen_ai.client.token.usage", TOKEN, T),
            V1_41,
            All,
            &[(Input, TokenType("input")), (Output, TokenType("output"))],
            "Number of input and output tokens used, as reported by the provider.",
        ),
        i(
            ("gen_ai.client.operation.time_to_first_chunk", "s", S),
            V1_41,
            All,
            &[(FirstChunk, No)],
            "Time from the request to the first chunk of the stream, of any kind.",
        ),
        i(
            ("gen_ai.client.operation.time_per_output_chunk", "s", S),
            V1_41,
            All,
            &[(PerChunk, No)],
            "Time between neighbouring reads that carry output chunks.",
        ),
        i(
            ("gen_ai.client.inference.duration", "s", S),
            V2026,
            Inference,
            &[(Duration, ErrorType)],
            "Duration of an inference, to the end of its answer, an error or its cancellation.",
        ),
        i(
            ("gen_ai.client.inference.time_to_first_chunk", "s", S),
            V2026,
            Inference,
            &[(FirstChunk, No)],
            "Time from the request to the first chunk of the stream, of any kind.",
        ),
        i(
            ("gen_ai.client.inference.time_per_output_chunk", "s", S),
            V2026,
            Inference,
            &[(PerChunk, No)],
            "Time between neighbouring reads that carry output chunks.",
        ),
        i(
            ("gen_ai.client.inference.usage.input_tokens", TOKEN, C),
            V2026,
            Inference,
            &[(Input, Modality)],
            "Input tokens as reported by the provider, cached ones included.",
        ),
        i(
            ("gen_ai.client.inference.usage.output_tokens", TOKEN, C),
            V2026,
            Inference,
            &[(Output, Modality)],
            "Output tokens as reported by the provider, reasoning included.",
        ),
        i(
            ("gen_ai.client.inference.usage.cache_read.input_tokens", TOKEN, C),
            V2026,
            Inference,
            &[(CacheRead, Modality)],
            "Input tokens that the provider read from a cache: part of the input.",
        ),
        i(
            ("gen_ai.client.inference.usage.reasoning.output_tokens", TOKEN, C),
            V2026,
            Inference,
            &[(Reasoning, Modality)],
            "Output tokens spent on reasoning: part of the output.",
        ),
        i(
            ("gen_ai.client.inference.operation.input_tokens", TOKEN, T),
            V2026,
            Inference,
            &[(Input, ErrorType)],
            "Input tokens of one inference, as reported by the provider.",
        ),
        i(
            ("gen_ai.client.inference.operation.output_tokens", TOKEN, T),
            V2026,
            Inference,
            &[(Output, ErrorType)],
            "Output tokens of one inference, as reported by the provider.",
        ),
        i(
            ("gen_ai.client.embeddings.duration", "s", S),
            V2026,
            Embeddings,
            &[(Duration, ErrorType)],
            "Duration of an embeddings call.",
        ),
        i(
            ("gen_ai.client.embeddings.operation.input_tokens", TOKEN, T),
            V2026,
            Embeddings,
            &[(Input, ErrorType)],
            "Input tokens of one embeddings call, as reported by the provider.",
        ),
    ]
};

/// Where a measurement of a call goes: the positions in [`INSTRUMENTS`], and the attribute that its point has there.
pub(super) fn routes(
    names: Names,
    operation: &str,
    measure: Measure,
) -> impl Iterator<Item = (usize, &'static Instrument, Extra)> {
    const ALL: &[Instrument] = &INSTRUMENTS;
    ALL.iter()
        .enumerate()
        .filter(move |(_, instrument)| instrument.is_of(names) && instrument.takes(operation))
        .flat_map(move |(at, instrument)| {
            let of = instrument.takes.iter().filter(move |(from, _)| *from == measure);
            of.map(move |(_, extra)| (at, instrument, *extra))
        })
}
