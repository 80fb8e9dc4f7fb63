//! Expressions (CEL) and templates over JSON: compiled and checked once, evaluated against a [`Scope`].
//!
//! Only the names an expression mentions are turned into CEL values, so a large input costs nothing where it is not used.

use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr as Ast};
use cel::objects::{Key, Map};
use cel::{Context, Env, Program};
use hashbrown::HashMap;
use serde_json::{Number, Value};

/// The environment every expression is compiled for and runs in.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Functions and type names of CEL's standard library in this build; anything else called or named is a mistake.
const FUNCTIONS: [&str; 29] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "bool",
    "type",
    "dyn",
    "duration",
    "timestamp",
    "has",
    "all",
    "exists",
    "exists_one",
    "map",
    "filter",
    "min",
    "max",
    "of",
    "none",
    "ofNonZeroValue",
    "hasValue",
    "value",
    "orValue",
];
const TYPES: [&str; 12] =
    ["int", "uint", "double", "string", "bytes", "bool", "list", "map", "null_type", "type", "dyn", "optional"];

/// Where an expression finds its names.
pub trait Scope {
    /// The value of a name; `None` when there is none.
    fn value(&self, name: &str) -> Option<Arc<Value>>;
}

/// Why an expression could not be evaluated, or its value not used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{source_text}': {reason}")]
pub struct EvalError {
    /// The expression.
    pub source_text: Arc<str>,
    /// What went wrong.
    pub reason: String,
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expr {
    source: Arc<str>,
    program: Program,
    names: Vec<String>,
}

impl Expr {
    /// Compiles; every mistake found is a line of the answer. `known` are the names the place offers.
    pub fn compile(source: &str, known: &[&str]) -> Result<Self, Vec<String>> {
        let program = ENV.compile(source).map_err(|e| {
            e.errors
                .iter()
                .map(|e| format!("'{source}' is not CEL: {} (column {})", e.msg, e.pos.1))
                .collect::<Vec<_>>()
        })?;
        let mut found = Found::default();
        walk(&program.expression().expr, &mut Vec::new(), &mut found);
        let mut mistakes = Vec::new();
        for n in &found.names {
            if !known.contains(&n.as_str()) {
                mistakes.push(format!(
                    "'{source}': unknown name '{n}'{}; known here: {}",
                    suggest(n, known),
                    known.join(", ")
                ));
            }
        }
        for f in &found.functions {
            if !FUNCTIONS.contains(&f.as_str()) {
                mistakes.push(format!("'{source}': unknown function '{f}'{}", suggest(f, &FUNCTIONS)));
            }
        }
        for f in &found.saga_fields {
            if !SAGA_FIELDS.contains(&f.as_str()) {
                mistakes.push(format!("'{source}': 'saga' has no '{f}'; it has {}", SAGA_FIELDS.join(", ")));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self { source: source.into(), program, names: found.names })
    }

    /// The value as JSON.
    pub fn eval(&self, scope: &dyn Scope) -> Result<Value, EvalError> {
        let mut ctx = Context::with_env(ENV.clone());
        for n in &self.names {
            let v = scope.value(n).ok_or_else(|| self.error(format!("'{n}' has no value yet")))?;
            ctx.add_variable_from_value(n.as_str(), to_cel(&v));
        }
        let out = self.program.execute(&ctx).map_err(|e| self.error(e.to_string()))?;
        out.json().map_err(|e| self.error(e.to_string()))
    }

    /// The value as a condition: anything but true or false is an error.
    pub fn eval_bool(&self, scope: &dyn Scope) -> Result<bool, EvalError> {
        match self.eval(scope)? {
            Value::Bool(b) => Ok(b),
            other => Err(self.error(format!("must be true or false, is {other}"))),
        }
    }

    /// The value as text: a string, number or boolean.
    pub fn eval_text(&self, scope: &dyn Scope) -> Result<String, EvalError> {
        match self.eval(scope)? {
            Value::String(s) => Ok(s),
            Value::Number(n) => Ok(n.to_string()),
            Value::Bool(b) => Ok(b.to_string()),
            other => Err(self.error(format!("must be a string, a number or a boolean here, is {other}"))),
        }
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> EvalError {
        EvalError { source_text: self.source.clone(), reason: reason.into() }
    }
}

/// Members of `saga`.
pub const SAGA_FIELDS: [&str; 3] = ["id", "key", "name"];

#[derive(Default)]
struct Found {
    names: Vec<String>,
    functions: Vec<String>,
    saga_fields: Vec<String>,
}

fn put(to: &mut Vec<String>, s: &str) {
    if !to.iter().any(|t| t == s) {
        to.push(s.to_owned());
    }
}

/// Collects free names: those a comprehension (`items.map(x, x.id)`) binds itself are not.
fn walk(e: &Ast, bound: &mut Vec<String>, found: &mut Found) {
    match e {
        Ast::Unspecified | Ast::Literal(_) => {}
        Ast::Ident(n) => {
            if !n.starts_with('@') && !bound.iter().any(|b| b == n) && !TYPES.contains(&n.as_str()) {
                put(&mut found.names, n);
            }
        }
        Ast::Call(c) => {
            let f = &c.func_name;
            if f.bytes().next().is_some_and(|b| b.is_ascii_alphabetic()) {
                put(&mut found.functions, f);
            }
            if let Some(t) = &c.target {
                walk(&t.expr, bound, found);
            }
            c.args.iter().for_each(|a| walk(&a.expr, bound, found));
        }
        Ast::Comprehension(c) => {
            walk(&c.iter_range.expr, bound, found);
            walk(&c.accu_init.expr, bound, found);
            let depth = bound.len();
            bound.push(c.iter_var.clone());
            bound.extend(c.iter_var2.clone());
            bound.push(c.accu_var.clone());
            for part in [&c.loop_cond, &c.loop_step, &c.result] {
                walk(&part.expr, bound, found);
            }
            bound.truncate(depth);
        }
        Ast::List(l) => l.elements.iter().for_each(|e| walk(&e.expr, bound, found)),
        Ast::Map(m) => m.entries.iter().for_each(|e| walk_entry(&e.expr, bound, found)),
        Ast::Struct(s) => s.entries.iter().for_each(|e| walk_entry(&e.expr, bound, found)),
        Ast::Select(s) => {
            if let Ast::Ident(n) = &s.operand.expr
                && n == "saga"
                && !bound.iter().any(|b| b == n)
            {
                put(&mut found.saga_fields, &s.field);
            }
            walk(&s.operand.expr, bound, found);
        }
    }
}

fn walk_entry(e: &EntryExpr, bound: &mut Vec<String>, found: &mut Found) {
    match e {
        EntryExpr::StructField(f) => walk(&f.value.expr, bound, found),
        EntryExpr::MapEntry(m) => {
            walk(&m.key.expr, bound, found);
            walk(&m.value.expr, bound, found);
        }
    }
}

/// `; did you mean 'x'?` when a known name is close.
pub(crate) fn suggest(given: &str, known: &[&str]) -> String {
    let best = known.iter().map(|k| (distance(given, k), *k)).min();
    match best {
        Some((d, k)) if d <= 1 + given.len() / 4 && d > 0 => format!("; did you mean '{k}'?"),
        _ => String::new(),
    }
}

/// Levenshtein distance over characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// JSON to CEL. Whole numbers become `int` where they fit (a literal `1` is an `int`, and CEL mixes no kinds).
fn to_cel(v: &Value) -> cel::Value {
    match v {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(*b),
        Value::Number(n) => number(n),
        Value::String(s) => cel::Value::String(Arc::new(s.clone())),
        Value::Array(a) => cel::Value::List(Arc::new(a.iter().map(to_cel).collect())),
        Value::Object(o) => {
            let entries = o.iter().map(|(k, v)| (Key::String(Arc::new(k.clone())), to_cel(v)));
            cel::Value::Map(Map { map: Arc::new(entries.collect()) })
        }
    }
}

fn number(n: &Number) -> cel::Value {
    match (n.as_i64(), n.as_u64()) {
        (Some(i), _) => cel::Value::Int(i),
        (None, Some(u)) => cel::Value::UInt(u),
        _ => cel::Value::Float(n.as_f64().unwrap_or(f64::NAN)),
    }
}

/// Scopes in tests and for fixed sets of names.
impl Scope for HashMap<&str, Value> {
    fn value(&self, name: &str) -> Option<Arc<Value>> {
        self.get(name).map(|v| Arc::new(v.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scope() -> HashMap<&'static str, Value> {
        HashMap::from([
            ("input", json!({"items": [{"sku": "a", "n": 2}, {"sku": "b", "n": 3}], "total": 12, "rate": 1.5})),
            ("saga", json!({"id": "s-1", "key": "k", "name": "x"})),
        ])
    }

    fn eval(src: &str) -> Result<Value, EvalError> {
        Expr::compile(src, &["input", "saga"]).unwrap().eval(&scope())
    }

    #[test]
    fn whole_numbers_of_json_calculate_with_literals() {
        assert_eq!(eval("input.total + 1").unwrap(), json!(13));
        assert_eq!(eval("input.total * 100").unwrap(), json!(1200));
        assert_eq!(eval("input.rate * 2.0").unwrap(), json!(3.0));
        assert_eq!(eval("input.items.map(i, i.n)").unwrap(), json!([2, 3]));
        assert_eq!(eval("{'id': saga.id, 'n': size(input.items)}").unwrap(), json!({"id": "s-1", "n": 2}));
    }

    #[test]
    fn a_name_bound_by_a_comprehension_is_not_unknown() {
        assert!(
            Expr::compile("input.items.all(i, i.n > 0) && input.items.exists(j, j.sku == 'a')", &["input"]).is_ok()
        );
    }

    #[test]
    fn unknown_names_functions_and_members_are_mistakes_with_a_suggestion() {
        let e = Expr::compile("inptu.x + foo", &["input", "saga"]).unwrap_err();
        assert_eq!(e.len(), 2);
        assert!(e.iter().any(|m| m.contains("'inptu'") && m.contains("did you mean 'input'?")), "{e:?}");
        let e = Expr::compile("sise(input.items)", &["input"]).unwrap_err();
        assert!(e[0].contains("unknown function 'sise'") && e[0].contains("'size'"), "{e:?}");
        let e = Expr::compile("saga.idd", &["saga"]).unwrap_err();
        assert!(e[0].contains("'saga' has no 'idd'"), "{e:?}");
        let e = Expr::compile("input.", &["input"]).unwrap_err();
        assert!(e[0].contains("is not CEL"), "{e:?}");
    }

    #[test]
    fn a_missing_member_is_an_error_that_names_it_and_has_tests_for_it() {
        let e = eval("input.nothing").unwrap_err();
        assert!(e.to_string().contains("nothing"), "{e}");
        assert_eq!(eval("has(input.nothing)").unwrap(), json!(false));
        assert_eq!(eval("has(input.total) ? input.total : 0").unwrap(), json!(12));
    }
}
