//! What is written: the key, the password's file, the configuration. Each anew, and readable by its owner alone.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgkeep_config::{EncryptionMode, SETTINGS};
use pgkeep_repository::keys::{self, Identity};

use super::Plan;
use crate::exit::Failure;

const MODE: u32 = 0o600;
/// Settings that the file says by itself.
const OWN_SETTINGS: [&str; 8] = [
    "connection",
    "repository",
    "recipients",
    "encryption",
    "identity_file",
    "timezone",
    "dump.schedule",
    "dump.databases",
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
    let mut text = format!(
        "# Made by 'pgkeep init'. Check it with 'pgkeep doctor'; docs/configuration.md has all settings.\n[cluster.{}]\n",
        quoted_key(&plan.name)
    );
    let mut line = |name: &str, value: String, comment: &str| {
        let comment = match comment {
            "" => String::new(),
            comment => format!("   # {comment}"),
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name:<13} = {value}{comment}");
    };
    line("connection", string(connection), "");
    line("repository", string(&plan.repository), "");
    if plan.given.encryption == EncryptionMode::None {
        line(
            "encryption",
            string("none"),
            "who reaches the repository can read the dumps",
        );
    } else {
        let recipients: Vec<String> = plan.key.recipients().iter().map(|key| string(key)).collect();
        let comment = "public keys: all that a dump takes";
        line("recipients", format!("[{}]", recipients.join(", ")), comment);
    }
    if let Some(file) = plan.key.file() {
        let comment = "reads dumps: take it away from here when two copies are safe elsewhere";
        line("identity_file", string(&file.display().to_string()), comment);
    }
    let zone = match plan.given.timezone.iana_name() {
        Some("UTC") | None => TimeZone::system().iana_name().map(str::to_owned),
        Some(name) => Some(name.to_owned()),
    };
    if let Some(zone) = zone.filter(|zone| !zone.ends_with("UTC")) {
        line("timezone", string(&zone), "of the schedule");
    }
    let dump = format!("{{ databases = \"all\", schedule = {} }}", string(&plan.schedule));
    line("dump", dump, "by 'pgkeep run'");
    let keep = "{ window = \"30d\", daily = 7, weekly = 4, monthly = 6 }".to_owned();
    line("keep", keep, "what 'pgkeep prune' leaves");
    for (name, value) in plan.settings() {
        line(&name, value, "");
    }
    text
}

impl Plan {
    /// Further settings of the command line, as they are written; secret ones aren't.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let known = |name: &str| {
            let setting = SETTINGS.iter().find(|setting| setting.name == name);
            setting.is_some_and(|setting| !setting.secret) && !OWN_SETTINGS.contains(&name)
        };
        let given = self.set.iter().filter(|(name, _)| known(name));
        given
            .map(|(name, value)| (name.clone(), literal(value)))
            .collect()
    }
}

/// A number or a truth value as it is, all else as a string.
fn literal(value: &str) -> String {
    match value {
        "true" | "false" => value.to_owned(),
        number if number.parse::<i64>().is_ok() => number.to_owned(),
        text => string(text),
    }
}

/// A string of TOML: JSON's are the same, but for one character.
fn string(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007F")
}

/// A cluster's name may hold dots.
fn quoted_key(name: &str) -> String {
    let is_bare = name
        .chars()
        .all(|character| character.is_ascii_alphanumeric() || "-_".contains(character));
    if is_bare { name.to_owned() } else { string(name) }
}
