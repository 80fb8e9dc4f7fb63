//! Path patterns: literal, `{name}` one segment, `/**` the rest, `~regex` the whole path; and path templates that use
//! what a pattern captured.

use std::borrow::Cow;

use regex::Regex;

/// A parsed path pattern.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Segment by segment.
    Segments {
        /// After the leading slash; the pattern `/` is one empty literal.
        segments: Vec<Segment>,
        /// Whether `/**` follows.
        rest: bool,
    },
    /// The whole path.
    Regex(Regex),
}

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// Exactly this.
    Literal(String),
    /// Any one non-empty segment, under this name.
    Param(String),
}

impl Pattern {
    /// Parses a pattern; the error says what is wrong with it.
    pub fn parse(s: &str) -> Result<Self, String> {
        if let Some(re) = s.strip_prefix('~') {
            return Regex::new(&format!("^(?:{re})$")).map(Pattern::Regex).map_err(|e| {
                let text = e.to_string();
                format!("is not a regular expression: {}", text.lines().last().unwrap_or(&text).trim())
            });
        }
        let Some(after) = s.strip_prefix('/') else {
            return Err("must start with '/' (or '~' for a regular expression)".into());
        };
        let (after, rest) = match after {
            "**" => (None, true),
            a => match a.strip_suffix("/**") {
                Some(a) => (Some(a), true),
                None => (Some(a), false),
            },
        };
        let mut segments = Vec::new();
        for seg in after.map(|a| a.split('/')).into_iter().flatten() {
            segments.push(match seg.strip_prefix('{').and_then(|x| x.strip_suffix('}')) {
                Some(name) if is_name(name) => Segment::Param(name.to_owned()),
                Some(name) => {
                    return Err(format!("'{{{name}}}' is not a parameter: name it with letters, digits and '_'"));
                }
                None if seg.contains(['{', '}', '*']) => {
                    return Err(format!(
                        "'{seg}' mixes text with a parameter: '{{name}}' and '**' are whole segments, '**' the last"
                    ));
                }
                None => Segment::Literal(seg.to_owned()),
            });
        }
        let names: Vec<_> = segments.iter().filter_map(Segment::name).collect();
        if let Some(twice) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            return Err(format!("uses the parameter '{}' twice", twice.1));
        }
        if normal(s.trim_end_matches("/**")).is_none_or(|n| n != s.trim_end_matches("/**")) && s != "/**" {
            return Err(
                "is not in normal form: no '.', '..' or empty segments, and only reserved characters percent-encoded"
                    .into(),
            );
        }
        Ok(Pattern::Segments { segments, rest })
    }

    /// Whether a path in normal form matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Pattern::Regex(re) => re.is_match(path),
            Pattern::Segments { segments, rest } => {
                let mut given = path.strip_prefix('/').map(|p| p.split('/')).into_iter().flatten();
                for want in segments {
                    match (want, given.next()) {
                        (Segment::Literal(l), Some(g)) if l == g => {}
                        (Segment::Param(_), Some(g)) if !g.is_empty() => {}
                        _ => return false,
                    }
                }
                *rest || given.next().is_none()
            }
        }
    }

    /// What a name captured in a matching path; `**` is the rest without its leading slash, `None` when the path ends
    /// before it.
    pub(crate) fn capture<'p>(&self, name: &str, path: &'p str) -> Option<&'p str> {
        match self {
            Pattern::Regex(re) => re.captures(path)?.name(name).map(|m| m.as_str()),
            Pattern::Segments { segments, .. } => {
                let mut left = path.strip_prefix('/');
                for want in segments {
                    let (seg, after) = match left?.split_once('/') {
                        Some((s, a)) => (s, Some(a)),
                        None => (left?, None),
                    };
                    if want.name() == Some(name) {
                        return Some(seg);
                    }
                    left = after;
                }
                left.filter(|_| name == "**")
            }
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Pattern::Regex(re) => re.capture_names().flatten().any(|n| n == name),
            Pattern::Segments { segments, rest } => {
                (name == "**" && *rest) || segments.iter().any(|s| s.name() == Some(name))
            }
        }
    }

    /// The pattern with its parameter names left out: two patterns of the same shape match the same paths.
    pub fn shape(&self) -> String {
        match self {
            Pattern::Regex(re) => format!("~{}", re.as_str()),
            Pattern::Segments { segments, rest } => {
                let mut s = String::new();
                for seg in segments {
                    s.push('/');
                    s.push_str(match seg {
                        Segment::Literal(l) => l,
                        Segment::Param(_) => "{}",
                    });
                }
                if *rest {
                    s.push_str("/**");
                }
                s
            }
        }
    }
}

