//! The running configuration as the API shows it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use weft_edge::api::ConfigView;

use crate::config::Loaded;

/// Holds what runs; a reload swaps it.
#[derive(Clone)]
pub struct View(Arc<ArcSwap<Loaded>>);

impl View {
    /// Shows this configuration.
    pub fn new(loaded: Loaded) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(loaded)))
    }

    /// Shows another one from now on.
    pub fn swap(&self, loaded: Loaded) {
        self.0.store(Arc::new(loaded));
    }

    /// What runs.
    pub fn loaded(&self) -> Arc<Loaded> {
        self.0.load_full()
    }
}

impl ConfigView for View {
    fn running(&self) -> Value {
        let loaded = self.0.load();
        let s = &loaded.snapshot;
        let names = |names: Vec<&str>| json!(names);
        json!({
            "generation": s.generation,
            "files": loaded.sources.paths(),
            "services": names(s.services.iter().map(|x| x.name.as_str()).collect()),
            "routes": names(s.gateway.routes.iter().map(|x| x.name.as_str()).collect()),
            "queues": names(s.queues.iter().map(|x| x.name.as_str()).collect()),
            "topics": names(s.topics.iter().map(|x| x.name.as_str()).collect()),
            "subscriptions": names(s.subscriptions.iter().map(|x| x.name.as_str()).collect()),
            "sagas": names(s.sagas.iter().map(|x| x.name.as_str()).collect()),
        })
    }

    fn routes(&self) -> Vec<Value> {
        self.0.load().snapshot.gateway.routes.iter().map(super::routes::describe).collect()
    }

    fn explain(&self, kind: &str, name: &str) -> Option<Value> {
        let loaded = self.0.load();
        loaded.explain(kind, name).map(|e| json!(e))
    }
}
