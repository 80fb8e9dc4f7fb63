//! What an Idempotency-Key (IETF httpapi draft) decides, without knowing how requests look or where answers are kept.

use std::time::Duration;

use weft_core::{Context, Principal, Timestamp, limits};

use crate::error::Refused;
use crate::spec;

/// SHA-256 of what must be the same for a request to be the same: method, path, query and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// What is known about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known<T> {
    /// The first request's.
    pub fingerprint: Fingerprint,
    /// Where its work stands.
    pub state: State<T>,
    /// When the key is forgotten.
    pub expires: Timestamp,
}

/// Where the first request's work stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State<T> {
    /// Under way.
    InFlight,
    /// Finished with this answer.
    Finished(T),
}

/// What to do with a request that carries a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<T> {
    /// Do the work.
    Run,
    /// Give the stored answer.
    Answer(T),
}

/// The key to use for a request: `None` when it has none and needs none.
pub fn key<'a>(spec: &spec::Idempotency, ctx: &'a Context) -> Result<Option<&'a str>, Refused> {
    let Some(key) = ctx.idempotency_key.as_deref() else {
        return if spec.required { Err(Refused::KeyMissing) } else { Ok(None) };
    };
    if key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES {
        return Err(Refused::KeyInvalid { bytes: key.len() });
    }
    if ctx.principal == Principal::Anonymous && !spec.public {
        return Err(Refused::KeyAnonymous);
    }
    Ok(Some(key))
}

/// Whose key it is: two principals or two routes never meet on one key. The parts' lengths are in it, so no choice of
/// names makes two scopes the same.
pub fn scope(principal: &Principal, route: &str, key: &str) -> String {
    match principal {
        Principal::Anonymous => format!("a/{}:{route}/{key}", route.len()),
        Principal::Named(n) => format!("p/{}:{n}/{}:{route}/{key}", n.len(), route.len()),
    }
}

/// Compares a request with what is known about its key.
pub fn decide<T>(known: Option<Known<T>>, given: &Fingerprint, now: Timestamp) -> Result<Decision<T>, Refused> {
    match known {
        None => Ok(Decision::Run),
        Some(k) if k.expires <= now => Ok(Decision::Run),
        Some(k) if k.fingerprint != *given => Err(Refused::KeyReused),
        Some(Known { state: State::InFlight, .. }) => Err(Refused::KeyInFlight),
        Some(Known { state: State::Finished(answer), .. }) => Ok(Decision::Answer(answer)),
    }
}

/// Whether an answer with this HTTP status is kept for the key. Others release it, so that the work can be tried
/// again: 5xx, and those 4xx that say "not now" (408, 409, 425, 429).
pub fn keeps(status: u16) -> bool {
    matches!(status, 200..=299 | 400..=499) && !matches!(status, 408 | 409 | 425 | 429)
}

/// How long a key stays in flight when its process dies: the work's deadline, or `keep` without one.
pub fn in_flight_for(spec: &spec::Idempotency, deadline: Option<Duration>) -> Duration {
    deadline.map_or(spec.keep, |d| d.min(spec.keep))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const A: Fingerprint = Fingerprint([1; 32]);
    const B: Fingerprint = Fingerprint([2; 32]);

    fn known(state: State<&'static str>) -> Option<Known<&'static str>> {
        Some(Known { fingerprint: A, state, expires: Timestamp(100) })
    }

    #[test]
    fn the_first_runs_a_second_waits_a_third_gets_the_stored_answer() {
        let now = Timestamp(50);
        assert_eq!(decide::<()>(None, &A, now), Ok(Decision::Run));
        assert_eq!(decide(known(State::InFlight), &A, now), Err(Refused::KeyInFlight));
        assert_eq!(decide(known(State::Finished("ok")), &A, now), Ok(Decision::Answer("ok")));
    }

    #[test]
    fn the_same_key_for_another_payload_is_refused_even_in_flight() {
        for state in [State::InFlight, State::Finished("ok")] {
            assert_eq!(decide(known(state), &B, Timestamp(50)), Err(Refused::KeyReused));
        }
    }

    #[test]
    fn a_forgotten_key_runs_again() {
        assert_eq!(decide(known(State::Finished("ok")), &B, Timestamp(100)), Ok(Decision::Run));
    }

    #[test]
    fn final_answers_are_kept_and_passing_ones_release_the_key() {
        for s in [200, 201, 204, 400, 402, 404, 410, 422, 499] {
            assert!(keeps(s), "{s}");
        }
        for s in [100, 301, 304, 408, 409, 425, 429, 500, 502, 503, 504] {
            assert!(!keeps(s), "{s}");
        }
    }

    #[test]
    fn a_key_is_checked_against_what_the_route_says() {
        let (open, required) = (
            spec::Idempotency { public: true, ..Default::default() },
            spec::Idempotency { required: true, ..Default::default() },
        );
        let mut ctx = Context::root();
        assert_eq!(key(&open, &ctx), Ok(None));
        assert_eq!(key(&required, &ctx), Err(Refused::KeyMissing));
        ctx.idempotency_key = Some("k".into());
        assert_eq!(key(&open, &ctx), Ok(Some("k")));
        assert_eq!(key(&required, &ctx), Err(Refused::KeyAnonymous));
        ctx.principal = Principal::Named("ann".into());
        assert_eq!(key(&required, &ctx), Ok(Some("k")));
        for (bad, bytes) in [("".to_owned(), 0), ("x".repeat(256), 256)] {
            ctx.idempotency_key = Some(Arc::from(bad));
            assert_eq!(key(&required, &ctx), Err(Refused::KeyInvalid { bytes }));
        }
    }

    #[test]
    fn no_two_scopes_meet() {
        let p = |n: &str| Principal::Named(n.into());
        let all = [
            scope(&Principal::Anonymous, "r", "k"),
            scope(&p("anonymous"), "r", "k"),
            scope(&p("a"), "r", "k"),
            scope(&p("a"), "r/k", ""),
            scope(&p("a/1:r"), "r", "k"),
            scope(&p("a"), "r2", "k"),
        ];
        let unique: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
    }
}
