//! What stands on the terminal, and what the keys do.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ratatui::{
    Frame,
    crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Table, TableState},
};

use super::{
    Options,
    feed::Message,
    frame::{Call, Row, State},
    text,
};
use crate::cli::printable;

/// From this silence on a stream is drawn as one that waits, and as one that stalls (the shortest stall).
const LONG_S: f64 = 1.0;
const STALL_S: f64 = 2.0;
/// Gaps up to these are drawn that high; the last is higher than all.
const LEVELS_MS: [u128; 7] = [10, 25, 50, 100, 250, 500, 2000];
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_BARS: [char; 8] = ['_', '.', ':', '-', '=', '+', '#', '@'];
/// Longest filter, in characters.
const FILTER: usize = 80;

const HELP: [&str; 11] = [
    "q, Esc      leave",
    "p, Space    hold the screen, and go on",
    "/           filter by model, service or pid; Enter keeps it, Esc drops it",
    "< >         sort by the column to the left or right (arrows too)",
    "r           turn the order round",
    "up, down    select a row; PgUp, PgDn, Home, End",
    "h, ?        this text",
    "",
    "Gaps: each bar is the wait before a read with output, the newest on the right:",
    "      up to 10, 25, 50, 100, 250, 500 ms, 2 s, and more.",
    "Silent: yellow from 1 s, red from 2 s, which is a stall for most streams.",
];

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Go on.
    Stay,
    /// The user has seen enough.
    Quit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Model,
    Service,
    Pid,
    Age,
    Ttft,
    Silent,
    Chunks,
    Rate,
}

impl Column {
    const ALL: [Self; 8] =
        [Self::Model, Self::Service, Self::Pid, Self::Age, Self::Ttft, Self::Silent, Self::Chunks, Self::Rate];

    fn title(self) -> &'static str {
        match self {
            Self::Model => "MODEL",
            Self::Service => "SERVICE",
            Self::Pid => "PID",
            Self::Age => "OPEN FOR",
            Self::Ttft => "TTFT",
            Self::Silent => "SILENT",
            Self::Chunks => "CHUNKS",
            Self::Rate => "CHUNKS/S",
        }
    }

    /// Least width of the terminal for which it is shown.
    fn needs_width(self) -> u16 {
        match self {
            Self::Model | Self::Silent => 0,
            Self::Chunks => 50,
            Self::Ttft => 60,
            Self::Service => 72,
            Self::Rate => 84,
            Self::Age => 96,
            Self::Pid => 108,
        }
    }

    fn width(self) -> Constraint {
        match self {
            Self::Model => Constraint::Min(14),
            Self::Service => Constraint::Length(18),
            Self::Pid => Constraint::Length(8),
            Self::Age | Self::Ttft | Self::Silent | Self::Chunks | Self::Rate => Constraint::Length(10),
        }
    }
}

/// The screen.
#[derive(Debug)]
pub(super) struct Screen {
    state: State,
    /// What came while the screen is held.
    held: Option<State>,
    held_at: Instant,
    url: String,
    bars: [char; 8],
    sort: Column,
    descending: bool,
    filter: String,
    typing: bool,
    help: bool,
    lost: Option<String>,
    table: TableState,
    page: u16,
}

impl Screen {
    pub(super) fn new(state: State, options: &Options) -> Self {
        Self {
            state,
            held: None,
            held_at: Instant::now(),
            url: printable(&without_password(&options.url), 60),
            bars: if options.unicode { BARS } else { ASCII_BARS },
            sort: Column::Silent,
            descending: true,
            filter: String::new(),
            typing: false,
            help: false,
            lost: None,
            table: TableState::default(),
            page: 10,
        }
    }

    /// Takes what came.
    pub(super) fn take(&mut self, messages: impl Iterator<Item = Message>) -> Outcome {
        for message in messages {
            match message {
                Message::Frame(frame) => {
                    self.lost = None;
                    self.held.as_mut().unwrap_or(&mut self.state).take(*frame);
                }
                Message::Lost(why) => self.lost = Some(printable(&why, 200)),
                Message::Stop => return Outcome::Quit,
            }
        }
        Outcome::Stay
    }