impl Segment {
    fn name(&self) -> Option<&str> {
        match self {
            Segment::Param(n) => Some(n),
            Segment::Literal(_) => None,
        }
    }
}

/// A path built from captures: `/orders/{**}`, `/users/{id}/carts`.
#[derive(Clone, Debug)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Capture(String),
}

impl Template {
    /// Parses a template and checks its names against the pattern they come from.
    pub fn parse(s: &str, pattern: &Pattern) -> Result<Self, String> {
        if !s.starts_with('/') {
            return Err("must start with '/'".into());
        }
        let mut parts = Vec::new();
        let mut left = s;
        while let Some((text, after)) = left.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("has a '{' without its '}'")?;
            if !pattern.has(name) {
                return Err(format!("uses '{{{name}}}', which the route's path does not capture"));
            }
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            parts.push(Part::Capture(name.to_owned()));
            left = after;
        }
        if left.contains('}') {
            return Err("has a '}' without its '{'".into());
        }
        if !left.is_empty() {
            parts.push(Part::Text(left.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The path for a request path that the pattern matched. When `{**}` ends the template and the path ended before
    /// the rest began, the slash before it is left out too: `/v1/orders` under `/v1/orders/**` gives `/orders`.
    pub fn fill(&self, pattern: &Pattern, path: &str) -> String {
        let mut out = String::with_capacity(path.len() + 16);
        for part in &self.0 {
            match part {
                Part::Text(t) => out.push_str(t),
                Part::Capture(n) => match pattern.capture(n, path) {
                    Some(v) => out.push_str(v),
                    None if out.len() > 1 && out.ends_with('/') => {
                        out.pop();
                    }
                    None => {}
                },
            }
        }
        out
    }
}

fn is_name(n: &str) -> bool {
    !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !n.as_bytes()[0].is_ascii_digit()
}

/// A path in normal form (RFC 3986 6.2.2): escapes of unreserved characters decoded, the others in upper case. `None` for
/// a path that has dot segments, empty segments before the last, or broken escapes: Weft and the service behind it could
/// read such a path differently, and a route's policy could be walked around.
///
/// A dot segment is one also where only some servers see it: ended by `;`, `\` or an encoded slash (`..;`, `..%2F`).
pub fn normal(path: &str) -> Option<Cow<'_, str>> {
    let b = path.as_bytes();
    let of_two = |a: u8, b: u8| a == b'/' && (b == b'.' || b == b'/');
    let suspicious = b.iter().zip(b.iter().skip(1)).any(|(a, b)| of_two(*a, *b) || *b == b'%' || *b == b'\\');
    if !suspicious {
        return Some(Cow::Borrowed(path));
    }
    let mut out = String::with_capacity(path.len());
    let mut left = path;
    while let Some((text, after)) = left.split_once('%') {
        out.push_str(text);
        let mut digits = after.chars().map(|c| c.to_digit(16));
        let byte = (digits.next()?? << 4 | digits.next()??) as u8;
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        left = &after[2..];
    }
    out.push_str(left);
    if out.contains("//") || out.split('/').any(has_dots) {
        return None;
    }
    Some(if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) })
}

