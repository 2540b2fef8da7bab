//! What is written: the key, the password's file, the configuration. Each anew, and readable by its owner alone.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgkeep_config::{EncryptionMode, SETTINGS, Written};
use pgkeep_repository::keys::{self, Identity};

use super::Plan;
use crate::exit::Failure;

const MODE: u32 = 0o600;
/// Credentials with it are good for hours, and so of no use in a file.
const SESSION_TOKEN: &str = "s3.session_token";
/// What goes with it.
const TEMPORARY: [&str; 3] = ["s3.access_key_id", "s3.secret_access_key", SESSION_TOKEN];
/// Settings of which the plan says what they are, by flags and answers too.
const DECIDED: [&str; 6] = [
    "connection",
    "repository",
    "recipients",
    "encryption",
    "identity_file",
    "dump.schedule",
];

/// Further settings of the command line, in two: what is written, and temporary credentials, which aren't.
pub(super) fn written_and_not(set: Vec<(String, String)>) -> (Settings, Settings) {
    let has_token = set.iter().any(|(name, _)| name == SESSION_TOKEN);
    set.into_iter()
        .partition(|(name, _)| !has_token || !TEMPORARY.contains(&name.as_str()))
}

type Settings = Vec<(String, String)>;

/// What to know of the secrets among them.
pub(super) fn notes_on_secrets(
    config: &Path,
    written: &[(String, String)],
    not_written: &[(String, String)],
) -> Vec<String> {
    let mut notes = Vec::new();
    let is_secret = |name: &str| {
        SETTINGS
            .iter()
            .any(|setting| setting.name == name && setting.secret)
    };
    let names = written.iter().map(|(name, _)| name.as_str());
    let secrets: BTreeSet<&str> = names
        .filter(|name| is_secret(name) && !DECIDED.contains(name))
        .collect();
    if !secrets.is_empty() {
        let names = secrets.into_iter().collect::<Vec<_>>().join(", ");
        let config = config.display();
        notes.push(format!("{config} holds {names}: keep it out of version control"));
    }
    if !not_written.is_empty() {
        notes.push(format!(
            "the credentials given with {SESSION_TOKEN} are temporary, and not written: for what runs later, give lasting \
             ones by AWS_* variables, s3.profile or the machine's role"
        ));
    }
    notes
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_credentials_are_not_written_and_lasting_ones_are_told() {
        let set = |names: &[&str]| -> Settings {
            let with_values = names.iter().map(|name| ((*name).to_owned(), "x".to_owned()));
            with_values.collect()
        };
        let lasting = ["s3.access_key_id", "s3.secret_access_key", "s3.region"];
        let (written, not_written) = written_and_not(set(&lasting));
        assert_eq!((&written, &not_written), (&set(&lasting), &set(&[])));
        let notes = |(written, not_written): &(Settings, Settings)| {
            notes_on_secrets(Path::new("pgkeep.toml"), written, not_written)
        };
        assert_eq!(
            notes(&(written, not_written)),
            ["pgkeep.toml holds s3.access_key_id, s3.secret_access_key: keep it out of version control"]
        );
        let temporary = [
            "s3.region",
            "s3.access_key_id",
            "s3.secret_access_key",
            SESSION_TOKEN,
        ];
        let apart = written_and_not(set(&temporary));
        assert_eq!(apart, (set(&temporary[..1]), set(&temporary[1..])));
        let told = notes(&apart);
        assert!(
            told.len() == 1 && told[0].contains("temporary, and not written"),
            "{told:?}"
        );
        // Only those that are secrets are named, and only what this adds.
        assert!(notes(&(set(&["keep.daily", "connection"]), Vec::new())).is_empty());
    }
}
