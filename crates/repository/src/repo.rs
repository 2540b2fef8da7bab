use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use pgkeep_base::{Clock, SystemClock};
use pgkeep_store::{PutOutcome, Store, StoreErrorKind};
use serde::{Deserialize, Serialize};

use crate::encryption::Encryption;
use crate::error::RepositoryError;
use crate::keys::Identity;
use crate::layout;

/// Small objects (markers, leases, pins) are never larger than this.
pub(crate) const SMALL_OBJECT_BYTES_MAX: u64 = 1 << 20;

/// What this process may do with the repository's contents.
#[derive(Clone)]
pub struct Access {
    /// How new objects are sealed.
    pub encryption: Encryption,
    /// Private keys for reading; empty on a write-only host.
    pub identities: Vec<Identity>,
    /// zstd level for what is written.
    pub compression_level: i32,
}

impl Access {
    /// How the names of sealed objects end: they tell which tools open them.
    pub fn sealed_suffix(&self) -> &'static str {
        layout::sealed_suffix(self.encryption.is_encrypted())
    }

    /// Whom new objects are for, in the order of the text; empty without encryption.
    pub fn recipients(&self) -> Vec<String> {
        let mut recipients: Vec<String> = match &self.encryption {
            Encryption::Age { recipients } => recipients.iter().map(ToString::to_string).collect(),
            Encryption::None => Vec::new(),
        };
        recipients.sort();
        recipients
    }
}

/// The contents of `pgkeep.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepositoryMarker {
    /// The repository's format version.
    pub format: u32,
    /// A random name, so that two repositories are never taken for one.
    pub repository: String,
    /// When it was made.
    pub created_at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
struct IdentityMarker {
    system_identifier: String,
    first_seen_at: Timestamp,
}

/// One cluster's part of a repository, opened. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(crate) store: Store,
    pub(crate) cluster: String,
    pub(crate) access: Arc<Access>,
    pub(crate) clock: Arc<dyn Clock>,
    marker: RepositoryMarker,
    is_new: bool,
}

impl Repository {
    /// Opens a repository that must exist.
    ///
    /// # Errors
    /// [`RepositoryError::NotARepository`] where there is none; a newer format; whatever the store says.
    pub async fn open(store: Store, cluster: &str, access: Access) -> Result<Self, RepositoryError> {
        let marker = read_marker(&store)
            .await?
            .ok_or_else(|| RepositoryError::NotARepository {
                url: store.url().to_owned(),
            })?;
        Ok(Self::assemble(store, cluster, access, marker, false))
    }

