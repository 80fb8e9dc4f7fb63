//! Mistakes: all of them at once, each with its place, a caret under the spot and what to write instead.

use std::fmt;
use std::sync::Arc;

use ariadne::{CharSet, Config, IndexType, Label, Report as Picture, ReportKind};
use serde::Serialize;

use super::source::{Place, Sources, Span};

/// Mistakes shown with their source; the rest are counted.
const SHOWN: usize = 50;
/// Longest word that is compared for a suggestion, in characters.
const SUGGEST_CHARS: usize = 64;

/// One mistake.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// Where; `None` when a file could not be read at all.
    pub at: Option<Span>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// Another place that belongs to it, and why.
    pub also: Option<(Span, String)>,
}

impl Mistake {
    /// A mistake at a place.
    pub fn new(at: Option<Span>, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), help: None, also: None }
    }

    /// Says what to write instead.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Shows a second place.
    pub fn also(mut self, at: Option<Span>, why: impl Into<String>) -> Self {
        self.also = at.map(|at| (at, why.into()));
        self
    }
}

/// A mistake as data, for `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct MistakeLine {
    /// Where.
    pub at: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// Why a configuration was refused: every mistake found in it.
#[derive(Clone, Debug)]
pub struct Report {
    sources: Arc<Sources>,
    mistakes: Vec<Mistake>,
}

impl Report {
    pub(super) fn new(sources: Arc<Sources>, mut mistakes: Vec<Mistake>) -> Self {
        // Mistakes without a place first, then in file order.
        mistakes.sort_by_key(|m| m.at.map(|s| (s.file, s.start)));
        Self { sources, mistakes }
    }

    /// The mistakes, in file order.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// The mistakes as data.
    pub fn lines(&self) -> Vec<MistakeLine> {
        let line = |m: &Mistake| MistakeLine {
            at: m.at.map(|s| self.sources.place(s)),
            message: m.message.clone(),
            help: m.help.clone(),
        };
        self.mistakes.iter().map(line).collect()
    }

    /// All mistakes as a person reads them.
    pub fn render(&self, color: bool) -> String {
        let mut out = Vec::new();
        for mistake in self.mistakes.iter().take(SHOWN) {
            self.draw(mistake, color, &mut out);
        }
        // Pictures are padded to their width.
        let mut out: String = String::from_utf8_lossy(&out).lines().map(|l| l.trim_end().to_owned() + "\n").collect();
        let n = self.mistakes.len();
        if n > SHOWN {
            out += &format!("... and {} more\n", n - SHOWN);
        }
        out += &match n {
            1 => "1 mistake\n".to_owned(),
            n => format!("{n} mistakes\n"),
        };
        out
    }

    fn draw(&self, mistake: &Mistake, color: bool, out: &mut Vec<u8>) {
        let Some(at) = mistake.at else {
            out.extend(format!("Error: {}\n", mistake.message).bytes());
            if let Some(help) = &mistake.help {
                out.extend(format!("  help: {help}\n").bytes());
            }
            return;
        };
        let id = |span: Span| self.sources.file(span).path.display().to_string();
        let range = |span: Span| {
            let chars = self.sources.file(span).text.chars().count();
            let end = (span.end as usize).min(chars);
            (id(span), (span.start as usize).min(end)..end)
        };
        let config = Config::new().with_color(color).with_char_set(CharSet::Unicode).with_index_type(IndexType::Char);
        let label = mistake.help.clone().unwrap_or_else(|| "here".to_owned());
        let mut picture = Picture::build(ReportKind::Error, range(at))
            .with_config(config)
            .with_message(&mistake.message)
            .with_label(Label::new(range(at)).with_message(label));
        if let Some((also, why)) = &mistake.also {
            picture = picture.with_label(Label::new(range(*also)).with_message(why));
        }
        let files = self.sources.files().iter().map(|f| (f.path.display().to_string(), f.text.as_str()));
        picture.finish().write(ariadne::sources(files), out).expect("writing to memory does not fail");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

/// The known word nearest to `given`, when it is near enough to be meant.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.chars().count() > SUGGEST_CHARS {
        return None;
    }
    let lower = given.to_lowercase();
    let (distance, word) = known.into_iter().map(|k| (edits(&lower, &k.to_lowercase()), k)).min_by_key(|(d, _)| *d)?;
    (distance <= (given.chars().count() / 3).max(1)).then_some(word)
}

/// `did you mean 'x'?`, or the list of what is known, or the fallback when nothing is.
pub fn suggest<'a>(given: &str, what: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(given, known.iter().copied()) {
        Some(word) => format!("did you mean '{word}'?"),
        None if known.is_empty() => format!("no {what} is declared"),
        None => {
            let shown: Vec<&str> = known.iter().copied().take(20).collect();
            let more = if known.len() > shown.len() { ", ..." } else { "" };
            format!("known {what}s: {}{more}", shown.join(", "))
        }
    }
}

/// Insertions, deletions, changes and swaps of neighbours (optimal string alignment).
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested_only_when_it_is_near() {
        assert_eq!(nearest("retyr", ["retry", "rate"]), Some("retry"));
        assert_eq!(nearest("Retry", ["retry", "rate"]), Some("retry"));
        assert_eq!(nearest("wholly-other", ["retry", "rate"]), None);
        assert_eq!(nearest(&"x".repeat(1000), ["retry"]), None);
        assert_eq!(suggest("x", "queue", []), "no queue is declared");
        assert_eq!(suggest("zzzz", "queue", ["emails", "jobs"]), "known queues: emails, jobs");
    }
}
