//! `nexent-observer top`: the open streams and the last calls of a running observer, in a terminal.
//!
//! It is a client of the observer's API (docs/page.md), so that it needs no privileges and works over ssh.

mod feed;
mod frame;
mod screen;
mod text;

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use ratatui::crossterm::event;

use crate::error::RunError;
use feed::{Feed, Message};
use frame::State;
use screen::{Outcome, Screen};

/// How often the screen is drawn: silence grows in tenths of a second.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a line of totals is written where there is no terminal.
const TOTALS: Duration = Duration::from_secs(10);

/// Where to look and how to show it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the observer, without a path.
    pub url: String,
    /// Its `web_token`.
    pub token: Option<String>,
    /// One table, then the end.
    pub once: bool,
    /// Standard output is a terminal.
    pub terminal: bool,
    /// The terminal shows more than ASCII.
    pub unicode: bool,
}

/// Runs until the user wants it to end, or the observer cannot be reached at the start.
///
/// # Errors
/// One sentence on what is in the way.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), RunError> {
    let feed = Feed::start(options)?;
    let mut state = State::default();
    // What is wrong with the address shows at once, not as a screen that stays empty.
    match feed.next(None) {
        Some(Message::Frame(frame)) => state.take(*frame),
        Some(Message::Lost(why)) => return Err(RunError::runtime(why)),
        Some(Message::Stop) | None => return Ok(()),
    }
    if options.once {
        return written(text::table(&state, out));
    }
    if options.terminal { on_screen(options, &feed, state) } else { written(as_lines(&feed, state, out)) }
}

/// A reader that went away (`| head`) is no error.
fn written(done: io::Result<()>) -> Result<(), RunError> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(RunError::caused("cannot write to standard output", error))
        }
        _ => Ok(()),
    }
}

/// One line for each call that ends, and totals now and then.
fn as_lines(feed: &Feed, mut state: State, out: &mut impl Write) -> io::Result<()> {
    text::totals(&state, out)?;
    let mut next = Instant::now() + TOTALS;
    let mut shown = state.newest();
    loop {
        match feed.next(Some(next)) {
            Some(Message::Frame(frame)) => state.take(*frame),
            Some(Message::Lost(why)) => writeln!(out, "{why}")?,
            Some(Message::Stop) => return Ok(()),
            None => {}
        }
        for call in state.calls_after(shown) {
            text::call(call, out)?;
        }
        shown = state.newest();
        if Instant::now() >= next {
            next += TOTALS;
            text::totals(&state, out)?;
        }
        out.flush()?;
    }
}

fn on_screen(options: &Options, feed: &Feed, state: State) -> Result<(), RunError> {
    let failed = |error| RunError::caused("the terminal cannot be used", error);
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut screen = Screen::new(state, options);
    let done = loop {
        if let Err(error) = terminal.draw(|frame| screen.draw(frame, Instant::now())) {
            break Err(error);
        }
        match event::poll(REDRAW) {
            Ok(false) => {}
            Ok(true) => match event::read() {
                Ok(event) => {
                    if screen.handle(&event) == Outcome::Quit {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            },
            Err(error) => break Err(error),
        }
        if screen.take(feed.waiting()) == Outcome::Quit {
            break Ok(());
        }
    };
    // Also after an error: a terminal in raw mode is of no use to anybody.
    ratatui::try_restore().and(done).map_err(failed)
}
