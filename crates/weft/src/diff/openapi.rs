//! OpenAPI 3.0 and 3.1, in YAML or JSON. References within the document are followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::Changes;
use crate::config::yaml_to_json;

/// How deep schemas are compared; deeper ones are taken as equal.
const DEPTH: usize = 32;
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// Reads a document.
pub(super) fn read(file: &Path) -> Result<Value, String> {
    let bad = |e: String| format!("{}: {e}", file.display());
    let text = std::fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    let json = file.extension().is_some_and(|e| e == "json") || text.trim_start().starts_with('{');
    let value: Value = match json {
        true => serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?,
        false => yaml_to_json(&text).map_err(bad)?,
    };
    let version = &value["openapi"];
    if !(version.is_string() || version.is_number()) {
        return Err(bad("is not an OpenAPI document: it has no 'openapi: 3...'".to_owned()));
    }
    Ok(value)
}

/// Which way a body goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the caller: what was taken must be taken still.
    Request,
    /// To the caller: what was certain must be certain still.
    Response,
}

struct Diff<'d> {
    old: &'d Value,
    new: &'d Value,
    out: Changes,
    /// Pairs of references met in the present body: each is compared where it is met first, so cycles end.
    met: BTreeSet<(String, String)>,
}

pub(super) fn diff(old: &Value, new: &Value) -> Changes {
    let mut d = Diff { old, new, out: Changes::default(), met: BTreeSet::new() };
    d.paths();
    d.out
}

/// Follows `$ref`s within the document.
fn resolve<'d>(root: &'d Value, mut v: &'d Value) -> &'d Value {
    for _ in 0..DEPTH {
        match v["$ref"].as_str().and_then(|r| r.strip_prefix('#')).and_then(|p| root.pointer(p)) {
            Some(target) => v = target,
            None => break,
        }
    }
    v
}

fn object(v: &Value) -> impl Iterator<Item = (&String, &Value)> {
    v.as_object().into_iter().flatten()
}

/// `/orders/{id}` and `/orders/{order}` are the same path.
fn shape(path: &str) -> String {
    path.split('/').map(|s| if s.starts_with('{') && s.ends_with('}') { "{}" } else { s }).collect::<Vec<_>>().join("/")
}

