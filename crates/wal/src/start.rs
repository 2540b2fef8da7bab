//! Where to go on.

use pgkeep_pgformat::SegmentName;
use pgkeep_repository::wal::StoredWal;

use crate::error::WalError;
use crate::storing::Place;

/// What is stored from this segment on, to be compared with what comes.
pub(crate) async fn stored_from(place: &Place, start: SegmentName) -> Result<Vec<StoredWal>, WalError> {
    let around = place
        .repository
        .wal_around(place.system_identifier, start)
        .await?;
    Ok(from_segment(around, start))
}

/// Of these, what is of this segment or a later one.
pub(crate) fn from_segment(stored: Vec<StoredWal>, start: SegmentName) -> Vec<StoredWal> {
    stored
        .into_iter()
        .filter(|stored| {
            let segment = stored.object.segment();
            segment.is_some_and(|segment| segment.number() >= start.number())
        })
        .collect()
}
