//! WAL from a server into a repository, and back out of it.
//!
//! | module | what it knows |
//! |---|---|
//! | `assembly` | a segment as it comes: into frames, and those into parts and the whole. Pure |
//! | `storing` | the task that compresses, puts, and knows how far all is durable |
//! | `stream` | a walsender's stream, fed into that task; what is confirmed |
//! | `start`, `position` | where to go on, by the slot and by what is stored already |
//! | `receiver` | WAL as the server writes it: one connection after another, by a lasting slot |
//! | `guard` | how much the server keeps for the slot, and what gives way when that is too much |
//! | `range` | the WAL that a base backup needs, by a temporary slot |
//! | `files` | single files, as `archive_command` and `restore_command` have them |
//! | `stored` | what is stored, what is missing, and how far the slot lags |
//! | `windows` | to which points base backups and WAL lead back |
//! | `state` | what a receiver tells of itself |
//!
//! WAL is confirmed to the server only when the objects that hold it are durable, without a gap. See docs/CONCURRENCY.md.

mod assembly;
mod error;
mod files;
mod guard;
mod pause;
mod position;
mod range;
mod receiver;
mod server;
mod start;
mod state;
mod stored;
mod storing;
mod stream;
mod windows;

pub use error::WalError;
pub use files::{Fetched, System, fetch, push};
pub use guard::{AtLimit, GuardOptions};
pub use range::{RangeReceiver, RangeReport};
pub use receiver::{Receiver, ReceiverOptions};
pub use server::Synchronous;
pub use state::{FillLevel, GAPS_MAX, Gap, Phase, SlotFill, StreamState};
pub use stored::{SlotLag, StoredTimeline, gap_at_switch, stored_wal};
pub use windows::{Beginning, Window, Windows};