impl Diff<'_> {
    fn paths(&mut self) {
        let (old, new) = (self.old, self.new);
        let find = |root: &'_ Value, path: &str| {
            object(&root["paths"]).find(|(p, _)| shape(p) == shape(path)).map(|(_, v)| v.clone())
        };
        for (path, before) in object(&old["paths"]) {
            let Some(after) = find(new, path) else {
                self.out.breaks("path-removed", path, "removed");
                continue;
            };
            let (before, after) = (resolve(old, before), resolve(new, &after).clone());
            for method in METHODS {
                let at = format!("{} {path}", method.to_uppercase());
                match (before.get(method), after.get(method)) {
                    (Some(_), None) => self.out.breaks("operation-removed", at, "removed"),
                    (None, Some(_)) => self.out.adds(at),
                    (Some(b), Some(a)) => self.operation(&at, (before, b), (&after, a)),
                    (None, None) => {}
                }
            }
        }
        for (path, item) in object(&new["paths"]).filter(|(p, _)| find(old, p).is_none()) {
            for method in METHODS.iter().filter(|m| item.get(**m).is_some()) {
                self.out.adds(format!("{} {path}", method.to_uppercase()));
            }
        }
    }

    fn operation(&mut self, at: &str, (old_item, old): (&Value, &Value), (new_item, new): (&Value, &Value)) {
        self.parameters(at, &parameters(self.old, old_item, old), &parameters(self.new, new_item, new));
        let before = resolve(self.old, &old["requestBody"]).clone();
        let after = resolve(self.new, &new["requestBody"]).clone();
        let required = |b: &Value| b["required"] == true;
        match (before.is_object(), after.is_object()) {
            (true, false) => self.out.breaks("request-body-removed", format!("{at} request"), "removed"),
            (_, true) if required(&after) && !required(&before) => {
                self.out.breaks("request-body-required", format!("{at} request"), "now required");
            }
            _ => {}
        }
        self.content(Way::Request, &format!("{at} request"), &before["content"], &after["content"]);
        for (status, response) in object(&old["responses"]).filter(|(s, _)| s.starts_with('2') || *s == "default") {
            let at = format!("{at} response {status}");
            match new["responses"].get(status) {
                None => self.out.breaks("response-removed", at, "removed"),
                Some(r) => {
                    let (b, a) = (resolve(self.old, response).clone(), resolve(self.new, r).clone());
                    self.content(Way::Response, &at, &b["content"], &a["content"]);
                }
            }
        }
        let open = |root: &Value, op: &Value| {
            let security = op.get("security").unwrap_or(&root["security"]);
            security
                .as_array()
                .is_none_or(|s| s.is_empty() || s.iter().any(|s| s.as_object().is_some_and(Map::is_empty)))
        };
        if open(self.old, old) && !open(self.new, new) {
            self.out.breaks("security-required", at, "callers must now sign in");
        }
    }

    fn parameters(
        &mut self,
        at: &str,
        old: &BTreeMap<(String, String), Value>,
        new: &BTreeMap<(String, String), Value>,
    ) {
        for ((place, name), after) in new {
            let at = format!("{at} {place} parameter {name}");
            let before = old.get(&(place.clone(), name.clone()));
            let required = after["required"] == true;
            match before {
                None if place == "path" => {}
                None if required => self.out.breaks("parameter-required", at, "new and required"),
                None => self.out.adds(at),
                Some(before) => {
                    if required && before["required"] != true {
                        self.out.breaks("parameter-required", &at, "now required");
                    }
                    self.schema(Way::Request, &at, &before["schema"], &after["schema"], 0);
                }
            }
        }
        for (place, name) in old.keys().filter(|k| k.0 != "path" && !new.contains_key(k)) {
            self.out.breaks("parameter-removed", format!("{at} {place} parameter {name}"), "removed");
        }
    }

    fn content(&mut self, way: Way, at: &str, old: &Value, new: &Value) {
        let several = object(old).count() > 1;
        for (media, before) in object(old) {
            match new.get(media) {
                // The whole body is gone: said already.
                None if !new.is_object() && way == Way::Request => {}
                None => self.out.breaks("media-type-removed", at, format!("{media} removed")),
                Some(after) => {
                    let at = if several { format!("{at} {media} body") } else { format!("{at} body") };
                    self.schema(way, &at, &before["schema"], &after["schema"], 0);
                }
            }
        }
    }

    fn schema(&mut self, way: Way, at: &str, old: &Value, new: &Value, depth: usize) {
        if depth > DEPTH || (old.is_null() && new.is_null()) {
            return;
        }
        if depth == 0 {
            self.met.clear();
        }
        if let (Some(o), Some(n)) = (old["$ref"].as_str(), new["$ref"].as_str())
            && !self.met.insert((o.to_owned(), n.to_owned()))
        {
            return;
        }
        let (old, new) = (flat(self.old, old), flat(self.new, new));
        self.types(way, at, &old, &new);
        self.values(way, at, &old, &new);
        if way == Way::Request {
            self.narrowed(at, &old, &new);
        }
        for word in ["oneOf", "anyOf"] {
            let variants = |s: &Value| -> BTreeSet<String> {
                s[word].as_array().into_iter().flatten().map(ToString::to_string).collect()
            };
            let (before, after) = (variants(&old), variants(&new));
            let lost = match way {
                Way::Request => {
                    before.difference(&after).count() > 0 && !after.is_empty()
                        || (before.is_empty() && !after.is_empty() && old["type"].is_null())
                }
                Way::Response => after.difference(&before).count() > 0 && !before.is_empty(),
            };
            if lost {
                self.out.breaks("variant-changed", at, format!("the variants of {word} changed"));
            }
        }
        let required = |s: &Value, name: &str| s["required"].as_array().is_some_and(|r| r.iter().any(|n| n == name));
        for (name, after) in object(&new["properties"]) {
            let at = format!("{at}.{name}");
            match old["properties"].get(name) {
                None if way == Way::Request && required(&new, name) => {
                    self.out.breaks("request-field-required", at, "new and required");
                }
                None => self.out.adds(at),
                Some(before) => {
                    if way == Way::Request && required(&new, name) && !required(&old, name) {
                        self.out.breaks("request-field-required", &at, "now required");
                    }
                    if way == Way::Response && !required(&new, name) && required(&old, name) {
                        self.out.breaks("response-field-optional", &at, "may now be missing");
                    }
                    let (before, after) = (before.clone(), after.clone());
                    self.schema(way, &at, &before, &after, depth + 1);
                }
            }
        }
        for (name, _) in object(&old["properties"]).filter(|(n, _)| new["properties"].get(n).is_none()) {
            let rule = match way {
                Way::Request => "request-field-removed",
                Way::Response => "response-field-removed",
            };
            self.out.breaks(rule, format!("{at}.{name}"), "removed");
        }
        self.schema(way, &format!("{at}[]"), &old["items"], &new["items"], depth + 1);
        if old["additionalProperties"].is_object() && new["additionalProperties"].is_object() {
            let (o, n) = (old["additionalProperties"].clone(), new["additionalProperties"].clone());
            self.schema(way, &format!("{at}.*"), &o, &n, depth + 1);
        }
    }

    fn types(&mut self, way: Way, at: &str, old: &Value, new: &Value) {
        let (before, after) = (types(old), types(new));
        // Everything `narrow` allows, `wide` must allow; no type is any type.
        let fits = |narrow: &BTreeSet<String>, wide: &BTreeSet<String>| {
            let number = |t: &String| t == "integer" && wide.contains("number");
            wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|t| wide.contains(t) || number(t)))
        };
        let good = match way {
            Way::Request => fits(&before, &after),
            Way::Response => fits(&after, &before),
        };
        let said = |t: &BTreeSet<String>| match t.is_empty() {
            true => "any".to_owned(),
            false => t.iter().cloned().collect::<Vec<_>>().join(" or "),
        };
        if !good {
            self.out.breaks("type-changed", at, format!("{} is now {}", said(&before), said(&after)));
            return;
        }
        let (wide, narrow) = match way {
            Way::Request => (&new["format"], &old["format"]),
            Way::Response => (&old["format"], &new["format"]),
        };
        let widened = matches!(
            (narrow.as_str(), wide.as_str()),
            (Some("int32"), Some("int64")) | (Some("float"), Some("double"))
        );
        if !wide.is_null() && wide != narrow && !widened {
            let said = |f: &Value| f.as_str().map_or("no format".to_owned(), |f| format!("format {f}"));
            self.out.breaks("type-changed", at, format!("{} is now {}", said(&old["format"]), said(&new["format"])));
        }
    }

    fn values(&mut self, way: Way, at: &str, old: &Value, new: &Value) {
        let values = |s: &Value| -> Option<Vec<Value>> {
            s["enum"].as_array().cloned().or_else(|| s.get("const").map(|c| vec![c.clone()]))
        };
        let missing = |of: &[Value], from: &[Value]| -> Vec<String> {
            of.iter().filter(|v| !from.contains(v)).map(ToString::to_string).collect()
        };
        match (way, values(old), values(new)) {
            (Way::Request, Some(old), Some(new)) => {
                let gone = missing(&old, &new);
                if !gone.is_empty() {
                    self.out.breaks("enum-value-removed", at, format!("{} removed", gone.join(", ")));
                }
            }
            (Way::Request, None, Some(_)) => self.out.breaks("narrowed", at, "only certain values are taken now"),
            (Way::Response, Some(old), Some(new)) => {
                let added = missing(&new, &old);
                if !added.is_empty() {
                    self.out.breaks("enum-value-added", at, format!("{} added", added.join(", ")));
                }
            }
            (Way::Response, Some(_), None) => self.out.breaks("enum-value-added", at, "any value is possible now"),
            _ => {}
        }
    }

    fn narrowed(&mut self, at: &str, old: &Value, new: &Value) {
        for (word, most) in [
            ("maxLength", true),
            ("maxItems", true),
            ("maximum", true),
            ("exclusiveMaximum", true),
            ("maxProperties", true),
            ("minLength", false),
            ("minItems", false),
            ("minimum", false),
            ("exclusiveMinimum", false),
            ("minProperties", false),
        ] {
            let Some(after) = new[word].as_f64() else { continue };
            let tighter = match old[word].as_f64() {
                Some(before) => {
                    if most {
                        after < before
                    } else {
                        after > before
                    }
                }
                None => most || after > 0.0 || word.ends_with("nimum"),
            };
            if tighter {
                let before = old[word].as_f64().map_or("none".to_owned(), |b| b.to_string());
                self.out.breaks("narrowed", at, format!("{word} {before} is now {after}"));
            }
        }
        if new["pattern"].is_string() && new["pattern"] != old["pattern"] {
            self.out.breaks("narrowed", at, format!("must now match {}", new["pattern"]));
        }
        if new["additionalProperties"] == false && old["additionalProperties"] != false && new["properties"].is_object()
        {
            self.out.breaks("narrowed", at, "other fields are refused now");
        }
    }
}

