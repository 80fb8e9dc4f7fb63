//! `cargo xtask schema`: writes what is generated from the configuration's declarations.

use std::fs;

use crate::sh::{self, Outcome};

/// Writes docs/reference/weft.schema.json; a test of the binary proves it fresh.
pub fn run() -> Outcome {
    let made = sh::output("cargo", &["run", "--quiet", "--package", "weft", "--", "schema"])?;
    if !made.ok {
        return Err(made.text);
    }
    fs::write(sh::root().join("docs/reference/weft.schema.json"), made.text).map_err(|e| e.to_string())
}
