//! The door: [`Flow`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use weft_broker::Broker;
use weft_core::task::{self, Shutdown};
use weft_core::{Clock as _, Context, Deadline, Id, Name, SystemClock, Timestamp, limits};
use weft_mesh::{Mesh, ServiceSpec};
use weft_store::{Batch, Expect, Position, Store, Version};
use weft_telemetry::Telemetry;

use crate::definition::{self, Catalog, Definition};
use crate::error::{Error, Result};
use crate::expr::suggest;
use crate::instance::{Instance, View, key};
use crate::machine::{Event, Phase};
use crate::metrics::Metrics;
use crate::reflection::Services;
use crate::runner::{self, Command, First, Handle, Runner};
use crate::spec::SagaSpec;

/// Sagas. Cheap to clone; usable from any runtime.
#[derive(Clone)]
pub struct Flow(Arc<Inner>);

pub(crate) struct Inner {
    pub store: Arc<dyn Store>,
    pub broker: Broker,
    pub mesh: Mesh,
    pub telemetry: Telemetry,
    pub services: Services,
    pub metrics: Metrics,
    pub in_flight: Semaphore,
    pub shutdown: Shutdown,
    runtime: tokio::runtime::Handle,
    clock: (Timestamp, Instant),
    current: RwLock<HashMap<Name, Arc<Definition>>>,
    by_hash: RwLock<HashMap<String, Arc<Definition>>>,
    active: Mutex<HashMap<Id, Handle>>,
    resumed: AtomicBool,
}

/// What a start came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The instance.
    pub id: Id,
    /// Whether the key had started it before.
    pub existing: bool,
}

/// A start to be committed together with other things.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The instance.
    pub id: Id,
    /// Whether the key had started it before; the batch is empty then.
    pub existing: bool,
    /// What to commit. Its one precondition fails when another start with the key came first.
    pub batch: Batch,
}

/// Which instances to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `running`, `compensating`, `completed`, `compensated` or `parked`.
    pub status: Option<String>,
    /// The saga's name.
    pub saga: Option<String>,
    /// The start key.
    pub key: Option<String>,
}

/// Some instances, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The instances.
    pub items: Vec<View>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// Instances looked at by one listing call; a rare filter is answered in pages that may be empty.
const SCANNED: usize = 10_000;
/// Keys read at once.
const KEYS: usize = 500;
/// How often ended instances are purged, and instances nobody runs are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// Has the policies of a definition's steps tell what they count.
fn tell(d: &Definition, telemetry: &Telemetry) {
    for step in &d.steps {
        let name = format!("step {}/{}", d.name, step.name);
        step.action.instance.tell(telemetry.metrics(), &name);
        if let Some(undo) = &step.compensate {
            undo.instance.tell(telemetry.metrics(), &format!("{name} compensate"));
        }
    }
}