    /// Does what a key says.
    pub(super) fn handle(&mut self, event: &Event) -> Outcome {
        let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
            return Outcome::Stay;
        };
        if modifiers.contains(KeyModifiers::CONTROL) {
            return if matches!(code, KeyCode::Char('c' | 'd')) { Outcome::Quit } else { Outcome::Stay };
        }
        if self.typing {
            self.type_filter(*code);
            return Outcome::Stay;
        }
        if self.help {
            self.help = false;
            return if *code == KeyCode::Char('q') { Outcome::Quit } else { Outcome::Stay };
        }
        match code {
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Char('q') | KeyCode::Esc => return Outcome::Quit,
            KeyCode::Char('p' | ' ') => self.hold(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('h' | '?') => self.help = true,
            KeyCode::Char('r') => self.descending = !self.descending,
            KeyCode::Char('<') | KeyCode::Left => self.sort_by(Column::ALL.len() - 1),
            KeyCode::Char('>') | KeyCode::Right => self.sort_by(1),
            KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.table.select_previous(),
            KeyCode::PageDown => self.table.scroll_down_by(self.page),
            KeyCode::PageUp => self.table.scroll_up_by(self.page),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            _ => {}
        }
        Outcome::Stay
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.chars().count() < FILTER => self.filter.push(c),
            _ => {}
        }
    }

    fn hold(&mut self) {
        match self.held.take() {
            Some(state) => self.state = state,
            None => {
                self.held = Some(self.state.clone());
                self.held_at = Instant::now();
            }
        }
    }

    fn sort_by(&mut self, steps: usize) {
        let at = Column::ALL.iter().position(|column| *column == self.sort).unwrap_or(0);
        if let Some(column) = Column::ALL.get((at + steps) % Column::ALL.len()) {
            self.sort = *column;
        }
    }

    /// The streams that fit the filter, in the order that is asked for.
    fn rows(&self, now: Instant) -> Vec<&Row> {
        let words = self.filter.to_lowercase();
        let fits = |row: &&Row| {
            let stream = &row.stream;
            let text = format!("{} {} {}", stream.model.as_deref().unwrap_or_default(), stream.service, stream.pid);
            let text = text.to_lowercase();
            words.split_whitespace().all(|word| text.contains(word))
        };
        let mut rows: Vec<&Row> = self.state.rows.values().filter(fits).collect();
        let number = |value: Option<f64>| value.unwrap_or(-1.0);
        rows.sort_by(|a, b| {
            let (x, y) = (&a.stream, &b.stream);
            let order = match self.sort {
                Column::Model => x.model.cmp(&y.model),
                Column::Service => x.service.cmp(&y.service),
                Column::Pid => x.pid.cmp(&y.pid),
                Column::Age => number(x.elapsed_s).total_cmp(&number(y.elapsed_s)),
                Column::Ttft => number(x.ttft_s).total_cmp(&number(y.ttft_s)),
                // By whole seconds, or streams that flow would change places ten times a second.
                Column::Silent => number(a.silent(now)).floor().total_cmp(&number(b.silent(now)).floor()),
                Column::Chunks => x.chunks.cmp(&y.chunks),
                Column::Rate => number(x.tokens_per_s).total_cmp(&number(y.tokens_per_s)),
            };
            let order = if self.descending { order.reverse() } else { order };
            order.then_with(|| x.id.cmp(&y.id))
        });
        rows
    }

    /// Draws everything.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, now: Instant) {
        let now = if self.held.is_some() { self.held_at } else { now };
        let area = frame.area();
        let calls = if area.height >= 18 { (area.height / 3).min(10) } else { 0 };
        let [head, totals, streams, ended, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(calls),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(self.head(), head);
        frame.render_widget(self.totals(), totals);
        self.draw_streams(frame, streams, now);
        if calls > 0 {
            self.draw_calls(frame, ended);
        }
        frame.render_widget(self.foot(), foot);
        if self.help {
            draw_help(frame, area);
        }
    }

    fn head(&self) -> Line<'_> {
        let health = &self.state.health;
        let (words, colour) = match (&self.lost, health.state.as_str()) {
            (Some(_), _) => ("no answer".to_owned(), Color::Red),
            (None, "ready") => ("ready".to_owned(), Color::Green),
            (None, "losing") => (format!("LOSING EVENTS ({} records)", health.lost_records), Color::Red),
            (None, "not_attached") => ("no process is attached".to_owned(), Color::Yellow),
            (None, other) => (printable(other, 20), Color::Red),
        };
        let mut spans = vec![
            Span::from("nexent-observer ").bold(),
            Span::from(self.url.clone()).dim(),
            Span::from("  "),
            Span::from(words).fg(colour),
            Span::from(format!("  {} processes, {} probes", health.processes, health.probes)),
        ];
        if self.held.is_some() {
            spans.push(Span::from("  HELD").fg(Color::Yellow).bold());
        }
        Line::from(spans)
    }

    fn totals(&self) -> Line<'_> {
        let all = &self.state.recent.all;
        let label = |text: &'static str| Span::from(text).dim();
        let alarm = |count: usize, colour| {
            let span = Span::from(count.to_string());
            if count > 0 { span.fg(colour) } else { span }
        };
        Line::from(vec![
            label("open "),
            Span::from(self.state.streams_total.to_string()).bold(),
            label("  chunks/s "),
            Span::from(text::rate(self.state.rate)).bold(),
            label("  ttft p50 "),
            Span::from(text::seconds(all.ttft_p50_s)),
            label(" p95 "),
            Span::from(text::seconds(all.ttft_p95_s)),
            label("  decode "),
            Span::from(text::rate(all.decode_p50_tokens_per_s)),
            label("/s  of the last "),
            Span::from(all.calls.to_string()),
            label(" calls failed "),
            alarm(all.failed, Color::Red),
            label(" stalled "),
            alarm(all.stalled, Color::Yellow),
        ])
    }

    fn draw_streams(&mut self, frame: &mut Frame<'_>, area: Rect, now: Instant) {
        self.page = area.height.saturating_sub(2).max(1);
        let columns: Vec<Column> = Column::ALL.into_iter().filter(|c| area.width >= c.needs_width()).collect();
        let gaps = usize::from(area.width.saturating_sub(40) / 4).clamp(8, super::frame::TICKS);
        let rows = self.rows(now);
        let count = rows.len();
        let lines: Vec<TableRow<'_>> = rows.into_iter().map(|row| self.line(row, &columns, gaps, now)).collect();
        if lines.is_empty() {
            frame.render_widget(Paragraph::new(self.nothing()).dim(), area);
            return;
        }
        let arrow = if self.descending { "v" } else { "^" };
        let title = |column: &Column| {
            let cell = Cell::from(column.title());
            if *column == self.sort { Cell::from(format!("{}{arrow}", column.title())).bold() } else { cell }
        };
        let head =
            TableRow::new(columns.iter().map(title).chain([Cell::from("GAPS")])).style(Style::new().fg(Color::Cyan));
        let widths = columns.iter().map(|c| c.width()).chain([Constraint::Length(u16::try_from(gaps).unwrap_or(8))]);
        let table =
            Table::new(lines, widths).header(head).row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        if self.table.selected().is_some_and(|at| at >= count) {
            self.table.select(Some(count - 1));
        }
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn line(&self, row: &Row, columns: &[Column], gaps: usize, now: Instant) -> TableRow<'static> {
        let stream = &row.stream;
        let silent = row.silent(now);
        let style = match silent {
            Some(s) if s >= STALL_S => Style::new().fg(Color::Red).bold(),
            Some(s) if s >= LONG_S => Style::new().fg(Color::Yellow),
            _ => Style::new(),
        };
        let cells = columns.iter().map(|column| match column {
            Column::Model => Cell::from(text::name(stream.model.as_deref(), 60)),
            Column::Service => Cell::from(text::name(Some(&stream.service), 18)),
            Column::Pid => Cell::from(stream.pid.to_string()),
            Column::Age => Cell::from(text::seconds(stream.elapsed_s)),
            Column::Ttft => Cell::from(text::seconds(stream.ttft_s)),
            Column::Silent => Cell::from(silent.map_or_else(|| "-".to_owned(), |s| format!("{s:.1} s"))).style(style),
            Column::Chunks => Cell::from(stream.chunks.to_string()),
            Column::Rate => Cell::from(text::rate(stream.tokens_per_s)),
        });
        let spark = Cell::from(sparkline(&row.gaps, gaps, self.bars)).style(Style::new().fg(Color::Green));
        TableRow::new(cells.chain([spark]).collect::<Vec<_>>())
    }

    fn nothing(&self) -> String {
        let health = &self.state.health;
        if !self.filter.is_empty() && !self.state.rows.is_empty() {
            "No open stream fits the filter; Esc drops it.".to_owned()
        } else if health.processes == 0 {
            "No process is attached. Start the observer with --pid PID or --exe PATH.".to_owned()
        } else if health.llm_exchanges == 0 {
            format!(
                "No LLM call seen yet; {} processes observed. A call appears with its first byte.",
                health.processes
            )
        } else {
            "No stream is open now.".to_owned()
        }
    }

    fn draw_calls(&self, frame: &mut Frame<'_>, area: Rect) {
        let wide = area.width >= 84;
        let line = |call: &Call| {
            let style = match call.outcome.as_str() {
                "completed" if call.stalls.is_empty() && !call.stalled_before_first_token => Style::new(),
                "completed" | "client_abort" => Style::new().fg(Color::Yellow),
                "incomplete" => Style::new().dim(),
                _ => Style::new().fg(Color::Red),
            };
            let mut cells = vec![
                Cell::from(text::time_of_day(call.end_unix_ms)),
                Cell::from(text::name(call.model.as_deref(), 60)),
                Cell::from(text::ending(call)).style(style),
                Cell::from(text::seconds(call.duration_s)),
            ];
            if wide {
                cells.extend([
                    Cell::from(text::seconds(call.ttft_s)),
                    Cell::from(text::rate(call.decode_tokens_per_s)),
                    Cell::from(text::count(call.tokens.output)),
                ]);
            }
            TableRow::new(cells)
        };
        let rows: Vec<_> = self.state.calls.iter().take(usize::from(area.height.saturating_sub(1))).map(line).collect();
        let head = ["ENDED", "MODEL", "OUTCOME", "TOOK", "TTFT", "TOKENS/S", "TOKENS"];
        let shown = if wide { 7 } else { 4 };
        let head = TableRow::new(head.into_iter().take(shown)).style(Style::new().fg(Color::Cyan));
        let widths = [
            Constraint::Length(10),
            Constraint::Min(14),
            Constraint::Min(12),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(8),
        ];
        frame.render_widget(Table::new(rows, widths.into_iter().take(shown)).header(head), area);
    }

    fn foot(&self) -> Line<'_> {
        if self.typing {
            return Line::from(format!("filter: {}_", printable(&self.filter, FILTER)));
        }
        if let Some(why) = &self.lost {
            return Line::from(why.as_str()).fg(Color::Red);
        }
        let keys = "q quit  p hold  / filter  < > sort  r reverse  h help";
        let filter = if self.filter.is_empty() {
            String::new()
        } else {
            format!("  filter: {}", printable(&self.filter, FILTER))
        };
        Line::from(vec![Span::from(keys).dim(), Span::from(filter).fg(Color::Yellow)])
    }
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let height = u16::try_from(HELP.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
    let width = 84.min(area.width);
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let lines: Vec<Line<'_>> = HELP.into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Keys ")), place);
}