    /// Opens a repository for writing, making it where there is none.
    ///
    /// # Errors
    /// As [`Repository::open`], and [`RepositoryError::NoRecipients`] when nobody could read what is written.
    pub async fn open_or_create(
        store: Store,
        cluster: &str,
        access: Access,
    ) -> Result<Self, RepositoryError> {
        if let Encryption::Age { recipients } = &access.encryption
            && recipients.is_empty()
        {
            return Err(RepositoryError::NoRecipients);
        }
        if let Some(marker) = read_marker(&store).await? {
            return Ok(Self::assemble(store, cluster, access, marker, false));
        }
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random)?;
        let marker = RepositoryMarker {
            format: layout::FORMAT_VERSION,
            repository: hex(&random),
            created_at: Timestamp::now(),
        };
        let marker = match store.put_new(layout::MARKER, to_json(&marker)?).await? {
            PutOutcome::Created => marker,
            // Somebody else made it in the same moment: theirs counts.
            PutOutcome::AlreadyExists => {
                read_marker(&store)
                    .await?
                    .ok_or_else(|| RepositoryError::NotARepository {
                        url: store.url().to_owned(),
                    })?
            }
        };
        Ok(Self::assemble(store, cluster, access, marker, true))
    }

    fn assemble(store: Store, cluster: &str, access: Access, marker: RepositoryMarker, is_new: bool) -> Self {
        Self {
            store,
            cluster: cluster.to_owned(),
            access: Arc::new(access),
            clock: Arc::new(SystemClock),
            marker,
            is_new,
        }
    }

    /// The same repository seen through another clock, for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The object store under it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The cluster's name in it.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// How it seals and opens objects.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The same, for a thread of its own.
    pub fn shared_access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }

    /// Format version, name and age of the repository.
    pub fn marker(&self) -> &RepositoryMarker {
        &self.marker
    }

    /// Whether there was none where this was opened.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The present moment, as this repository's clock has it.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// All clusters that have ever written here.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn clusters(store: &Store) -> Result<Vec<String>, RepositoryError> {
        Ok(store.list_directories("").await?)
    }

    /// Whether the database cluster with this system identifier has written under this name before.
    ///
    /// # Errors
    /// [`RepositoryError::OtherIdentity`] where only others have, unless `accept_new` is given; whatever the store says.
    pub async fn check_identity(
        &self,
        system_identifier: u64,
        accept_new: bool,
    ) -> Result<bool, RepositoryError> {
        let prefix = layout::identity_prefix(&self.cluster);
        let mut found = Vec::new();
        for object in self.store.list(&prefix).await? {
            if let Some(identity) = object.key.strip_prefix(&prefix) {
                found.push(identity.to_owned());
            }
        }
        match found.last() {
            _ if found.contains(&system_identifier.to_string()) => Ok(true),
            Some(other) if !accept_new => Err(RepositoryError::OtherIdentity {
                cluster: self.cluster.clone(),
                url: self.store.url().to_owned(),
                found: other.clone(),
                ours: system_identifier,
            }),
            _ => Ok(false),
        }
    }

    /// Makes sure that the database cluster with this system identifier is the one that writes under this name, and
    /// records it the first time.
    ///
    /// # Errors
    /// [`RepositoryError::OtherIdentity`] unless `accept_new` is given.
    pub async fn claim_identity(
        &self,
        system_identifier: u64,
        accept_new: bool,
    ) -> Result<(), RepositoryError> {
        match self.check_identity(system_identifier, accept_new).await? {
            true => Ok(()),
            false => self.record_identity(system_identifier).await,
        }
    }

    /// Records that this database cluster writes under this name.
    pub(crate) async fn record_identity(&self, system_identifier: u64) -> Result<(), RepositoryError> {
        let ours = system_identifier.to_string();
        let marker = IdentityMarker {
            system_identifier: ours.clone(),
            first_seen_at: self.now(),
        };
        // Another process of the same cluster may just have written it.
        let _ = self
            .store
            .put_new(
                &format!("{}{ours}", layout::identity_prefix(&self.cluster)),
                to_json(&marker)?,
            )
            .await?;
        Ok(())
    }
}

async fn read_marker(store: &Store) -> Result<Option<RepositoryMarker>, RepositoryError> {
    // Read, not only looked for: the answer then has a body that tells a missing bucket from a missing object, and wrong
    // credentials from missing rights.
    let body = match store.get(layout::MARKER, SMALL_OBJECT_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let marker: RepositoryMarker = from_json(layout::MARKER, &body)?;
    if marker.format > layout::FORMAT_VERSION {
        return Err(RepositoryError::NewerFormat {
            what: format!("the repository at {}", store.url()),
            found: marker.format,
            known: layout::FORMAT_VERSION,
        });
    }
    Ok(Some(marker))
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Bytes, RepositoryError> {
    let mut body =
        serde_json::to_vec_pretty(value).map_err(|error| RepositoryError::Internal(error.to_string()))?;
    body.push(b'\n');
    Ok(Bytes::from(body))
}

pub(crate) fn from_json<'a, T: Deserialize<'a>>(key: &str, body: &'a [u8]) -> Result<T, RepositoryError> {
    serde_json::from_slice(body).map_err(|error| RepositoryError::Malformed {
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
