//! The process dies at every transition, before and after it is durable; another goes on in the same directory.
//!
//! A crash is the end of the runtime: every task is dropped where it stands. The store's own crash tests prove that what
//! was acknowledged is there; here it is what the engine does with that.

use super::support::*;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use weft_core::{Context, Id};
use weft_flow::SagaSpec;
use weft_flow::spec::{Idempotent, Step, StepKind};
use weft_store::{
    Batch, Config, Cursor, Embedded, Op, Position, Receipt, Record, Result, Store, StreamInfo, StreamName, Value,
};

/// Counts transitions; at the chosen one the world ends: before the batch is handed on, or after it is durable and
/// before anybody learns.
struct Fuse {
    inner: Arc<Embedded>,
    left: AtomicUsize,
    after: bool,
    burnt: Arc<Notify>,
}

impl Store for Fuse {
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Receipt>> {
        let saga = batch.ops.iter().any(|op| matches!(op, Op::Put { space: "saga/instances", .. }));
        if !saga {
            return self.inner.commit(batch);
        }
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            return std::future::pending().boxed();
        }
        self.left.store(left - 1, Ordering::SeqCst);
        if left > 1 {
            return self.inner.commit(batch);
        }
        let burnt = self.burnt.clone();
        let commit = self.after.then(|| self.inner.commit(batch));
        async move {
            if let Some(c) = commit {
                c.await.unwrap();
            }
            burnt.notify_one();
            std::future::pending().await
        }
        .boxed()
    }
    fn read(&self, s: &str, from: u64, max: usize, bytes: usize) -> BoxFuture<'static, Result<Vec<Record>>> {
        self.inner.read(s, from, max, bytes)
    }
    fn stream(&self, s: &str) -> Option<StreamInfo> {
        self.inner.stream(s)
    }
    fn cursor(&self, s: &str, c: &str) -> Option<Cursor> {
        self.inner.cursor(s, c)
    }
    fn streams(&self, prefix: &str) -> Vec<StreamName> {
        self.inner.streams(prefix)
    }
    fn get(&self, space: &str, key: &[u8]) -> BoxFuture<'static, Result<Option<Value>>> {
        self.inner.get(space, key)
    }
    fn scan(
        &self,
        space: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Bytes, Value)>>> {
        self.inner.scan(space, prefix, after, max)
    }
    fn watch(&self) -> tokio::sync::watch::Receiver<Position> {
        self.inner.watch()
    }
    fn health(&self) -> Result<()> {
        self.inner.health()
    }
    fn close(&self) -> BoxFuture<'static, Result<()>> {
        self.inner.close()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Starts a saga and dies at the n-th transition; false when it ended before.
fn die(dir: &Path, parties: &Parties, spec: &SagaSpec, key: &str, at: usize, after: bool) -> bool {
    let rt = runtime();
    let store = Arc::new(Embedded::open(Config::new(dir)).unwrap());
    let died = rt.block_on(async {
        let burnt = Arc::new(Notify::new());
        let fuse = Fuse { inner: store.clone(), left: AtomicUsize::new(at), after, burnt: burnt.clone() };
        let house = House::on(Arc::new(fuse)).await;
        house.apply(std::slice::from_ref(spec), &parties.services(true)).await;
        let work = async {
            let started = house.flow.start(&Context::root(), &spec.name, Some(key), input()).await.unwrap();
            house.end(started.id).await;
        };
        tokio::select! {
            () = burnt.notified() => true,
            () = work => false,
        }
    });
    rt.shutdown_background();
    // The journal keeps only what was committed; closing lets go of the directory.
    runtime().block_on(store.close()).unwrap();
    died
}

/// Another process: what was under way goes on; the caller asks again with its key.
fn go_on(dir: &Path, parties: &Parties, spec: &SagaSpec, key: &str, operator: bool) -> (Id, String) {
    let rt = runtime();
    rt.block_on(async {
        let house = House::open(dir).await;
        house.apply(std::slice::from_ref(spec), &parties.services(true)).await;
        let started = house.flow.start(&Context::root(), &spec.name, Some(key), input()).await.unwrap();
        let mut view = house.end(started.id).await;
        if operator && view.status == "parked" {
            house.flow.cancel(started.id).await.unwrap();
            view = house.end(started.id).await;
        }
        house.flow.close().await;
        house.broker.close().await;
        house.store.close().await.unwrap();
        (started.id, view.status.to_owned())
    })
}

