//! .proto files, imports included: what breaks on the wire, in JSON, or in generated code.

use std::collections::BTreeMap;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

use super::Changes;

/// What files declare, by full name without the package of the first.
#[derive(Debug, Default)]
pub(super) struct Declared {
    package: String,
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
    services: BTreeMap<String, ServiceDescriptorProto>,
}

/// Compiles a file; imports are looked for beside it.
pub(super) fn read(file: &Path) -> Result<Declared, String> {
    let dir = match file.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let set = protox::compile([file], [dir]).map_err(|e| format!("{}: {e}", file.display()))?;
    let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Declared::of(&set, &name))
}

impl Declared {
    fn of(set: &FileDescriptorSet, root: &str) -> Self {
        let package = set.file.iter().find(|f| f.name() == root).map(|f| f.package().to_owned()).unwrap_or_default();
        let mut out = Self { package, ..Self::default() };
        for f in set.file.iter().filter(|f| !f.name().starts_with("google/protobuf/")) {
            let prefix = f.package().to_owned();
            for m in &f.message_type {
                out.message(&join(&prefix, m.name()), m);
            }
            for e in &f.enum_type {
                let name = out.short(&join(&prefix, e.name()));
                out.enums.insert(name, e.clone());
            }
            for s in &f.service {
                let name = out.short(&join(&prefix, s.name()));
                out.services.insert(name, s.clone());
            }
        }
        out
    }

    fn message(&mut self, full: &str, m: &DescriptorProto) {
        for nested in &m.nested_type {
            self.message(&join(full, nested.name()), nested);
        }
        for e in &m.enum_type {
            let name = self.short(&join(full, e.name()));
            self.enums.insert(name, e.clone());
        }
        let name = self.short(full);
        self.messages.insert(name, m.clone());
    }

    /// A full name without the package of the first file.
    fn short(&self, full: &str) -> String {
        let full = full.trim_start_matches('.');
        match full.strip_prefix(self.package.as_str()).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) if !self.package.is_empty() => rest.to_owned(),
            _ => full.to_owned(),
        }
    }

    /// A field's type as the .proto file writes it.
    fn type_of(&self, f: &FieldDescriptorProto) -> String {
        match f.r#type() {
            Type::Message | Type::Enum | Type::Group => self.short(f.type_name()),
            scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_ascii_lowercase(),
        }
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

pub(super) fn diff(old: &Declared, new: &Declared) -> Changes {
    let mut out = Changes::default();
    if old.package != new.package {
        out.breaks("package-changed", "package", format!("'{}' is now '{}'", old.package, new.package));
    }
    for (name, before) in &old.messages {
        match new.messages.get(name) {
            None => out.breaks("message-removed", name, "removed"),
            Some(after) => message(name, (old, before), (new, after), &mut out),
        }
    }
    for (name, before) in &old.enums {
        let Some(after) = new.enums.get(name) else {
            out.breaks("enum-removed", name, "removed");
            continue;
        };
        for value in &before.value {
            let at = format!("{name}.{}", value.name());
            if after.value.iter().any(|v| v.number() == value.number() && v.name() == value.name()) {
                continue;
            }
            match after.value.iter().find(|v| v.number() == value.number()) {
                Some(v) => out.breaks("enum-value-renamed", at, format!("is now {}", v.name())),
                None => out.breaks("enum-value-removed", at, format!("number {} removed", value.number())),
            }
        }
        let added = after.value.iter().filter(|v| !before.value.iter().any(|b| b.number() == v.number()));
        added.for_each(|v| out.adds(format!("{name}.{}", v.name())));
    }
    for (name, before) in &old.services {
        let Some(after) = new.services.get(name) else {
            out.breaks("service-removed", name, "removed");
            continue;
        };
        for m in &before.method {
            let at = format!("{name}/{}", m.name());
            let Some(n) = after.method.iter().find(|n| n.name() == m.name()) else {
                out.breaks("method-removed", at, "removed");
                continue;
            };
            let said = |d: &Declared, stream: bool, of: &str| {
                format!("{}{}", if stream { "stream " } else { "" }, d.short(of))
            };
            for (what, b, a) in [
                (
                    "takes",
                    said(old, m.client_streaming(), m.input_type()),
                    said(new, n.client_streaming(), n.input_type()),
                ),
                (
                    "answers",
                    said(old, m.server_streaming(), m.output_type()),
                    said(new, n.server_streaming(), n.output_type()),
                ),
            ] {
                if b != a {
                    out.breaks("method-changed", &at, format!("{what} {a}, not {b}"));
                }
            }
        }
        let added = after.method.iter().filter(|n| !before.method.iter().any(|m| m.name() == n.name()));
        added.for_each(|n| out.adds(format!("{name}/{}", n.name())));
    }
    new.messages.keys().filter(|n| !old.messages.contains_key(*n)).for_each(|n| out.adds(n));
    new.enums.keys().filter(|n| !old.enums.contains_key(*n)).for_each(|n| out.adds(n));
    new.services.keys().filter(|n| !old.services.contains_key(*n)).for_each(|n| out.adds(n));
    out
}