/// Parameters of an operation by place and name; its own before those of the path.
fn parameters(root: &Value, item: &Value, op: &Value) -> BTreeMap<(String, String), Value> {
    let all = [&item["parameters"], &op["parameters"]].into_iter().filter_map(Value::as_array).flatten();
    let named = all.map(|p| resolve(root, p)).filter_map(|p| {
        let (place, name) = (p["in"].as_str()?, p["name"].as_str()?);
        let name = if place == "header" { name.to_ascii_lowercase() } else { name.to_owned() };
        Some(((place.to_owned(), name), p.clone()))
    });
    named.collect()
}

/// A schema without reference, with the parts of `allOf` in it.
fn flat(root: &Value, schema: &Value) -> Value {
    fn into(root: &Value, schema: &Value, out: &mut Map<String, Value>, depth: usize) {
        let schema = resolve(root, schema);
        if depth > DEPTH {
            return;
        }
        for (key, value) in object(schema).filter(|(k, _)| *k != "allOf") {
            match (key.as_str(), out.get_mut(key)) {
                ("properties", Some(Value::Object(have))) => {
                    have.extend(object(value).map(|(k, v)| (k.clone(), v.clone())));
                }
                ("required", Some(Value::Array(have))) => have.extend(value.as_array().into_iter().flatten().cloned()),
                _ => drop(out.insert(key.clone(), value.clone())),
            }
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            into(root, part, out, depth + 1);
        }
    }
    let mut out = Map::new();
    into(root, schema, &mut out, 0);
    Value::Object(out)
}

