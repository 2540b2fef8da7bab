//! Incremental dumps: rows that an earlier dump of the same database holds aren't stored again.
//!
//! What proves that a relation is unchanged is the BLAKE3 hash of its rows, read under this dump's snapshot, and nothing
//! else: no statistics, no file times, no compression status. Its size on disk only decides what is tried first: hashing
//! alone, or reading and storing at once. docs/design-incremental.md has the whole thought.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_repository::backups::BackupEntry;
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::{Repository, RepositoryError, layout};

use crate::catalog::CatalogRelation;
use crate::data::{RelationRead, has_own_objects};
use crate::error::DumpError;
use crate::manifest::{Asked, DataObject, DatabaseManifest, DumpManifest, QualifiedName, Relation, Segment};
use crate::partial::{DIRECTORY_MODE, FILE_MODE};
use crate::read::{self, read_manifest};
use crate::restore::client_encoding;

/// Of the dumps before, so many are looked at for one that holds the same.
const CANDIDATES_MAX: usize = 20;

/// Whether and from what dumps objects are taken over.
#[derive(Debug, Clone)]
pub struct ReuseOptions {
    /// Off for a full dump, from which the next one may take objects over.
    pub takes_over: bool,
    /// Objects stored longer ago are stored anew, so that none has to be kept for ever, nor is trusted for ever.
    pub max_age: SignedDuration,
    /// Where a copy of the last manifest is kept: a host without the private key can't read it in the repository.
    pub cache_directory: Option<PathBuf>,
}

/// An earlier dump, and what of it may be taken over.
#[derive(Debug)]
pub(crate) struct Base {
    id: BackupId,
    databases: HashMap<String, DatabaseManifest>,
    /// The objects that are there, and young enough: by their name in this dump.
    usable: BTreeMap<String, u64>,
}

/// A relation's rows as an earlier dump holds them.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    rows: u64,
    plain_bytes: u64,
    hash: String,
    disk_bytes: Option<u64>,
    /// With the segments' relation being of the earlier dump.
    objects: Vec<DataObject>,
}

impl Held {
    /// Whether it is worth the while to hash the rows before they are stored.
    pub fn seems_unchanged(&self, disk_bytes: u64) -> bool {
        self.disk_bytes == Some(disk_bytes)
    }

    /// The objects, if what was read is what they hold. `place` is the relation's in this dump.
    pub fn take_over(&self, read: &RelationRead, place: u32) -> Option<Vec<DataObject>> {
        let same = (self.rows, self.plain_bytes) == (read.rows, read.bytes)
            && self.hash == read.hash.to_hex().as_str();
        same.then(|| {
            let objects = self.objects.iter().cloned();
            objects.map(|object| in_place(object, place)).collect()
        })
    }
}

fn in_place(mut object: DataObject, place: u32) -> DataObject {
    for segment in &mut object.segments {
        *segment = Segment {
            relation: place,
            ..*segment
        };
    }
    object
}

impl Base {
    /// The newest dump that was asked to hold the same and is in every one of the repositories, if its objects can be used
    /// there.
    ///
    /// # Errors
    /// The store's. That there is nothing to take over is no error.
    pub async fn find(
        destinations: &Destinations,
        options: &ReuseOptions,
        asked: &Asked,
        system_identifier: u64,
    ) -> Result<Option<Self>, DumpError> {
        let mut places = Vec::new();
        for (place, repository) in destinations.remaining() {
            match Place::look(repository, options, asked).await {
                Ok(looked) => places.push((place, looked)),
                Err(error) => destinations.leave_out(place, error)?,
            }
        }
        let Some((_, first)) = places.first() else {
            return Ok(None);
        };
        let everywhere = |id: &&BackupId| places.iter().all(|(_, place)| place.there.contains(*id));
        for id in first.there.iter().rev().filter(everywhere).take(CANDIDATES_MAX) {
            let Some(manifest) = manifest_in_any(destinations, &places, id).await? else {
                continue;
            };
            let fits = manifest.asked.as_ref() == Some(asked)
                && manifest.system_identifier == system_identifier.to_string()
                && manifest.recipients.as_ref() == Some(&destinations.access().recipients());
            if fits {
                return Self::of(destinations, options, id, manifest, &places)
                    .await
                    .map(Some);
            }
        }
        Ok(None)
    }

