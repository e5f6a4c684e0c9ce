//! Secrets: set once by name, sealed where they are kept, told to the guests of those sandboxes that name them.
//!
//! A secret is sealed by age to this host's key, together with its owner and its name, so that no row of the index can
//! stand for another. Manifests have names only. The values go to the guest in the first message of each session (a
//! create, a boot, a wake, a copy), as they are at that moment; they are on no config drive.

use std::collections::BTreeMap;

use age::secrecy::ExposeSecret as _;
use age::x25519;
use serde::{Deserialize, Serialize};
use serde_json::json;
use storage::Manifest;
use types::{Owner, SandboxName, SecretName, Timestamp};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::services::{Services, blocking};

/// The longest value: an environment has room for some of these.
const LONGEST: usize = 32 << 10;

/// All values of one sandbox together.
const ALL_TOGETHER: usize = 256 << 10;

/// A key as text, which no log shows.
#[derive(Clone)]
pub struct SecretsKeyText(pub String);

impl std::fmt::Debug for SecretsKeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretsKeyText")
    }
}

/// The key, which no log shows.
pub(crate) struct SecretsKey(x25519::Identity);

impl std::fmt::Debug for SecretsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretsKey")
    }
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretView {
    /// Its name, which is that of its variable.
    pub name: SecretName,
    /// Whose it is.
    pub owner: Owner,
    /// When the name was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
    /// The sandboxes that name it.
    pub used_by: Vec<SandboxName>,
}

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Sealed {
    owner: Owner,
    name: SecretName,
    value: String,
}

fn no_key(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotReady, format!("the key of the secrets cannot be used: {error}")).hint(
        "it is one line AGE-SECRET-KEY-1... in <data-dir>/secrets.key, BHATTI_SECRETS_KEY or the systemd \
         credential `secrets.key`; bring it back, or remove it and set all secrets anew",
    )
}

impl Services {
    /// The key that secrets are sealed to: as it was given, or that of the data directory, made when there is none.
    async fn secrets_key(&self) -> Result<&x25519::Identity> {
        let key = self
            .secrets_key
            .get_or_try_init(|| async {
                let (store, given) = (self.store.clone(), self.config.secrets_key.clone());
                blocking(move || {
                    let text = match given {
                        Some(SecretsKeyText(text)) => text,
                        None => {
                            store.secrets_key(x25519::Identity::generate().to_string().expose_secret())?
                        }
                    };
                    text.trim().parse().map(SecretsKey).map_err(no_key)
                })
                .await
            })
            .await?;
        Ok(&key.0)
    }

    async fn seal(&self, owner: &Owner, name: &SecretName, value: String) -> Result<Vec<u8>> {
        let recipient = self.secrets_key().await?.to_public();
        let sealed = Sealed { owner: owner.clone(), name: name.clone(), value };
        let text = serde_json::to_vec(&sealed).map_err(|error| {
            Error::new(ErrorKind::Internal, "a secret could not be written down").source(error)
        })?;
        blocking(move || age::encrypt(&recipient, &text).map_err(no_key)).await
    }

    /// The values of these secrets, as they are now, and which of them there are not.
    pub(crate) async fn secret_values(
        &self,
        owner: &Owner,
        names: &[SecretName],
    ) -> Result<(BTreeMap<String, String>, Vec<SecretName>)> {
        if names.is_empty() {
            return Ok(Default::default());
        }
        let rows = self.index().secrets(owner)?;
        let missing =
            names.iter().filter(|name| rows.iter().all(|row| row.name != **name)).cloned().collect();
        let key = self.secrets_key().await?.clone();
        let (owner, names) = (owner.clone(), names.to_vec());
        let values = blocking(move || {
            let mut values = BTreeMap::new();
            for row in rows.into_iter().filter(|row| names.contains(&row.name)) {
                let damaged = || {
                    Error::new(ErrorKind::Corrupt, format!("the secret {} cannot be opened", row.name))
                        .hint("set it again, or bring back the key that it was sealed to")
                };
                let text = age::decrypt(&key, &row.sealed).map_err(|error| damaged().source(error))?;
                let sealed: Sealed = serde_json::from_slice(&text).map_err(|_said_nothing| damaged())?;
                if sealed.owner != owner || sealed.name != row.name {
                    return Err(damaged());
                }
                values.insert(row.name.into(), sealed.value);
            }
            Ok(values)
        })
        .await?;
        if values.values().map(String::len).sum::<usize>() > ALL_TOGETHER {
            return Err(Error::new(
                ErrorKind::BadRequest,
                format!("its secrets have more than {} KiB together", ALL_TOGETHER >> 10),
            )
            .hint("give it fewer, or long ones as files"));
        }
        Ok((values, missing))
    }