/// The types a schema allows; `nullable` (3.0) is the type `null` (3.1).
fn types(s: &Value) -> BTreeSet<String> {
    let mut out: BTreeSet<String> = match &s["type"] {
        Value::String(t) => [t.clone()].into(),
        Value::Array(all) => all.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
        _ if s["properties"].is_object() => ["object".to_owned()].into(),
        _ => BTreeSet::new(),
    };
    if s["nullable"] == true && !out.is_empty() {
        out.insert("null".to_owned());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A document whose POST /a takes and answers these schemas.
    fn api(request: Value, response: Value) -> Value {
        json!({"openapi": "3.0.0", "paths": {"/a": {"post": {
            "requestBody": {"content": {"application/json": {"schema": request}}},
            "responses": {"200": {"content": {"application/json": {"schema": response}}}},
        }}}})
    }

    fn rules(old: &Value, new: &Value) -> Vec<(&'static str, String)> {
        diff(old, new).0.into_iter().filter(|c| c.breaking).map(|c| (c.rule, c.at)).collect()
    }

    fn fields(properties: Value, required: &[&str]) -> Value {
        json!({"type": "object", "properties": properties, "required": required})
    }

    #[test]
    fn each_rule_of_a_schema_holds_in_the_way_it_breaks_and_not_in_the_other() {
        let (int, num, text) = (json!({"type": "integer"}), json!({"type": "number"}), json!({"type": "string"}));
        let x = |s: &Value| fields(json!({"x": s}), &[]);
        let none = fields(json!({}), &[]);
        let table: Vec<(Value, Value, Option<&str>, Option<&str>)> = vec![
            // before, after, breaks as a request, breaks as an answer
            (x(&int), x(&int), None, None),
            (x(&int), x(&text), Some("type-changed"), Some("type-changed")),
            (x(&int), x(&num), None, Some("type-changed")),
            (x(&num), x(&int), Some("type-changed"), None),
            (x(&text), x(&json!({"type": ["string", "null"]})), None, Some("type-changed")),
            (x(&text), x(&json!({"type": "string", "nullable": true})), None, Some("type-changed")),
            (x(&json!({})), x(&text), Some("type-changed"), None),
            (
                x(&json!({"type": "integer", "format": "int32"})),
                x(&json!({"type": "integer", "format": "int64"})),
                None,
                Some("type-changed"),
            ),
            (x(&text), none.clone(), Some("request-field-removed"), Some("response-field-removed")),
            (none.clone(), x(&text), None, None),
            (none.clone(), fields(json!({"x": text}), &["x"]), Some("request-field-required"), None),
            (x(&text), fields(json!({"x": text}), &["x"]), Some("request-field-required"), None),
            (fields(json!({"x": text}), &["x"]), x(&text), None, Some("response-field-optional")),
            (x(&json!({"enum": [1, 2]})), x(&json!({"enum": [1]})), Some("enum-value-removed"), None),
            (x(&json!({"enum": [1]})), x(&json!({"enum": [1, 2]})), None, Some("enum-value-added")),
            (x(&text), x(&json!({"type": "string", "enum": ["a"]})), Some("narrowed"), None),
            (
                x(&json!({"type": "string", "maxLength": 9})),
                x(&json!({"type": "string", "maxLength": 8})),
                Some("narrowed"),
                None,
            ),
            (x(&json!({"type": "string", "maxLength": 8})), x(&json!({"type": "string", "maxLength": 9})), None, None),
            (x(&text), x(&json!({"type": "string", "pattern": "a+"})), Some("narrowed"), None),
            (x(&text), x(&json!({"type": "string", "minLength": 0})), None, None),
            (
                x(&json!({"type": "array", "items": int})),
                x(&json!({"type": "array", "items": text})),
                Some("type-changed"),
                Some("type-changed"),
            ),
            (x(&json!({"oneOf": [int, text]})), x(&json!({"oneOf": [int]})), Some("variant-changed"), None),
            (x(&json!({"oneOf": [int]})), x(&json!({"oneOf": [int, text]})), None, Some("variant-changed")),
        ];
        for (before, after, request, response) in table {
            let fixed = json!({"type": "string"});
            let found = |a: Vec<(&'static str, String)>| a.first().map(|f| f.0);
            let (o, n) = (api(before.clone(), fixed.clone()), api(after.clone(), fixed.clone()));
            assert_eq!(found(rules(&o, &n)), request, "request: {before} -> {after}");
            let (o, n) = (api(fixed.clone(), before.clone()), api(fixed, after.clone()));
            assert_eq!(found(rules(&o, &n)), response, "response: {before} -> {after}");
        }
    }

    #[test]
    fn references_parts_and_cycles_are_followed() {
        let doc = |total: &str| {
            let mut d = api(json!({"type": "string"}), json!({"$ref": "#/components/schemas/Order"}));
            d["components"] = json!({"schemas": {
                "Base": {"properties": {"total": {"type": total}, "next": {"$ref": "#/components/schemas/Order"}}},
                "Order": {"allOf": [{"$ref": "#/components/schemas/Base"}, {"properties": {"id": {"type": "string"}}}]},
            }});
            d
        };
        assert_eq!(rules(&doc("integer"), &doc("integer")), []);
        let found = rules(&doc("integer"), &doc("string"));
        assert_eq!(found[0], ("type-changed", "POST /a response 200 body.total".to_owned()));
    }

    #[test]
    fn paths_operations_parameters_and_bodies_are_compared() {
        let doc = |paths: Value| json!({"openapi": "3.1.0", "paths": paths});
        let ok = json!({"200": {}});
        let before = doc(json!({
            "/gone": {"get": {"responses": ok}},
            "/a/{id}": {"get": {"responses": ok, "parameters": [
                {"in": "query", "name": "q"}, {"in": "query", "name": "old"}, {"in": "header", "name": "X-A"}]},
                "delete": {"responses": ok}},
            "/b": {"post": {"requestBody": {"content": {"application/json": {}, "text/csv": {}}}, "responses": {"200": {}, "201": {}}}},
        }));
        let after = doc(json!({
            "/new": {"get": {"responses": ok}},
            "/a/{name}": {"get": {"security": [{"key": []}], "responses": ok, "parameters": [
                {"in": "query", "name": "q", "required": true}, {"in": "query", "name": "fresh", "required": true},
                {"in": "query", "name": "maybe"}, {"in": "header", "name": "x-a"}]}},
            "/b": {"post": {"requestBody": {"required": true, "content": {"application/json": {}}}, "responses": {"200": {}}}},
        }));
        let mut found = rules(&before, &after);
        found.sort_unstable();
        let at = |rule, at: &str| (rule, at.to_owned());
        assert_eq!(
            found,
            [
                at("media-type-removed", "POST /b request"),
                at("operation-removed", "DELETE /a/{id}"),
                at("parameter-removed", "GET /a/{id} query parameter old"),
                at("parameter-required", "GET /a/{id} query parameter fresh"),
                at("parameter-required", "GET /a/{id} query parameter q"),
                at("path-removed", "/gone"),
                at("request-body-required", "POST /b request"),
                at("response-removed", "POST /b response 201"),
                at("security-required", "GET /a/{id}"),
            ]
        );
        let added: Vec<_> = diff(&before, &after).0.into_iter().filter(|c| !c.breaking).map(|c| c.at).collect();
        assert_eq!(added, ["GET /a/{id} query parameter maybe", "GET /new"]);
    }
}
