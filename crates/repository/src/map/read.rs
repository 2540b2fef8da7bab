use pgkeep_base::BackupId;

use super::{PACK_TABLE_BYTES_MAX, PackTable, RECORDS_BYTES_MAX};
use crate::error::RepositoryError;
use crate::layout;
use crate::object::ObjectRef;
use crate::repo::Repository;

impl Repository {
    /// Reads the list of packs that a backup needs.
    ///
    /// # Errors
    /// As [`Repository::contents`]; it isn't one.
    pub async fn pack_table(&self, id: &BackupId, object: &ObjectRef) -> Result<PackTable, RepositoryError> {
        let contents = self
            .contents(id, object)
            .await?
            .collect(PACK_TABLE_BYTES_MAX)
            .await?;
        PackTable::parse(&contents).map_err(|broken| RepositoryError::Malformed {
            key: layout::backup_object(&self.cluster, id, &object.name),
            reason: broken.to_string(),
        })
    }

    /// Fetches an object with records of files, for [`super::RecordReader`].
    ///
    /// # Errors
    /// As [`Repository::contents`].
    pub async fn file_records(&self, id: &BackupId, object: &ObjectRef) -> Result<Vec<u8>, RepositoryError> {
        self.contents(id, object).await?.collect(RECORDS_BYTES_MAX).await
    }
}
