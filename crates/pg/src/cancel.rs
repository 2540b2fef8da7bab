use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use crate::PgError;
use crate::conninfo::{Host, Target};
use crate::stream::Address;
use crate::wire::Wire;

/// How long a cancel request may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// Asks the server to cancel what a session is running, over a connection of its own (with TLS, if the session has
/// it). It may be used from any task while the session is busy.
#[derive(Clone)]
pub struct CancelHandle {
    pub(crate) target: Target,
    pub(crate) host: Host,
    pub(crate) address: Address,
    pub(crate) tls: bool,
    pub(crate) process_id: i32,
    pub(crate) secret_key: i32,
}

impl std::fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelHandle")
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

impl CancelHandle {
    /// Sends the request and waits until the server has taken it. Nothing tells whether a statement was still running;
    /// the session gets SQLSTATE 57014 if one was.
    ///
    /// # Errors
    /// The server can't be reached within 10 s.
    pub async fn cancel(&self) -> Result<(), PgError> {
        let work = async {
            let stream = crate::connect::open(&self.target, &self.host, &self.address, self.tls).await?;
            let mut wire = Wire::new(stream);
            let mut message = BytesMut::new();
            frontend::cancel_request(self.process_id, self.secret_key, &mut message);
            wire.write_all(&message).await?;
            wire.wait_for_end().await;
            Ok(())
        };
        timeout(CANCEL_LIMIT, work)
            .await
            .unwrap_or(Err(PgError::Deadline {
                after: CANCEL_LIMIT,
                cancelled: false,
            }))
    }
}
