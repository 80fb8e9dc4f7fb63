//! API keys in the store: all of them in memory too, so that a request with one waits for nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use weft_core::{Class, Classify, Clock as _, Origin, SystemClock, Timestamp, limits};
use weft_policy::auth::Denied;
use weft_policy::auth::key::{self, Clear, Record};
use weft_store::{Batch, Store};

/// Records by id.
pub const SPACE: &str = "apikeys";

/// Why a key could not be made or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] weft_store::Error),
    /// No key has this id.
    #[error("there is no API key '{0}'")]
    Unknown(String),
    /// There are as many as there may be.
    #[error("there are {} API keys, as many as there may be: revoke some", limits::API_KEYS)]
    TooMany,
    /// A record is of another format.
    #[error("the record of the API key '{id}' cannot be read: {reason}")]
    Format {
        /// Its id.
        id: String,
        /// Why.
        reason: String,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Error::Store(e) => e.class(),
            Error::Unknown(_) => Class::Rejected,
            Error::TooMany => Class::Overloaded,
            Error::Format { .. } => Class::Fault,
        }
    }
    fn origin(&self) -> Origin {
        match self {
            Error::Store(e) => e.origin(),
            Error::Unknown(_) | Error::TooMany => Origin::Downstream,
            Error::Format { .. } => Origin::Internal,
        }
    }
}

/// All API keys of a process; cheap to clone.
#[derive(Clone)]
pub struct ApiKeys(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    table: RwLock<BTreeMap<String, Arc<Record>>>,
    /// Counts changes: what was checked before one is checked again.
    generation: AtomicU64,
    /// One change at a time, so that the table is what the store is.
    changing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKeys")
    }
}

impl ApiKeys {
    /// Reads the keys of a store.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        let mut table = BTreeMap::new();
        let mut after: Option<bytes::Bytes> = None;
        loop {
            let page = store.scan(SPACE, b"", after.as_deref(), 1_000).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (id, value) in page {
                let id = String::from_utf8_lossy(&id).into_owned();
                let record: Record = serde_json::from_slice(&value.bytes)
                    .map_err(|e| Error::Format { id: id.clone(), reason: e.to_string() })?;
                table.insert(id, Arc::new(record));
            }
        }
        let (table, generation, changing) = (RwLock::new(table), AtomicU64::new(1), tokio::sync::Mutex::default());
        Ok(Self(Arc::new(Inner { store, table, generation, changing })))
    }

    /// Changes whenever a key does.
    pub(crate) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Whether a presented key is good: its record, and when it ends.
    pub(crate) fn check(&self, key: &str, now: Timestamp) -> Result<(Arc<Record>, Option<Timestamp>), Denied> {
        let record = key::id(key).and_then(|id| self.get(id)).ok_or(Denied::Key)?;
        let ends = record.check(key, now)?;
        Ok((record, ends))
    }

    /// A key's record.
    pub fn get(&self, id: &str) -> Option<Arc<Record>> {
        self.0.table.read().get(id).cloned()
    }

    /// Records by id, after one, at most so many.
    pub fn list(&self, after: Option<&str>, max: usize) -> Vec<Arc<Record>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.table.read().range::<str, _>((from, Bound::Unbounded)).take(max).map(|(_, r)| r.clone()).collect()
    }

    /// Makes a key. The key in clear is nowhere else.
    pub async fn create(
        &self,
        owner: &str,
        scopes: Vec<String>,
        lives: Option<Duration>,
    ) -> Result<(Arc<Record>, Clear), Error> {
        let _one = self.0.changing.lock().await;
        if self.0.table.read().len() >= limits::API_KEYS {
            return Err(Error::TooMany);
        }
        let now = SystemClock.now();
        let (record, clear) = Record::new(owner, scopes, lives.map(|d| now.plus(d)), now);
        Ok((self.keep(record).await?, clear))
    }

    /// Gives a key a new secret; the old one is good for `overlap` more.
    pub async fn rotate(&self, id: &str, overlap: Duration) -> Result<(Arc<Record>, Clear), Error> {
        let _one = self.0.changing.lock().await;
        let mut record = Record::clone(&*self.get(id).ok_or_else(|| Error::Unknown(id.to_owned()))?);
        let now = SystemClock.now();
        let clear = record.rotate(now.plus(overlap), now);
        Ok((self.keep(record).await?, clear))
    }

    /// Switches a key off or on.
    pub async fn disable(&self, id: &str, disabled: bool) -> Result<Arc<Record>, Error> {
        let _one = self.0.changing.lock().await;
        let record = Record::clone(&*self.get(id).ok_or_else(|| Error::Unknown(id.to_owned()))?);
        self.keep(Record { disabled, ..record }).await
    }

    /// Removes a key for good.
    pub async fn revoke(&self, id: &str) -> Result<(), Error> {
        let _one = self.0.changing.lock().await;
        if self.get(id).is_none() {
            return Err(Error::Unknown(id.to_owned()));
        }
        self.0.store.commit(Batch::new().delete(SPACE, id.as_bytes().to_vec())).await?;
        self.0.table.write().remove(id);
        self.changed();
        Ok(())
    }

    async fn keep(&self, record: Record) -> Result<Arc<Record>, Error> {
        let json = serde_json::to_vec(&record).expect("a record is plain data");
        self.0.store.commit(Batch::new().put(SPACE, record.id.as_bytes().to_vec(), json)).await?;
        let record = Arc::new(record);
        self.0.table.write().insert(record.id.clone(), record.clone());
        self.changed();
        Ok(record)
    }

    /// After the table, so that whoever sees the new count sees the new table.
    fn changed(&self) {
        self.0.generation.fetch_add(1, Ordering::Release);
    }
}
