//! The page's files, built in.

use axum::{
    extract::Path,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse, Response},
};

const PAGE: &str = include_str!("assets/index.html");
const LOGIN: &str = include_str!("assets/login.html");
/// Stands in [`LOGIN`] where it says what went wrong.
const MESSAGE: &str = "<!-- message -->";
const REFUSED: &str = "<p role=\"alert\" class=\"bad\">That is not the token.</p>";

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Name, type, content.
const FILES: [(&str, &str, &str); 12] = [
    ("style.css", STYLE, include_str!("assets/style.css")),
    ("theme.js", SCRIPT, include_str!("assets/theme.js")),
    ("main.js", SCRIPT, include_str!("assets/main.js")),
    ("dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("charts.js", SCRIPT, include_str!("assets/charts.js")),
    ("streams.js", SCRIPT, include_str!("assets/streams.js")),
    ("calls.js", SCRIPT, include_str!("assets/calls.js")),
    ("detail.js", SCRIPT, include_str!("assets/detail.js")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ("uPlot.iife.min.js", SCRIPT, include_str!("assets/uplot/uPlot.iife.min.js")),
    ("uPlot.min.css", STYLE, include_str!("assets/uplot/uPlot.min.css")),
    ("uPlot.LICENSE.txt", "text/plain; charset=utf-8", include_str!("assets/uplot/LICENSE")),
];

/// The page itself.
pub(super) fn page() -> Response {
    Html(PAGE).into_response()
}

/// The form that asks for the token.
pub(super) fn login(refused: bool) -> Response {
    Html(if refused { LOGIN.replace(MESSAGE, REFUSED) } else { LOGIN.to_owned() }).into_response()
}

/// One file.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, content)) => ([(CONTENT_TYPE, *kind)], *content).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_no_inline_script_or_style_and_names_only_files_that_are_here() {
        for html in [PAGE, LOGIN] {
            for bad in ["<style", "style=", "onclick", "onload", "javascript:", "http://", "https://"] {
                assert!(!html.contains(bad), "{bad}");
            }
            assert_eq!(
                html.matches("<script").count(),
                html.matches("<script src=").count() + html.matches("<script type=\"module\" src=").count()
            );
            for name in html.split("/assets/").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|(known, ..)| *known == name), "{name}");
            }
        }
        assert!(LOGIN.contains(MESSAGE));
    }

    #[test]
    fn nothing_of_ours_makes_html_of_text() {
        for (name, _, content) in FILES.iter().filter(|(name, ..)| name.ends_with(".js") && !name.starts_with("uPlot"))
        {
            for bad in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!content.contains(bad), "{name} uses {bad}");
            }
        }
    }
}