fn dies_everywhere(spec: SagaSpec, decline: Option<&str>, status: &[&str], effects: usize, operator: bool) -> usize {
    let mut deaths = 0;
    for after in [false, true] {
        for at in 1.. {
            let parties = Parties::start(Reflects::No);
            let dir = tempfile::tempdir().unwrap();
            if let Some(step) = decline {
                parties.book.always(step, Do::Decline);
            }
            let died = die(dir.path(), &parties, &spec, "k", at, after);
            let (id, ended) = go_on(dir.path(), &parties, &spec, "k", operator);
            let place = format!("at transition {at}, after it was durable: {after}");
            assert!(status.contains(&ended.as_str()), "{place}: {ended}");
            let want = if ended == "completed" { effects } else { 0 };
            assert_eq!(parties.book.in_effect(id).len(), want, "{place}");
            let sagas: std::collections::HashSet<String> = parties
                .book
                .seen
                .lock()
                .iter()
                .filter_map(|c| c.key.as_ref()?.split(':').next().map(str::to_owned))
                .collect();
            assert!(sagas.len() <= 1, "{place}: more than one saga ran: {sagas:?}");
            if !died {
                break;
            }
            deaths += 1;
        }
    }
    deaths
}

#[test]
fn a_saga_that_completes_does_so_wherever_the_process_dies() {
    let deaths = dies_everywhere(order(), None, &["completed"], 4, false);
    assert!(deaths >= 8, "only {deaths} crashes: is the fuse in the way of the commits?");
}

#[test]
fn a_saga_that_is_declined_is_compensated_wherever_the_process_dies() {
    let deaths = dies_everywhere(order(), Some("ship"), &["compensated"], 0, false);
    assert!(deaths >= 12, "only {deaths} crashes");
}

#[test]
fn a_step_that_may_not_be_repeated_is_never_sent_twice_wherever_the_process_dies() {
    let mut charge = simple("charge");
    if let StepKind::Action { action, .. } = &mut charge.kind {
        action.idempotent = Idempotent::No;
        if let weft_flow::spec::Call::Http { with, .. } = &mut action.call {
            *with = Some(json!({"saga": "saga.id"}));
        }
    }
    let charge: Step = charge;
    let spec = saga("pay", vec![simple("create"), charge]);
    let deaths = dies_everywhere(spec, None, &["completed", "compensated"], 2, true);
    assert!(deaths >= 4, "only {deaths} crashes");
}

#[test]
fn two_hundred_sagas_survive_a_crash_in_the_middle() {
    let parties = Parties::start(Reflects::No);
    let dir = tempfile::tempdir().unwrap();
    let spec = order();
    let store = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
    let rt = runtime();
    let ids: Vec<Id> = rt.block_on(async {
        let house = House::on(store.clone()).await;
        house.apply(std::slice::from_ref(&spec), &parties.services(true)).await;
        parties.book.order("charge", &[Do::Decline; 20]);
        let ctx = Context::root();
        let starts = (0..200).map(|i| {
            let flow = house.flow.clone();
            let ctx = ctx.clone();
            async move { flow.start(&ctx, "order", Some(&format!("k{i}")), input()).await.unwrap().id }
        });
        let ids = futures_util::future::join_all(starts).await;
        while parties.book.seen.lock().len() < 500 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(house.flow.active() > 20, "the crash came too late: {} left", house.flow.active());
        ids
    });
    rt.shutdown_background();
    runtime().block_on(store.close()).unwrap();
    drop(store);
    runtime().block_on(async {
        let house = House::open(dir.path()).await;
        house.apply(&[spec], &parties.services(true)).await;
        let mut completed = 0;
        for id in &ids {
            let view = house.end(*id).await;
            let effects = parties.book.in_effect(*id);
            match view.status {
                "completed" => assert_eq!(effects, ["charge", "create", "reserve", "ship"]),
                "compensated" => assert_eq!(effects, [""; 0], "{view:#?}"),
                other => panic!("{other}: {view:#?}"),
            }
            completed += usize::from(view.status == "completed");
        }
        // All of them when the crash took every refusal with it: a charge that is asked for again is taken.
        assert!((100..=200).contains(&completed), "{completed} completed");
    });
}
