//! The one place that says what an answer or a failure means: its [`Class`], whether the breaker counts it, and
//! whether anything can have happened on the other side.
//!
//! | seen | class | breaker | nothing happened |
//! |---|---|---|---|
//! | HTTP 1xx, 2xx, 3xx; gRPC OK | success | no | |
//! | connect failure, refused stream | retryable | yes | yes |
//! | reset before the first byte of the answer | retryable | yes | not known |
//! | reset in the middle of the answer | fault | yes | not known |
//! | our own timeout | fault | yes | not known |
//! | 502, 503, 504; UNAVAILABLE | retryable | yes | not known |
//! | ABORTED | retryable | no | not known |
//! | 429; RESOURCE_EXHAUSTED | overloaded | no | not known |
//! | other 4xx, 501, 505; INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, UNIMPLEMENTED ... | rejected | no | |
//! | other 5xx; INTERNAL, UNKNOWN, DATA_LOSS, DEADLINE_EXCEEDED | fault | yes | not known |
//! | CANCELLED | fault | no | not known |

use std::time::Duration;

use weft_core::{Class, limits};

/// What one attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it failed; `None` = it did not.
    pub failure: Option<Class>,
    /// Whether the breaker counts it as a failure.
    pub breaker: bool,
    /// Whether it is certain that the other side did not begin the work.
    pub unsent: bool,
    /// When the other side asks to be called again.
    pub retry_after: Option<Duration>,
}

/// An answer or an error that can say what it came to.
pub trait Judged {
    /// What it came to.
    fn outcome(&self) -> Outcome;

    /// Whether the caller broke it off, so that it says nothing about the other side.
    fn blames_caller(&self) -> bool {
        false
    }
}

/// How an exchange broke below its protocol's own answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// No connection, or the other side said it took nothing (HTTP/2 REFUSED_STREAM, GOAWAY below the stream).
    NeverSent,
    /// The connection ended after sending began and before the answer's first byte.
    ResetBeforeBytes,
    /// The connection ended in the middle of the answer.
    ResetAfterBytes,
    /// Our own patience ended.
    Timeout,
}

impl Outcome {
    /// All went well.
    pub const SUCCESS: Outcome = Outcome { failure: None, breaker: false, unsent: false, retry_after: None };

    /// A failure of a class that reached the other side.
    pub const fn failed(class: Class, breaker: bool) -> Outcome {
        Outcome { failure: Some(class), breaker, unsent: false, retry_after: None }
    }

    /// Whether it went well.
    pub fn is_success(&self) -> bool {
        self.failure.is_none()
    }

    /// Whether the work may have taken effect although nobody said so: it reached the other side, which neither did it
    /// nor refused it by its own word.
    pub fn in_doubt(&self) -> bool {
        matches!(self.failure, Some(Class::Retryable | Class::Fault)) && !self.unsent
    }

    /// The same, with what the other side said about coming back.
    pub fn with_retry_after(self, retry_after: Option<Duration>) -> Outcome {
        Outcome { retry_after, ..self }
    }
}

/// An HTTP status.
#[inline]
pub fn classify_http(status: u16) -> Outcome {
    match status {
        100..=399 => Outcome::SUCCESS,
        429 => Outcome::failed(Class::Overloaded, false),
        // 501 and 505 will be said again to the same request.
        400..=499 | 501 | 505 => Outcome::failed(Class::Rejected, false),
        502..=504 => Outcome::failed(Class::Retryable, true),
        _ => Outcome::failed(Class::Fault, true),
    }
}

/// A gRPC status code; codes above 16 are read as UNKNOWN, as the gRPC specification asks.
#[inline]
pub fn classify_grpc(code: u32) -> Outcome {
    match code {
        0 => Outcome::SUCCESS,
        // CANCELLED: somebody gave up; no sign that the service is ill.
        1 => Outcome::failed(Class::Fault, false),
        // DEADLINE_EXCEEDED: the work may have been done.
        4 => Outcome::failed(Class::Fault, true),
        8 => Outcome::failed(Class::Overloaded, false),
        // ABORTED: a conflict with other work, which took nothing.
        10 => Outcome::failed(Class::Retryable, false),
        14 => Outcome::failed(Class::Retryable, true),
        // INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION, OUT_OF_RANGE,
        // UNIMPLEMENTED, UNAUTHENTICATED
        3 | 5 | 6 | 7 | 9 | 11 | 12 | 16 => Outcome::failed(Class::Rejected, false),
        // UNKNOWN, INTERNAL, DATA_LOSS
        _ => Outcome::failed(Class::Fault, true),
    }
}

