//! Keys: who a client is, and what it may do.
//!
//! A key reads `taskcell_{id}_{secret}{checksum}`, all hexadecimal. Only its SHA-256 is kept. The id finds the key, the
//! hashes are compared in constant time, and the checksum tells a key that was cut off from one that is unknown,
//! without a look at what is stored.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::task::{Digest, Timestamp};

/// What every key begins with.
const PREFIX: &str = "taskcell_";

/// The secret's bytes.
const SECRET_BYTES: usize = 32;

/// The checksum's digits.
const CHECKSUM_DIGITS: usize = 8;

/// The tenant whose keys administer all others.
pub const OPERATOR: &str = "operator";

/// The tenant that is served as long as no key was ever made.
pub const DEFAULT_TENANT: &str = "default";

/// What a key may do: each role what the ones before it may, and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Read,
    /// Creates tasks and writes objects.
    Submit,
    /// Cancels, deletes, retries, pauses, and writes schedules.
    Operate,
    /// Changes task types, what they are granted, and secrets.
    Deploy,
    /// Makes and revokes keys.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Role; 5] = [Role::Read, Role::Submit, Role::Operate, Role::Deploy, Role::Admin];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Submit => "submit",
            Role::Operate => "operate",
            Role::Deploy => "deploy",
            Role::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Role, &'static str> {
        let found = Role::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or("must be read, submit, operate, deploy or admin")
    }
}

/// Which key it is. It is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for KeyId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<KeyId, &'static str> {
        let digits = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let id = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        id.map(KeyId).ok_or("must be the 16 digits of a key's id")
    }
}

/// A whole key, as a client sends it. It is told once, when it is made.
pub struct Token(String);

impl Token {
    /// A new one, of random bits that the system gives.
    pub fn new() -> std::io::Result<(KeyId, Token)> {
        let mut bytes = [0; size_of::<u64>() + SECRET_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        let (id, secret) = bytes.split_at(size_of::<u64>());
        let id = KeyId(id.iter().fold(0, |id, byte| id << 8 | u64::from(*byte)));
        let mut text = format!("{PREFIX}{id}_");
        secret.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
        let checksum = checksum(&text);
        text.push_str(&checksum);
        Ok((id, Token(text)))
    }

    /// What a client sent, where it can be a key at all; with its id.
    fn parse(text: &str) -> Option<KeyId> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let id = id.parse().ok()?;
        if secret.len() != 2 * SECRET_BYTES + CHECKSUM_DIGITS || !secret.is_ascii() {
            return None;
        }
        let (rest, given) = text.split_at(text.len() - CHECKSUM_DIGITS);
        (checksum(rest) == given).then_some(id)
    }

    /// What is kept of it.
    pub fn hash(&self) -> Digest {
        hash(&self.0)
    }

    /// The key itself, to be told to whom it was made for.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

fn hash(text: &str) -> Digest {
    Digest(Sha256::digest(text).into())
}

fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().take(CHECKSUM_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

/// A key, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// Which it is.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// The task types that it may run and change; `None`: all of them.
    pub task_types: Option<Vec<String>>,
    /// The SHA-256 of the whole key.
    pub hash: Digest,
    /// What its maker calls it by.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is good no more.
    pub expires_at: Option<Timestamp>,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
    /// When it was used last, to the minute or so.
    pub last_used_at: Option<Timestamp>,
}

/// A key that clients may use, while the server runs.
#[derive(Debug)]
pub struct Key {
    /// What is kept of it.
    pub stored: StoredKey,
    /// When it was used last, in milliseconds since the Unix epoch; 0: not since the start.
    used: AtomicI64,
}

impl Key {
    /// When it was used last.
    pub fn last_used_at(&self) -> Option<Timestamp> {
        let used = self.used.load(Ordering::Relaxed);
        if used > 0 { Some(Timestamp(used)) } else { self.stored.last_used_at }
    }

