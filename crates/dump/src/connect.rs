//! Connections to a database, and what is said when there is none.

use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};

/// Connects.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn connect(target: &Target) -> Result<Session, DumpError> {
    Session::connect(target).await.context(|| connecting(target))
}

/// What is being done meanwhile.
pub(crate) fn connecting(target: &Target) -> String {
    format!(
        "connecting to database '{}' at {}",
        target.database(),
        target.endpoint()
    )
}
