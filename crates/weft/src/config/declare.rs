//! Declaring a section's keys once: name, type, default and doc give the parser, the suggestions, the JSON Schema and
//! the reference page.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::node::{Data, Node};
use super::report::{Mistake, suggest};
use super::source::{At, Span};
use super::value::{Cx, Value};

/// One declared key.
pub(super) struct KeyDecl {
    /// As written.
    pub key: &'static str,
    /// What it means, in Markdown.
    pub doc: &'static str,
    /// How the reference names its type.
    pub kind: String,
    /// Its schema.
    pub schema: Json,
    /// As written, when there is one.
    pub default: Option<&'static str>,
    /// Whether it must be there.
    pub required: bool,
}

/// A section: a map with declared keys.
pub(super) trait Section: Value {
    /// Its name in the schema and the reference.
    const NAME: &'static str;
    /// What it is, in Markdown.
    const DOC: &'static str;
    /// The key that a single value stands for.
    const SHORT: Option<&'static str>;
    /// Its keys as written.
    const KEYS: &'static [&'static str];
    /// Its keys in full.
    fn keys(declared: &mut Declared) -> Vec<KeyDecl>;
}

/// Every section met on a walk from the root.
#[derive(Default)]
pub(super) struct Declared {
    /// In the order met.
    pub order: Vec<&'static str>,
    /// By name: doc, short form, keys.
    pub sections: BTreeMap<&'static str, (&'static str, Option<&'static str>, Vec<KeyDecl>)>,
}

impl Declared {
    /// Adds a section once and answers a reference to it.
    pub fn section<S: Section>(&mut self) -> Json {
        if !self.order.contains(&S::NAME) {
            self.order.push(S::NAME);
            let keys = S::keys(self);
            self.sections.insert(S::NAME, (S::DOC.trim(), S::SHORT, keys));
        }
        json!({"$ref": format!("#/$defs/{}", S::NAME)})
    }

    /// The JSON Schema of every section.
    pub fn definitions(&self) -> Json {
        let define =
            |(name, (doc, short, keys)): (&&'static str, &(&'static str, Option<&'static str>, Vec<KeyDecl>))| {
                let mut properties = Map::new();
                for k in keys {
                    let mut schema = k.schema.clone();
                    let object = schema.as_object_mut().expect("every schema is an object");
                    object.insert("description".into(), k.doc.trim().into());
                    if let Some(d) = k.default {
                        object.insert("default".into(), serde_json::from_str(d).unwrap_or_else(|_| d.into()));
                    }
                    properties.insert(k.key.into(), schema);
                }
                let required: Vec<_> = keys.iter().filter(|k| k.required).map(|k| k.key).collect();
                let kinds = if required.is_empty() { json!(["object", "null"]) } else { json!("object") };
                let mut object = json!({"type": kinds, "properties": properties, "additionalProperties": false});
                if !required.is_empty() {
                    object["required"] = json!(required);
                }
                if let Some(short) = short {
                    let key = keys.iter().find(|k| k.key == *short).expect("the short form is one of the keys");
                    object = json!({"anyOf": [object, key.schema]});
                }
                object["description"] = (*doc).into();
                ((*name).to_owned(), object)
            };
        Json::Object(self.sections.iter().map(define).collect())
    }
}

/// The keys of one map, taken out one by one.
pub(super) struct Fields<'n> {
    owner: Span,
    section: &'static str,
    entries: Vec<(&'static str, &'n Node)>,
}

/// Opens a section's map; unknown keys are mistakes.
pub(super) fn fields<'n, S: Section>(node: &'n Node, cx: &mut Cx<'_>) -> Option<Fields<'n>> {
    let section = S::NAME;
    match &node.data {
        Data::Map(entries) => {
            let mut known = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                match S::KEYS.iter().find(|k| **k == key.text) {
                    Some(k) => known.push((*k, value)),
                    None => {
                        let message =
                            format!("unknown key '{}' in {}", super::value::shorten(&key.text), spoken(section));
                        let help = suggest(&key.text, "key", S::KEYS.iter().copied());
                        cx.say(Mistake::new(Some(key.span), message).help(help));
                    }
                }
            }
            Some(Fields { owner: node.owner, section, entries: known })
        }
        // `name:` with nothing after it is the section with its defaults.
        Data::Scalar(s) if s.plain && s.text.is_empty() => {
            Some(Fields { owner: node.owner, section, entries: Vec::new() })
        }
        Data::Scalar(_) | Data::List(_) if S::SHORT.is_some() => {
            Some(Fields { owner: node.owner, section, entries: S::SHORT.map(|k| (k, node)).into_iter().collect() })
        }
        _ => {
            let keys = S::KEYS.iter().take(6).copied().collect::<Vec<_>>().join(", ");
            let message = format!("{} is a map, found {}", spoken(section), node.what());
            cx.say(
                Mistake::new(Some(node.span), message)
                    .help(format!("its keys: {keys}{}", if S::KEYS.len() > 6 { ", ..." } else { "" })),
            );
            None
        }
    }
}

