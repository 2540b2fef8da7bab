//! The vocabulary every other crate shares: error classes, hints, identifiers, byte counts, the clock.
//!
//! Pure: no I/O, no async runtime, nothing here knows PostgreSQL connections, object stores or the command line.

mod bytes_count;
mod clock;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod id;
mod ident;
mod nearest;
mod progress;
mod secret;
mod severity;
mod shown;

pub use bytes_count::{ByteCount, ParseByteCountError};
pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{Classified, Hint, RetryClass};
pub use id::{BackupId, BackupKind, ParseBackupIdError};
pub use ident::{quote_for_shell, quote_identifier, quote_literal, quote_qualified};
pub use nearest::nearest;
pub use progress::Progress;
pub use secret::Secret;
pub use severity::Severity;
pub use shown::{acts_on_terminal, list_names, one_line, push_escaped, shown_name};
