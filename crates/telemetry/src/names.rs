//! Every metric of the product, named once. `docs/reference/telemetry.md` lists them for users, and a test holds the
//! two together.

use crate::metrics::{Def, Kind};

macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident = $kind:ident $name:literal, $help:literal;)*) => {
        $(#[doc = $help] pub static $id: Def = Def { name: $name, help: $help, kind: Kind::$kind };)*
        /// All of them.
        pub static ALL: &[&Def] = &[$(&$id),*];
    };
}

metrics! {
    HTTP_REQUESTS = Counter "weft_http_requests_total", "Requests the gateway answered, by route and status code.";
    HTTP_REQUEST_DURATION = Histogram "weft_http_request_duration_seconds", "From a request's head to the end of its answer's body, by route.";
    HTTP_REQUESTS_IN_FLIGHT = Gauge "weft_http_requests_in_flight", "Requests being worked on, streams included.";
    MIRRORED = Counter "weft_mirrored_total", "Copies of requests, by route and result (same, different, failed, skipped).";
    ACCESS_LINES_DROPPED = Counter "weft_access_log_dropped_total", "Lines of the access log dropped because its writer did not keep up.";

    AUTH_DECISIONS = Counter "weft_auth_decisions_total", "Callers judged, by provider (`none`: before or without one) and result (ok, cached, anonymous, missing, invalid, expired, unknown-key, unavailable, forbidden, would-forbid, address, limited).";
    AUTH_KEY_FETCHES = Counter "weft_auth_key_fetches_total", "Fetches of an issuer's key set, by provider and result (ok, failed).";

    POLICY_REFUSED = Counter "weft_policy_refused_total", "Work refused before it was sent, by policy and reason (rate-limited, bulkhead, breaker-open).";
    RETRIES = Counter "weft_retries_total", "Attempts after the first, by policy.";
    RETRY_BUDGET_SPENT = Counter "weft_retry_budget_spent_total", "Retries not made because the retry budget was used up, by policy.";
    HEDGES = Counter "weft_hedges_total", "Attempts that went out beside a slow one, by policy.";
    HEDGES_WON = Counter "weft_hedges_won_total", "Hedges whose answer came first, by policy.";
    BREAKER_STATE = Gauge "weft_breaker_state", "0 closed, 1 half-open, 2 open, by policy.";
    BREAKER_OPENED = Counter "weft_breaker_opened_total", "Times the breaker opened, by policy.";
    BULKHEAD_IN_FLIGHT = Gauge "weft_bulkhead_in_flight", "Places taken in the bulkhead, by policy.";
    BULKHEAD_WAITING = Gauge "weft_bulkhead_waiting", "Work waiting for a place in the bulkhead, by policy.";
    BULKHEAD_LIMIT = Gauge "weft_bulkhead_limit", "Places in the bulkhead, by policy.";
    FALLBACKS = Counter "weft_fallbacks_total", "Answers that a route's fallback gave, by route.";
    RATE_CROWDED = Counter "weft_rate_crowded_total", "Times a caller was counted together with others because the rate's table was full, by policy.";
    VERSION_REQUESTS = Counter "weft_version_requests_total", "Requests by route and version of its API.";
    QUOTA_REFUSED = Counter "weft_quota_refused_total", "Requests refused because a quota was used up, by route and quota.";
    QUOTA_CROWDED = Counter "weft_quota_crowded_total", "Times a caller was counted together with others because the quotas' table was full.";

    UPSTREAM_REQUESTS = Counter "weft_upstream_requests_total", "Attempts sent to a service, by service and outcome (success, retryable, overloaded, rejected, fault).";
    UPSTREAM_DURATION = Histogram "weft_upstream_duration_seconds", "From sending an attempt to the head of its answer, by service.";
    UPSTREAM_CONNECTS = Counter "weft_upstream_connects_total", "Connections opened to instances, by service and result (ok, failed).";
    UPSTREAM_REUSED = Counter "weft_upstream_reused_total", "Attempts sent on a connection that was open already, by service.";
    UPSTREAM_IN_FLIGHT = Gauge "weft_upstream_in_flight", "Attempts under way, streaming answers included, by service.";
    INSTANCES = Gauge "weft_instances", "Instances of a service, by service and state (healthy, unhealthy, ejected).";
    EJECTIONS = Counter "weft_ejections_total", "Times an instance was taken out for its answers, by service and reason (errors, gateway-errors, success-rate).";

    MESSAGES_PUBLISHED = Counter "weft_messages_published_total", "Messages stored, by channel.";
    MESSAGES_DUPLICATE = Counter "weft_messages_duplicate_total", "Publishes answered from the dedup window, by channel.";
    MESSAGES_DELIVERED = Counter "weft_messages_delivered_total", "Deliveries, repeated ones included, by subscription.";
    MESSAGES_ACKED = Counter "weft_messages_acked_total", "Messages acknowledged, by subscription.";
    MESSAGES_RETRIED = Counter "weft_messages_retried_total", "Deliveries that failed and will be repeated, by subscription.";
    MESSAGES_DEAD_LETTERED = Counter "weft_messages_dead_lettered_total", "Messages given up and set aside, by subscription.";
    MESSAGES_DAMAGED = Counter "weft_messages_damaged_total", "Messages passed over because their record failed its checksum, by subscription.";
    MESSAGES_READY = Gauge "weft_messages_ready", "Messages waiting for delivery, by subscription.";
    MESSAGES_IN_FLIGHT = Gauge "weft_messages_in_flight", "Messages under lease, by subscription.";

    SAGAS_STARTED = Counter "weft_sagas_started_total", "Sagas started, by saga.";
    SAGAS_ENDED = Counter "weft_sagas_ended_total", "Sagas that ended, by saga and status (completed, compensated, parked).";
    SAGA_DURATION = Histogram "weft_saga_duration_seconds", "From a saga's start to its end, by saga.";
    SAGA_STEPS = Counter "weft_saga_steps_total", "Step attempts, by saga, step and outcome (success, retryable, overloaded, rejected, fault).";
    SAGA_STEP_DURATION = Histogram "weft_saga_step_duration_seconds", "One attempt at a step, its policy's retries included, by saga and step (`:undo` for the compensation).";
    SAGAS_RUNNING = Gauge "weft_sagas_running", "Sagas under way, by saga.";

    SPANS_OFFERED = Counter "weft_spans_offered_total", "Spans that ended.";
    SPANS_RECORDED = Counter "weft_spans_recorded_total", "Spans that the tail rule kept.";
    SPANS_HELD = Gauge "weft_spans_held", "Spans in the ring now.";
    METRIC_SERIES_DROPPED = Counter "weft_metric_series_dropped_total", "Metric series left out because there were too many.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        let mut seen = std::collections::HashSet::new();
        for d in ALL {
            assert!(seen.insert(d.name), "{} twice", d.name);
            assert!(d.name.starts_with("weft_") && d.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert_eq!(d.kind == Kind::Counter, d.name.ends_with("_total"), "{}", d.name);
            assert_eq!(d.kind == Kind::Histogram, d.name.ends_with("_seconds"), "{}", d.name);
            assert!(d.help.ends_with('.'), "{}", d.name);
        }
    }

    #[test]
    fn the_reference_lists_every_metric_and_no_other() {
        let page = include_str!("../../../docs/reference/telemetry.md");
        let listed: std::collections::BTreeSet<&str> =
            page.lines().filter_map(|l| l.strip_prefix("| `weft_")?.split('`').next()).collect();
        let known = ALL.iter().map(|d| &d.name["weft_".len()..]).collect();
        assert_eq!(listed, known);
    }
}
