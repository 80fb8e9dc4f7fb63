//! Tables for people: plain columns, no boxes, so that they can be cut and searched.

use comfy_table::{ContentArrangement, Table as Comfy, presets};
use serde_json::Value;

/// A table of text.
pub(super) struct Table {
    inner: Comfy,
    empty: bool,
}

impl Table {
    /// With these columns.
    pub fn new<const N: usize>(columns: [&str; N]) -> Self {
        let mut inner = Comfy::new();
        inner.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        inner.set_header(columns.map(str::to_uppercase));
        for column in inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self { inner, empty: true }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.empty = false;
        self.inner.add_row(cells.map(|c| clean(&c)));
    }

    /// The text; `nothing` when there is no row.
    pub fn render(&self, nothing: &str) -> String {
        if self.empty {
            return format!("{nothing}\n");
        }
        let mut out: String = self.inner.lines().map(|l| l.trim_end().to_owned() + "\n").collect();
        if out.is_empty() {
            out.push('\n');
        }
        out
    }
}

/// A terminal obeys control characters; data does not get to send them.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{b7}' } else { c }).collect()
}

/// A member as a cell: text as it is, nothing as nothing, the rest as JSON.
pub(super) fn cell(object: &Value, key: &str) -> String {
    match &object[key] {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// The items of a list answer.
pub(super) fn items<'a>(answer: &'a Value, key: &str) -> &'a [Value] {
    answer[key].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_plain_columns_and_no_control_characters() {
        let mut t = Table::new(["name", "ready"]);
        assert_eq!(t.render("no queues"), "no queues\n");
        t.row(["emails".into(), "3".into()]);
        t.row(["\u{1b}[31mred".into(), "10".into()]);
        assert_eq!(t.render(""), "NAME      READY\nemails    3\n\u{b7}[31mred  10\n");
    }
}
