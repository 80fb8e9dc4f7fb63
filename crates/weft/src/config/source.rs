//! The files a configuration was read from, and places in them.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// A range of characters in one source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Index into [`Sources`].
    pub file: u16,
    /// First character.
    pub start: u32,
    /// One past the last character.
    pub end: u32,
}

/// A value and where it was written; `None` = nowhere, it is a default.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub span: Option<Span>,
}

impl<T> At<T> {
    /// A value that was written at `span`.
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span: Some(span) }
    }

    /// The same place with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> At<U> {
        At { value: f(self.value), span: self.span }
    }
}

/// A place as people read it: `weft.yaml:12:7`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, as it was named.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One file.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it was named on the command line or in `include`.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// The first character of each line, so that a place is found without reading the text again.
    lines: Vec<u32>,
}

/// Every file read, in reading order.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
}

impl Sources {
    /// Adds a file and answers its index.
    pub(super) fn add(&mut self, path: &Path, text: String) -> u16 {
        let mut lines = vec![0];
        lines.extend(text.chars().zip(1..).filter(|(c, _)| *c == '\n').map(|(_, next)| next));
        self.files.push(Source { path: path.to_owned(), text, lines });
        u16::try_from(self.files.len() - 1).expect("fewer files than INCLUDE_FILES")
    }

    /// The files.
    pub fn files(&self) -> &[Source] {
        &self.files
    }

    /// Their paths, to watch for changes.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|f| f.path.clone()).collect()
    }

    /// The file a span lies in.
    pub fn file(&self, span: Span) -> &Source {
        &self.files[usize::from(span.file)]
    }

    /// Line and column of the start of a span.
    pub fn place(&self, span: Span) -> Place {
        let source = self.file(span);
        let line = source.lines.partition_point(|first| *first <= span.start);
        let column = span.start - source.lines[line - 1] + 1;
        Place { file: source.path.display().to_string(), line: line as u32, column }
    }

    /// `path` seen from the directory of the file that names it.
    pub(super) fn resolve(&self, span: Span, path: &str) -> PathBuf {
        beside(&self.file(span).path, path)
    }
}

/// `path` seen from the directory of `file`.
pub(super) fn beside(file: &Path, path: &str) -> PathBuf {
    match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.join(path),
        _ => PathBuf::from(path),
    }
}
