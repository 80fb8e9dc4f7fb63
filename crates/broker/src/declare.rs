//! Declarations made at run time: the members of `weft.yaml` as JSON, checked into the same specs.
//!
//! What the store keeps is the JSON as it was given, so that a later version reads it with its own defaults.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use weft_core::{Name, limits, units};
use weft_policy::Policy;

use crate::spec::{
    Dedup, DedupBy, Push, QueueSpec, Redelivery, StartFrom, SubscriptionMode, SubscriptionSpec, TopicSpec,
};
use crate::{Error, Result};

/// The default lease of a delivery.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
const CONCURRENCY: u32 = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Queue {
    lease: Option<String>,
    retry: Option<Retry>,
    dead_letter: Option<Name>,
    dedup: Option<Repeat>,
    max_messages: Option<u64>,
    durability: Option<Durability>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    partitions: Option<u32>,
    key: Option<String>,
    retention: Option<String>,
    dedup: Option<Repeat>,
    durability: Option<Durability>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subscription {
    topic: Name,
    mode: Option<SubscriptionMode>,
    filter: Option<String>,
    from: Option<StartFrom>,
    retry: Option<Retry>,
    dead_letter: Option<Name>,
    lease: Option<String>,
    push: Option<PushTo>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PushTo {
    service: Name,
    path: Option<String>,
    concurrency: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    attempts: Option<u32>,
    backoff: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Repeat {
    By(String),
    Full(RepeatFull),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RepeatFull {
    by: Option<String>,
    window: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Durability {
    Fsync,
    Relaxed,
}

/// Reads a queue's members.
pub fn queue(name: Name, members: &Value) -> Result<QueueSpec> {
    let at = Place { kind: "queue", name: name.clone() };
    let q: Queue = at.read(members)?;
    Ok(QueueSpec {
        redelivery: at.redelivery(q.retry)?,
        dead_letter: q.dead_letter,
        lease: at.lease(q.lease)?,
        dedup: at.dedup(q.dedup)?,
        max_messages: q.max_messages,
        relaxed: q.durability == Some(Durability::Relaxed),
        name,
    })
}

/// Reads a topic's members.
pub fn topic(name: Name, members: &Value) -> Result<TopicSpec> {
    let at = Place { kind: "topic", name: name.clone() };
    let t: Topic = at.read(members)?;
    let partitions = t.partitions.unwrap_or(1);
    if partitions == 0 || partitions > limits::TOPIC_PARTITIONS {
        return Err(at.wrong("partitions", format!("{partitions} is not from 1 to {}", limits::TOPIC_PARTITIONS)));
    }
    Ok(TopicSpec {
        partitions,
        key: t.key,
        retention: t.retention.map(|d| at.duration("retention", &d)).transpose()?,
        dedup: at.dedup(t.dedup)?,
        relaxed: t.durability == Some(Durability::Relaxed),
        name,
    })
}

/// Reads a subscription's members. A push calls under the built-in policy, without retries of its own.
pub fn subscription(name: Name, members: &Value) -> Result<SubscriptionSpec> {
    let at = Place { kind: "subscription", name: name.clone() };
    let s: Subscription = at.read(members)?;
    let push = s.push.map(|p| -> Result<Push> {
        let concurrency = p.concurrency.unwrap_or(CONCURRENCY);
        if concurrency == 0 || concurrency > limits::PUSH_CONCURRENCY {
            let what = format!("{concurrency} is not from 1 to {}", limits::PUSH_CONCURRENCY);
            return Err(at.wrong("push.concurrency", what));
        }
        let path = p.path.unwrap_or_else(|| "/".into());
        if !path.starts_with('/') {
            return Err(at.wrong("push.path", format!("'{path}' does not start with '/'")));
        }
        Ok(Push { service: p.service, path, policy: Policy::builtin(), concurrency })
    });
    Ok(SubscriptionSpec {
        topic: s.topic,
        mode: s.mode.unwrap_or_default(),
        filter: s.filter,
        from: s.from.unwrap_or_default(),
        redelivery: at.redelivery(s.retry)?,
        dead_letter: s.dead_letter,
        lease: at.lease(s.lease)?,
        push: push.transpose()?,
        name,
    })
}

struct Place {
    kind: &'static str,
    name: Name,
}

impl Place {
    fn wrong(&self, member: &str, reason: impl ToString) -> Error {
        Error::Declaration { place: format!("{} '{}' {member}", self.kind, self.name), reason: reason.to_string() }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, members: &Value) -> Result<T> {
        serde_json::from_value(members.clone())
            .map_err(|e| Error::Declaration { place: format!("{} '{}'", self.kind, self.name), reason: e.to_string() })
    }

    fn duration(&self, member: &str, text: &str) -> Result<Duration> {
        units::parse_duration(text).map_err(|e| self.wrong(member, e))
    }

    fn lease(&self, text: Option<String>) -> Result<Duration> {
        let lease = text.map(|t| self.duration("lease", &t)).transpose()?.unwrap_or(LEASE);
        if lease.is_zero() || lease > limits::LEASE {
            return Err(self.wrong("lease", format!("is not from 1ms to {}", units::format_duration(limits::LEASE))));
        }
        Ok(lease)
    }

    fn redelivery(&self, retry: Option<Retry>) -> Result<Redelivery> {
        let mut r = Redelivery::default();
        let Some(retry) = retry else { return Ok(r) };
        if let Some(n) = retry.attempts {
            if n == 0 {
                return Err(self.wrong("retry.attempts", "must be at least 1"));
            }
            r.attempts = n;
        }
        if let Some(b) = retry.backoff {
            let (min, max) = b.split_once("..").unwrap_or((&b, &b));
            r.backoff_min = self.duration("retry.backoff", min)?;
            r.backoff_max = self.duration("retry.backoff", max)?;
            if r.backoff_min > r.backoff_max {
                return Err(self.wrong("retry.backoff", format!("'{b}' starts above its end")));
            }
        }
        Ok(r)
    }

    fn dedup(&self, repeat: Option<Repeat>) -> Result<Dedup> {
        let (by, window) = match repeat {
            None => return Ok(Dedup::default()),
            Some(Repeat::By(by)) => (Some(by), None),
            Some(Repeat::Full(f)) => (f.by, f.window),
        };
        let default = Dedup::default();
        Ok(Dedup {
            by: match by.as_deref() {
                None | Some("explicit") => DedupBy::Explicit,
                Some("ce-id") => DedupBy::CeId,
                Some(cel) => DedupBy::Expression(cel.to_owned()),
            },
            window: window.map(|w| self.duration("dedup.window", &w)).transpose()?.unwrap_or(default.window),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name() -> Name {
        Name::new("x").unwrap()
    }

    #[test]
    fn no_members_mean_the_defaults() {
        let q = queue(name(), &json!({})).unwrap();
        assert_eq!((q.lease, q.redelivery, q.relaxed), (LEASE, Redelivery::default(), false));
        assert_eq!(topic(name(), &json!({})).unwrap().partitions, 1);
    }

    #[test]
    fn members_read_as_in_the_file() {
        let q = queue(
            name(),
            &json!({"lease": "5s", "retry": {"attempts": 3, "backoff": "100ms..1s"}, "dead_letter": "x.dead",
                "dedup": {"by": "ce-id", "window": "1h"}, "max_messages": 10, "durability": "relaxed"}),
        )
        .unwrap();
        assert_eq!(q.lease, Duration::from_secs(5));
        assert_eq!((q.redelivery.attempts, q.redelivery.backoff_max), (3, Duration::from_secs(1)));
        assert_eq!(q.dedup, Dedup { by: DedupBy::CeId, window: Duration::from_secs(3600) });
        assert!(q.relaxed);
        let s = subscription(
            name(),
            &json!({"topic": "orders", "mode": "key-shared", "push": {"service": "mailer", "path": "/events"}}),
        )
        .unwrap();
        assert_eq!(s.mode, SubscriptionMode::KeyShared);
        assert_eq!(s.push.unwrap().concurrency, CONCURRENCY);
    }

    #[test]
    fn mistakes_name_their_place() {
        for (members, word) in [
            (json!({"leese": "5s"}), "leese"),
            (json!({"lease": "5"}), "lease"),
            (json!({"lease": "0"}), "lease"),
            (json!({"retry": {"attempts": 0}}), "retry.attempts"),
            (json!({"retry": {"backoff": "2s..1s"}}), "retry.backoff"),
            (json!({"dead_letter": "a b"}), "'a b'"),
            (json!({"durability": "some"}), "some"),
            (json!([]), "queue 'x'"),
        ] {
            let e = queue(name(), &members).unwrap_err().to_string();
            assert!(e.contains(word), "{members} gave {e}");
        }
        assert!(topic(name(), &json!({"partitions": 0})).is_err());
        assert!(subscription(name(), &json!({})).unwrap_err().to_string().contains("topic"));
    }
}