    /// What the guest of a sandbox is told of its secrets at the beginning of a session, and what to warn of: one that is
    /// gone by now is left out, for a sandbox must be able to wake without it.
    pub(crate) async fn secrets_of(
        &self,
        manifest: &Manifest,
    ) -> Result<(Option<wire::Secrets>, Vec<String>)> {
        if manifest.secrets.is_empty() {
            return Ok((None, Vec::new()));
        }
        let (values, missing) = self.secret_values(&manifest.owner, &manifest.secrets).await?;
        let warning =
            |name| format!("there is no secret {name} any more, so {} goes on without it", manifest.name);
        Ok((Some(wire::Secrets(values)), missing.iter().map(warning).collect()))
    }
}

impl Host {
    /// Sets a secret, new or in place of its last value; whether it is new. Guests learn it at their next session.
    ///
    /// # Errors
    /// `BadRequest` for a value that no variable can have, `NotReady` when the key cannot be used.
    pub async fn set_secret(
        &self,
        owner: &Owner,
        name: &SecretName,
        value: String,
    ) -> Result<(SecretView, bool)> {
        let refused = |why: &str, hint: &str| Err(Error::new(ErrorKind::BadRequest, why).hint(hint));
        if value.contains('\0') {
            return refused("the value has a NUL byte", "remove it, or encode the value");
        }
        if value.len() > LONGEST {
            return refused("the value has more than 32 KiB", "send what is long with `bhatti file write`");
        }
        let services = &self.inner.services;
        let sealed = services.seal(owner, name, value).await?;
        let (whose, what) = (owner.clone(), name.clone());
        let put =
            move |index: &mut meta::Index| Ok(index.put_secret(&whose, &what, &sealed, Timestamp::now())?);
        let new = services.tell_index(put).await?;
        services.events.host("secret.set", owner, json!({ "secret": name, "new": new }));
        let set = self.secrets(owner)?.into_iter().find(|secret| secret.name == *name);
        Ok((set.ok_or_else(|| missing(name))?, new))
    }

    /// The owner's secrets, by name, without their values.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn secrets(&self, owner: &Owner) -> Result<Vec<SecretView>> {
        let rows = self.inner.services.index().secrets(owner)?;
        let sandboxes: Vec<_> =
            self.inner.registry.of_owner(owner).iter().map(|entry| entry.shared.view()).collect();
        let view = |row: meta::SecretRow| {
            let uses = sandboxes.iter().filter(|view| view.secrets.contains(&row.name));
            let mut used_by: Vec<_> = uses.map(|view| view.name.clone()).collect();
            used_by.sort();
            let (created_at, updated_at) = (row.created_at, row.updated_at);
            SecretView { name: row.name, owner: owner.clone(), created_at, updated_at, used_by }
        };
        Ok(rows.into_iter().map(view).collect())
    }

    /// Forgets a secret.
    ///
    /// # Errors
    /// `NotFound`; `InUse` while a sandbox names it, unless `force`.
    pub async fn delete_secret(&self, owner: &Owner, name: &SecretName, force: bool) -> Result<()> {
        let (host, owner, name) = (self.clone(), owner.clone(), name.clone());
        self.to_the_end(async move {
            // No create is between its look at the secrets and its manifest meanwhile.
            let _alone = host.inner.secrets.write().await;
            let secret = host.secrets(&owner)?.into_iter().find(|secret| secret.name == name);
            let used_by = secret.ok_or_else(|| missing(&name))?.used_by;
            if !force && let Some(first) = used_by.first() {
                let others = match used_by.len() {
                    1 => String::new(),
                    more => format!(" and {} more", more - 1),
                };
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("the secret {name} is used by {first}{others}"),
                )
                .hint("destroy them first, or delete it with --force: they then go on without it"));
            }
            let services = &host.inner.services;
            let (whose, what) = (owner.clone(), name.clone());
            services.tell_index(move |index| Ok(index.remove_secret(&whose, &what)?)).await?;
            let detail = json!({ "secret": name, "used_by": used_by });
            services.events.host("secret.deleted", &owner, detail);
            Ok(())
        })
        .await
    }

    /// Refuses a create that names secrets which are not there.
    pub(crate) async fn require_secrets(&self, owner: &Owner, names: &[SecretName]) -> Result<()> {
        let (_values, gone) = self.inner.services.secret_values(owner, names).await?;
        gone.first().map_or(Ok(()), |name| Err(missing(name)))
    }
}