/// The last gaps as bars, the newest on the right.
fn sparkline(gaps: &VecDeque<Duration>, width: usize, bars: [char; 8]) -> String {
    let skipped = gaps.len().saturating_sub(width);
    let bar = |gap: &Duration| {
        let level = LEVELS_MS.iter().position(|up_to| gap.as_millis() <= *up_to).unwrap_or(LEVELS_MS.len());
        bars.get(level).copied().unwrap_or(' ')
    };
    let pad = std::iter::repeat_n(' ', width.saturating_sub(gaps.len()));
    pad.chain(gaps.iter().skip(skipped).map(bar)).collect()
}

/// The address without what may be a user and a password.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn options() -> Options {
        Options { url: "http://u:secret@h:1".into(), token: None, once: false, terminal: true, unicode: true }
    }

    fn screen() -> Screen {
        let mut state = State::default();
        let stream = |n: u32, model: &str, silent: f64| {
            format!(
                r#"{{"id":"1-{n}","model":{},"service":"svc","pid":{n},"silent_s":{silent},"chunks":{n},"ticks_ms_ago":[9000,30,20]}}"#,
                serde_json::Value::from(model)
            )
        };
        let streams =
            [stream(1, "alpha", 0.1), stream(2, "\u{1b}[31mred\u{202e}", 5.0), stream(3, "gamma", 1.5)].join(",");
        state.take(
            serde_json::from_str(&format!(
                r#"{{"whole":true,"health":{{"state":"ready","processes":1}},"streams_total":3,"streams":[{streams}]}}"#
            ))
            .unwrap(),
        );
        Screen::new(state, &options())
    }

    fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame, Instant::now())).unwrap();
        terminal.backend().to_string()
    }

    fn press(screen: &mut Screen, code: KeyCode) -> Outcome {
        screen.handle(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn order(screen: &mut Screen) -> Vec<&'static str> {
        let text = drawn(screen, 100, 20);
        let mut found: Vec<_> =
            ["alpha", "red", "gamma"].into_iter().filter_map(|n| Some((text.find(n)?, n))).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn the_stream_that_is_silent_longest_stands_first_and_keys_change_the_order() {
        let mut screen = screen();
        assert_eq!(order(&mut screen), ["red", "gamma", "alpha"]);
        press(&mut screen, KeyCode::Char('r'));
        assert_eq!(order(&mut screen), ["alpha", "gamma", "red"]);
        press(&mut screen, KeyCode::Char('>'));
        press(&mut screen, KeyCode::Char('r'));
        assert_eq!(order(&mut screen), ["gamma", "red", "alpha"], "by chunks");
    }

    #[test]
    fn hostile_names_are_drawn_as_text_and_no_password_shows() {
        let text = drawn(&mut screen(), 120, 20);
        assert!(text.contains("\u{fffd}[31mred\u{fffd}") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("http://h:1") && !text.contains("secret"), "{text}");
        assert!(text.contains('█') && text.contains('▁'), "{text}");
    }

    #[test]
    fn a_filter_is_typed_kept_and_dropped() {
        let mut screen = screen();
        for code in [
            KeyCode::Char('/'),
            KeyCode::Char('g'),
            KeyCode::Char('a'),
            KeyCode::Char('q'),
            KeyCode::Backspace,
            KeyCode::Enter,
        ] {
            assert_eq!(press(&mut screen, code), Outcome::Stay);
        }
        assert_eq!(order(&mut screen), ["gamma"]);
        assert_eq!(press(&mut screen, KeyCode::Esc), Outcome::Stay);
        assert_eq!(order(&mut screen).len(), 3);
        assert_eq!(press(&mut screen, KeyCode::Esc), Outcome::Quit);
    }

    #[test]
    fn a_held_screen_stays_and_shows_what_came_when_it_goes_on() {
        let mut screen = screen();
        press(&mut screen, KeyCode::Char('p'));
        let gone = r#"{"whole":true,"health":{"state":"ready"},"streams_total":0,"streams":[]}"#;
        let frame = Message::Frame(Box::new(serde_json::from_str(gone).unwrap()));
        assert_eq!(screen.take(std::iter::once(frame)), Outcome::Stay);
        let text = drawn(&mut screen, 100, 20);
        assert!(text.contains("HELD") && text.contains("alpha"), "{text}");
        press(&mut screen, KeyCode::Char('p'));
        assert!(order(&mut screen).is_empty());
    }

    #[test]
    fn every_size_of_terminal_is_drawn() {
        for (width, height) in [(1, 1), (2, 5), (20, 6), (40, 12), (80, 24), (200, 60)] {
            let mut screen = screen();
            drawn(&mut screen, width, height);
            press(&mut screen, KeyCode::Char('h'));
            drawn(&mut screen, width, height);
        }
    }

    #[test]
    fn a_bar_is_as_high_as_its_gap_is_long() {
        let gaps: VecDeque<_> = [5, 100, 3000].map(Duration::from_millis).into();
        assert_eq!(sparkline(&gaps, 5, BARS), "  ▁▄█");
        assert_eq!(sparkline(&gaps, 2, ASCII_BARS), "-@");
    }
}
