//! A tenant's secrets: sealed with the operator's key before they are stored, opened for one request of a task,
//! and shown to nobody. The only place that knows ring.

use std::io::Read;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::store::{Readers, SecretMeta, StoreError};

/// How many bytes a value has. A shorter one would be masked where it is only meant to be said.
pub const VALUE_BYTES: RangeInclusive<usize> = 8..=8192;

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// Most bytes of the key's file.
const KEY_FILE_BYTES: u64 = 1024;

/// The operator's key. It is in no database and no backup.
pub struct Key {
    key: LessSafeKey,
    random: SystemRandom,
}

/// A value that was opened. Nothing prints it, and it is wiped when it is dropped.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A secret with that value.
    pub fn new(value: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(value))
    }

    /// The value.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// The server has no key.
    #[error("the server has no key for secrets")]
    NoKey,
    /// There is none of that name.
    #[error("there is no secret {0}")]
    Missing(String),
    /// Not sealed with this key, for this tenant and this name.
    #[error("the secret {0} cannot be opened: it was sealed with another key than the server's")]
    Sealed(String),
    /// It could not be read.
    #[error("the secrets cannot be read at the moment")]
    Unread(#[from] StoreError),
}

/// All tenants' secrets.
#[derive(Clone)]
pub struct Secrets {
    readers: Readers,
    key: Option<Arc<Key>>,
}

impl Secrets {
    /// The secrets that `readers` read; without a key none is sealed or opened.
    pub fn new(readers: Readers, key: Option<Arc<Key>>) -> Secrets {
        Secrets { readers, key }
    }

    /// The key, where there is one.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_deref()
    }

    /// The tenant's secrets after `after` in the order of their names, at most `limit`.
    pub async fn list(&self, tenant: &Arc<str>, after: String, limit: usize) -> Result<Vec<SecretMeta>, StoreError> {
        let (key, of) = (self.key.clone(), tenant.clone());
        let is_usable =
            move |name: &str, sealed: &[u8]| key.as_ref().is_some_and(|key| key.open(&of, name, sealed).is_some());
        self.readers.secrets(tenant.clone(), after, limit, is_usable).await
    }

    /// The tenant's secrets of these names, as they are now.
    pub async fn open(&self, tenant: &Arc<str>, names: Vec<String>) -> Result<Vec<(String, Secret)>, NotOpened> {
        let key = self.key().ok_or(NotOpened::NoKey)?;
        let sealed = self.readers.sealed_secrets(tenant.clone(), names.clone()).await?;
        let opened = names.into_iter().zip(sealed).map(|(name, sealed)| {
            let Some(sealed) = sealed else { return Err(NotOpened::Missing(name)) };
            match key.open(tenant, &name, &sealed) {
                Some(secret) => Ok((name, secret)),
                None => Err(NotOpened::Sealed(name)),
            }
        });
        opened.collect()
    }
}

impl Key {
    /// Reads the key's file, which has to be out of the reach of whoever has the data directory, or a copy of it.
    pub fn read(file: &Path, data_dir: &Path) -> anyhow::Result<Key> {
        let shown = file.display();
        let cannot = || format!("cannot read the key of --secret-key-file {shown}");
        let place = file.canonicalize().with_context(cannot)?;
        // Where there is no such directory yet, nothing is in it.
        if data_dir.canonicalize().is_ok_and(|data_dir| place.starts_with(data_dir)) {
            bail!(
                "--secret-key-file {shown} is in the data directory, where whoever gets that gets the key as well: keep \
                 it elsewhere"
            );
        }
        let opened = std::fs::File::open(&place).with_context(cannot)?;
        let about = opened.metadata().with_context(cannot)?;
        ensure!(about.is_file(), "--secret-key-file {shown} is no file");
        ensure!(
            about.mode() & 0o077 == 0,
            "--secret-key-file {shown} is open to others than its owner: `chmod 600 {shown}`"
        );
        let mut text = Zeroizing::new(Vec::new());
        opened.take(KEY_FILE_BYTES + 1).read_to_end(&mut text).with_context(cannot)?;
        let Some(key) = key_of(text.trim_ascii()) else {
            bail!(
                "--secret-key-file {shown} has no key in it: 32 random bytes as base64 or as 64 hexadecimal digits, such \
                 as `head -c 32 /dev/urandom | base64` makes"
            );
        };
        Key::new(&key).with_context(cannot)
    }

