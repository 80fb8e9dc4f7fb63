//! Structured logs: one JSON object a line for machines, aligned text for people; to standard error.
//!
//! To tie a log line to a trace, give its event the trace id as a field; the JSON then has a top-level `trace_id` that
//! is the same text as in `traceparent`, `GET /v1/traces/{id}` and `weft trace`:
//!
//! ```
//! # let ctx = weft_core::Context::root();
//! tracing::warn!(trace_id = %ctx.trace.trace_id, span_id = %ctx.trace.span_id, service = "payment", "no instance is healthy");
//! ```
//!
//! Fields every line has: `timestamp` (RFC 3339, UTC), `level`, `target` (the module), `message`. What an event adds
//! stands beside them. Secrets and payloads are never fields.

use std::str::FromStr;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The level is not one.
    #[error(
        "'{given}' is not a log level: use off, error, warn, info, debug or trace, or 'info,weft_mesh=debug' for parts"
    )]
    Level {
        /// What was given.
        given: String,
    },
    /// Something else took the process's log already.
    #[error("logging was set up twice")]
    Twice,
}

impl weft_core::Classify for InitError {
    fn class(&self) -> weft_core::Class {
        weft_core::Class::Rejected
    }
    fn origin(&self) -> weft_core::Origin {
        match self {
            InitError::Level { .. } => weft_core::Origin::Downstream,
            InitError::Twice => weft_core::Origin::Internal,
        }
    }
}

impl FromStr for Format {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "human" | "text" => Ok(Format::Human),
            "json" => Ok(Format::Json),
            _ => Err("a log format is human or json"),
        }
    }
}

/// Begins logging for the whole process, once. `level` is a level, or levels by module (`info,weft_mesh=debug`).
pub fn init(format: Format, level: &str) -> Result<(), InitError> {
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let subscriber = subscriber(format, level, ansi, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| InitError::Twice)
}

/// What [`init`] installs, writing elsewhere.
pub fn subscriber<W>(
    format: Format,
    level: &str,
    ansi: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, InitError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(level).ok_or_else(|| InitError::Level { given: level.chars().take(80).collect() })?;
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match format {
        Format::Human => Box::new(base.with_ansi(ansi).with_target(false).compact().finish()),
        Format::Json => {
            Box::new(base.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
        }
    })
}

fn filter(level: &str) -> Option<EnvFilter> {
    // A lone word that is no level would be read as a module's name, and nothing would be logged.
    let lone_words_are_levels =
        level.split(',').all(|p| p.contains(['=', '[']) || p.trim().parse::<LevelFilter>().is_ok());
    if !lone_words_are_levels {
        return None;
    }
    EnvFilter::builder().parse(level).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: &str, work: impl FnOnce()) -> String {
        let sink = Sink::default();
        let to = sink.clone();
        tracing::subscriber::with_default(subscriber(format, level, false, move || to.clone()).unwrap(), work);
        String::from_utf8(sink.0.lock().clone()).unwrap()
    }

    #[test]
    fn a_json_line_carries_the_trace_id_beside_the_message() {
        let trace = weft_core::Trace::root();
        let out = logged(Format::Json, "info", || {
            tracing::info!(trace_id = %trace.trace_id, attempts = 3, "said \"no\"\nand left");
            tracing::debug!("not at this level");
        });
        assert_eq!(out.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(line["trace_id"], trace.trace_id.to_string());
        assert_eq!(line["attempts"], 3);
        assert_eq!(line["message"], "said \"no\"\nand left");
        assert_eq!(line["level"], "INFO");
        assert!(weft_core::Timestamp::parse(line["timestamp"].as_str().unwrap()).is_some());
        assert!(line["target"].as_str().unwrap().starts_with("weft_telemetry"));
    }

    #[test]
    fn a_human_line_says_the_same_in_one_line() {
        let out =
            logged(Format::Human, "warn,weft_telemetry=info", || tracing::info!(service = "payment", "breaker opened"));
        assert!(out.contains("INFO") && out.contains("breaker opened") && out.contains("service=\"payment\""), "{out}");
        assert_eq!(out.lines().count(), 1);
    }

    #[test]
    fn a_level_that_is_none_is_refused_with_the_choices() {
        for bad in ["loud=very", "loud", "info,loud"] {
            let e = subscriber(Format::Json, bad, false, std::io::sink).err().unwrap();
            assert!(e.to_string().contains(&format!("'{bad}'")) && e.to_string().contains("debug"), "{e}");
        }
        assert!(subscriber(Format::Json, "off", false, std::io::sink).is_ok());
    }
}