fn message(
    name: &str,
    (old, before): (&Declared, &DescriptorProto),
    (new, after): (&Declared, &DescriptorProto),
    out: &mut Changes,
) {
    for b in &before.field {
        let at = format!("{name}.{}", b.name());
        let Some(a) = after.field.iter().find(|a| a.number() == b.number()) else {
            match after.field.iter().find(|a| a.name() == b.name()) {
                Some(a) => out.breaks("field-number-changed", at, format!("{} is now {}", b.number(), a.number())),
                None => out.breaks("field-removed", at, format!("number {} removed", b.number())),
            }
            continue;
        };
        if a.name() != b.name() {
            out.breaks("field-renamed", &at, format!("is now {}", a.name()));
        }
        let (was, is) = (old.type_of(b), new.type_of(a));
        if was != is {
            out.breaks("field-type-changed", &at, format!("{was} is now {is}"));
        }
        if a.label() != b.label() {
            let said = |l: Label| l.as_str_name().trim_start_matches("LABEL_").to_ascii_lowercase();
            out.breaks("field-label-changed", &at, format!("{} is now {}", said(b.label()), said(a.label())));
        }
        let of = |m: &DescriptorProto, f: &FieldDescriptorProto| {
            let index = f.oneof_index.filter(|_| !f.proto3_optional())?;
            Some(m.oneof_decl.get(usize::try_from(index).ok()?)?.name().to_owned())
        };
        if of(before, b) != of(after, a) {
            out.breaks("field-oneof-changed", &at, "moved into, out of or between oneofs");
        }
    }
    for a in
        after.field.iter().filter(|a| !before.field.iter().any(|b| b.number() == a.number() || b.name() == a.name()))
    {
        let at = format!("{name}.{}", a.name());
        if a.label() == Label::Required {
            out.breaks("request-field-required", at, "new and required");
        } else {
            out.adds(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(body: &str) -> Declared {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.proto");
        std::fs::write(&file, format!("syntax = \"proto3\"; {body}")).unwrap();
        read(&file).unwrap()
    }

    #[test]
    fn each_rule_is_found_and_names_its_place() {
        let m = |fields: &str| format!("package p; message M {{ {fields} }}");
        let table = [
            (m("int32 a = 1;"), m("int32 a = 1;"), None),
            (m("int32 a = 1;"), m("int32 a = 1; string b = 2;"), None),
            (m("int32 a = 1;"), m("optional int32 a = 1;"), None),
            (m("int32 a = 1;"), m(""), Some(("field-removed", "M.a"))),
            (m("int32 a = 1;"), m("reserved 1;"), Some(("field-removed", "M.a"))),
            (m("int32 a = 1;"), m("int32 a = 2;"), Some(("field-number-changed", "M.a"))),
            (m("int32 a = 1;"), m("int32 b = 1;"), Some(("field-renamed", "M.a"))),
            (m("int32 a = 1;"), m("int64 a = 1;"), Some(("field-type-changed", "M.a"))),
            (m("int32 a = 1;"), m("repeated int32 a = 1;"), Some(("field-label-changed", "M.a"))),
            (m("int32 a = 1;"), m("oneof o { int32 a = 1; }"), Some(("field-oneof-changed", "M.a"))),
            (m("message N { int32 a = 1; }"), m(""), Some(("message-removed", "M.N"))),
            (
                m("map<string, int32> a = 1;"),
                m("map<string, int64> a = 1;"),
                Some(("field-type-changed", "M.AEntry.value")),
            ),
            ("enum E { A = 0; B = 1; }".into(), "enum E { A = 0; }".into(), Some(("enum-value-removed", "E.B"))),
            ("enum E { A = 0; B = 1; }".into(), "enum E { A = 0; C = 1; }".into(), Some(("enum-value-renamed", "E.B"))),
            ("enum E { A = 0; }".into(), "enum E { A = 0; B = 1; }".into(), None),
            ("enum E { A = 0; }".into(), String::new(), Some(("enum-removed", "E"))),
            ("package p;".into(), "package q;".into(), Some(("package-changed", "package"))),
        ];
        for (old, new, want) in table {
            let found: Vec<_> = diff(&compile(&old), &compile(&new)).0.into_iter().filter(|c| c.breaking).collect();
            let said: Vec<_> = found.iter().map(|c| (c.rule, c.at.as_str())).collect();
            assert_eq!(said, want.into_iter().collect::<Vec<_>>(), "{old} -> {new}");
        }
    }

    #[test]
    fn services_and_methods_are_compared_and_a_new_package_says_so_once() {
        let api = |package: &str, rpcs: &str| {
            compile(&format!("package {package}; message A {{}} message B {{}} service S {{ {rpcs} }}"))
        };
        let old = api("v1", "rpc X(A) returns (B); rpc Y(A) returns (B);");
        let new = api("v2", "rpc X(A) returns (stream B); rpc Z(A) returns (A);");
        let found: Vec<_> = diff(&old, &new).0.into_iter().map(|c| (c.breaking, c.rule, c.at)).collect();
        assert_eq!(
            found,
            [
                (true, "package-changed", "package".to_owned()),
                (true, "method-changed", "S/X".to_owned()),
                (true, "method-removed", "S/Y".to_owned()),
                (false, "added", "S/Z".to_owned()),
            ]
        );
        assert_eq!(diff(&old, &compile("package v1; message A {} message B {}")).0[0].rule, "service-removed");
    }
}
