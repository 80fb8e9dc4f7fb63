//! `docs/patterns.md` must have a row for every entry of the catalogue of communication patterns.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The catalogue, one entry a line: headings and table rows by name.
const CATALOGUE: &str = include_str!("patterns.txt");

/// What is wrong with the page: missing rows, unknown rows, empty cells, tests that do not exist.
pub fn check(root: &Path) -> Result<Vec<String>, String> {
    let page = fs::read_to_string(root.join("docs/patterns.md")).map_err(|e| format!("docs/patterns.md: {e}"))?;
    let mut findings = compare(CATALOGUE, &page);
    findings.extend(crate::tidy::missing_paths(root, &page).into_iter().map(|p| format!("`{p}` does not exist")));
    Ok(findings)
}

fn compare(catalogue: &str, page: &str) -> Vec<String> {
    let wanted: BTreeSet<&str> = catalogue.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for line in page.lines().filter(|l| l.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0];
        if name == "pattern" || name.starts_with("---") {
            continue;
        }
        if !wanted.contains(name) {
            findings.push(format!("row '{name}' is not in the catalogue"));
        } else if !seen.insert(name) {
            findings.push(format!("row '{name}' stands twice"));
        }
        if cells.len() != 4 || cells.iter().any(|c| c.is_empty()) {
            findings
                .push(format!("row '{name}' needs pattern, feature, example and test ('not yet' where there is none)"));
        }
    }
    findings.extend(wanted.difference(&seen).map(|w| format!("no row for '{w}'")));
    findings
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn a_missing_row_is_a_finding() {
        let page = "| pattern | feature | example | test |\n|---|---|---|---|\n| A | f | e | t |\n";
        assert!(compare("A\n", page).is_empty());
        assert_eq!(compare("A\nB\n", page), ["no row for 'B'"]);
        assert_eq!(compare("", page), ["row 'A' is not in the catalogue"]);
        assert_eq!(compare("A", "| A | f | | t |").len(), 1);
    }
}