    async fn of(
        destinations: &Destinations,
        options: &ReuseOptions,
        id: &BackupId,
        manifest: DumpManifest,
        places: &[(usize, Place<'_>)],
    ) -> Result<Self, DumpError> {
        let names: Vec<&str> = manifest
            .databases
            .iter()
            .flat_map(|database| &database.data)
            .map(|data| data.object.name.as_str())
            .collect();
        let oldest = destinations.now().checked_sub(options.max_age);
        let young = |owner: &BackupId| oldest.as_ref().is_ok_and(|oldest| owner.started_at() >= *oldest);
        let mut usable: Option<BTreeMap<String, u64>> = None;
        for (number, place) in places {
            let stored = match place.repository.stored_sizes(id, names.iter().copied()).await {
                Ok(stored) => stored,
                Err(error) => {
                    destinations.leave_out(*number, error)?;
                    continue;
                }
            };
            let here = stored
                .into_iter()
                .map(|(name, bytes)| (layout::reference_to(id, &name), bytes))
                .filter(|(name, _)| {
                    let owner = layout::reference(name).map(|(owner, _)| owner);
                    owner.is_some_and(|owner| young(&owner) && !place.suspects.contains(&owner))
                });
            usable = Some(match usable {
                None => here.collect(),
                Some(before) => here
                    .filter(|(name, bytes)| before.get(name) == Some(bytes))
                    .collect(),
            });
        }
        Ok(Self {
            id: id.clone(),
            databases: manifest
                .databases
                .into_iter()
                .map(|database| (database.name.clone(), database))
                .collect(),
            usable: usable.unwrap_or_default(),
        })
    }

    /// What it holds of these relations, by their place.
    pub fn held(
        &self,
        database: &str,
        encoding: &str,
        relations: &[CatalogRelation],
        sizes: &[u64],
    ) -> HashMap<u32, Held> {
        let Some(database) = self.databases.get(database) else {
            return HashMap::new();
        };
        // Text is in the session's encoding.
        if client_encoding(database) != encoding {
            return HashMap::new();
        }
        let mut objects: HashMap<u32, Vec<&DataObject>> = HashMap::new();
        for data in &database.data {
            for segment in &data.segments {
                objects.entry(segment.relation).or_default().push(data);
            }
        }
        let earlier: HashMap<&QualifiedName, (u32, &Relation)> = (0_u32..)
            .zip(&database.relations)
            .map(|(place, relation)| (&relation.name, (place, relation)))
            .collect();
        let mut held = HashMap::new();
        for ((place, relation), size) in (0_u32..).zip(relations).zip(sizes) {
            if relation.data_excluded || !has_own_objects(relation, *size) {
                continue;
            }
            let found = earlier.get(&relation.name).and_then(|(before, earlier)| {
                let objects = objects.get(before).map_or(&[][..], Vec::as_slice);
                self.held_relation(relation, *before, earlier, objects)
            });
            held.extend(found.map(|found| (place, found)));
        }
        held
    }

    /// The columns, the format and the place to load into are written into the objects, or beside them.
    fn held_relation(
        &self,
        relation: &CatalogRelation,
        before: u32,
        earlier: &Relation,
        objects: &[&DataObject],
    ) -> Option<Held> {
        let alike = earlier.columns == relation.columns
            && earlier.format == relation.format
            && earlier.load_into == relation.load_into
            && !earlier.data_excluded;
        if !alike {
            return None;
        }
        let objects: Option<Vec<DataObject>> = objects
            .iter()
            .map(|data| {
                let alone = data.segments.iter().all(|segment| segment.relation == before);
                let name = layout::reference_to(&self.id, &data.object.name);
                let there = self.usable.get(&name) == Some(&data.object.stored_bytes);
                (alone && there).then(|| DataObject {
                    object: ObjectRef {
                        name,
                        ..data.object.clone()
                    },
                    segments: data.segments.clone(),
                })
            })
            .collect();
        Some(Held {
            rows: earlier.rows,
            plain_bytes: earlier.plain_bytes,
            hash: earlier.hash.clone(),
            disk_bytes: earlier.disk_bytes,
            objects: objects?,
        })
    }
}

/// What one of the repositories has.
struct Place<'a> {
    repository: &'a Repository,
    there: BTreeSet<BackupId>,
    suspects: BTreeSet<BackupId>,
    cached: Option<DumpManifest>,
}

impl<'a> Place<'a> {
    async fn look(
        repository: &'a Repository,
        options: &ReuseOptions,
        asked: &Asked,
    ) -> Result<Self, RepositoryError> {
        let entries = repository.backups(BackupKind::Dump).await?;
        let there: Vec<BackupEntry> = entries
            .into_iter()
            .filter(|entry| entry.state.is_there())
            .collect();
        Ok(Self {
            repository,
            suspects: repository.suspects(&there).await,
            cached: cached(repository, options, asked).await,
            there: there.into_iter().map(|entry| entry.id).collect(),
        })
    }
}

/// A dump's manifest, from a cache or from the first repository in which it can be read; none where it can be read nowhere.
async fn manifest_in_any(
    destinations: &Destinations,
    places: &[(usize, Place<'_>)],
    id: &BackupId,
) -> Result<Option<DumpManifest>, DumpError> {
    let mut cached = places.iter().filter_map(|(_, place)| place.cached.as_ref());
    if let Some(manifest) = cached.find(|manifest| manifest.id == id.to_string()) {
        return Ok(Some(manifest.clone()));
    }
    for (number, place) in places {
        match read_manifest(place.repository, id).await {
            Ok(manifest) => return Ok(Some(manifest)),
            // Nothing is taken over from a dump that can't be read; it is verify's business to say so.
            Err(error) if error.is_of_one_dump() || error.is_removed() => {}
            Err(DumpError::Repository(error)) => destinations.leave_out(*number, error)?,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The last manifest of a dump of the same, as the cache has it.
async fn cached(repository: &Repository, options: &ReuseOptions, asked: &Asked) -> Option<DumpManifest> {
    let path = cache_path(repository, options, asked)?;
    let text = tokio::fs::read(&path).await.ok()?;
    let manifest: DumpManifest = serde_json::from_slice(&text).ok()?;
    let id: BackupId = manifest.id.parse().ok()?;
    read::check(&manifest, &id).is_ok().then_some(manifest)
}

/// Dumps of a part have files of their own.
fn cache_path(repository: &Repository, options: &ReuseOptions, asked: &Asked) -> Option<PathBuf> {
    let asked = blake3::hash(&serde_json::to_vec(asked).ok()?).to_hex();
    let (repository, cluster) = (&repository.marker().repository, repository.cluster());
    let name = format!("{repository}.{cluster}.{}.manifest", asked.get(..16)?);
    Some(options.cache_directory.as_ref()?.join(name))
}

/// Keeps a copy of the manifest for the next dump. Best effort: without it the next dump stores everything.
pub(crate) fn remember(repository: &Repository, options: &ReuseOptions, manifest: &DumpManifest) {
    let asked = manifest.asked.clone().unwrap_or_default();
    let Some(path) = cache_path(repository, options, &asked) else {
        return;
    };
    if let Err(error) = write(&path, manifest) {
        tracing::warn!(
            "the next dump can't be incremental: writing {} failed: {error}",
            path.display()
        );
    }
}

fn write(path: &Path, manifest: &DumpManifest) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)?;
    let new = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&new)?;
    file.write_all(&serde_json::to_vec(manifest)?)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}
