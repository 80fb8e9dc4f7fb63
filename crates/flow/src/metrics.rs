//! Counters of sagas. Handles of series are looked up once and kept.

use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::RwLock;
use weft_core::{Name, Timestamp};
use weft_telemetry::metrics::{Counter, Gauge, Histogram, Raised};
use weft_telemetry::{Telemetry, names};

use crate::instance::Instance;

pub(crate) struct Metrics {
    telemetry: Telemetry,
    sagas: RwLock<HashMap<Name, Saga>>,
    steps: RwLock<HashMap<StepSeries, Counter>>,
    durations: RwLock<HashMap<(Name, Name, bool), Histogram>>,
}

/// Saga, step, whether its compensation, outcome.
type StepSeries = (Name, Name, bool, &'static str);

#[derive(Clone)]
struct Saga {
    started: Counter,
    running: Gauge,
    duration: Histogram,
}

impl Metrics {
    pub fn new(telemetry: Telemetry) -> Self {
        Self { telemetry, sagas: RwLock::default(), steps: RwLock::default(), durations: RwLock::default() }
    }

    fn saga(&self, name: &Name) -> Saga {
        if let Some(s) = self.sagas.read().get(name) {
            return s.clone();
        }
        let (m, labels) = (self.telemetry.metrics(), [("saga", name.as_str())]);
        let s = Saga {
            started: m.counter(&names::SAGAS_STARTED, &labels),
            running: m.gauge(&names::SAGAS_RUNNING, &labels),
            duration: m.histogram(&names::SAGA_DURATION, &labels),
        };
        self.sagas.write().insert(name.clone(), s.clone());
        s
    }

    pub fn started(&self, saga: &Name) {
        self.saga(saga).started.inc();
    }

    pub fn running(&self, saga: &Name) -> Raised {
        self.saga(saga).running.raise()
    }

    pub fn ended(&self, i: &Instance, now: Timestamp) {
        self.saga(&i.saga).duration.observe(i.created.until(now));
        self.end(i);
    }

    pub fn parked(&self, i: &Instance) {
        self.end(i);
    }

    fn end(&self, i: &Instance) {
        let labels = [("saga", i.saga.as_str()), ("status", i.state.phase.status())];
        self.telemetry.metrics().counter(&names::SAGAS_ENDED, &labels).inc();
    }

    pub fn step(&self, saga: &Name, step: &Name, undo: bool, outcome: &'static str, took: Duration) {
        let key = (saga.clone(), step.clone(), undo, outcome);
        let shown = if undo { format!("{step}:undo") } else { step.to_string() };
        let found = self.steps.read().get(&key).cloned();
        let counter = found.unwrap_or_else(|| {
            let labels = [("saga", saga.as_str()), ("step", shown.as_str()), ("outcome", outcome)];
            let c = self.telemetry.metrics().counter(&names::SAGA_STEPS, &labels);
            self.steps.write().insert(key, c.clone());
            c
        });
        counter.inc();
        let key = (saga.clone(), step.clone(), undo);
        let found = self.durations.read().get(&key).cloned();
        let histogram = found.unwrap_or_else(|| {
            let labels = [("saga", saga.as_str()), ("step", shown.as_str())];
            let h = self.telemetry.metrics().histogram(&names::SAGA_STEP_DURATION, &labels);
            self.durations.write().insert(key, h.clone());
            h
        });
        histogram.observe(took);
    }
}
