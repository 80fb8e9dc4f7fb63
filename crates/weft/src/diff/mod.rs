//! `weft diff`: what of an API changed between two descriptions of it, and what of that breaks callers.
//!
//! A caller of the old one must be served by the new one as before: everything it may send is taken, everything it
//! counts on in an answer is there. Requests may therefore only widen, answers only narrow.

mod openapi;
mod proto;

use std::path::Path;

use serde::Serialize;

/// Every rule by name; the reference page lists them.
const RULES: [&str; 31] = [
    "path-removed",
    "operation-removed",
    "parameter-required",
    "parameter-removed",
    "request-body-required",
    "request-body-removed",
    "request-field-required",
    "request-field-removed",
    "response-removed",
    "response-field-removed",
    "response-field-optional",
    "media-type-removed",
    "type-changed",
    "enum-value-removed",
    "enum-value-added",
    "narrowed",
    "variant-changed",
    "security-required",
    "package-changed",
    "service-removed",
    "method-removed",
    "method-changed",
    "message-removed",
    "enum-removed",
    "field-removed",
    "field-number-changed",
    "field-type-changed",
    "field-label-changed",
    "field-renamed",
    "field-oneof-changed",
    "enum-value-renamed",
];

/// Something new, which breaks nobody.
const ADDED: &str = "added";

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Whether it breaks callers.
    pub breaking: bool,
    /// Which rule says so; `added` for what breaks nothing.
    pub rule: &'static str,
    /// Where: `POST /orders request body.items[].sku`, `shop.Order.total`.
    pub at: String,
    /// What happened.
    pub what: String,
}

/// Collects changes.
#[derive(Debug, Default)]
struct Changes(Vec<Change>);

impl Changes {
    fn breaks(&mut self, rule: &'static str, at: impl Into<String>, what: impl Into<String>) {
        debug_assert!(RULES.contains(&rule), "{rule}");
        let change = Change { breaking: true, rule, at: at.into(), what: what.into() };
        // One schema is met at many places of a place only once.
        if !self.0.contains(&change) {
            self.0.push(change);
        }
    }

    fn adds(&mut self, at: impl Into<String>) {
        let change = Change { breaking: false, rule: ADDED, at: at.into(), what: ADDED.into() };
        if !self.0.contains(&change) {
            self.0.push(change);
        }
    }
}

/// Compares two files; the breaking changes first. The error says which file cannot be read and why.
pub fn diff(old: &Path, new: &Path) -> Result<Vec<Change>, String> {
    let proto = |p: &Path| p.extension().is_some_and(|e| e == "proto");
    let mut changes = match (proto(old), proto(new)) {
        (true, true) => proto::diff(&proto::read(old)?, &proto::read(new)?),
        (false, false) => openapi::diff(&openapi::read(old)?, &openapi::read(new)?),
        _ => return Err("one file is .proto and the other is not: compare two of a kind".to_owned()),
    };
    changes.0.sort_by_key(|c| !c.breaking);
    Ok(changes.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_lists_every_rule() {
        let page = include_str!("../../../../docs/reference/versioning.md");
        for rule in RULES {
            assert!(page.contains(&format!("`{rule}`")), "docs/reference/versioning.md does not name {rule}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let good = write("good.yaml", "openapi: 3.0.0\npaths: {}\n");
        let proto = write("a.proto", "syntax = \"proto3\";");
        assert_eq!(diff(&good, &good).unwrap(), []);
        for bad in [
            dir.path().join("none.yaml"),
            write("broken.yaml", "openapi: [\n"),
            write("broken.json", "{"),
            write("other.yaml", "services: {}\n"),
        ] {
            let e = diff(&good, &bad).unwrap_err();
            assert!(e.contains(&*bad.file_name().unwrap().to_string_lossy()), "{e}");
        }
        assert!(diff(&good, &proto).unwrap_err().contains("two of a kind"));
        assert!(diff(&proto, &write("b.proto", "message {")).unwrap_err().contains("b.proto"));
    }
}
