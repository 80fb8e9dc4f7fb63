//! What callers need to know of channels before they ask the sequencing task: where the ordering key and the dedup id
//! come from. One immutable snapshot, replaced on change.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use weft_core::Envelope;

use crate::expression::Expression;
use crate::spec::{DedupBy, QueueSpec, TopicSpec};
use crate::{Channel, Error, Result, record};

/// Snapshot of all channels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    pub channels: HashMap<Channel, Arc<ChannelRules>>,
}

/// How a channel reads an event.
#[derive(Clone, Debug)]
pub(crate) struct ChannelRules {
    /// `None` = the subject. Queues have one stream and need no key but keep it for whoever moves the message.
    key: Option<Expression>,
    dedup: By,
    pub window: Duration,
}

#[derive(Clone, Debug)]
enum By {
    Explicit,
    CeId,
    Expression(Expression),
}

impl Default for ChannelRules {
    fn default() -> Self {
        Self { key: None, dedup: By::Explicit, window: crate::spec::Dedup::default().window }
    }
}

impl ChannelRules {
    pub fn queue(s: &QueueSpec) -> Result<Self> {
        let dedup = By::compile(&s.dedup.by, || format!("queue '{}' dedup.by", s.name))?;
        Ok(Self { key: None, dedup, window: s.dedup.window })
    }

    pub fn topic(s: &TopicSpec) -> Result<Self> {
        let key = match s.key.as_deref() {
            None | Some("event.subject") => None,
            Some(text) => Some(compile(text, || format!("topic '{}' key", s.name))?),
        };
        let dedup = By::compile(&s.dedup.by, || format!("topic '{}' dedup.by", s.name))?;
        Ok(Self { key, dedup, window: s.dedup.window })
    }

    pub fn key(&self, event: &Envelope) -> Option<u64> {
        match &self.key {
            None => event.subject.as_deref().map(record::key_hash),
            Some(e) => e.text(event).as_deref().map(record::key_hash),
        }
    }

    /// The dedup id when the publisher gave none.
    pub fn dedup_id(&self, event: &Envelope) -> Option<String> {
        match &self.dedup {
            By::Explicit => None,
            By::CeId => Some(format!("{}\n{}", event.source, event.id)),
            By::Expression(e) => e.text(event),
        }
    }
}

impl By {
    fn compile(by: &DedupBy, place: impl FnOnce() -> String) -> Result<Self> {
        Ok(match by {
            DedupBy::Explicit => By::Explicit,
            DedupBy::CeId => By::CeId,
            DedupBy::Expression(text) => By::Expression(compile(text, place)?),
        })
    }
}

pub(crate) fn compile(text: &str, place: impl FnOnce() -> String) -> Result<Expression> {
    Expression::compile(text).map_err(|reason| Error::Declaration { place: place(), reason })
}
