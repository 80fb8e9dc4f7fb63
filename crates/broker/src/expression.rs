//! CEL over an event: filters of subscriptions, partition keys, dedup ids.
//!
//! The expression sees one variable, `event`: the attributes by name, extensions beside them, and `data` when it is JSON.

use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};
use serde_json::json;
use weft_core::Envelope;

/// Shared by every evaluation: building the standard environment costs more than most expressions.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled expression.
#[derive(Clone)]
pub(crate) struct Expression {
    program: Arc<Program>,
    wants_data: bool,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Expression")
    }
}

impl Expression {
    /// Compiles; the error says where and why.
    pub fn compile(text: &str) -> Result<Self, String> {
        let program = Program::compile(text).map_err(|e| e.to_string())?;
        if let Some(other) = program.references().variables().into_iter().find(|v| *v != "event") {
            return Err(format!("'{other}' is not known here: the one variable is 'event'"));
        }
        // Parsing the data is the larger part of an evaluation; most filters look at attributes only.
        Ok(Self { program: Arc::new(program), wants_data: text.contains("data") || text.contains('[') })
    }

    fn run(&self, event: &Envelope) -> Result<Value, String> {
        let mut context = Context::with_env(ENV.clone());
        let mut m = serde_json::Map::new();
        for (k, v) in &event.extensions {
            m.insert(k.clone(), json!(v));
        }
        m.insert("id".into(), json!(event.id));
        m.insert("source".into(), json!(event.source));
        m.insert("type".into(), json!(event.ty));
        for (k, v) in [
            ("subject", &event.subject),
            ("time", &event.time),
            ("datacontenttype", &event.data_content_type),
            ("dataschema", &event.data_schema),
        ] {
            if let Some(v) = v {
                m.insert(k.into(), json!(v));
            }
        }
        if self.wants_data
            && let Some(data) = event.data_json()
        {
            m.insert("data".into(), data);
        }
        let value = cel::to_value(serde_json::Value::Object(m)).map_err(|e| e.to_string())?;
        context.add_variable_from_value("event", value);
        self.program.execute(&context).map_err(|e| e.to_string())
    }

    /// Whether the event matches. An expression that fails (a member the event does not have) does not match.
    pub fn matches(&self, event: &Envelope) -> bool {
        matches!(self.run(event), Ok(Value::Bool(true)))
    }

    /// The value as text: strings as they are, numbers and booleans printed, anything else nothing.
    pub fn text(&self, event: &Envelope) -> Option<String> {
        match self.run(event) {
            Ok(Value::String(s)) => Some(s.as_ref().clone()),
            Ok(Value::Int(n)) => Some(n.to_string()),
            Ok(Value::UInt(n)) => Some(n.to_string()),
            Ok(Value::Float(n)) => Some(n.to_string()),
            Ok(Value::Bool(b)) => Some(b.to_string()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Envelope {
        let mut e = Envelope::json("/shop", "OrderCreated", &json!({"total": 5, "customer": {"name": "Ada"}}));
        e.subject = Some("order-1".into());
        e.extensions.insert("tenant".into(), "acme".into());
        e
    }

    #[test]
    fn filters_see_attributes_extensions_and_data() {
        for (text, want) in [
            ("event.type == 'OrderCreated'", true),
            ("event.type in ['A', 'B']", false),
            ("event.source == '/shop' && event.subject.startsWith('order-')", true),
            ("event.tenant == 'acme'", true),
            ("event.data.total > 4", true),
            ("event.data.customer.name == 'Bob'", false),
            ("event['data'].total == 5", true),
        ] {
            assert_eq!(Expression::compile(text).unwrap().matches(&event()), want, "{text}");
        }
    }

    #[test]
    fn a_filter_over_what_the_event_lacks_does_not_match() {
        for text in ["event.data.missing == 1", "event.nothing == 'x'", "event.data.total", "1 + 1"] {
            assert!(!Expression::compile(text).unwrap().matches(&event()), "{text}");
        }
        assert!(Expression::compile("!has(event.data.missing)").unwrap().matches(&event()));
    }

    #[test]
    fn mistakes_are_found_when_compiling() {
        assert!(Expression::compile("event.type ==").is_err());
        assert!(Expression::compile("evnt.type == 'x'").unwrap_err().contains("'evnt'"));
    }

    #[test]
    fn keys_are_text_whatever_their_type() {
        let text = |t: &str| Expression::compile(t).unwrap().text(&event());
        assert_eq!(text("event.subject").as_deref(), Some("order-1"));
        assert_eq!(text("event.data.total").as_deref(), Some("5"));
        assert_eq!(text("event.data"), None);
        assert_eq!(text("event.data.absent"), None);
    }
}
