//! Rule `stage-order`: in the core a stage uses what came before it, by its border types, and never what comes after.

use anyhow::{Context, Result};

use super::{
    report::{Outcome, Problem},
    rust::{self, Path, Token},
    tree::Tree,
};

/// Sources of the core.
const CORE: &str = "nexent-observer-core/src/";
/// The modules of the core in the order in which a byte travels, as `lib.rs` lists them.
const ORDER: [&str; 10] = ["event", "limits", "stats", "conn", "http", "llm", "timing", "chain", "pipeline", "tape"];
/// Modules that every later one may use whole.
const GROUND: [&str; 3] = ["event", "limits", "stats"];
/// The modules that may use all: what joins the stages, and what writes down what goes through them.
const JOINTS: [&str; 2] = ["pipeline", "tape"];

/// What else a stage may use: (stage, earlier stage, its border types). Beyond the output of the stage right before it,
/// only the causes of gaps and ends, which travel downstream unchanged.
const BORDERS: [(&str, &str, &[&str]); 8] = [
    ("http", "conn", &["StreamEvent", "GapCause", "CloseCause"]),
    ("llm", "conn", &["GapCause", "CloseCause"]),
    (
        "llm",
        "http",
        &[
            "HttpEvent",
            "HttpEventKind",
            "Message",
            "MessageKind",
            "Side",
            "Head",
            "RequestHead",
            "ResponseHead",
            "Headers",
            "AbortCause",
        ],
    ),
    ("timing", "conn", &["CloseCause"]),
    ("timing", "http", &["AbortCause"]),
    (
        "timing",
        "llm",
        &["LlmEvent", "LlmEventKind", "Call", "RequestFacts", "ResponseFacts", "Payload", "Usage", "ErrorFacts"],
    ),
    ("chain", "http", &["HttpEvent", "HttpEventKind", "Side", "Head", "RequestHead"]),
    ("chain", "timing", &["CausedBy", "ExchangeId", "Rule", "Served"]),
];

/// The rule over the checkout.
pub(super) fn rule(tree: &Tree) -> Result<Outcome> {
    let mut problems = Vec::new();
    for (path, text) in tree.with_extension(&["rs"]) {
        if let Some(inside) = path.strip_prefix(CORE) {
            problems.extend(in_file(path, inside, text).with_context(|| path.to_owned())?);
        }
    }
    Ok(Outcome::Checked(problems))
}

/// Breaches in one file; `inside` is its path below the core's `src`.
fn in_file(path: &str, inside: &str, text: &str) -> Result<Vec<Problem>> {
    let tokens = rust::tokens(text)?;
    if inside == "lib.rs" {
        return Ok(list_order(path, &tokens));
    }
    let module = module_of(inside);
    let Some(own) = module.first().copied() else { return Ok(Vec::new()) };
    let climbed = rust::climbing_paths(&tokens)
        .into_iter()
        .filter(|(levels, path)| *levels >= module.len() + path.start.inline_modules)
        .map(|(_, path)| path);
    let test_file = rust::is_test_file(inside);
    let breach = |used: Path| {
        let why = refusal(own, &used.segments, test_file || used.start.test)?;
        let place = format!("{path}:{}", used.start.line);
        let what = format!("stage {own} uses crate::{}: {why}", used.segments.join("::"));
        Some(Problem::new(
            place,
            what,
            "let it come through the previous stage's output (borders: xtask/src/lint/stages.rs)",
        ))
    };
    Ok(rust::paths_from(&tokens, "crate").into_iter().chain(climbed).filter_map(breach).collect())
}

/// Module path of a file: `http/http1/lane.rs` is `http::http1::lane`.
fn module_of(inside: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    if parts.last() == Some(&"mod") {
        parts.pop();
    }
    parts
}

/// Why module `own` may not use this path, or `None` when it may. Tests may use anything of earlier stages.
fn refusal(own: &str, used: &[String], test: bool) -> Option<String> {
    let target = used.first()?.as_str();
    let rank = |module: &str| ORDER.iter().position(|known| *known == module);
    if target == own {
        return None;
    }
    let (Some(from), Some(to)) = (rank(own), rank(target)) else {
        return Some(format!("`{}` is no known module of the core", if rank(own).is_none() { own } else { target }));
    };
    if to > from {
        return Some(format!("{target} is a later stage"));
    }
    if JOINTS.contains(&own) || test || GROUND.contains(&target) {
        return None;
    }
    let border = BORDERS.iter().find(|(stage, earlier, _)| *stage == own && *earlier == target);
    let item = used.get(1).map_or("self", String::as_str);
    match border {
        Some((_, _, types)) if types.contains(&item) => None,
        _ => Some(format!("{item} is no border type of {target}")),
    }
}