/// Whether some server would read a dot segment here.
fn has_dots(segment: &str) -> bool {
    let mut left = segment;
    loop {
        let end = left.find([';', '\\']).unwrap_or(left.len());
        let encoded = ["%2F", "%5C"].iter().filter_map(|e| left.find(e)).min().filter(|at| *at < end);
        let (piece, skip) = encoded.map_or((&left[..end], 1), |at| (&left[..at], 3));
        if piece == "." || piece == ".." {
            return true;
        }
        match left.get(piece.len() + skip..) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_segment_by_segment() {
        for (pattern, yes, no) in [
            ("/", &["/"][..], &["/a", "//"][..]),
            ("/a/{id}", &["/a/1", "/a/x.y"], &["/a", "/a/", "/a/1/", "/a/1/2"]),
            ("/a/**", &["/a", "/a/", "/a/b/c"], &["/ab", "/"]),
            ("/**", &["/", "/a", "/a/b"], &[]),
            ("/a/{id}/b/**", &["/a/1/b", "/a/1/b/c"], &["/a//b", "/a/1/c"]),
            ("~/v[0-9]+/x", &["/v1/x", "/v22/x"], &["/v/x", "/v1/x/y", "/a/v1/x"]),
        ] {
            let p = Pattern::parse(pattern).unwrap();
            for path in yes {
                assert!(p.matches(path), "{pattern} {path}");
            }
            for path in no {
                assert!(!p.matches(path), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn bad_patterns_say_what_is_wrong() {
        for (bad, word) in [
            ("a", "start"),
            ("/a{b}", "whole"),
            ("/**/a", "whole"),
            ("/{a}/{a}", "twice"),
            ("/{1}", "parameter"),
            ("~(", "regular"),
            ("/a/../b", "normal"),
            ("/%41", "normal"),
        ] {
            let e = Pattern::parse(bad).unwrap_err();
            assert!(e.contains(word), "{bad}: {e}");
        }
    }

    #[test]
    fn templates_use_what_was_captured() {
        let fill = |pattern: &str, template: &str, path: &str| {
            let p = Pattern::parse(pattern).unwrap();
            assert!(p.matches(path));
            Template::parse(template, &p).unwrap().fill(&p, path)
        };
        assert_eq!(fill("/v1/orders/**", "/orders/{**}", "/v1/orders/7/x"), "/orders/7/x");
        assert_eq!(fill("/v1/orders/**", "/orders/{**}", "/v1/orders"), "/orders");
        assert_eq!(fill("/v1/orders/**", "/orders/{**}", "/v1/orders/"), "/orders/");
        assert_eq!(fill("/v1/auth/**", "/{**}", "/v1/auth"), "/");
        assert_eq!(fill("/u/{id}/c/{c}", "/carts/{c}?of={id}", "/u/7/c/9"), "/carts/9?of=7");
        assert_eq!(fill("~/v(?P<n>[0-9]+)/x", "/x/{n}", "/v12/x"), "/x/12");
        let p = Pattern::parse("/u/{id}").unwrap();
        assert!(Template::parse("/x/{nope}", &p).unwrap_err().contains("nope"));
        assert!(Template::parse("/x/{id", &p).is_err());
    }

    #[test]
    fn paths_are_read_in_normal_form_and_dot_segments_are_refused() {
        assert!(matches!(normal("/a/b.c/d"), Some(Cow::Borrowed(_))));
        assert_eq!(normal("/%61dmin/%2f%C3%bc").unwrap(), "/admin/%2F%C3%BC");
        for bad in [
            "/a/../b",
            "/a/%2e%2e/b",
            "/./a",
            "/a/..",
            "/%",
            "/%4",
            "/%zz",
            "/a%+1",
            "//admin/x",
            "/a//b",
            "/a//",
            "/p/..%2Fadmin/x",
            "/p/x%2f..%2Fadmin",
            "/p/..;/admin/x",
            "/p/.;a/x",
            r"/p/..\admin/x",
            "/p/%2e%2e%5cadmin",
            r"/p\..\x",
            "/p/a%5C..",
            "/%2e%2e;/x",
        ] {
            assert_eq!(normal(bad), None, "{bad}");
        }
        assert!(normal("/.well-known/x").is_some() && normal("/a/...").is_some());
        for good in ["/a/", "/", "/a;v=1/b", "/a/b%2Fc", r"/a\b", "/a/..b;c", "/a/b..%2Fc"] {
            assert_eq!(normal(good).as_deref(), Some(good));
        }
    }
}