/// The HTTP status that answers a push. Only 2xx takes the message: a redirect is not followed, so it is a refusal.
pub fn classify_push(status: u16) -> Outcome {
    match status {
        200..=299 => Outcome::SUCCESS,
        100..=199 | 300..=399 => Outcome::failed(Class::Rejected, false),
        other => classify_http(other),
    }
}

/// A broken exchange.
pub fn classify_transport(t: Transport) -> Outcome {
    match t {
        Transport::NeverSent => Outcome { unsent: true, ..Outcome::failed(Class::Retryable, true) },
        Transport::ResetBeforeBytes => Outcome::failed(Class::Retryable, true),
        Transport::ResetAfterBytes | Transport::Timeout => Outcome::failed(Class::Fault, true),
    }
}

/// Reads `Retry-After` in its seconds form (RFC 9110 10.2.3); the date form depends on two clocks agreeing and is
/// not read.
pub fn parse_retry_after(value: &str) -> Option<Duration> {
    let v = value.trim();
    if v.is_empty() || !v.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    v.parse().ok().map(Duration::from_secs)
}

/// Reads `grpc-retry-pushback-ms` (gRFC A6): when to come back, or, from a negative or unreadable number, never, which
/// is longer than anybody waits ([`limits::RETRY_AFTER`]).
pub fn parse_retry_pushback(value: &str) -> Duration {
    match value.trim().parse::<i64>() {
        Ok(ms) if ms >= 0 => Duration::from_millis(ms as u64),
        _ => limits::RETRY_AFTER + Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(o: Outcome) -> (Option<Class>, bool) {
        (o.failure, o.breaker)
    }

    #[test]
    fn http_statuses_fall_into_the_documented_classes() {
        for s in [100, 101, 200, 204, 299, 301, 304] {
            assert!(classify_http(s).is_success(), "{s}");
        }
        for s in [400, 401, 403, 404, 408, 409, 422, 425, 499, 501, 505] {
            assert_eq!(shown(classify_http(s)), (Some(Class::Rejected), false), "{s}");
        }
        for s in [502, 503, 504] {
            assert_eq!(shown(classify_http(s)), (Some(Class::Retryable), true), "{s}");
        }
        for s in [500, 507, 599, 600, 0, 99] {
            assert_eq!(shown(classify_http(s)), (Some(Class::Fault), true), "{s}");
        }
        assert_eq!(shown(classify_http(429)), (Some(Class::Overloaded), false));
    }

    #[test]
    fn grpc_codes_fall_into_the_documented_classes() {
        assert!(classify_grpc(0).is_success());
        for c in [3, 5, 6, 7, 9, 11, 12, 16] {
            assert_eq!(shown(classify_grpc(c)), (Some(Class::Rejected), false), "{c}");
        }
        for c in [2, 4, 13, 15, 17, 900] {
            assert_eq!(shown(classify_grpc(c)), (Some(Class::Fault), true), "{c}");
        }
        assert_eq!(shown(classify_grpc(1)), (Some(Class::Fault), false));
        assert_eq!(shown(classify_grpc(8)), (Some(Class::Overloaded), false));
        assert_eq!(shown(classify_grpc(10)), (Some(Class::Retryable), false));
        assert_eq!(shown(classify_grpc(14)), (Some(Class::Retryable), true));
    }

    #[test]
    fn only_a_call_that_never_left_is_known_to_have_done_nothing() {
        assert!(classify_transport(Transport::NeverSent).unsent);
        for t in [Transport::ResetBeforeBytes, Transport::ResetAfterBytes, Transport::Timeout] {
            let o = classify_transport(t);
            assert!(!o.unsent && o.breaker && !o.is_success(), "{t:?}");
        }
        for s in 400..600 {
            assert!(!classify_http(s).unsent);
        }
    }

    #[test]
    fn a_push_is_taken_by_2xx_only() {
        assert!(classify_push(202).is_success());
        for s in [101, 301, 302, 404, 410] {
            assert_eq!(classify_push(s).failure, Some(Class::Rejected), "{s}");
        }
        assert_eq!(classify_push(503).failure, Some(Class::Retryable));
    }

    #[test]
    fn a_pushback_below_zero_or_unreadable_means_never() {
        assert_eq!(parse_retry_pushback("250"), Duration::from_millis(250));
        for never in ["-1", "soon", "", "99999999999999999999"] {
            assert!(parse_retry_pushback(never) > limits::RETRY_AFTER, "{never}");
        }
    }

    #[test]
    fn retry_after_reads_seconds_and_nothing_else() {
        assert_eq!(parse_retry_after(" 120 "), Some(Duration::from_secs(120)));
        for bad in ["", "-1", "+5", "1.5", "Fri, 31 Dec 1999 23:59:59 GMT", "99999999999999999999999"] {
            assert_eq!(parse_retry_after(bad), None, "{bad}");
        }
    }
}
