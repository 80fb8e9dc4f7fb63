//! What keeps the journal short: prepares segments, settles old ones, takes checkpoints, recycles.
//!
//! Order, always: write the settled file, sync it and its name, commit the edit to the journal, publish; then take a
//! checkpoint; only then is a segment free, and only once no reader holds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashSet};
use parking_lot::{Condvar, Mutex};
use rand::Rng;
use tokio::sync::oneshot;
use weft_core::limits::SEGMENT_PIN;

use crate::checkpoint;
use crate::disk::Disk;
use crate::embedded::Shared;
use crate::entry::Encoded;
use crate::group::Group;
use crate::queue::Work;
use crate::reader::{self, damaged, records};
use crate::recover::io;
use crate::segments::Segment;
use crate::settled::{self, Input};
use crate::streams::{Piece, Place};
use crate::views::Source;
use crate::{Error, Record, Result, Seq, StreamName};

/// How often the keeper looks at the free space when nothing else wakes it.
const LOOK: Duration = Duration::from_secs(1);

/// What the keeper asks of the writer.
pub(crate) enum Ask {
    /// Commit a manifest edit.
    Edit(Encoded),
    /// Make everything published durable.
    Sync,
}

/// Wakes the keeper.
#[derive(Default)]
pub(crate) struct Nudge {
    state: Mutex<(bool, bool)>,
    wake: Condvar,
}

impl Nudge {
    /// There may be something to do.
    pub(crate) fn nudge(&self) {
        self.state.lock().0 = true;
        self.wake.notify_one();
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        self.state.lock().1 = true;
        self.wake.notify_one();
    }

    /// Waits; false at the end.
    fn wait(&self) -> bool {
        let mut s = self.state.lock();
        if !s.0 && !s.1 {
            self.wake.wait_for(&mut s, LOOK);
        }
        s.0 = false;
        !s.1
    }
}

