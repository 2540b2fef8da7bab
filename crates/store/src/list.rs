use std::time::Duration;

use futures::StreamExt;
use object_store::path::Path;
use pgkeep_base::{Classified, RetryClass};

use crate::counts::Request;
use crate::error::{Cause, StoreError, StoreErrorKind};
use crate::local::blocking;
use crate::open::Backend;
use crate::retry::RetryBudget;
use crate::store::{ObjectInfo, Store};

/// Most objects [`Store::list`] gives, and most below one prefix of a `file://` store.
const OBJECTS_MAX: usize = 5_000_000;
/// Times a listing is begun anew where it can't be taken up.
const LISTINGS_MAX: usize = 20;
/// Objects named in one delete request (the limit of S3's `DeleteObjects`).
const DELETE_KEYS_MAX: usize = 1_000;
/// Objects in one page of a listing, by S3, Google and Azure alike (Azure: 5,000). Only for counting.
const PAGE_OBJECTS: u64 = 1_000;

impl Store {
    /// Every object below the directory `prefix` (empty: all), sorted by name.
    ///
    /// # Errors
    /// [`StoreErrorKind::TooLarge`] with more than five million objects: use [`Store::list_each`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        for left in (0..LISTINGS_MAX).rev() {
            let mut objects = Vec::new();
            let mut too_many = false;
            let listed = self.list_each(prefix, |object| {
                too_many = objects.len() >= OBJECTS_MAX;
                if !too_many {
                    objects.push(object);
                }
                !too_many
            });
            match listed.await {
                Ok(_) if too_many => break,
                Ok(_) => {
                    objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                    return Ok(objects);
                }
                // It broke off in a store that lists in an order of its own: begin again.
                Err(error)
                    if left > 0 && !objects.is_empty() && error.retry_class() == RetryClass::Transient => {}
                Err(error) => return Err(error),
            }
        }
        Err(self.too_many(prefix))
    }

    /// Calls `each` with every object below the directory `prefix` until it returns false, in the store's order: by
    /// name, but SeaweedFS for one compares names part by part. Memory doesn't grow with their number, except on
    /// `file://`. Returns how many were seen.
    ///
    /// # Errors
    /// The store can't be asked, or broke off and could not be taken up; `each` has then seen a part.
    pub async fn list_each(
        &self,
        prefix: &str,
        mut each: impl FnMut(ObjectInfo) -> bool + Send,
    ) -> Result<u64, StoreError> {
        let location = self.locate_directory(prefix)?;
        let doing = format!("list '{prefix}'");
        match self.inner.opened.backend {
            // These list in no order: a listing that broke off can only be made again.
            Backend::File | Backend::Memory => {
                let objects = self.retry(&doing, || self.list_whole(&location)).await?;
                let objects = objects.ok_or_else(|| self.too_many(prefix))?;
                let mut seen = 0;
                for object in objects {
                    seen += 1;
                    if !each(object) {
                        break;
                    }
                }
                Ok(seen)
            }
            _ => self.list_ordered(&location, &doing, &mut each).await,
        }
    }

    async fn list_whole(&self, location: &Path) -> Result<Option<Vec<ObjectInfo>>, Cause> {
        self.inner.counters.request(Request::List);
        let mut stream = self.inner.opened.objects.list(Some(location));
        let mut objects = Vec::new();
        loop {
            let next = async { stream.next().await.transpose() };
            let Some(meta) = self
                .attempt(Request::List, self.inner.options.request_timeout, next)
                .await?
            else {
                break;
            };
            if objects.len() >= OBJECTS_MAX {
                return Ok(None);
            }
            objects.extend(self.key(&meta.location).map(|key| self.info(key, &meta)));
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(Some(objects))
    }

    /// The listing of a store that lists in order: taken up behind the last name when it breaks off.
    async fn list_ordered(
        &self,
        location: &Path,
        doing: &str,
        each: &mut (impl FnMut(ObjectInfo) -> bool + Send),
    ) -> Result<u64, StoreError> {
        let mut budget = RetryBudget::new(self.inner.options.retry);
        let (mut last, mut ordered, mut seen) = (None::<Path>, true, 0_u64);
        loop {
            let mut stream = match &last {
                Some(last) => self.inner.opened.objects.list_with_offset(Some(location), last),
                None => self.inner.opened.objects.list(Some(location)),
            };
            self.inner.counters.request(Request::List);
            let cause = loop {
                let next = async { stream.next().await.transpose() };
                match self
                    .attempt(Request::List, self.inner.options.request_timeout, next)
                    .await
                {
                    Ok(None) => return Ok(seen),
                    Ok(Some(meta)) => {
                        budget.progressed();
                        ordered &= last.as_ref().is_none_or(|last| *last < meta.location);
                        let object = self.key(&meta.location).map(|key| self.info(key, &meta));
                        last = Some(meta.location);
                        seen += 1;
                        if seen % PAGE_OBJECTS == 0 {
                            self.inner.counters.request(Request::List);
                        }
                        if object.is_some_and(|object| !each(object)) {
                            return Ok(seen);
                        }
                    }
                    Err(cause) => break cause,
                }
            };
            if !ordered {
                // There's no place to take it up at.
                return Err(StoreError::from_cause(cause, doing, self.url()));
            }
            self.pause(&mut budget, cause, doing).await?;
        }
    }

    fn too_many(&self, prefix: &str) -> StoreError {
        let why = format!("there are more than {OBJECTS_MAX} objects");
        StoreError::new(
            StoreErrorKind::TooLarge,
            format!("list '{prefix}'"),
            self.url(),
            why,
        )
    }

    /// The names, without slashes, of the directories immediately below `prefix` (empty: the top), sorted. A
    /// directory exists as long as an object is in it, but a few stores (SeaweedFS) go on showing an empty one for a
    /// while: what is in it is for [`Store::list`] to say.
    ///
    /// # Errors
    /// The store can't be asked.
    pub async fn list_directories(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let location = self.locate_directory(prefix)?;
        // A long listing has many pages, and object_store gathers them all.
        let deadline = self.inner.options.request_timeout.saturating_mul(10);
        let doing = format!("list the directories of '{prefix}'");
        let opened = &self.inner.opened;
        self.retry(&doing, async || {
            self.inner.counters.request(Request::List);
            let found = self
                .attempt(
                    Request::List,
                    deadline,
                    opened.objects.list_with_delimiter(Some(&location)),
                )
                .await?;
            if let Some(disk) = opened.local.clone() {
                let location = location.clone();
                return blocking(move || disk.directories(&location))
                    .await
                    .map_err(|e| crate::classify::by_io(&e));
            }
            let name = |path: &Path| path.filename().map(str::to_owned);
            let mut names: Vec<String> = found.common_prefixes.iter().filter_map(name).collect();
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    /// Deletes an object, durably. One that isn't there is fine.
    ///
    /// # Errors
    /// The store can't be asked, or refuses.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let location = self.locate(key)?;
        self.delete_locations(&format!("delete object '{key}'"), &[location])
            .await
    }

    /// Deletes these objects, a thousand with each request where the store has that. Those that aren't there are fine.
    /// Returns their number.
    ///
    /// # Errors
    /// As [`Store::delete`]; some of them may be gone by then.
    pub async fn delete_all(&self, keys: Vec<String>) -> Result<u64, StoreError> {
        let locations = keys
            .iter()
            .map(|key| self.locate(key))
            .collect::<Result<Vec<_>, _>>()?;
        for chunk in locations.chunks(DELETE_KEYS_MAX) {
            let first = chunk
                .first()
                .and_then(|location| self.key(location))
                .unwrap_or_default();
            let doing = match chunk.len() {
                1 => format!("delete object '{first}'"),
                more => format!("delete object '{first}' and {} more", more - 1),
            };
            self.delete_locations(&doing, chunk).await?;
        }
        Ok(keys.len() as u64)
    }

    async fn delete_locations(&self, doing: &str, locations: &[Path]) -> Result<(), StoreError> {
        let deadline =
            self.inner.options.request_timeout + Duration::from_millis(100 * locations.len() as u64);
        self.retry(doing, || self.try_delete(deadline, locations)).await
    }

    /// Asks for all of them again after any failure: to delete twice does no harm.
    async fn try_delete(&self, deadline: Duration, locations: &[Path]) -> Result<(), Cause> {
        self.inner.counters.request(Request::Delete);
        let owned = locations.to_vec();
        let stream = futures::stream::iter(owned.into_iter().map(Ok)).boxed();
        let mut results = self.inner.opened.objects.delete_stream(stream);
        let backend = self.inner.opened.backend;
        let (mut answers, mut failure) = (0, None);
        let all = async {
            while let Some(result) = results.next().await {
                answers += 1;
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => failure = failure.take().or(Some(error)),
                }
            }
            failure.map_or(Ok(()), Err)
        };
        self.attempt(Request::Delete, deadline, all).await?;
        match answers == locations.len() {
            true => Ok(()),
            // One "not found" for the whole request is about the bucket.
            false if answers == 1 => Err(Cause::new(
                StoreErrorKind::NoSuchBucket,
                format!("no such bucket ({backend:?})"),
            )),
            false => Err(Cause::new(
                StoreErrorKind::ServerFault,
                format!("{answers} of {} deletes were answered", locations.len()),
            )),
        }
    }

    /// Removes what killed writers left behind below the directory `prefix` of a `file://` store and nobody has written
    /// to for `idle`. Returns how many files. Other stores keep nothing of an unfinished put.
    ///
    /// # Errors
    /// The directory can't be read or changed.
    pub async fn remove_leftovers(&self, prefix: &str, idle: Duration) -> Result<u64, StoreError> {
        let location = self.locate_directory(prefix)?;
        let Some(disk) = self.inner.opened.local.clone() else {
            return Ok(0);
        };
        blocking(move || disk.remove_leftovers(&location, idle))
            .await
            .map_err(|error| {
                let doing = format!("remove unfinished files below '{prefix}'");
                StoreError::from_cause(crate::classify::by_io(&error), doing, self.url())
            })
    }
}
