//! API keys: what one looks like, what is kept of it, and whether a presented one is good.
//!
//! A key is `weft_<id>_<secret>`. The id is no secret: it finds the record, and is what lists and logs show. The secret
//! has 256 random bits, so one fast hash keeps it: there is nothing to guess that a slow one would protect.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use serde::{Deserialize, Serialize};
use weft_core::Timestamp;

use super::Denied;

const PREFIX: &str = "weft_";

/// What is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The visible part.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// What it may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// Switched off.
    #[serde(default)]
    pub disabled: bool,
    /// The newest first; at most two.
    pub secrets: Vec<Secret>,
}

/// One secret of a key, as a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// SHA-256 of the whole key.
    hash: [u8; 32],
    /// When it was made.
    pub created: Timestamp,
    /// When it is replaced for good.
    pub expires: Option<Timestamp>,
}

/// A key in clear; shown once, when it is made.
pub struct Clear(String);

impl Clear {
    /// As it is sent.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Clear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clear(..)")
    }
}

fn secret(id: &str, now: Timestamp) -> (Clear, Secret) {
    let clear = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
    let kept = Secret { hash: hash(&clear), created: now, expires: None };
    (Clear(clear), kept)
}

fn hash(key: &str) -> [u8; 32] {
    digest::digest(&digest::SHA256, key.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Whether two hashes are the same, in a time that does not tell how far they are.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y))) == 0
}

/// The id of a presented key; `None` when it is none of ours.
pub fn id(key: &str) -> Option<&str> {
    let (id, secret) = key.strip_prefix(PREFIX)?.split_once('_')?;
    (!id.is_empty() && secret.len() == 43).then_some(id)
}

impl Record {
    /// Makes a key: what is kept, and the key itself.
    pub fn new(owner: &str, scopes: Vec<String>, expires: Option<Timestamp>, now: Timestamp) -> (Self, Clear) {
        let id: String = rand::random::<[u8; 8]>().iter().map(|b| format!("{b:02x}")).collect();
        let (clear, kept) = secret(&id, now);
        let owner = owner.to_owned();
        (Self { id, owner, scopes, created: now, expires, disabled: false, secrets: vec![kept] }, clear)
    }

    /// A new secret; the one before is good until `overlap_ends`, older ones are gone.
    pub fn rotate(&mut self, overlap_ends: Timestamp, now: Timestamp) -> Clear {
        let (clear, kept) = secret(&self.id, now);
        self.secrets.truncate(1);
        for s in &mut self.secrets {
            s.expires = Some(overlap_ends);
        }
        self.secrets.insert(0, kept);
        clear
    }

    /// Whether a presented key is good, and when it ends.
    pub fn check(&self, key: &str, now: Timestamp) -> Result<Option<Timestamp>, Denied> {
        let given = hash(key);
        // All of them, so that the time does not tell which one it was.
        let found = self.secrets.iter().fold(None, |f, s| if same(&s.hash, &given) { Some(s) } else { f });
        let found = found.ok_or(Denied::Key)?;
        if self.disabled {
            return Err(Denied::KeyDisabled);
        }
        let ends = self.expires.into_iter().chain(found.expires).min();
        if ends.is_some_and(|t| t <= now) { Err(Denied::KeyExpired) } else { Ok(ends) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn made() -> (Record, Clear) {
        Record::new("acme", vec!["orders:read".into()], None, NOW)
    }

    #[test]
    fn a_key_is_found_by_its_id_and_good_with_its_secret_alone() {
        let (record, key) = made();
        assert_eq!(id(key.expose()), Some(record.id.as_str()));
        assert_eq!(record.check(key.expose(), NOW), Ok(None));
        let forged = format!("{}A", &key.expose()[..key.expose().len() - 1]);
        let forged = if forged == key.expose() { forged.replace('A', "B") } else { forged };
        assert_eq!(record.check(&forged, NOW), Err(Denied::Key));
        assert_eq!(record.check(made().1.expose(), NOW), Err(Denied::Key));
        for other in ["", "weft_", "weft_x_y", "sk_live_1", "weft__0123456789012345678901234567890123456789012"] {
            assert_eq!(id(other), None, "{other}");
        }
    }

    #[test]
    fn the_record_keeps_nothing_that_could_be_sent() {
        let (record, key) = made();
        let kept = serde_json::to_string(&record).unwrap();
        assert!(!kept.contains(key.expose().rsplit('_').next().unwrap()));
        assert_eq!(format!("{key:?}"), "Clear(..)");
        assert_eq!(serde_json::from_str::<Record>(&kept).unwrap(), record);
    }

    #[test]
    fn rotation_leaves_two_valid_until_the_overlap_ends_and_never_three() {
        let (mut record, first) = made();
        let second = record.rotate(Timestamp(2_000), NOW);
        let until = Some(Timestamp(2_000));
        assert_eq!((record.check(first.expose(), NOW), record.check(second.expose(), NOW)), (Ok(until), Ok(None)));
        assert_eq!(record.check(first.expose(), Timestamp(2_000)), Err(Denied::KeyExpired));
        assert_eq!(record.check(second.expose(), Timestamp(9_000)), Ok(None));
        let third = record.rotate(Timestamp(3_000), NOW);
        assert_eq!(record.check(first.expose(), NOW), Err(Denied::Key));
        assert!(record.check(second.expose(), NOW).is_ok() && record.check(third.expose(), NOW).is_ok());
        assert_eq!(record.secrets.len(), 2);
    }

    #[test]
    fn a_key_ends_and_can_be_switched_off() {
        let (mut record, key) = Record::new("acme", vec![], Some(Timestamp(5_000)), NOW);
        assert_eq!(record.check(key.expose(), Timestamp(5_000)), Err(Denied::KeyExpired));
        record.disabled = true;
        assert_eq!(record.check(key.expose(), NOW), Err(Denied::KeyDisabled));
        assert_eq!(record.check("weft_x", NOW), Err(Denied::Key), "a stranger learns nothing of it");
    }
}
