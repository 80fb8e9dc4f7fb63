//! The JSON Schema (`weft schema`) and the reference page, both made from the declared keys.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::declare::{Declared, KeyDecl, Section, spoken};
use super::keys::policy::BLOCKS;
use super::keys::root::Configuration;
use super::layer::Use;
use super::value::Value;

/// The JSON Schema of `weft.yaml`.
pub fn schema() -> Json {
    let mut declared = Declared::default();
    Configuration::schema(&mut declared);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "weft.yaml",
        "anyOf": [{"$ref": format!("#/$defs/{}", Configuration::NAME)}, {"type": "null"}],
        "$defs": declared.definitions(),
    })
}

/// The schema as it is printed and committed.
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

const HEAD: &str = "# Configuration

One YAML file, `weft.yaml`. This page is made from the declarations that the program itself reads with; the same make
the JSON Schema (`weft schema`, committed as [weft.schema.json](weft.schema.json)) that gives editors completion.

- Unknown keys are mistakes. `weft check -c FILE` reports every mistake at once, with file, line and column, a caret
  under the spot, and what to write instead; its exit status is 1 when there is one.
- Durations are written `250ms`, `10s`, `1m30s`, `2h`, `7d`; shares `20%`; rates `100/s`, `60/m`,
  `1000/h`; backoffs `50ms..2s`.
- `${NAME}` in a value is the environment variable NAME, `${NAME:-default}` has a default for when it is unset or
  empty, `$${` is a literal `${`. A variable that is not set and has no default is a mistake.
- `include:` names further files, seen from the file that includes them. Declarations join; the same name in two files
  is a mistake.
- Expressions are [CEL](https://cel.dev). Their syntax and the names in them are checked when the file is read.
- Nothing is open by accident: listening on an address other than loopback without TLS needs `insecure: true`.

For completion in an editor with the YAML language server, begin the file with
`# yaml-language-server: $schema=weft.schema.json`.
";

const LAYERS: &str = "
## Order of effect

`policy:` takes the name of one of `policies`, a policy written in place, or a list of both. What is effective is made
in layers, each stronger than the one before:

built-in defaults < `policies.default` < the called service's `policy` < named < written in place

A block (`retry`, `breaker`, ...) replaces the same block of a weaker layer whole: keys it does not write have the
block's own defaults, not the weaker layer's values. `off` turns a block off. `weft explain route|subscription|step NAME`
prints every effective value with the line it came from.

Redelivery of messages takes its attempts and backoff from `retry:` of the queue or subscription, else from the `retry`
block of its `policy:`. `policies.default` is made for calls and does not reach it: a message would be dead after a second.

A block with no meaning is a mistake, in a policy written in place and in one that is named:

";

/// The reference page.
pub fn reference() -> String {
    let mut declared = Declared::default();
    Configuration::schema(&mut declared);
    let mut out = HEAD.to_owned();
    for name in &declared.order {
        let (doc, short, keys) = &declared.sections[name];
        let title = spoken(name);
        let _ = write!(out, "\n## {}{}\n\n{}\n\n", title[..1].to_uppercase(), &title[1..], unwrap(doc));
        if let Some(short) = short {
            let _ = write!(out, "A single value in place of the map is its `{short}`.\n\n");
        }
        out += "| key | type | default | meaning |\n|---|---|---|---|\n";
        keys.iter().for_each(|k| row(&mut out, k));
        if *name == "Policy" {
            out += LAYERS;
            table(&mut out);
            builtin(&mut out);
        }
    }
    out
}

fn row(out: &mut String, k: &KeyDecl) {
    let default = match (k.default, k.required) {
        (Some(d), _) => format!("`{d}`"),
        (None, true) => "required".to_owned(),
        (None, false) => String::new(),
    };
    let cell = |s: &str| unwrap(s).replace('|', "\\|");
    let _ = writeln!(out, "| `{}` | {} | {} | {} |", k.key, cell(&k.kind), cell(&default), cell(k.doc));
}

/// What each block means where.
fn table(out: &mut String) {
    let _ = writeln!(out, "| on | {} |", BLOCKS.iter().map(|b| format!("`{b}`")).collect::<Vec<_>>().join(" | "));
    let _ = writeln!(out, "|---|{}", "---|".repeat(BLOCKS.len()));
    for on in Use::ALL {
        let cells = BLOCKS.iter().map(|b| match (on.blocks().contains(b), on, *b) {
            (false, ..) => "",
            (true, Use::Push | Use::Channel, "retry") => "redelivery",
            (true, Use::SagaRoute, "deadline") => "how long the answer waits",
            (true, Use::Service, _) => "default of calls",
            (true, ..) => "yes",
        });
        let _ = writeln!(out, "| {} | {} |", on.spoken(), cells.collect::<Vec<_>>().join(" | "));
    }
}

/// What applies where nothing is written.
fn builtin(out: &mut String) {
    *out += "\nWhat is built in, on a route to a service:\n\n| value | built in |\n|---|---|\n";
    for row in super::layer::resolve(&[], Use::Route, &super::Sources::default()).1 {
        let _ = writeln!(out, "| `{}` | `{}` |", row.key, row.value);
    }
}

/// Doc comments come line by line.
fn unwrap(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");

    /// Compares a committed file with what the declarations give.
    fn fresh(path: &str, text: &str) {
        let committed = std::fs::read_to_string(format!("{ROOT}{path}")).unwrap_or_default();
        assert!(committed == text, "{path} is stale: run cargo xtask schema");
    }

    #[test]
    fn the_committed_schema_is_what_the_declarations_give() {
        fresh("docs/reference/weft.schema.json", &schema_text());
    }

    #[test]
    fn the_committed_reference_is_what_the_declarations_give() {
        fresh("docs/reference/configuration.md", &reference());
    }

    #[test]
    fn every_declared_default_is_valid_for_its_own_schema() {
        let all = schema();
        for (name, section) in all["$defs"].as_object().unwrap() {
            let object = section.get("anyOf").map_or(section, |any| &any[0]);
            for (key, property) in object["properties"].as_object().unwrap() {
                if let Some(default) = property.get("default") {
                    let mut schema = property.clone();
                    schema["$defs"] = all["$defs"].clone();
                    let valid = jsonschema::is_valid(&schema, default);
                    assert!(valid, "{name}.{key}: default {default} does not fit {property}");
                }
            }
        }
    }

    #[test]
    fn the_example_is_valid_and_a_misspelt_one_is_not() {
        let validator = jsonschema::validator_for(&schema()).unwrap();
        let mut example = crate::config::tests::example_as_json();
        if let Err(e) = validator.validate(&example) {
            panic!("{e} at {}", e.instance_path());
        }
        example["queues"]["emails"]["leese"] = json!("30s");
        assert!(!validator.is_valid(&example));
        assert!(!validator.is_valid(&json!({"topics": {"t": {"retention": "7 days"}}})));
        assert!(validator.is_valid(&json!({"topics": {"t": {"retention": "${KEEP:-7d}"}}})));
    }

    #[test]
    fn every_key_is_documented() {
        let mut declared = Declared::default();
        Configuration::schema(&mut declared);
        for (name, (doc, _, keys)) in &declared.sections {
            assert!(doc.len() > 10, "{name} has no doc");
            for k in keys {
                assert!(k.doc.trim().len() > 3, "{name}.{} has no doc", k.key);
            }
        }
    }
}
