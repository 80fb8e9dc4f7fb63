//! The access log: one JSON object a line for each exchange that is picked, written by a thread of its own. What the
//! thread cannot take is dropped and counted; a request never waits for a disk.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use http::request::Parts;
use http::{Method, StatusCode, Version, header};
use serde::Serialize;
use weft_core::{Clock as _, SystemClock, limits};
use weft_telemetry::metrics::Counter;
use weft_telemetry::{Telemetry, names};

use super::headers;
use crate::gateway::Route;
use crate::listener::Peer;
use crate::spec::AccessLog;

/// A running access log.
#[derive(Debug)]
pub(crate) struct Access {
    spec: AccessLog,
    lines: SyncSender<String>,
    dropped: Counter,
}

impl Access {
    /// Opens the file and starts the thread.
    pub(crate) fn open(spec: &AccessLog, telemetry: &Telemetry) -> std::io::Result<Self> {
        let out: Out = match &spec.file {
            None => Out::Standard,
            Some(path) => Out::File(open(path)?, path.clone()),
        };
        let (lines, taken) = sync_channel(limits::ACCESS_LINES);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write(&taken, out))?;
        Ok(Self { spec: spec.clone(), lines, dropped: telemetry.metrics().counter(&names::ACCESS_LINES_DROPPED, &[]) })
    }

    /// What it was opened for.
    pub(crate) fn spec(&self) -> &AccessLog {
        &self.spec
    }

    /// Takes note of a request.
    pub(crate) fn line(&self, route: &Route, peer: &Peer, head: &Parts) -> Box<Line> {
        let text = |name| {
            head.headers.get(name).map(|v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned())
        };
        Box::new(Line {
            time: String::new(),
            client: route.proxies.client(peer, &head.headers).to_string(),
            protocol: match head.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            method: String::new(),
            host: headers::host(&head.uri, &head.headers).unwrap_or_default().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(|q| route.secrets.redacted(q).into_owned()),
            status: 0,
            bytes: 0,
            duration_ms: 0.0,
            route: String::new(),
            trace: String::new(),
            user_agent: text(header::USER_AGENT),
            referer: text(header::REFERER).map(|r| route.secrets.redacted_url(&r).into_owned()),
            error: None,
            picked: super::traffic::picks(self.spec.sample),
            to: self.lines.clone(),
            dropped: self.dropped.clone(),
        })
    }
}

/// One line. The fields are the reference's; `docs/reference/routing.md` lists them.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    time: String,
    client: String,
    protocol: &'static str,
    method: String,
    host: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<String>,
    status: u16,
    bytes: u64,
    duration_ms: f64,
    route: String,
    trace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    picked: bool,
    #[serde(skip)]
    to: SyncSender<String>,
    #[serde(skip)]
    dropped: Counter,
}

/// What is known at the end.
pub(crate) struct Ended<'a> {
    pub(crate) method: &'a Method,
    pub(crate) status: StatusCode,
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    pub(crate) route: &'a str,
    pub(crate) trace: &'a weft_core::Trace,
    pub(crate) error: Option<&'a str>,
}

impl Line {
    /// Writes it, if it was picked or went wrong on this side.
    pub(crate) fn end(mut self: Box<Self>, e: &Ended<'_>) {
        if !self.picked && !e.status.is_server_error() {
            return;
        }
        self.time = SystemClock.now().to_string();
        self.method = e.method.as_str().to_owned();
        self.status = e.status.as_u16();
        self.bytes = e.bytes;
        self.duration_ms = e.took.as_micros() as f64 / 1000.0;
        self.route = e.route.to_owned();
        self.trace = e.trace.to_traceparent().split('-').nth(1).unwrap_or_default().to_owned();
        self.error = e.error.map(str::to_owned);
        let Ok(mut text) = serde_json::to_string(&*self) else { return };
        text.push('\n');
        if let Err(TrySendError::Full(_)) = self.to.try_send(text) {
            self.dropped.inc();
        }
    }
}

enum Out {
    Standard,
    File(File, PathBuf),
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Writes what comes until nobody can send any more; flushes when nothing comes, and then also sees whether the file was
/// moved away by whoever rotates logs.
fn write(lines: &Receiver<String>, out: Out) {
    let (mut sink, path): (Box<dyn Write>, _) = match out {
        Out::Standard => (Box::new(std::io::stdout()), None),
        Out::File(f, path) => {
            let inode = f.metadata().map(|m| m.ino()).unwrap_or(0);
            (Box::new(BufWriter::new(f)), Some((path, inode)))
        }
    };
    let mut path = path;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(first) => {
                let mut failed = sink.write_all(first.as_bytes()).err();
                while let Ok(more) = lines.try_recv() {
                    failed = sink.write_all(more.as_bytes()).err().or(failed);
                }
                if let Some(e) = sink.flush().err().or(failed) {
                    tracing::warn!(error = %e, "the access log cannot be written");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Some((file, inode)) = &mut path
            && std::fs::metadata(&*file).map(|m| m.ino()).ok() != Some(*inode)
            && let Ok(f) = open(file)
        {
            *inode = f.metadata().map(|m| m.ino()).unwrap_or(0);
            sink = Box::new(BufWriter::new(f));
        }
    }
}
