//! Templates: JSON in which every string is an expression, and paths with `{expression}` placeholders.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use crate::expr::{EvalError, Expr, Scope};

/// JSON whose strings are expressions; numbers, booleans and null are themselves.
#[derive(Debug)]
pub enum Template {
    /// A value as it is.
    Literal(Value),
    /// What the expression gives.
    Expr(Expr),
    /// Each in order.
    Array(Vec<Template>),
    /// Each by name, in the order written.
    Object(Vec<(String, Template)>),
}

impl Template {
    /// Compiles; mistakes go to `report` with the path of the member (`with.items[0].sku`).
    pub fn compile(v: &Value, known: &[&str], at: &str, report: &mut dyn FnMut(&str, String)) -> Self {
        match v {
            Value::String(s) => match Expr::compile(s, known) {
                Ok(e) => Template::Expr(e),
                Err(mistakes) => {
                    mistakes.into_iter().for_each(|m| report(at, m));
                    Template::Literal(Value::Null)
                }
            },
            Value::Array(a) => Template::Array(
                a.iter().enumerate().map(|(i, v)| Self::compile(v, known, &format!("{at}[{i}]"), report)).collect(),
            ),
            Value::Object(o) => Template::Object(
                o.iter().map(|(k, v)| (k.clone(), Self::compile(v, known, &format!("{at}.{k}"), report))).collect(),
            ),
            other => Template::Literal(other.clone()),
        }
    }

    /// The JSON it stands for.
    pub fn eval(&self, scope: &dyn Scope) -> Result<Value, EvalError> {
        Ok(match self {
            Template::Literal(v) => v.clone(),
            Template::Expr(e) => e.eval(scope)?,
            Template::Array(a) => Value::Array(a.iter().map(|t| t.eval(scope)).collect::<Result<_, _>>()?),
            Template::Object(o) => {
                let mut m = Map::new();
                for (k, t) in o {
                    m.insert(k.clone(), t.eval(scope)?);
                }
                Value::Object(m)
            }
        })
    }
}

/// Everything but RFC 3986's unreserved characters.
const PLACEHOLDER: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path and query with placeholders.
#[derive(Debug)]
pub struct PathTemplate(Vec<Part>);

#[derive(Debug)]
enum Part {
    Text(String),
    Expr(Expr),
}

impl PathTemplate {
    /// Compiles; mistakes go to `report`.
    pub fn compile(path: &str, known: &[&str], report: &mut dyn FnMut(String)) -> Self {
        let mut parts = Vec::new();
        if !path.starts_with('/') {
            report(format!("the path '{path}' must start with '/'"));
        }
        let mut rest = path;
        while let Some(open) = rest.find('{') {
            push_text(&mut parts, &rest[..open], report);
            let Some(len) = closing(&rest[open + 1..]) else {
                report(format!("the path '{path}' has a '{{' without its '}}'"));
                return Self(parts);
            };
            match Expr::compile(&rest[open + 1..open + 1 + len], known) {
                Ok(e) => parts.push(Part::Expr(e)),
                Err(mistakes) => mistakes.into_iter().for_each(&mut *report),
            }
            rest = &rest[open + 1 + len + 1..];
        }
        push_text(&mut parts, rest, report);
        Self(parts)
    }

    /// The path with every placeholder percent-encoded, so that no value can leave its place.
    pub fn eval(&self, scope: &dyn Scope) -> Result<String, EvalError> {
        let mut out = String::new();
        for p in &self.0 {
            match p {
                Part::Text(t) => out.push_str(t),
                Part::Expr(e) => {
                    let v = e.eval_text(scope)?;
                    // An empty value or a dot segment would name another resource.
                    if v.is_empty() || v == "." || v == ".." {
                        return Err(e.error(format!("'{v}' cannot stand in a path")));
                    }
                    out.extend(utf8_percent_encode(&v, PLACEHOLDER));
                }
            }
        }
        Ok(out)
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str, report: &mut dyn FnMut(String)) {
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '}' | '#' | '"' | '<' | '>')) {
        report(format!("the path has '{bad}' where it may not stand: percent-encode it"));
    }
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

/// Where the placeholder ends: braces nest (map literals) and those in string literals do not count.
fn closing(s: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0usize, None, false);
    for (i, c) in s.char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(i),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashbrown::HashMap;
    use serde_json::json;

    fn path(p: &str, input: Value) -> Result<String, String> {
        let mut mistakes = Vec::new();
        let t = PathTemplate::compile(p, &["input"], &mut |m| mistakes.push(m));
        if !mistakes.is_empty() {
            return Err(mistakes.join("; "));
        }
        t.eval(&HashMap::from([("input", input)])).map_err(|e| e.to_string())
    }

    #[test]
    fn strings_are_expressions_and_the_rest_is_itself() {
        let v = json!({"a": "input.x", "b": 1, "c": [true, null, "'text'"], "d": {"e": "input.x + 1"}});
        let t = Template::compile(&v, &["input"], "with", &mut |at, m| panic!("{at}: {m}"));
        let out = t.eval(&HashMap::from([("input", json!({"x": 4}))])).unwrap();
        assert_eq!(out, json!({"a": 4, "b": 1, "c": [true, null, "text"], "d": {"e": 5}}));
    }

    #[test]
    fn a_mistake_names_the_member_it_is_in() {
        let mut seen = Vec::new();
        let v = json!({"a": [{"b": "nope"}], "c": "1 +"});
        Template::compile(&v, &["input"], "with", &mut |at, m| seen.push((at.to_owned(), m)));
        assert_eq!(seen.iter().map(|(a, _)| a.as_str()).collect::<Vec<_>>(), ["with.a[0].b", "with.c"]);
    }

    #[test]
    fn a_value_cannot_leave_its_place_in_the_path() {
        let p = "/orders/{input.id}/cancel?why={input.why}";
        assert_eq!(
            path(p, json!({"id": "a/b?c", "why": "100% é"})).unwrap(),
            "/orders/a%2Fb%3Fc/cancel?why=100%25%20%C3%A9"
        );
        assert_eq!(path("/n/{input}", json!(7)).unwrap(), "/n/7");
        for bad in [json!(""), json!(".."), json!(null), json!([1])] {
            assert!(path("/n/{input}", bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn placeholders_may_hold_braces_and_quotes() {
        assert_eq!(path("/x/{ {'a}': 'v'}['a}'] }/y", json!(1)).unwrap(), "/x/v/y");
        for bad in ["x", "/x/{input", "/x/input}", "/a b", "/x/{nope}"] {
            assert!(path(bad, json!(1)).is_err(), "{bad}");
        }
    }
}
