//! Who uses which version of an API: counted since the process began, per route, version and consumer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_core::{Principal, Timestamp, limits};
use weft_policy::version::Version;
use weft_telemetry::metrics::Counter;
use weft_telemetry::{Telemetry, names};

/// The use of every version; cheap to clone.
#[derive(Clone, Debug)]
pub struct Usage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    telemetry: Telemetry,
    routes: Mutex<BTreeMap<(String, String), Arc<Used>>>,
}

/// The use of one version of one route.
#[derive(Debug)]
pub(crate) struct Used {
    deprecated: Option<Timestamp>,
    sunset: Option<Timestamp>,
    requests: Counter,
    total: AtomicU64,
    gone: AtomicU64,
    consumers: Mutex<HashMap<Arc<str>, u64>>,
    /// Of consumers that found no place.
    others: AtomicU64,
}

impl Usage {
    /// Nothing used yet.
    pub fn new(telemetry: &Telemetry) -> Self {
        Self(Arc::new(Inner { telemetry: telemetry.clone(), routes: Mutex::default() }))
    }

    /// The counts of a version, shown once they are [`put`](Self::put). A reload goes on with them, unless its dates
    /// changed.
    pub(crate) fn of(&self, route: &str, version: &Version) -> Arc<Used> {
        let key = (route.to_owned(), version.name.clone());
        let routes = self.0.routes.lock();
        if let Some(used) = routes.get(&key)
            && (used.deprecated, used.sunset) == (version.deprecated, version.sunset)
        {
            return used.clone();
        }
        let labels = [("route", route), ("version", version.name.as_str())];
        Arc::new(Used {
            deprecated: version.deprecated,
            sunset: version.sunset,
            requests: self.0.telemetry.metrics().counter(&names::VERSION_REQUESTS, &labels),
            total: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            consumers: Mutex::default(),
            others: AtomicU64::new(0),
        })
    }

    /// Shows the versions of the running configuration, by route and version; forgets all others.
    pub(crate) fn put<'r>(&self, running: impl Iterator<Item = (&'r str, &'r str, &'r Arc<Used>)>) {
        let of =
            |(route, version, used): (&str, &str, &Arc<Used>)| ((route.to_owned(), version.to_owned()), used.clone());
        *self.0.routes.lock() = running.map(of).collect();
    }

    /// As JSON, routes and versions in order, the busiest consumers first.
    pub fn to_json(&self) -> Value {
        let routes = self.0.routes.lock();
        let items = routes.iter().map(|((route, version), used)| {
            let mut consumers: Vec<_> = used.consumers.lock().iter().map(|(c, n)| (c.clone(), *n)).collect();
            consumers.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            let consumers: Vec<_> =
                consumers.into_iter().map(|(c, n)| json!({"consumer": &*c, "requests": n})).collect();
            json!({
                "route": route,
                "version": version,
                "deprecated": used.deprecated.map(|t| t.to_string()),
                "sunset": used.sunset.map(|t| t.to_string()),
                "requests": used.total.load(Ordering::Relaxed),
                "refused_after_sunset": used.gone.load(Ordering::Relaxed),
                "consumers": consumers,
                "other_consumers": used.others.load(Ordering::Relaxed),
            })
        });
        json!({"items": items.collect::<Vec<_>>()})
    }
}

impl Used {
    pub(crate) fn count(&self, consumer: &Principal) {
        self.requests.inc();
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut consumers = self.consumers.lock();
        if let Some(n) = consumers.get_mut(consumer.as_str()) {
            *n += 1;
        } else if consumers.len() < limits::VERSION_CONSUMERS {
            consumers.insert(consumer.as_str().into(), 1);
        } else {
            self.others.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_gone(&self) {
        self.gone.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_are_counted_up_to_the_limit_and_the_rest_together() {
        let usage = Usage::new(&Telemetry::new());
        let one = Version { name: "1".into(), ..Version::default() };
        let used = usage.of("shop", &one);
        assert_eq!(usage.to_json()["items"], json!([]), "what is not in force is not shown");
        usage.put([("shop", "1", &used)].into_iter());
        used.count(&Principal::Anonymous);
        for i in 0..limits::VERSION_CONSUMERS + 4 {
            used.count(&Principal::Named(format!("c{i}").into()));
        }
        used.count(&Principal::Named("c0".into()));
        let shown = usage.to_json();
        let item = &shown["items"][0];
        assert_eq!(item["consumers"].as_array().unwrap().len(), limits::VERSION_CONSUMERS);
        assert_eq!((&item["consumers"][0]["consumer"], &item["consumers"][0]["requests"]), (&json!("c0"), &json!(2)));
        assert_eq!((&item["other_consumers"], &item["requests"]), (&json!(5), &json!(limits::VERSION_CONSUMERS + 6)));
        assert!(Arc::ptr_eq(&used, &usage.of("shop", &one)), "a reload counts on");
        usage.put(std::iter::empty());
        assert_eq!(usage.to_json()["items"], json!([]));
    }
}
