//! What is written: the key, the password's file, the configuration. Each anew, and readable by its owner alone.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgkeep_config::{EncryptionMode, Written};
use pgkeep_repository::keys::{self, Identity};

use super::Plan;
use crate::exit::Failure;

const MODE: u32 = 0o600;
/// Settings of which the plan says what they are, by flags and answers too.
const DECIDED: [&str; 6] = [
    "connection",
    "repository",
    "recipients",
    "encryption",
    "identity_file",
    "dump.schedule",
];

/// Files that go away again, unless they are kept.
#[derive(Default)]
pub(super) struct Made {
    files: Vec<PathBuf>,
}

impl Made {
    /// They are complete and belong to the user.
    pub(super) fn keep(&mut self) {
        self.files.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.files {
            // Whoever took it away before is right, too.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The keys of the cluster.
pub(super) enum Key {
    /// Dumps are written in the clear.
    None,
    /// Only the public keys are here.
    Public(Vec<String>),
    /// A file with the secret key.
    Secret {
        file: PathBuf,
        recipients: Vec<String>,
        /// Not written yet.
        new: Option<Box<Identity>>,
    },
}

impl Key {
    pub(super) fn recipients(&self) -> &[String] {
        match self {
            Self::None => &[],
            Self::Public(recipients) | Self::Secret { recipients, .. } => recipients,
        }
    }

    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::Secret { file, .. } => Some(file),
            _ => None,
        }
    }
}

/// A file that exists is taken as it is; others are for `write` to make. `more` are further public keys.
pub(super) fn take_or_make(path: &Path, more: &[String]) -> Result<Key, Failure> {
    let file = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (mut recipients, new) = if path.exists() {
        let found = keys::read_identity_file(path)?;
        let own = found
            .identities
            .iter()
            .map(|identity| identity.to_recipient().to_string());
        (own.collect::<Vec<_>>(), None)
    } else {
        let (identity, recipient) = keys::generate();
        (vec![recipient.to_string()], Some(Box::new(identity)))
    };
    recipients.extend(more.iter().cloned());
    recipients.dedup();
    Ok(Key::Secret {
        file,
        recipients,
        new,
    })
}

/// Writes all of it.
pub(super) fn write(plan: &Plan, made: &mut Made) -> Result<(), Failure> {
    if let Key::Secret {
        file,
        new: Some(identity),
        ..
    } = &plan.key
    {
        keys::write_key_file(file, identity, Timestamp::now())?;
        made.files.push(file.clone());
    }
    let config = std::path::absolute(&plan.config).unwrap_or_else(|_| plan.config.clone());
    let mut conninfo = plan.source.conninfo.clone();
    if let Some(line) = &plan.source.passfile_line {
        let path = config.with_extension("pass");
        create(&path, line.expose(), made)?;
        conninfo = conninfo.with_setting("passfile", &path.display().to_string());
    }
    create(&config, &text(plan, &conninfo.to_string()), made)
}

fn create(path: &Path, text: &str, made: &mut Made) -> Result<(), Failure> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)
        .and_then(|mut file: File| {
            made.files.push(path.to_owned());
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|error| Failure::failed(format!("cannot write {}", path.display()), &error))
}

/// The configuration.
fn text(plan: &Plan, connection: &str) -> String {
    let mut written = Written::default();
    written.put("connection", connection, "");
    written.put("repository", &plan.repository, "");
    if plan.given.encryption == EncryptionMode::None {
        let comment = "who reaches the repository can read the dumps";
        written.put("encryption", "none", comment);
    } else {
        let comment = "public keys: all that a dump takes";
        written.put_list("recipients", plan.key.recipients(), comment);
    }
    if let Some(file) = plan.key.file() {
        let comment = "reads dumps: take it away from here when two copies are safe elsewhere";
        written.put("identity_file", &file.display().to_string(), comment);
    }
    let zone = match plan.given.timezone.iana_name() {
        Some("UTC") | None => TimeZone::system().iana_name().map(str::to_owned),
        Some(name) => Some(name.to_owned()),
    };
    if let Some(zone) = zone.filter(|zone| !zone.ends_with("UTC")) {
        written.put("timezone", &zone, "of the schedule");
    }
    written.put("dump.databases", "all", "");
    written.put("dump.schedule", &plan.schedule, "by 'pgkeep run'");
    written.put("keep.window", "30d", "what 'pgkeep prune' leaves");
    for (name, number) in [("keep.daily", "7"), ("keep.weekly", "4"), ("keep.monthly", "6")] {
        written.put(name, number, "");
    }
    for (name, value) in plan
        .set
        .iter()
        .filter(|(name, _)| !DECIDED.contains(&name.as_str()))
    {
        written.put(name, value, "");
    }
    format!(
        "# Made by 'pgkeep init'. Check it with 'pgkeep doctor'; docs/configuration.md has all settings.\n{}",
        written.text(&plan.name)
    )
}