fn missing(name: &SecretName) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no secret {name}"))
        .hint(format!("`bhatti secret set {name}` sets it; `bhatti secret list` shows those that are there"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostConfig;

    #[tokio::test]
    async fn secrets_are_sealed_to_a_private_key_and_last() {
        let dir = tempfile::tempdir().unwrap();
        let admin = Owner::admin();
        let name: SecretName = "API_KEY".parse().unwrap();
        let host = Host::open(HostConfig::new(dir.path())).await.unwrap();
        let marker = "plaintext-marker-4711";
        assert!(host.set_secret(&admin, &name, "first".to_owned()).await.unwrap().1);
        let (view, new) = host.set_secret(&admin, &name, marker.to_owned()).await.unwrap();
        assert!(!new && view.used_by.is_empty() && view.created_at <= view.updated_at);

        let mut files = 0;
        for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
            if let Ok(bytes) = std::fs::read(entry.path()) {
                files += 1;
                assert!(!bytes.windows(marker.len()).any(|part| part == marker.as_bytes()), "{entry:?}");
            }
        }
        assert!(files >= 2, "the index and the key are among them");
        let key = dir.path().join("secrets.key");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&key).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);

        // What opens the same files anew knows them, too.
        let again = Services::open(HostConfig::new(dir.path())).unwrap();
        let names = [name.clone(), "NO".parse().unwrap()];
        let (values, gone) = again.secret_values(&admin, &names).await.unwrap();
        assert_eq!(values, [("API_KEY".to_owned(), marker.to_owned())].into());
        assert_eq!(gone, names[1..]);
        let other: Owner = "other".parse().unwrap();
        assert_eq!(host.require_secrets(&other, &names[..1]).await.unwrap_err().kind(), ErrorKind::NotFound);
        for value in ["a\0b".to_owned(), "x".repeat(LONGEST + 1)] {
            assert_eq!(
                host.set_secret(&admin, &name, value).await.unwrap_err().kind(),
                ErrorKind::BadRequest
            );
        }
        // A row of somebody else's, or under another name, is not taken for this one.
        let row = host.inner.services.index().secrets(&admin).unwrap().remove(0);
        host.inner.services.index().put_secret(&other, &name, &row.sealed, Timestamp(0)).unwrap();
        assert_eq!(host.require_secrets(&other, &names[..1]).await.unwrap_err().kind(), ErrorKind::Corrupt);
        host.delete_secret(&admin, &name, false).await.unwrap();
        assert_eq!(host.delete_secret(&admin, &name, false).await.unwrap_err().kind(), ErrorKind::NotFound);

        // Another key opens nothing, and one that is none is told as that.
        let config = HostConfig {
            secrets_key: Some(SecretsKeyText(
                x25519::Identity::generate().to_string().expose_secret().to_owned(),
            )),
            ..HostConfig::new(dir.path())
        };
        let stranger = Services::open(config).unwrap();
        let opened = stranger.secret_values(&other, &names[..1]).await;
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::Corrupt);
        std::fs::write(&key, "nonsense\n").unwrap();
        let confused = Services::open(HostConfig::new(dir.path())).unwrap();
        let error = confused.seal(&admin, &name, "x".to_owned()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotReady);
    }
}