impl Flow {
    /// The engine on a store. Call it on the runtime that is to run the sagas. Nothing runs before the first
    /// [`apply`](Self::apply): what was under way when the process ended goes on then.
    pub async fn open(store: Arc<dyn Store>, broker: Broker, mesh: Mesh, telemetry: Telemetry) -> Result<Self> {
        // A store that cannot be read is met here and not by the first saga.
        store.scan(key::INDEX, b"s", None, 1).await?;
        let flow = Self(Arc::new(Inner {
            store,
            broker,
            mesh,
            services: Services::new(),
            metrics: Metrics::new(telemetry.clone()),
            telemetry,
            in_flight: Semaphore::new(limits::SAGA_STEPS_IN_FLIGHT),
            shutdown: Shutdown::new(),
            runtime: tokio::runtime::Handle::current(),
            clock: (SystemClock.now(), Instant::now()),
            current: RwLock::default(),
            by_hash: RwLock::default(),
            active: Mutex::default(),
            resumed: AtomicBool::new(false),
        }));
        let (weak, shutdown) = (Arc::downgrade(&flow.0), flow.0.shutdown.clone());
        task::spawn("flow: sweep", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(SWEEP) => {}
                    () = shutdown.triggered() => return,
                }
                let Some(inner) = weak.upgrade() else { return };
                if let Err(e) = inner.sweep().await {
                    tracing::warn!(error = %e, "ended sagas could not be purged; the next round tries again");
                }
            }
        });
        Ok(flow)
    }

    /// Puts these definitions in place of those of the last call, checked against these services, whose .proto files are
    /// read now. Instances under way stay on the definition they began with. On an error nothing changed.
    pub async fn apply(&self, sagas: &[SagaSpec], services: &[ServiceSpec]) -> Result<()> {
        let (catalog, mistakes) = Catalog::load(services);
        if !mistakes.is_empty() {
            return Err(Error::Protos(mistakes.into_iter().map(|(n, m)| (n.to_string(), m)).collect()));
        }
        self.apply_checked(sagas, catalog).await
    }

    /// As [`apply`](Self::apply), against a catalog.
    pub async fn apply_checked(&self, sagas: &[SagaSpec], catalog: Catalog) -> Result<()> {
        let inner = &self.0;
        let (mut compiled, mut mistakes) = (Vec::new(), Vec::new());
        for s in sagas {
            // An unchanged definition keeps its breakers and budgets.
            let known = inner.by_hash.read().get(&definition::hash(s)).cloned();
            match definition::compile(s, &catalog) {
                Ok(d) => compiled.push(known.unwrap_or_else(|| Arc::new(d))),
                Err(m) => mistakes.push((s.name.to_string(), m)),
            }
        }
        if !mistakes.is_empty() {
            return Err(Error::Definitions(mistakes));
        }
        let mut batch = Batch::new();
        for d in &compiled {
            if !inner.by_hash.read().contains_key(&d.hash) {
                let spec = serde_json::to_vec(&d.spec).expect("a spec is plain data");
                batch = batch.put(key::DEFINITIONS, d.hash.clone().into_bytes(), spec);
            }
        }
        if !batch.ops.is_empty() {
            inner.store.commit(batch).await?;
        }
        compiled.iter().for_each(|d| tell(d, &inner.telemetry));
        inner.by_hash.write().extend(compiled.iter().map(|d| (d.hash.clone(), d.clone())));
        inner.services.replace(catalog);
        *inner.current.write() = compiled.into_iter().map(|d| (d.name.clone(), d)).collect();
        if !inner.resumed.swap(true, Ordering::AcqRel)
            && let Err(e) = inner.resume(Duration::ZERO).await
        {
            inner.resumed.store(false, Ordering::Release);
            return Err(e);
        }
        Ok(())
    }

    /// The definitions in force, by name.
    pub fn definitions(&self) -> Vec<Arc<Definition>> {
        let mut all: Vec<_> = self.0.current.read().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Starts a saga; exactly once per key. The answer comes when the start, and the intent of its first step, is
    /// durable. Without a key every call starts one.
    pub async fn start(&self, ctx: &Context, saga: &str, key: Option<&str>, input: Value) -> Result<Started> {
        let inner = &self.0;
        let (d, fresh) = self.fresh(ctx, saga, key, input)?;
        let id = fresh.id;
        let mut refused = HashMap::new();
        loop {
            let mut t = runner::transition(inner, &d, None, Some(&fresh), Event::Run, &refused);
            runner::start_batch(&mut t, id);
            match runner::commit(inner, &d, &t).await {
                Ok(version) => {
                    inner.metrics.started(&d.name);
                    let instance = t.next.clone();
                    inner.spawn(d, instance, version, First::Committed(Box::new(t)));
                    return Ok(Started { id, existing: false });
                }
                Err(Error::Store(weft_store::Error::Precondition { .. })) => {
                    if let Some(id) = inner.started_by(&fresh).await? {
                        return Ok(Started { id, existing: true });
                    }
                    // It was purged a moment ago: the key is free.
                }
                Err(Error::Broker(e)) if refused.is_empty() && !t.publish.is_empty() => {
                    // The first step publishes and the broker refused: the saga starts, and that step failed.
                    let outcome = crate::machine::Outcome::Refused(e.to_string());
                    refused.extend(t.publish.iter().map(|(id, _)| (*id, outcome.clone())));
                }
                Err(e) => {
                    if let Error::Store(weft_store::Error::Unknown { .. }) = &e {
                        self.launch(&[id]);
                    }
                    return Err(e);
                }
            }
        }
    }

    /// A start to be committed by somebody else, with other things in one batch. After the commit, also after one whose
    /// outcome is unknown, call [`launch`](Self::launch).
    pub async fn stage_start(&self, ctx: &Context, saga: &str, key: Option<&str>, input: Value) -> Result<Staged> {
        let (_, fresh) = self.fresh(ctx, saga, key, input)?;
        if key.is_some()
            && let Some(id) = self.0.started_by(&fresh).await?
        {
            return Ok(Staged { id, existing: true, batch: Batch::new() });
        }
        let id = fresh.id;
        let start = fresh.start_key();
        let batch = Batch::new()
            .expect(Expect::Key { space: key::KEYS, key: start.clone().into(), version: Version::Absent })
            .put(key::KEYS, start, key::instance(id).to_vec())
            .put(key::INSTANCES, key::instance(id).to_vec(), fresh.encode())
            .put(key::INDEX, key::by_status(fresh.state.phase, id), fresh.saga.as_bytes().to_vec());
        Ok(Staged { id, existing: false, batch })
    }

    /// Runs staged instances whose commit was, or may have been, taken.
    pub fn launch(&self, ids: &[Id]) {
        for id in ids.iter().copied() {
            let inner = self.0.clone();
            self.0.spawn_task("flow: launch", async move {
                for round in 0..100 {
                    match inner.clone().resume_one(id, Event::Run).await {
                        Ok(true) if round == 0 => return inner.count_start(id).await,
                        Ok(_) => return,
                        Err(e) => tracing::warn!(%id, error = %e, "a started saga cannot be run yet"),
                    }
                    tokio::time::sleep(Duration::from_millis(100 * (1 + round))).await;
                }
            });
        }
    }

    /// An instance.
    pub async fn get(&self, id: Id) -> Result<View> {
        let (i, _) = self.0.load(id).await?.ok_or_else(|| Error::NotFound { id: id.to_string() })?;
        let d = self.0.definition(&i.definition).await.ok();
        Ok(i.view(d.as_deref()))
    }

    /// Waits until an instance is completed, compensated or parked, or the deadline has passed; then what it is.
    pub async fn wait(&self, id: Id, deadline: Deadline) -> Result<View> {
        loop {
            let phase = self.0.active.lock().get(&id).map(|h| h.phase.clone());
            let left = deadline.remaining().unwrap_or(limits::SAGA_DEADLINE);
            match phase {
                Some(mut phase) => {
                    let rest = phase.wait_for(|p| !p.is_active());
                    if !matches!(tokio::time::timeout(left, rest).await, Ok(Err(_))) {
                        return self.get(id).await;
                    }
                }
                None => {
                    let (i, _) = self.0.load(id).await?.ok_or_else(|| Error::NotFound { id: id.to_string() })?;
                    if !i.state.phase.is_active() || deadline.passed() {
                        return self.get(id).await;
                    }
                }
            }
            // Committed but not running yet, or just handed over.
            tokio::time::sleep(left.min(Duration::from_millis(10))).await;
        }
    }

    /// Instances, newest first; a page may be short although there is a next one.
    pub async fn list(&self, filter: &Filter, limit: usize, cursor: Option<&str>) -> Result<Page> {
        let inner = &self.0;
        if let (Some(saga), Some(key)) = (&filter.saga, &filter.key) {
            return self.with_key(saga, key, filter.status.as_deref(), limit).await;
        }
        let phase = filter.status.as_deref().map(|s| PHASES.into_iter().find(|p| p.status() == s));
        let (space, prefix) = match phase {
            Some(None) => return Ok(Page::default()),
            Some(Some(p)) => (key::INDEX, key::status(p).to_vec()),
            None => (key::INSTANCES, Vec::new()),
        };
        let at = |id: Id| [prefix.as_slice(), &key::instance(id)].concat();
        let mut after = cursor.and_then(|c| c.parse().ok()).map(at);
        let mut page = Page::default();
        let mut scanned = 0;
        loop {
            let found = inner.store.scan(space, &prefix, after.as_deref(), KEYS.min(limit.max(1) * 2)).await?;
            if found.is_empty() {
                return Ok(page);
            }
            for (k, v) in found {
                let Some(id) = key::id(&k) else { continue };
                if page.items.len() == limit || scanned == SCANNED {
                    page.next = after.as_deref().and_then(key::id).map(|id| id.to_string());
                    return Ok(page);
                }
                scanned += 1;
                after = Some(k.to_vec());
                let instance = match space {
                    key::INSTANCES => Instance::decode(&v.bytes)?,
                    _ => match inner.load(id).await? {
                        Some((i, _)) => i,
                        None => continue,
                    },
                };
                let wanted = filter.saga.as_deref().is_none_or(|s| s == instance.saga.as_str())
                    && filter.key.as_deref().is_none_or(|k| k == instance.key)
                    && filter.status.as_deref().is_none_or(|s| s == instance.state.phase.status());
                if wanted {
                    let d = inner.definition(&instance.definition).await.ok();
                    page.items.push(instance.view(d.as_deref()));
                }
            }
        }
    }

    /// The instances a key started: one for each principal that used it.
    async fn with_key(&self, saga: &str, start: &str, status: Option<&str>, limit: usize) -> Result<Page> {
        let prefix = key::start(saga, start, None);
        let mut page = Page::default();
        for (k, v) in self.0.store.scan(key::KEYS, &prefix, None, limits::SAGA_LIST).await? {
            // The key itself, or the key and a principal; not a longer key.
            let whole = matches!(k.get(prefix.len()), None | Some(0));
            let Some(id) = key::id(&v.bytes).filter(|_| whole) else { continue };
            let view = self.get(id).await?;
            if page.items.len() < limit && status.is_none_or(|s| s == view.status) {
                page.items.push(view);
            }
        }
        page.items.sort_by(|a, b| b.id.cmp(&a.id));
        Ok(page)
    }

    /// Lets a parked instance go on where it stands.
    pub async fn retry(&self, id: Id) -> Result<View> {
        let view = self.get(id).await?;
        if view.status != "parked" || !self.0.clone().resume_one(id, Event::Retry).await? {
            return Err(wrong(id, &view, "a parked saga", "retried"));
        }
        self.moved(id, view.status).await
    }

    /// A running or parked instance compensates.
    pub async fn cancel(&self, id: Id) -> Result<View> {
        const WHY: &str = "cancelled";
        let view = self.get(id).await?;
        let done = match view.status {
            "parked" => self.0.clone().resume_one(id, Event::Abort(WHY.into())).await?,
            "running" => {
                if !self.0.active.lock().contains_key(&id) {
                    self.0.clone().resume_one(id, Event::Run).await?;
                }
                let handle = self.0.active.lock().get(&id).cloned();
                match handle {
                    Some(h) => {
                        let (reply, answer) = oneshot::channel();
                        let sent = h.commands.send(Command::Abort(WHY.into(), reply)).await;
                        sent.is_ok() && answer.await.unwrap_or(false)
                    }
                    None => false,
                }
            }
            _ => false,
        };
        if !done {
            let now = self.get(id).await?;
            return Err(wrong(id, &now, "a running or parked saga", "cancelled"));
        }
        self.moved(id, view.status).await
    }

    /// The instance once its status is another one, or after a moment.
    async fn moved(&self, id: Id, from: &str) -> Result<View> {
        for _ in 0..100 {
            let view = self.get(id).await?;
            if view.status != from {
                return Ok(view);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.get(id).await
    }

    /// Deletes instances that ended so long ago, with the keys that started them; how many. It happens by itself after
    /// [`limits::SAGA_KEPT`].
    pub async fn purge(&self, kept: Duration) -> Result<usize> {
        self.0.purge(kept).await
    }

    /// Instances under way in this process.
    pub fn active(&self) -> usize {
        self.0.active.lock().len()
    }

    /// Stops: no new step is sent, steps in flight are awaited up to [`limits::DRAIN`], everything else goes on when the
    /// process runs again.
    pub async fn close(&self) {
        self.close_within(limits::DRAIN).await;
    }

    /// As [`close`](Self::close), with another limit.
    pub async fn close_within(&self, limit: Duration) {
        self.0.shutdown.trigger();
        let until = Instant::now() + limit;
        while self.active() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn fresh(&self, ctx: &Context, saga: &str, key: Option<&str>, input: Value) -> Result<(Arc<Definition>, Instance)> {
        let inner = &self.0;
        if inner.shutdown.is_triggered() {
            return Err(Error::Closed);
        }
        let found = inner.current.read().get(saga).cloned();
        let d = found.ok_or_else(|| {
            let current = inner.current.read();
            let known: Vec<&str> = current.keys().map(Name::as_str).collect();
            Error::UnknownSaga { name: saga.chars().take(limits::NAME_BYTES).collect(), hint: suggest(saga, &known) }
        })?;
        if let Some(k) = key
            && k.len() > limits::SAGA_KEY_BYTES
        {
            return Err(Error::TooLarge { what: "start key", got: k.len(), limit: limits::SAGA_KEY_BYTES });
        }
        if inner.active.lock().len() >= limits::SAGA_INSTANCES {
            return Err(Error::Overloaded { limit: limits::SAGA_INSTANCES });
        }
        let id = Id::new();
        let key = key.map_or_else(|| id.to_string(), str::to_owned);
        let fresh = Instance::new(&d, id, key, input, ctx, inner.now());
        let got = fresh.encode().len();
        if got > limits::SAGA_STATE_BYTES {
            return Err(Error::TooLarge { what: "saga's input and state", got, limit: limits::SAGA_STATE_BYTES });
        }
        Ok((d, fresh))
    }
}

const PHASES: [Phase; 5] =
    [Phase::Forward, Phase::Compensating, Phase::Completed, Phase::Compensated, Phase::ParkedForward];

fn wrong(id: Id, view: &View, wanted: &'static str, verb: &'static str) -> Error {
    Error::WrongStatus { id: id.to_string(), status: view.status, wanted, verb }
}

impl Inner {
    /// Wall-clock time that never goes back while the process runs.
    pub fn now(&self) -> Timestamp {
        self.clock.0.plus(self.clock.1.elapsed())
    }

    /// An instance and its version.
    pub async fn load(&self, id: Id) -> Result<Option<(Instance, Position)>> {
        match self.store.get(key::INSTANCES, &key::instance(id)).await? {
            Some(v) => Ok(Some((Instance::decode(&v.bytes)?, v.version))),
            None => Ok(None),
        }
    }

    async fn started_by(&self, fresh: &Instance) -> Result<Option<Id>> {
        let found = self.store.get(key::KEYS, &fresh.start_key()).await?;
        Ok(found.and_then(|v| key::id(&v.bytes)))
    }

    /// A definition by its hash, in force or not.
    async fn definition(&self, hash: &str) -> Result<Arc<Definition>> {
        if let Some(d) = self.by_hash.read().get(hash).cloned() {
            return Ok(d);
        }
        let bad = |reason: String| Error::Stored { what: format!("saga definition {hash}"), reason };
        let stored = self.store.get(key::DEFINITIONS, hash.as_bytes()).await?;
        let stored = stored.ok_or_else(|| bad("it is not in the store".into()))?;
        let spec: SagaSpec = serde_json::from_slice(&stored.bytes).map_err(|e| bad(e.to_string()))?;
        // What it names was checked when it was in force; what is gone since shows when it is called.
        let d = definition::compile(&spec, &Catalog::default())
            .map_err(|m| bad(m.iter().map(|m| m.to_string()).collect::<Vec<_>>().join("; ")))?;
        tell(&d, &self.telemetry);
        let d = Arc::new(d);
        self.by_hash.write().insert(hash.to_owned(), d.clone());
        Ok(d)
    }

    fn spawn_task(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        // The caller may be on a thread of the data plane.
        let _on = self.runtime.enter();
        task::spawn(name, future);
    }

    fn spawn(self: &Arc<Self>, d: Arc<Definition>, i: Instance, version: Position, first: First) -> bool {
        let id = i.id;
        let (runner, handle) = Runner::new(self.clone(), d, i, version);
        let mut active = self.active.lock();
        if active.contains_key(&id) {
            return false;
        }
        active.insert(id, handle);
        drop(active);
        let entry = Entry { flow: self.clone(), id };
        self.spawn_task("saga", async move {
            let _entry = entry;
            runner.run(first).await;
        });
        true
    }

    /// Runs an instance that is in the store and not under way here; false when there is none.
    async fn resume_one(self: Arc<Self>, id: Id, first: Event) -> Result<bool> {
        if self.active.lock().contains_key(&id) {
            return Ok(false);
        }
        let Some((i, version)) = self.load(id).await? else { return Ok(false) };
        let fits = match first {
            Event::Run => i.state.phase.is_active(),
            _ => i.state.phase.is_parked(),
        };
        if !fits {
            return Ok(false);
        }
        let d = self.definition(&i.definition).await?;
        Ok(self.spawn(d, i, version, First::Event(first)))
    }

    async fn count_start(&self, id: Id) {
        if let Ok(Some((i, _))) = self.load(id).await {
            self.metrics.started(&i.saga);
        }
    }

    /// Runs every unfinished instance that nobody runs and that is at least so old.
    async fn resume(self: &Arc<Self>, age: Duration) -> Result<()> {
        let now = self.now();
        for phase in [Phase::Forward, Phase::Compensating] {
            let prefix = key::status(phase);
            let mut after: Option<bytes::Bytes> = None;
            loop {
                let found = self.store.scan(key::INDEX, &prefix, after.as_deref(), KEYS).await?;
                let Some((last, _)) = found.last() else { break };
                after = Some(last.clone());
                for id in found.iter().filter_map(|(k, _)| key::id(k)) {
                    // UUIDv7: the first 48 bits are milliseconds.
                    let born = Timestamp((id.as_u128() >> 80) as u64);
                    if born.until(now) < age {
                        continue;
                    }
                    // One that cannot be read holds up no other.
                    if let Err(e) = self.clone().resume_one(id, Event::Run).await {
                        tracing::error!(%id, error = %e, "a saga cannot go on: it stays as it is");
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes what ended long ago, and runs what nobody runs.
    async fn sweep(self: &Arc<Self>) -> Result<()> {
        if self.resumed.load(Ordering::Acquire) {
            self.resume(SWEEP).await?;
        }
        self.purge(limits::SAGA_KEPT).await.map(|_| ())
    }

    async fn purge(&self, kept: Duration) -> Result<usize> {
        let mut purged = 0;
        loop {
            let old = self.store.scan(key::INDEX, b"e", None, KEYS).await?;
            let now = self.now();
            let due = |k: &[u8]| key::ended_at(k).is_none_or(|at| at.plus(kept) <= now);
            let mut batch = Batch::new();
            let mut n = 0;
            for (k, start) in old.into_iter().take_while(|(k, _)| due(k)) {
                if let Some(id) = key::id(&k) {
                    batch = batch
                        .delete(key::INSTANCES, key::instance(id).to_vec())
                        .delete(key::INDEX, key::by_status(Phase::Completed, id))
                        .delete(key::INDEX, key::by_status(Phase::Compensated, id))
                        .delete(key::KEYS, start.bytes);
                }
                batch = batch.delete(key::INDEX, k);
                n += 1;
            }
            if n == 0 {
                return Ok(purged);
            }
            self.store.commit(batch).await?;
            purged += n;
        }
    }
}

/// Takes an instance off the list of those under way, also when its task panics.
struct Entry {
    flow: Arc<Inner>,
    id: Id,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.flow.active.lock().remove(&self.id);
    }
}