/// `lib.rs` must list the modules in their order.
fn list_order(path: &str, tokens: &[Token]) -> Vec<Problem> {
    let is_mod = |pair: &[Token]| pair.first().is_some_and(|token| token.text == "mod");
    let listed: Vec<&str> =
        tokens.windows(2).filter(|pair| is_mod(pair)).filter_map(|pair| Some(pair.get(1)?.text.as_str())).collect();
    if listed == ORDER {
        return Vec::new();
    }
    vec![Problem::new(path, format!("lists the modules {}", listed.join(", ")), format!("list {}", ORDER.join(", ")))]
}

#[cfg(test)]
mod tests {
    use super::in_file;

    fn breaches(inside: &str, text: &str) -> Vec<String> {
        in_file("f.rs", inside, text).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_later_stage_is_refused_by_use_by_path_and_by_climbing() {
        for text in [
            "use crate::{event::Stamp, llm::Usage};",
            "fn f() -> crate::llm::Usage {}",
            "use super::super::llm::Usage;",
            "mod inner { use super::super::super::llm::Usage; }",
            "#[cfg(test)] mod tests { use crate::llm::Usage; }",
        ] {
            let found = breaches("http/lane.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains("stage http uses crate::llm::Usage: llm is a later stage"), "{found:?}");
        }
    }

    #[test]
    fn the_borders_and_the_ground_are_free() {
        assert!(
            breaches("llm/exchange.rs", "use crate::{event::Stamp, http::{Head, HttpEvent}, conn::GapCause, limits};")
                .is_empty()
        );
        assert!(breaches("llm/a/b.rs", "use crate::llm::Usage; use super::super::Call; use super::c;").is_empty());
        assert!(breaches("pipeline/mod.rs", "use crate::{conn::Table, timing::Timing};").is_empty());
    }

    #[test]
    fn inner_types_of_earlier_stages_whole_modules_and_globs_are_refused() {
        for text in
            ["use crate::conn::Table;", "use crate::conn;", "use crate::conn::*;", "use crate::conn::{self, GapCause};"]
        {
            let found = breaches("http/mod.rs", text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains("is no border type of conn"), "{found:?}");
        }
        assert_eq!(breaches("timing/mod.rs", "use crate::http::Head;").len(), 1);
    }

    #[test]
    fn tests_may_use_anything_that_came_before() {
        assert!(breaches("timing/tests.rs", "use crate::conn::Table;").is_empty());
        assert!(breaches("timing/mod.rs", "#[cfg(test)] mod tests { use crate::http::Head; }").is_empty());
        assert_eq!(breaches("timing/tests.rs", "use crate::pipeline::Pipeline;").len(), 1);
    }

    #[test]
    fn the_ground_does_not_look_up() {
        assert_eq!(breaches("event.rs", "use crate::stats::Stats;").len(), 1);
        assert!(breaches("stats.rs", "use crate::limits::HEAD_BYTES;").is_empty());
    }

    #[test]
    fn an_unknown_module_is_refused() {
        assert!(breaches("util.rs", "use crate::event::Stamp;")[0].contains("`util` is no known module"));
        assert!(breaches("http/mod.rs", "use crate::util::Thing;")[0].contains("`util` is no known module"));
    }

    #[test]
    fn lib_lists_the_modules_in_the_order_in_which_a_byte_travels() {
        let good = "pub mod event; pub mod limits; pub mod stats; pub mod conn; pub mod http; pub mod llm; pub mod timing; pub mod chain; pub mod pipeline; pub mod tape;";
        assert!(breaches("lib.rs", good).is_empty());
        assert_eq!(breaches("lib.rs", &good.replace("conn", "x").replace("http", "conn")).len(), 1);
        assert_eq!(breaches("lib.rs", &format!("{good} mod util;")).len(), 1);
    }
}