    fn new(key: &[u8]) -> anyhow::Result<Key> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| anyhow::anyhow!("it has not 32 bytes"))?;
        Ok(Key { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// Seals a value for that tenant and that name: the nonce, and what was sealed.
    pub fn seal(&self, tenant: &str, name: &str, value: &[u8]) -> anyhow::Result<Vec<u8>> {
        let failed = |_| anyhow::anyhow!("cannot seal a secret");
        // Random ones of 96 bits do not meet before there were billions of them.
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + value.len() + CHACHA20_POLY1305.tag_len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let tag = self.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            belonging(tenant, name),
            &mut sealed[NONCE_LEN..],
        );
        sealed.extend_from_slice(tag.map_err(failed)?.as_ref());
        Ok(sealed)
    }

    /// Opens what was sealed with this key for that tenant and that name, and nothing else.
    fn open(&self, tenant: &str, name: &str, sealed: &[u8]) -> Option<Secret> {
        let (nonce, sealed) = sealed.split_first_chunk()?;
        let mut value = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, belonging(tenant, name), &mut value).ok()?.len();
        value.truncate(length);
        Some(Secret(value))
    }
}

/// Whose a secret is, so that a row that was put under another name or tenant does not open. No name has a NUL.
fn belonging(tenant: &str, name: &str) -> Aad<String> {
    Aad::from(format!("taskcell secret\0{tenant}\0{name}"))
}

fn key_of(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let key = if text.len() == 2 * KEY_BYTES {
        let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        (0..KEY_BYTES).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect::<Option<_>>()?
    } else {
        STANDARD.decode(text).ok()?
    };
    Some(Zeroizing::new(key)).filter(|key| key.len() == KEY_BYTES)
}

/// What is wrong with a value, which has to fit into a header's field. It tells where, and never what is there.
pub fn fault(value: &[u8]) -> Option<String> {
    if !VALUE_BYTES.contains(&value.len()) {
        let (least, most) = (VALUE_BYTES.start(), VALUE_BYTES.end());
        return Some(format!("a secret has {least} to {most} bytes, and this one has {}", value.len()));
    }
    let inside = 1..value.len() - 1;
    let allowed = |(at, byte): (usize, &u8)| byte.is_ascii_graphic() || inside.contains(&at) && b" \t".contains(byte);
    let wrong = value.iter().enumerate().position(|(at, byte)| !allowed((at, byte)))?;
    Some(format!(
        "byte {} of {} cannot be there: a secret is of visible ASCII characters, with spaces and tabs inside only",
        wrong + 1,
        value.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_for_a_name_opens_there() {
        let (key, other) = (Key::new(&[1; 32]).unwrap(), Key::new(&[2; 32]).unwrap());
        let sealed = key.seal("t", "n", b"password").unwrap();
        let opens = |key: &Key, tenant: &str, name: &str, sealed: &[u8]| {
            key.open(tenant, name, sealed).map(|secret| secret.bytes().to_vec())
        };
        assert_eq!(opens(&key, "t", "n", &sealed), Some(b"password".to_vec()));
        assert_ne!(key.seal("t", "n", b"password").unwrap(), sealed, "the nonce is another each time");
        assert_eq!(opens(&key, "t", "m", &sealed), None);
        assert_eq!(opens(&key, "u", "n", &sealed), None);
        assert_eq!(opens(&other, "t", "n", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(opens(&key, "t", "n", &changed), None, "{at}");
            assert_eq!(opens(&key, "t", "n", &sealed[..at]), None, "{at}");
        }
    }

    #[test]
    fn keys() {
        let (base64, hex) = (STANDARD.encode([7; 32]), "07".repeat(32));
        for good in [&*base64, &*hex] {
            assert_eq!(key_of(good.as_bytes()).unwrap().as_slice(), [7; 32]);
        }
        let (short, long) = (STANDARD.encode([7; 31]), STANDARD.encode([7; 33]));
        for bad in ["", "password", &short, &long, &hex[1..], &hex.replace('7', "g"), &format!("{hex}0"), &base64[..43]]
        {
            assert!(key_of(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn values() {
        let longest = "x".repeat(8192);
        for good in ["12345678", "Basic dXNlcjp3b3Jk", "a b\tc ~!", &longest] {
            assert_eq!(fault(good.as_bytes()), None, "{good}");
        }
        for (bad, part) in [
            ("1234567", "7"),
            (&*format!("{longest}x"), "8193"),
            ("12345678\n", "byte 9 of 9"),
            (" 12345678", "byte 1 of 9"),
            ("1234\r5678", "byte 5 of 9"),
            ("1234567\u{7f}8", "byte 8 of 9"),
            ("pässword", "byte 2 of 9"),
            ("1234567\0", "byte 8 of 8"),
        ] {
            let told = fault(bad.as_bytes()).unwrap();
            assert!(told.contains(part) && !told.contains(bad), "{told}");
        }
    }
}
