//! `auth:`, and what policies say of it.

use weft_edge::auth::NAMES;
use weft_edge::auth::spec::{KeysFrom, Place, ProviderKind, ProviderSpec};
use weft_flow::expr::Expr;
use weft_policy::auth::jose::{self, Keys};
use weft_policy::auth::jwt::Rules;
use weft_policy::auth::password;

use super::Lower;
use crate::config::expr::{Cel, complain};
use crate::config::keys::auth::{self as keys, Algorithm, JwtProvider};
use crate::config::keys::policy::Policy;
use crate::config::report::Mistake;
use crate::config::source::{At, Span};
use crate::config::value::{Switch, shorten};

impl Lower<'_, '_, '_> {
    pub(super) fn providers(&mut self) -> Vec<ProviderSpec> {
        let mut out = Vec::new();
        for (entry, p) in self.root.auth.iter().flat_map(|a| a.value.good()) {
            let given = [p.jwt.is_some(), p.api_key.is_some(), p.basic.is_some()].iter().filter(|g| **g).count();
            if given != 1 {
                if !p.broken {
                    let message = format!("auth provider '{}' has {given} kinds, it needs one", entry.name);
                    self.say(Mistake::new(Some(entry.at), message).help("write one of jwt, api_key and basic"));
                }
                continue;
            }
            let kind = match (&p.jwt, &p.api_key, &p.basic) {
                (Some(j), ..) => self.jwt(&j.value),
                (_, Some(k), _) => self.api_key(&k.value),
                (_, _, Some(b)) => self.basic(&b.value),
                _ => None,
            };
            out.extend(kind.map(|kind| ProviderSpec { name: entry.name.clone(), kind }));
        }
        out
    }

    fn jwt(&mut self, j: &JwtProvider) -> Option<ProviderKind> {
        if let Some(ca) = &j.ca {
            self.must_exist(&ca.value, ca.span);
        }
        let keys = self.keys(j)?;
        let texts = |many: &Option<At<crate::config::value::Many<String>>>| {
            many.iter().flat_map(|m| &m.value.0).map(|s| s.value.clone()).collect::<Vec<_>>()
        };
        let algorithms: Vec<_> = j.algorithms.iter().flat_map(|a| &a.value.0).map(|a| algorithm(a.value)).collect();
        let rules = Rules {
            issuer: j.issuer.as_ref().map(|i| i.value.clone()),
            audiences: texts(&j.audience),
            algorithms: if algorithms.is_empty() { jose::Algorithm::ALL.to_vec() } else { algorithms },
            leeway: j.leeway.value,
            required: texts(&j.required),
            principal: j.principal.value.clone(),
            scopes: j.scopes.value.clone(),
            endless: j.endless.value,
        };
        let header = self.header(&j.header)?;
        Some(ProviderKind::Jwt { rules, keys, ca: j.ca.as_ref().map(|c| c.value.clone()), header })
    }

    fn keys(&mut self, j: &JwtProvider) -> Option<KeysFrom> {
        let Some(jwks) = &j.jwks else {
            let Some(issuer) = &j.issuer else {
                self.say(Mistake::new(Some(j.at), "whose tokens are these?").help("write 'issuer:', 'jwks:' or both"));
                return None;
            };
            self.url(&issuer.value, issuer.span, j.insecure.value)?;
            return Some(KeysFrom::Discovery(issuer.value.clone()));
        };
        let (at, jwks) = (jwks.span, &jwks.value);
        match (&jwks.url, &jwks.file, &jwks.keys) {
            (Some(url), None, None) => {
                self.url(&url.value, url.span, j.insecure.value)?;
                Some(KeysFrom::Url(url.value.clone()))
            }
            (None, Some(file), None) => {
                if !self.must_exist(&file.value, file.span) {
                    return None;
                }
                match std::fs::read(&file.value) {
                    Ok(json) => self.fixed(&json, file.span),
                    Err(e) => {
                        self.say(Mistake::new(file.span, format!("{} cannot be read: {e}", file.value.display())));
                        None
                    }
                }
            }
            (None, None, Some(list)) => {
                let set = serde_json::json!({"keys": list.value.0});
                self.fixed(set.to_string().as_bytes(), list.span)
            }
            _ if jwks.broken => None,
            _ => {
                let help = "write one of url, file and keys";
                self.say(Mistake::new(at, "a key set is in one place").help(help));
                None
            }
        }
    }

    fn fixed(&mut self, json: &[u8], at: Option<Span>) -> Option<KeysFrom> {
        match Keys::parse(json) {
            Ok(keys) => Some(KeysFrom::Fixed(keys)),
            Err(e) => {
                self.say(Mistake::new(at, e).help("write the issuer's public keys as JSON Web Keys"));
                None
            }
        }
    }

    /// Keys decide who is believed: they come over TLS, unless they come from this machine.
    fn url(&mut self, url: &str, at: Option<Span>, insecure: bool) -> Option<()> {
        let uri: Option<http::Uri> = url.parse().ok();
        let host = uri.as_ref().and_then(|u| u.host()).map(|h| h.trim_matches(['[', ']']));
        match (uri.as_ref().and_then(|u| u.scheme_str()), host) {
            (Some("https"), Some(_)) => Some(()),
            (Some("http"), Some(h))
                if insecure || h == "localhost" || h.parse().is_ok_and(|a: std::net::IpAddr| a.is_loopback()) =>
            {
                Some(())
            }
            (Some("http"), Some(_)) => {
                let help = "write https, or 'insecure: true' where nobody else can be in between";
                self.say(Mistake::new(at, format!("keys from '{}' could be anybody's", shorten(url))).help(help));
                None
            }
            _ => {
                let message = format!("'{}' is not a URL that keys can be fetched from", shorten(url));
                self.say(Mistake::new(at, message).help("write it like https://id.example.com, or name a 'jwks'"));
                None
            }
        }
    }

    fn api_key(&mut self, k: &keys::ApiKeyProvider) -> Option<ProviderKind> {
        let place = match (&k.header, &k.query) {
            (Some(h), None) => Place::Header(self.header(h)?),
            (None, Some(q)) => Place::Query(q.value.clone()),
            (None, None) => Place::Header("x-api-key".into()),
            (Some(_), Some(q)) => {
                self.say(Mistake::new(q.span, "a key comes in one place").help("keep 'header' or 'query'"));
                return None;
            }
        };
        Some(ProviderKind::ApiKey { place })
    }

    fn basic(&mut self, b: &keys::BasicProvider) -> Option<ProviderKind> {
        let mut right = true;
        for (user, hash) in &b.users.value.0 {
            if user.value.is_empty() || user.value.contains(':') {
                let help = "RFC 7617 ends the user's name at the first ':'";
                self.say(Mistake::new(user.span, format!("'{}' is not a user name", user.value)).help(help));
                right = false;
            }
            if let Err(e) = password::parse(&hash.value) {
                // Never the text itself: people write passwords here.
                let help = "make one with 'weft keys password'";
                self.say(Mistake::new(hash.span, format!("user '{}': {e}", user.value)).help(help));
                right = false;
            }
        }
        if b.users.value.0.is_empty() {
            self.say(Mistake::new(b.users.span, "a provider without users lets nobody in").help("write 'name: hash'"));
            right = false;
        }
        let realm = &b.realm.value;
        if realm.bytes().any(|c| c == b'"' || c == b'\\' || !(b' '..=b'~').contains(&c)) {
            let help = "use printable ASCII without quotes and backslashes";
            self.say(Mistake::new(b.realm.span, format!("'{}' is not a realm", shorten(realm))).help(help));
            right = false;
        }
        let users = b.users.value.0.iter().map(|(u, h)| (u.value.clone(), h.value.clone())).collect();
        right.then(|| ProviderKind::Basic { users, realm: realm.clone() })
    }

    /// A header's name in lower case.
    fn header(&mut self, name: &At<String>) -> Option<String> {
        match http::HeaderName::try_from(&name.value) {
            Ok(n) => Some(n.as_str().to_owned()),
            Err(_) => {
                let message = format!("'{}' is not a header name", shorten(&name.value));
                self.say(Mistake::new(name.span, message).help("use letters, digits and '-'"));
                None
            }
        }
    }

    /// Checks what one policy says of `auth`.
    pub(super) fn check_auth(&mut self, p: &Policy) {
        let Some(At { value: Switch::On(keys::AuthUse(a)), span }) = &p.auth else { return };
        for name in a.providers.iter().flat_map(|n| &n.value.0) {
            let declared = self.root.auth.as_ref().map(|a| &a.value);
            if declared.is_none_or(|d| d.get(&name.value).is_none()) {
                self.unknown("auth provider", name, declared.into_iter().flat_map(|d| d.names()));
            }
        }
        let asks_who = a.providers.as_ref().is_some_and(|n| !n.value.0.is_empty());
        let asks = asks_who || a.allow.is_some() || a.deny.is_some() || a.require.is_some();
        if let Some(s) = &a.scopes
            && (!asks_who || a.optional.value)
        {
            let message = "nobody anonymous has a scope: this would let nobody in that comes without a credential";
            self.say(Mistake::new(s.span, message).help("name providers with 'use', without 'optional'"));
        } else if !asks && !a.broken {
            let help = "name providers with 'use', or write 'auth: off'";
            self.say(Mistake::new(*span, "this asks nothing of a caller").help(help));
        }
        if let Some(r) = &a.require {
            self.condition(r);
        }
        for (name, value) in a.headers.iter().flat_map(|h| &h.value.0) {
            self.header(name);
            self.condition(value);
        }
    }

    fn condition(&mut self, cel: &At<Cel>) {
        let Some(span) = cel.span else { return };
        for m in Expr::compile(&cel.value.text, NAMES).err().unwrap_or_default() {
            complain(&m, &cel.value.text, span, cel.value.verbatim, self.cx);
        }
    }
}

fn algorithm(a: Algorithm) -> jose::Algorithm {
    match a {
        Algorithm::Rs256 => jose::Algorithm::Rs256,
        Algorithm::Rs384 => jose::Algorithm::Rs384,
        Algorithm::Rs512 => jose::Algorithm::Rs512,
        Algorithm::Ps256 => jose::Algorithm::Ps256,
        Algorithm::Ps384 => jose::Algorithm::Ps384,
        Algorithm::Ps512 => jose::Algorithm::Ps512,
        Algorithm::Es256 => jose::Algorithm::Es256,
        Algorithm::Es384 => jose::Algorithm::Es384,
        Algorithm::EdDsa => jose::Algorithm::EdDsa,
    }
}
