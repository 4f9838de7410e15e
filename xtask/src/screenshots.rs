//! `cargo xtask screenshots`: the page in each of its states, as pictures in docs/img.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::Result;
use serde_json::json;
use xtask::{browser::Browser, sh, stage::Stage};

use crate::build::{self, Source};

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<std::path::PathBuf>,
}

/// Models that the pictures show, with the scenario that each plays and the time between its chunks, ms.
const CAST: [(&str, &str, u32); 6] = [
    ("gpt-4o", "steady", 35),
    ("gpt-4o-mini", "coalesced", 18),
    ("claude-sonnet-4-5", "reasoning", 40),
    ("qwen2.5-72b-instruct", "no-usage", 60),
    ("deepseek-chat", "slow-first", 45),
    ("mistral-large-latest", "multi-token", 28),
];

/// Takes the pictures.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = options.observer.clone().map_or_else(|| build::all(root, Source::Auto), Ok)?;
    let dir = sh::target_dir(root).join("screenshots");
    if !sh::succeeds(Command::new("pngquant").arg("--version")) {
        sh::say("installing the Debian package pngquant: pictures in a repository should be small");
        sh::apt_install(&["pngquant"])?;
    }
    let pictures = root.join("docs/img");
    std::fs::create_dir_all(&pictures)?;
    let shot = |browser: &mut Browser, name: &str| {
        sh::say(&format!("docs/img/{name}.png"));
        let path = pictures.join(format!("{name}.png"));
        browser.screenshot(&path)?;
        sh::run(Command::new("pngquant").args(["--force", "--ext", ".png", "--speed", "1", "128"]).arg(path))
    };

    let mut stage = Stage::set(&binary, &dir.join("calls"), &[], &[])?;
    let mut browser = Browser::start(&dir)?;
    browser.resize(1280, 800)?;
    browser.prefer("dark")?;
    browser.open(&stage.url())?;
    browser.until(
        "document.querySelector('#empty:not([hidden])') && document.querySelector('#tiles').children.length > 0",
    )?;
    thread::sleep(Duration::from_secs(1));
    shot(&mut browser, "page-empty-dark")?;

    sh::say("half a minute of calls, so that there is something to see");
    for round in 0..5_u32 {
        for (n, (model, scenario, pause)) in CAST.iter().enumerate() {
            let chunks = 40 + 25 * (n as u32 + round) % 90;
            stage.tell(&json!({"do": "chat", "background": true, "scenario": scenario, "model": model, "seed": round * 10 + n as u32,
                               "chunks": chunks, "pause_ms": format!("{}-{}", pause / 2, pause * 3 / 2)}))?;
            thread::sleep(Duration::from_millis(400));
        }
        for (model, scenario) in
            [("gpt-4o", "http-429"), ("deepseek-chat", "stall"), ("claude-sonnet-4-5", "abort-reset")]
        {
            if round % 2 == 0 {
                stage.tell(&json!({"do": "chat", "background": true, "scenario": scenario, "model": model}))?;
            }
        }
        thread::sleep(Duration::from_millis(2500));
    }
    for (model, scenario, pause) in CAST {
        stage.tell(&json!({"do": "chat", "background": true, "scenario": scenario, "model": model, "chunks": 1500,
                           "pause_ms": format!("{}-{}", pause, pause * 4)}))?;
        thread::sleep(Duration::from_millis(700));
    }
    thread::sleep(Duration::from_secs(6));
    stage.tell(&json!({"do": "chat", "background": true, "scenario": "stall", "model": "deepseek-chat", "chunks": 60, "pause_ms": "30-60"}))?;
    stage.tell(&json!({"do": "chat", "background": true, "scenario": "plain", "model": "gpt-4o", "chunks": 5, "pause_ms": "9000"}))?;
    browser.resize(1280, 1180)?;
    thread::sleep(Duration::from_secs(4));
    browser.until("document.querySelector('#streams tr[data-level=stalled]')")?;
    thread::sleep(Duration::from_millis(600));
    shot(&mut browser, "page-dark")?;
    browser.prefer("light")?;
    thread::sleep(Duration::from_millis(600));
    shot(&mut browser, "page-light")?;
    browser.resize(360, 1100)?;
    thread::sleep(Duration::from_millis(900));
    shot(&mut browser, "page-narrow-light")?;

    browser.resize(1280, 860)?;
    let stalled =
        "[...document.querySelectorAll('#stalls button')].find((b) => b.textContent.includes('in the stream'))";
    browser.until(&format!("!!{stalled}"))?;
    browser.eval(&format!("{stalled}.click()"))?;
    browser.until("document.querySelectorAll('#detail .uplot').length === 2")?;
    thread::sleep(Duration::from_millis(400));
    shot(&mut browser, "call-light")?;
    browser.prefer("dark")?;
    thread::sleep(Duration::from_millis(400));
    shot(&mut browser, "call-dark")?;
    drop(stage);
    browser.until("document.querySelector('#problems .bad')")?;
    drop(browser);

    // An executable that nobody runs.
    let idle = dir.join("nobody");
    std::fs::copy("/bin/true", &idle)?;
    let idle = idle.display().to_string();
    let stage = Stage::set(&binary, &dir.join("nothing"), &["--exe", &idle], &[])?;
    let mut browser = Browser::start(&dir)?;
    browser.resize(1280, 500)?;
    browser.prefer("light")?;
    browser.open(&stage.url())?;
    browser.until("document.querySelector('#problems .problem')")?;
    thread::sleep(Duration::from_millis(500));
    shot(&mut browser, "page-nothing-attached-light")
}
