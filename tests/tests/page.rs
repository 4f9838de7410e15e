//! The page in a real browser, beside the real observer and a real client. Needs root, eBPF and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use xtask::{browser::Browser, sh, stage::Stage};

/// Breaks a page that takes it for HTML, a terminal that takes it for escapes, and the text around it.
const HOSTILE: &str =
    "<img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script>\u{1b}[31mred\u{202e}desrever";
const TOKEN: &str = "a-token-of-24-characters";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Scene {
    stage: Stage,
    browser: Browser,
    _alone: MutexGuard<'static, ()>,
}

fn scene(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Scene {
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = sh::target_dir(&sh::root().unwrap());
    let binary: PathBuf = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    let stage = Stage::set(&binary, &target.join("page").join(name), arguments, environment).unwrap();
    let mut browser = Browser::start(&stage.dir).unwrap();
    browser.resize(1280, 900).unwrap();
    browser.open(&stage.url()).unwrap();
    Scene { stage, browser, _alone: alone }
}

impl Scene {
    fn until(&mut self, expression: &str) -> Value {
        self.browser.until(expression).unwrap()
    }

    fn eval(&mut self, expression: &str) -> Value {
        self.browser.eval(expression).unwrap()
    }

    fn press(&mut self, key: &str) {
        self.browser.press(key).unwrap();
    }

    fn chat(&mut self, scenario: &str, model: &str, more: &Value) {
        let mut command = json!({"do": "chat", "background": true, "scenario": scenario, "model": model});
        command.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.stage.tell(&command).unwrap();
    }

    fn is_clean(&mut self) {
        assert_eq!(self.browser.problems().unwrap(), Vec::<String>::new());
        assert_eq!(self.eval("typeof window.pwned"), "undefined");
    }
}

#[test]
fn a_stream_starts_ticks_stalls_and_ends_and_a_hostile_name_stays_text() {
    let mut scene = scene("life", &[], &[]);
    scene.until("document.querySelector('#empty:not([hidden])')?.innerText.includes('1 process is observed')");
    scene.until("document.querySelector('#state').innerText.includes('attached, losing nothing')");

    scene.chat("stall", HOSTILE, &json!({"chunks": 40, "pause_ms": "40-60"}));
    let row = "document.querySelector('#streams tbody tr')";
    scene.until(row);
    scene.until("document.querySelector('#empty').hidden");
    // It ticks: the number of reads in the strip grows.
    let ticks = format!("parseInt({row}.querySelector('canvas').getAttribute('aria-label'))");
    scene.until(&format!("{ticks} > 2"));
    // It stalls: the timer runs and the strip is marked.
    scene.until("document.querySelector('#streams tr[data-level=stalled]')");
    let inked = format!(
        "(() => {{ const c = {row}.querySelector('canvas'); return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0); }})()"
    );
    assert_eq!(scene.eval(&inked), true);
    // It ends: it goes from the open ones to the calls and to the stalled ones.
    scene.until("document.querySelector('#calls tbody tr')");
    scene.until("document.querySelector('#stalls button')?.innerText.includes('1 in the stream')");
    scene.until("document.querySelectorAll('#streams tbody tr').length === 0");
    let shown = scene.eval("document.querySelector('#calls .name').textContent");
    let shown = shown.as_str().unwrap();
    let harmless = !shown.contains(|c: char| c.is_control() || c == '\u{202e}');
    assert!(shown.starts_with("<img src=x onerror=\"window.pwned=1\"><script>") && harmless, "{shown:?}");
    assert_eq!(scene.eval("document.querySelectorAll('main img, bdi *').length"), 0);

    scene.chat("http-429", HOSTILE, &json!({}));
    scene.until("document.querySelector('#errors button')");
    scene.until("document.querySelector('#models tbody tr .hot')");

    // The chosen call: every phase that was seen has a bar, and the charts are drawn.
    scene.eval("document.querySelector('#stalls button').click()");
    scene.until("document.querySelectorAll('#detail .uplot canvas').length === 2");
    for phase in ["upload", "first_byte_wait", "first_token_wait", "decode", "stalls"] {
        let width = scene.eval(&format!("document.querySelector('#detail .ph-{phase}').getBoundingClientRect().width"));
        assert!(width.as_f64().is_some_and(|width| width >= 1.0), "{phase}: {width}");
    }
    assert!(scene.eval("document.querySelector('#detail').innerText").as_str().unwrap().contains("40"));
    scene.is_clean();
}

#[test]
fn a_waterfall_says_whether_data_came_late_or_was_read_late() {
    let mut scene = scene("causes", &[], &[]);
    let phase = |key: &str| format!("document.querySelector('#detail [data-phase={key}]')");
    let cases = [
        ("stall", json!({}), "late_arrival", "late arrival"),
        ("steady", json!({"block_s": 3}), "late_read", "late read"),
    ];
    for (n, (scenario, more, cause, words)) in cases.into_iter().enumerate() {
        scene.chat(scenario, "gpt-4o", &more);
        scene.until(&format!("document.querySelectorAll('#stalls button').length === {}", n + 1));
        let listed = scene.eval("document.querySelector('#stalls button .what').textContent");
        assert!(listed.as_str().unwrap().ends_with(&format!("({words})")), "{listed}");
        scene.eval("document.querySelector('#stalls button').click()");
        scene.until("document.querySelectorAll('#detail .uplot canvas').length === 2");
        let bars = format!("{}.querySelectorAll('.ph.cause-{cause}').length", phase("stalls"));
        assert_eq!(scene.eval(&bars), 1, "{cause}");
        assert_eq!(scene.eval(&format!("{}.querySelector('.why').innerText", phase("stalls"))), words);
        // The server let each of them wait for its first token, and the socket was watched from its first byte.
        let waits = "[...document.querySelectorAll('#detail [data-phase$=_wait] .why')].map((e) => e.innerText)";
        assert_eq!(scene.eval(waits), json!(["late arrival"]), "{cause}");
        let drawn = format!("getComputedStyle({}.querySelector('.ph')).backgroundImage !== 'none'", phase("stalls"));
        assert_eq!(scene.eval(&drawn), cause == "late_read", "{cause}");
        scene.press("Escape");
        scene.until("!document.querySelector('#detail').open");
    }
    scene.is_clean();
}

#[test]
fn where_no_socket_is_watched_a_waterfall_names_no_cause() {
    let mut scene = scene("no-causes", &["--phases", "false"], &[]);
    scene.chat("stall", "gpt-4o", &json!({}));
    scene.until("document.querySelector('#stalls button')");
    let listed = scene.eval("document.querySelector('#stalls button .what').textContent");
    assert!(!listed.as_str().unwrap().contains("late"), "{listed}");
    scene.eval("document.querySelector('#stalls button').click()");
    scene.until("document.querySelectorAll('#detail .uplot canvas').length === 2");
    assert_eq!(scene.eval("document.querySelectorAll('#detail .why, #detail [class*=cause-]').length"), 0);
    scene.is_clean();
}

#[test]
fn at_360_pixels_nothing_scrolls_sideways() {
    let mut scene = scene("narrow", &[], &[]);
    scene.browser.resize(360, 740).unwrap();
    let fits = "document.documentElement.scrollWidth <= 360 && [...document.querySelectorAll('main *, header *, footer *')].every((e) => e.closest('[hidden], canvas, .uplot, .name, .skip') || e.getBoundingClientRect().right <= 360.5)";
    scene.until(fits);
    scene.chat("plain", &"a-very-long-name-of-a-model/".repeat(20), &json!({"chunks": 10}));
    scene.chat("http-429", "gpt-4o", &json!({}));
    scene.chat("plain", HOSTILE, &json!({"chunks": 200, "pause_ms": "50"}));
    scene.until(
        "document.querySelectorAll('#calls tbody tr').length === 2 && document.querySelector('#streams tbody tr')",
    );
    scene.until(fits);
    scene.eval("document.querySelector('#calls tbody tr:last-child').click()");
    scene.until("document.querySelector('#detail .facts')");
    scene.until("(() => { const d = document.querySelector('#detail'); return d.scrollWidth <= d.clientWidth && d.getBoundingClientRect().right <= 360; })()");
    scene.is_clean();
}

#[test]
fn the_keyboard_reaches_everything() {
    let mut scene = scene("keys", &[], &[]);
    scene.chat("plain", "first", &json!({"chunks": 5}));
    scene.until("document.querySelectorAll('#calls tbody tr').length === 1");
    scene.chat("http-429", "second", &json!({}));
    scene.until("document.querySelectorAll('#calls tbody tr').length === 2");
    scene.chat("plain", "open", &json!({"chunks": 2000, "pause_ms": "20"}));
    scene.until("document.querySelector('#streams tbody tr')");

    let mut reached = BTreeSet::new();
    scene.eval("document.activeElement.blur()");
    for _ in 0..60 {
        scene.press("Tab");
        let at =
            "(() => { const e = document.activeElement; return e.id || e.closest('[id]')?.id + ' ' + e.tagName; })()";
        if let Some(at) = scene.eval(at).as_str() {
            reached.insert(at.to_owned());
        }
    }
    for wanted in ["pause", "theme", "filter", "streams BUTTON", "streams TR", "errors BUTTON", "calls TR"] {
        assert!(reached.contains(wanted), "{wanted} is not reached: {reached:?}");
    }
    let unnamed = "[...document.querySelectorAll('button, input')].filter((e) => !e.innerText.trim() && !e.labels?.length).length";
    assert_eq!(scene.eval(unnamed), 0);

    // Rows by arrows, a call by Enter, the next one by an arrow, back by Escape to the row of the call.
    scene.eval("document.querySelector('#calls tbody tr[tabindex=\"0\"]').focus()");
    scene.press("ArrowDown");
    scene.press("ArrowUp");
    assert_eq!(scene.eval("document.activeElement.dataset.seq"), "2");
    scene.press("Enter");
    scene.until("document.querySelector('#detail').open && document.querySelector('#detail-title').innerText.startsWith('Call 2')");
    scene.press("ArrowRight");
    scene.until("document.querySelector('#detail-title').innerText.startsWith('Call 1')");
    assert_eq!(scene.eval("location.hash"), "#call=1");
    scene.press("Escape");
    scene.until("!document.querySelector('#detail').open && document.activeElement.dataset.seq === '1'");

    scene.press("/");
    scene.until("document.activeElement.id === 'filter'");
    scene.browser.type_text("second").unwrap();
    scene.until("document.querySelectorAll('#calls tbody tr').length === 1");
    scene.press("Escape");
    scene.press("t");
    scene.until("document.documentElement.dataset.theme === 'dark'");
    assert_eq!(scene.eval("getComputedStyle(document.body).backgroundColor"), "rgb(14, 18, 21)");
    scene.press("t");
    scene.until("getComputedStyle(document.body).backgroundColor === 'rgb(244, 246, 248)'");
    scene.press("p");
    scene.until("document.querySelector('#state').innerText.includes('paused')");
    scene.press("p");
    scene.until("document.querySelector('#state').innerText.includes('attached')");
    scene.is_clean();
}

#[test]
fn with_a_token_the_page_asks_for_it_and_then_follows() {
    let mut scene = scene("token", &[], &[("NEXENT_OBSERVER_WEB_TOKEN", TOKEN)]);
    scene.until("location.pathname === '/login' && document.activeElement.id === 'token'");
    scene.browser.type_text("not-the-token-of-anybody").unwrap();
    scene.press("Enter");
    scene.until("document.querySelector('[role=alert]')?.innerText.includes('not the token')");
    scene.browser.type_text(TOKEN).unwrap();
    scene.press("Enter");
    scene.until("location.pathname === '/' && document.querySelector('#state')?.innerText.includes('attached')");
    // No script can take the session away.
    assert_eq!(scene.eval("document.cookie"), "");
    let said = std::fs::read_to_string(scene.stage.dir.join("observer.stderr")).unwrap();
    assert!(!said.contains(TOKEN), "{said}");
}