/// The keeper's own state.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    /// Segments no checkpoint needs, and since when; readers may still hold them.
    retired: Vec<(Arc<Segment>, Instant)>,
    /// The opening they were retired in: another one has found its free segments by itself.
    epoch: u64,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, disk: Arc<dyn Disk>) -> Self {
        Self { shared, disk, retired: Vec::new(), epoch: 0 }
    }

    /// Does what there is to do.
    pub(crate) fn step(&mut self, ask: &mut dyn FnMut(Ask) -> Result<()>) -> Result<()> {
        self.look()?;
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        if epoch != self.epoch {
            self.retired.clear();
            self.epoch = epoch;
        }
        self.recycle()?;
        let tuning = &self.shared.tuning;
        if self.shared.tail_used.load(Ordering::Relaxed) > tuning.segment_bytes / 4 {
            self.shared.pool.fill(&*self.disk)?;
        }
        let full = self.full_segments();
        if full.len() > tuning.keep_segments {
            let oldest = full.len() - tuning.keep_segments / 2;
            for id in &full[..oldest] {
                self.settle(*id, ask)?;
            }
            self.checkpoint(ask)?;
            self.recycle()?;
        }
        Ok(())
    }

    /// Notes how much space is left.
    pub(crate) fn look(&self) -> Result<()> {
        let free = self.disk.free().map_err(io("looking at the free space"))?;
        self.shared.free.store(free, Ordering::Relaxed);
        Ok(())
    }

    /// The segments that are not written any more, oldest first.
    fn full_segments(&self) -> Vec<u32> {
        let views = self.shared.views.read();
        let mut all: Vec<(u64, u32)> = views.segments.values().map(|s| (s.header.generation, s.id)).collect();
        drop(views);
        all.sort_unstable();
        all.pop();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Moves what is live in a segment to a settled file.
    fn settle(&mut self, segment: u32, ask: &mut dyn FnMut(Ask) -> Result<()>) -> Result<()> {
        let inputs = self.gather(segment)?;
        if inputs.is_empty() {
            return Ok(());
        }
        let id = self.shared.next_file.fetch_add(1, Ordering::Relaxed);
        let file = settled::write(&*self.disk, id, rand::rng().next_u64(), inputs)?;
        self.shared.views.write().files.insert(id, Arc::new(file));
        // Where the edit's outcome is unknown the file stays: recovery finds out whether the journal names it.
        ask(Ask::Edit(Encoded::settled(id)))
    }

    /// The live records of a segment by stream. Each group is read once.
    fn gather(&self, segment: u32) -> Result<Vec<Input>> {
        struct Todo {
            stream: usize,
            piece: Piece,
            source: Source,
        }
        let mut inputs: Vec<Input> = Vec::new();
        let mut todo: BTreeMap<u64, Vec<Todo>> = BTreeMap::new();
        {
            let mut views = self.shared.views.write();
            views.streams.map.values_mut().for_each(crate::streams::Stream::prune);
        }
        let views = self.shared.views.read();
        for (name, s) in &views.streams.map {
            let mut ranges: Vec<(Seq, Seq)> = Vec::new();
            for e in &s.extents {
                let Place::Journal { sequence, .. } = e.place else { continue };
                if views.location(sequence).is_none_or(|l| l.segment != segment) {
                    continue;
                }
                match ranges.last_mut() {
                    Some((_, last)) if *last + 1 == e.first => *last = e.last,
                    _ => ranges.push((e.first, e.last)),
                }
                let mut at = e.first;
                while let Some((first, last)) = s.live_from(at, e.last) {
                    let piece = Piece { first, last, place: e.place };
                    let source = views.source(&piece);
                    todo.entry(sequence).or_default().push(Todo { stream: inputs.len(), piece, source });
                    at = last + 1;
                }
            }
            if !ranges.is_empty() {
                inputs.push(Input { stream: name.clone(), ranges, records: Vec::new() });
            }
        }
        drop(views);
        for pieces in todo.into_values() {
            let mut read: Option<Option<Arc<Group>>> = None;
            for Todo { stream, piece, source } in pieces {
                let Place::Journal { batch, .. } = piece.place else { continue };
                let group = match (&read, source) {
                    (Some(group), _) => group.clone(),
                    (None, Source::Memory(group, _)) => Some(group),
                    (None, Source::Journal(segment, at, _)) => reader::load(&segment, at)?,
                    (None, _) => None,
                };
                let name: &StreamName = &inputs[stream].stream;
                let found: Vec<Record> = match &group {
                    Some(group) => records(group, batch, name, piece.first, piece.last),
                    None => damaged(&piece),
                };
                read = Some(group);
                inputs[stream].records.extend(found);
            }
        }
        Ok(inputs)
    }

    /// Writes down everything as of one durable group, and lets go of what it makes needless.
    pub(crate) fn checkpoint(&mut self, ask: &mut dyn FnMut(Ask) -> Result<()>) -> Result<()> {
        let (sequence, content, mut needed, mut named) = {
            let mut views = self.shared.views.write();
            let epoch = self.shared.epoch.load(Ordering::Relaxed);
            let Some(mut head) = views.head(epoch, self.shared.next_file.load(Ordering::Relaxed)) else {
                return Ok(());
            };
            views.prune(head.sequence);
            let needed = views.needed(head.sequence);
            head.segments.retain(|s| needed.contains(&s.id));
            head.locations = views.locations.iter().copied().collect();
            (head.sequence, checkpoint::encode(&head, &views.streams), needed, views.named_files())
        };
        ask(Ask::Sync)?;
        self.shared.applier.wait_through(sequence)?;
        self.shared.kv.flush()?;
        let number = self.shared.checkpoint.load(Ordering::Relaxed) + 1;
        checkpoint::write(&*self.disk, number, &content)?;
        self.shared.checkpoint.store(number, Ordering::Relaxed);
        let mut views = self.shared.views.write();
        needed.extend(views.needed(sequence));
        named.extend(views.named_files());
        needed.extend(views.segments.values().max_by_key(|s| s.header.generation).map(|s| s.id));
        let free: Vec<u32> = views.segments.keys().filter(|id| !needed.contains(*id)).copied().collect();
        self.retired.extend(free.iter().filter_map(|id| views.segments.remove(id)).map(|s| (s, Instant::now())));
        views.files.retain(|id, _| named.contains(id));
        self.shared.note_crowding(&views);
        drop(views);
        remove_stale(&*self.disk, number, &named)
    }

    /// Gives back retired segments that no reader holds, or held too long.
    fn recycle(&mut self) -> Result<()> {
        let free =
            |(s, since): &mut (Arc<Segment>, Instant)| Arc::strong_count(s) == 1 || since.elapsed() > SEGMENT_PIN;
        let free: Vec<_> = self.retired.extract_if(.., free).collect();
        if !free.is_empty() {
            self.shared.kept.clear();
        }
        for (segment, _) in free {
            self.shared.pool.give_back(&*self.disk, segment.id, segment.file.clone())?;
        }
        Ok(())
    }
}

/// Removes all checkpoints but one, and the settled files that neither the checkpoint nor the views name.
pub(crate) fn remove_stale(disk: &dyn Disk, checkpoint: u64, named: &HashSet<u64>) -> Result<()> {
    for name in disk.list().map_err(io("listing the journal"))? {
        let stale = checkpoint::number_of(&name).is_some_and(|n| n != checkpoint)
            || settled::id_of(&name).is_some_and(|id| !named.contains(&id));
        if stale {
            disk.remove(&name).map_err(io("removing a file"))?;
        }
    }
    Ok(())
}

/// The thread.
pub(crate) fn run(mut keeper: Keeper) {
    let shared = keeper.shared.clone();
    let mut warned: HashMap<&'static str, Instant> = HashMap::new();
    while shared.nudge.wait() {
        // Recovery takes the same turn, so that it never meets a half-done step.
        let _turn = shared.keeper_turn.lock();
        if shared.health.check().is_err() {
            continue;
        }
        let mut ask = |ask: Ask| ask_writer(&shared, ask);
        if let Err(e) = keeper.step(&mut ask) {
            let action = if let Error::Io { action, .. } = &e { action } else { "keeping the journal short" };
            if warned.get(action).is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
                tracing::warn!(error = %e, "keeping the journal short failed; it is tried again");
                warned.insert(action, Instant::now());
            }
        }
    }
}

fn ask_writer(shared: &Shared, ask: Ask) -> Result<()> {
    let (reply, answer) = oneshot::channel();
    shared.queue.push(match ask {
        Ask::Edit(edit) => Work::Edit(edit, reply),
        Ask::Sync => Work::Sync(reply),
    })?;
    answer.blocking_recv().unwrap_or(Err(Error::Unavailable { reason: "the journal's writer ended".into() }))
}