    fn is_good(&self, now: Timestamp) -> bool {
        self.stored.revoked_at.is_none() && self.stored.expires_at.is_none_or(|expires| now < expires)
    }
}

/// The keys that there are.
#[derive(Debug, Default)]
pub struct Keys {
    known: RwLock<HashMap<KeyId, Arc<Key>>>,
    /// Turns whenever a key is made or taken back.
    changes: watch::Sender<()>,
}

impl Keys {
    /// Whether clients need a key: as soon as one was ever made.
    pub fn are_needed(&self) -> bool {
        !self.known.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The key that a client sent, where it is good.
    pub fn find(&self, token: &str, now: Timestamp) -> Option<Arc<Key>> {
        let id = Token::parse(token)?;
        let key = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()?;
        let same: bool = hash(token).0.ct_eq(&key.stored.hash.0).into();
        if !same || !key.is_good(now) {
            return None;
        }
        // Few write to it: once a second is enough for what is told.
        if now.0 - key.used.load(Ordering::Relaxed) >= 1000 {
            key.used.store(now.0, Ordering::Relaxed);
        }
        Some(key)
    }

    /// Takes a key as it is now: a new one, or one that was taken back.
    pub fn put(&self, stored: StoredKey) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let used = known.get(&stored.id).map_or(0, |before| before.used.load(Ordering::Relaxed));
        known.insert(stored.id, Arc::new(Key { stored, used: AtomicI64::new(used) }));
        drop(known);
        self.changes.send_replace(());
    }

    /// Forgets a key.
    pub fn forget(&self, id: KeyId) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.changes.send_replace(());
    }

    /// A tenant's keys, in the order in which they were made.
    pub fn of_tenant(&self, tenant: &str) -> Vec<Arc<Key>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<_> = known.values().filter(|key| *key.stored.tenant == *tenant).cloned().collect();
        keys.sort_unstable_by_key(|key| (key.stored.created_at, key.stored.id));
        keys
    }

    /// The keys that were used since the last look, with when.
    pub fn used_since(&self, since: Timestamp) -> Vec<(KeyId, Timestamp)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let used = known.values().map(|key| (key.stored.id, Timestamp(key.used.load(Ordering::Relaxed))));
        used.filter(|(_, used)| *used > since).collect()
    }

    /// Returns once a key is needed.
    pub async fn needed(&self) {
        let mut changes = self.changes.subscribe();
        while !self.are_needed() {
            let _ = changes.changed().await;
        }
    }

    /// Returns once the key is good no more.
    pub async fn end_of(&self, key: &Key) {
        let mut changes = self.changes.subscribe();
        loop {
            let now = crate::clock::now();
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&key.stored.id).cloned();
            let Some(known) = known.filter(|known| known.is_good(now)) else { return };
            let changed = changes.changed();
            let _ = match known.stored.expires_at.map(|expires| expires.millis_since(now).max(1)) {
                Some(left) => tokio::time::timeout(std::time::Duration::from_millis(left), changed).await.ok(),
                None => Some(changed.await),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: KeyId, token: &Token) -> StoredKey {
        StoredKey {
            id,
            tenant: "a".into(),
            role: Role::Read,
            task_types: None,
            hash: token.hash(),
            label: String::new(),
            created_at: Timestamp(0),
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn a_key_is_read_again_and_no_other_text_is() {
        let (id, token) = Token::new().unwrap();
        let text = token.reveal();
        assert_eq!(text.len(), 9 + 16 + 1 + 64 + 8);
        assert_eq!(Token::parse(text), Some(id));
        for at in 0..text.len() {
            let mut other = text.as_bytes().to_vec();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(Token::parse(std::str::from_utf8(&other).unwrap()), None, "another byte at {at}");
            assert_eq!(Token::parse(&text[..at]), None, "cut off at {at}");
        }
        for bad in ["", "taskcell_", "taskcell__", "é", &format!("{text}0"), &text.to_uppercase(), &format!(" {text}")]
        {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
        assert_ne!(Token::new().unwrap().1.reveal(), text);
    }

    #[test]
    fn a_key_is_good_from_its_making_until_it_is_taken_back_or_expires() {
        let keys = Keys::default();
        let (id, token) = Token::new().unwrap();
        let at = |now: i64| keys.find(token.reveal(), Timestamp(now)).is_some();
        assert!(!keys.are_needed() && !at(1));
        keys.put(StoredKey { expires_at: Some(Timestamp(2000)), ..stored(id, &token) });
        assert!(keys.are_needed() && at(1999) && !at(2000));
        keys.put(StoredKey { revoked_at: Some(Timestamp(1)), ..stored(id, &token) });
        assert!(keys.are_needed() && !at(1));
        // One of the same id that is another key.
        keys.put(StoredKey { hash: Digest([0; 32]), ..stored(id, &token) });
        assert!(!at(1));
    }

    #[test]
    fn roles_are_in_order() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
        assert!("root".parse::<Role>().is_err());
    }
}
