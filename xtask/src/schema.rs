//! `cargo xtask schema`: writes what is generated from the configuration's declarations.

use std::fs;

use crate::sh::{self, Outcome};

/// What is generated: the file, and what `weft` prints it.
const GENERATED: [(&str, &[&str]); 2] =
    [("docs/reference/weft.schema.json", &["schema"]), ("docs/reference/configuration.md", &["schema", "--reference"])];

/// Writes the JSON Schema and the reference page; tests of the binary prove them fresh.
pub fn run() -> Outcome {
    for (file, print) in GENERATED {
        let arguments = [&["run", "--quiet", "--package", "weft", "--"], print].concat();
        let made = sh::output("cargo", &arguments)?;
        if !made.ok {
            return Err(made.text);
        }
        fs::write(sh::root().join(file), made.text).map_err(|e| e.to_string())?;
    }
    Ok(())
}
