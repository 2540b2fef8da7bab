//! PostgreSQL from the outside: connection strings, a thin client of the wire protocol, the client programs, throwaway
//! servers, and SQL scripts. Only this crate names the crate `postgres-protocol`.
//!
//! A client of our own, because COPY at full speed, exported snapshots and replication all need one, and no existing
//! crate does all three.

mod cancel;
mod certificate;
mod connect;
mod conninfo;
mod copy;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod programs;
pub mod replication;
mod row;
pub mod script;
pub mod server;
mod session;
mod silence;
mod startup;
mod stream;
mod tls;
mod wire;

pub use cancel::CancelHandle;
pub use conninfo::{Conninfo, ConninfoError, Environment, IgnoredPassfile, PasswordSource, Target};
pub use copy::{CopyIn, CopyOut};
pub use error::{AuthenticationError, ConnectReason, PgError, ServerError};
pub use row::{FromText, Row};
pub use session::Session;
pub use silence::Silence;