/// `SagaStep` as people say it: "saga step".
pub(super) fn spoken(section: &str) -> String {
    let mut out = String::new();
    for (i, c) in section.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push(' ');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

impl Fields<'_> {
    /// Where the section is named.
    pub fn owner(&self) -> Span {
        self.owner
    }

    /// A key that may be absent.
    pub fn opt<T: Value>(&self, key: &str, cx: &mut Cx<'_>) -> Option<At<T>> {
        let (_, node) = self.entries.iter().find(|(k, _)| *k == key)?;
        // A block is known by its key; nothing has no place of its own.
        let scalar = matches!(&node.data, Data::Scalar(s) if !s.text.is_empty());
        T::read(node, cx).map(|v| At::new(v, if scalar { node.span } else { node.owner }))
    }

    /// A key with a default.
    pub fn def<T: Value>(&self, key: &str, default: &'static str, cx: &mut Cx<'_>) -> At<T> {
        self.opt(key, cx).unwrap_or_else(|| At { value: super::value::default(default), span: None })
    }

    /// A key that must be there.
    pub fn req<T: Value>(&self, key: &str, cx: &mut Cx<'_>) -> Option<At<T>> {
        if !self.entries.iter().any(|(k, _)| *k == key) {
            let message = format!("{} needs '{key}'", spoken(self.section));
            cx.say(Mistake::new(Some(self.owner), message).help(format!("add '{key}:'")));
            return None;
        }
        self.opt(key, cx)
    }
}

/// Declares a section: `"key" field: opt(Type)`, `req(Type)` or `def(Type, "default")`, each with its doc comment.
macro_rules! section {
    ($(#[doc = $doc:literal])* $name:ident $(short $short:literal)? {
        $( $(#[doc = $kdoc:literal])* $key:literal $field:ident : $mode:ident ( $ty:ty $(, $default:literal)? ) ),* $(,)?
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        pub(in crate::config) struct $name {
            $( $(#[doc = $kdoc])* pub $field: section!(@type $mode $ty), )*
            /// Where the section is named.
            #[allow(dead_code, reason = "not every section is blamed as a whole")]
            pub at: $crate::config::source::Span,
            /// Whether something in it could not be read: then what is missing may be just that.
            #[allow(dead_code, reason = "not every section has keys that need each other")]
            pub broken: bool,
        }

        impl $crate::config::declare::Section for $name {
            const NAME: &'static str = stringify!($name);
            const DOC: &'static str = concat!($($doc, "\n"),*);
            const SHORT: Option<&'static str> = section!(@short $($short)?);
            const KEYS: &'static [&'static str] = &[$($key),*];
            fn keys(declared: &mut $crate::config::declare::Declared) -> Vec<$crate::config::declare::KeyDecl> {
                vec![$( $crate::config::declare::KeyDecl {
                    key: $key,
                    doc: concat!($($kdoc),*),
                    kind: <$ty as $crate::config::value::Value>::kind(),
                    schema: <$ty as $crate::config::value::Value>::schema(declared),
                    default: section!(@default $($default)?),
                    required: section!(@required $mode),
                } ),*]
            }
        }

        impl $crate::config::value::Value for $name {
            fn read(node: &$crate::config::node::Node, cx: &mut $crate::config::value::Cx<'_>) -> Option<Self> {
                let before = cx.mistakes.len();
                let fields = $crate::config::declare::fields::<Self>(node, cx)?;
                // Every key is read before a missing one ends it: all mistakes at once.
                $( let $field = fields.$mode::<$ty>($key $(, $default)?, cx); )*
                let broken = cx.mistakes.len() > before;
                Some($name { $( $field: section!(@take $mode $field), )* at: fields.owner(), broken })
            }
            fn schema(declared: &mut $crate::config::declare::Declared) -> serde_json::Value {
                declared.section::<Self>()
            }
            fn kind() -> String {
                let name = stringify!($name);
                let link = $crate::config::declare::spoken(name).replace(' ', "-");
                format!("[{}](#{link})", $crate::config::declare::spoken(name))
            }
        }
    };
    (@type opt $ty:ty) => { Option<$crate::config::source::At<$ty>> };
    (@type req $ty:ty) => { $crate::config::source::At<$ty> };
    (@type def $ty:ty) => { $crate::config::source::At<$ty> };
    (@take opt $field:ident) => { $field };
    (@take req $field:ident) => { $field? };
    (@take def $field:ident) => { $field };
    (@required req) => { true };
    (@required $mode:ident) => { false };
    (@default) => { None };
    (@default $d:literal) => { Some($d) };
    (@short) => { None };
    (@short $s:literal) => { Some($s) };
}
pub(super) use section;

/// Declares a choice of words: `"word" Variant`.
macro_rules! words {
    ($(#[doc = $doc:literal])* $name:ident { $( $word:literal $variant:ident ),* $(,)? }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(in crate::config) enum $name { $(
            #[doc = concat!("`", $word, "`")]
            $variant
        ),* }

        impl $crate::config::value::Value for $name {
            fn read(node: &$crate::config::node::Node, cx: &mut $crate::config::value::Cx<'_>) -> Option<Self> {
                let known = [$($word),*];
                let what = match known.as_slice() {
                    [one] => format!("'{one}'"),
                    all => format!("one of {}", all.join(", ")),
                };
                let text = &$crate::config::value::scalar(node, cx, &what)?.text;
                match text.as_str() {
                    $( $word => Some(Self::$variant), )*
                    _ => {
                        let help = match $crate::config::report::nearest(text, known) {
                            Some(word) => format!("did you mean '{word}'?"),
                            None if known.len() == 1 => format!("write '{}', the only one there is", known[0]),
                            None => format!("write {what}"),
                        };
                        let message = format!("'{}' is not {what}", $crate::config::value::shorten(text));
                        cx.say($crate::config::report::Mistake::new(Some(node.span), message).help(help));
                        None
                    }
                }
            }
            fn schema(_: &mut $crate::config::declare::Declared) -> serde_json::Value {
                serde_json::json!({"anyOf": [{"enum": [$($word),*]}, {"type": "string", "pattern": r"\$\{"}]})
            }
            fn kind() -> String {
                [$(concat!("`", $word, "`")),*].join(", ")
            }
        }
    };
}
pub(super) use words;
