//! The one place where what went wrong becomes an answer: an HTTP status with problem+json, or, to a gRPC call, a
//! trailers-only answer with `grpc-status`.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use weft_policy::Refused;

use crate::api::problem::{Code, Problem, code};

/// What policy refused.
pub fn refused(r: &Refused) -> Problem {
    let code = match r {
        Refused::BreakerOpen { .. } => code::BREAKER_OPEN,
        Refused::BulkheadFull { .. } => code::BULKHEAD_FULL,
        Refused::BulkheadWait { .. } => code::BULKHEAD_WAIT,
        Refused::RateLimited { .. } => code::RATE_LIMITED,
        Refused::DeadlinePassed => code::DEADLINE_EXCEEDED,
        Refused::KeyMissing => code::IDEMPOTENCY_KEY_MISSING,
        Refused::KeyInvalid { .. } => code::IDEMPOTENCY_KEY_INVALID,
        Refused::KeyAnonymous => code::IDEMPOTENCY_KEY_ANONYMOUS,
        Refused::KeyInFlight => code::IDEMPOTENCY_IN_FLIGHT,
        Refused::KeyReused => code::IDEMPOTENCY_KEY_REUSED,
    };
    debug_assert_eq!(code.name, r.code());
    let p = Problem::new(code, r.to_string());
    match r.retry_after() {
        Some(wait) => p.with_retry_after(wait),
        None => p,
    }
}

/// What a service, or the way to it, failed with.
pub fn upstream(e: &weft_mesh::Error) -> Problem {
    use weft_mesh::Error as E;
    let code = match e {
        E::NoInstances { .. } => code::NO_INSTANCE,
        E::Connect { .. } => code::UPSTREAM_UNREACHABLE,
        E::Unsent { .. } | E::ResetBeforeBytes { .. } | E::ResetAfterBytes { .. } | E::AnswerTooLarge { .. } => {
            code::UPSTREAM_BROKEN
        }
        E::RequestBody { .. } | E::InvalidRequest { .. } => code::BAD_REQUEST,
        E::OwnListener { .. } | E::TlsFile { .. } | E::Tls { .. } => code::UPSTREAM_INVALID,
        E::NotRegistered { .. } => code::NOT_FOUND,
        E::InvalidRegistration { .. } => code::BAD_REQUEST,
        E::TooManyInstances { .. } | E::TooManyServices => code::OVERLOADED,
        E::BodySpent => code::INTERNAL,
        E::Store(e) => return e.clone().into(),
    };
    let p = Problem::new(code, e.to_string());
    if matches!(e, E::NoInstances { .. }) { p.with_retry_after(std::time::Duration::from_secs(1)) } else { p }
}

/// Whether a request is a gRPC call, and so is to be answered in gRPC's own way.
pub fn is_grpc(h: &HeaderMap) -> bool {
    h.get(header::CONTENT_TYPE).is_some_and(|v| {
        let v = v.as_bytes();
        v.starts_with(b"application/grpc") && matches!(v.get(16), None | Some(b'+' | b';'))
    })
}

/// The answer to a problem.
pub fn problem<B: From<Bytes>>(p: &Problem, grpc: bool) -> Response<B> {
    if !grpc {
        return p.to_response();
    }
    // gRPC over HTTP/2, Responses: Trailers-Only.
    let mut r = Response::new(B::from(Bytes::new()));
    let h = r.headers_mut();
    h.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    h.insert("grpc-status", HeaderValue::from(grpc_status(p.code())));
    let message = utf8_percent_encode(p.detail(), MESSAGE).to_string();
    h.insert("grpc-message", HeaderValue::try_from(message).expect("percent-encoded text is ASCII"));
    for name in [header::RETRY_AFTER, header::WWW_AUTHENTICATE] {
        if let Some(v) = p.headers().get(&name) {
            h.insert(name, v.clone());
        }
    }
    r
}

/// gRPC over HTTP/2, `Status-Message`: everything but printable ASCII, and `%`, is percent-encoded.
const MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

fn grpc_status(c: Code) -> u16 {
    match c {
        code::DEADLINE_EXCEEDED | code::UPSTREAM_TIMEOUT | code::REQUEST_TIMEOUT => 4,
        code::RATE_LIMITED
        | code::QUOTA_EXCEEDED
        | code::TOO_LARGE
        | code::BULKHEAD_FULL
        | code::BULKHEAD_WAIT
        | code::OVERLOADED => 8,
        code::IDEMPOTENCY_IN_FLIGHT => 10,
        code::IDEMPOTENCY_KEY_REUSED | code::PRECONDITION_FAILED => 9,
        code::ROUTE_NOT_FOUND | code::METHOD_NOT_ALLOWED | code::NOT_IMPLEMENTED | code::UNSUPPORTED_MEDIA_TYPE => 12,
        code::UNAUTHENTICATED | code::CLIENT_CERTIFICATE_REQUIRED => 16,
        c => match StatusCode::from_u16(c.status).unwrap_or_default().as_u16() {
            403 => 7,
            404 => 5,
            502..=504 => 14,
            400..=499 => 3,
            _ => 13,
        },
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
pub fn grpc_timeout(h: &HeaderMap) -> Option<std::time::Duration> {
    use std::time::Duration;
    let v = h.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = v.split_at_checked(v.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_grpc_call_is_told_from_other_content() {
        let is =
            |v: &'static str| is_grpc(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(v))]));
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc;x=y"));
        assert!(!is("application/grpc-web") && !is("application/json"));
    }

    #[test]
    fn a_problem_on_a_grpc_call_is_trailers_only_with_status_and_message() {
        let p = Problem::new(code::BREAKER_OPEN, "zu – 100 %").with_retry_after(Duration::from_secs(2));
        let r: Response<axum::body::Body> = problem(&p, true);
        assert_eq!((r.status(), &r.headers()["grpc-status"]), (StatusCode::OK, &HeaderValue::from_static("14")));
        assert_eq!(r.headers()["grpc-message"], "zu %E2%80%93 100 %25");
        assert_eq!(r.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn every_refusal_has_the_code_it_names_and_an_error_status() {
        let d = Duration::from_secs(1);
        for r in [
            Refused::BreakerOpen { retry_after: d },
            Refused::BulkheadFull { limit: 1, queue: 0 },
            Refused::BulkheadWait { limit: 1, waited: d },
            Refused::RateLimited { retry_after: d },
            Refused::DeadlinePassed,
            Refused::KeyMissing,
            Refused::KeyInvalid { bytes: 0 },
            Refused::KeyAnonymous,
            Refused::KeyInFlight,
            Refused::KeyReused,
        ] {
            let p = refused(&r);
            assert_eq!(p.code().name, r.code());
            assert_eq!(p.headers().contains_key(header::RETRY_AFTER), r.retry_after().is_some());
        }
    }

    #[test]
    fn grpc_timeouts_read_as_the_specification_writes_them() {
        let read =
            |v: &str| grpc_timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), v.parse().unwrap())]));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "1", "123456789S", "-1S", "1x", "1é"] {
            let h = HeaderValue::from_bytes(bad.as_bytes()).unwrap();
            assert_eq!(grpc_timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), h)])), None, "{bad}");
        }
    }
}
