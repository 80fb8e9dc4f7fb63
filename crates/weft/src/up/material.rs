//! Files that a configuration names and that are read when it is put in force: certificates, keys, authorities.

use std::path::PathBuf;

use weft_edge::spec::Snapshot;

/// The files with what is in them, to notice that one changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Material(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Material {
    /// Reads all of them; one that cannot be read counts as that.
    pub fn read(snapshot: &Snapshot) -> Self {
        Self(paths(snapshot).into_iter().map(|p| (p.clone(), std::fs::read(p).ok())).collect())
    }
}

/// Where they are.
pub fn paths(snapshot: &Snapshot) -> Vec<PathBuf> {
    let listeners = snapshot.gateway.listen.iter().filter_map(|l| l.tls.as_ref());
    let served = listeners.flat_map(|t| {
        let pairs = t.certificates.iter().flat_map(|(chain, key)| [chain, key]);
        pairs.chain(t.client.as_ref().map(|c| &c.ca))
    });
    let upstream = snapshot.services.iter().filter_map(|s| s.tls.as_ref());
    let shown = upstream.flat_map(|t| t.ca.iter().chain(t.identity.iter().flat_map(|(chain, key)| [chain, key])));
    let mut all: Vec<PathBuf> = served.chain(shown).cloned().collect();
    all.sort_unstable();
    all.dedup();
    all
}
