//! Public and secret keys.

use std::path::{Path, PathBuf};

use pgkeep_base::{Severity, quote_for_shell};
use pgkeep_config::EncryptionMode;
use pgkeep_repository::keys::{self, Identity, Recipient};
use pgkeep_store::StoreUrl;

use super::Findings;
use crate::context::Settings;
use crate::output::counted;

const AREA: &str = "encryption";

pub(super) fn check(settings: &Settings, findings: &mut Findings) {
    let cluster = &settings.cluster;
    let recipients = recipients(settings, findings);
    if let Some(path) = &cluster.identity_file {
        match keys::read_identity_file(path) {
            Ok(file) => {
                findings.ok(AREA, format!("secret key in {}", path.display()));
                for warning in &file.warnings {
                    findings.add(
                        AREA,
                        Severity::Warning,
                        warning.to_string(),
                        "",
                        Some(warning.mend()),
                    );
                }
                fits(&file.identities, &recipients, Some(path), findings);
                beside_the_backups(settings, path, findings);
            }
            Err(error) => findings.error(AREA, &error),
        }
    } else if let Some(identity) = &cluster.identity {
        match keys::parse_identities(identity.expose(), "PGKEEP_IDENTITY") {
            Ok(identities) => {
                findings.ok(AREA, "secret key in PGKEEP_IDENTITY");
                fits(&identities, &recipients, None, findings);
            }
            Err(error) => findings.error(AREA, &error),
        }
    } else if cluster.encryption == EncryptionMode::Age {
        findings.add(
            AREA,
            Severity::Info,
            "no secret key here: backups can be taken, not read",
            "good on a host that only takes backups; --identity FILE reads them",
            None,
        );
    }
}

fn recipients(settings: &Settings, findings: &mut Findings) -> Vec<Recipient> {
    let cluster = &settings.cluster;
    if cluster.encryption == EncryptionMode::None {
        findings.add(
            AREA,
            Severity::Warning,
            "off",
            "who reaches the repository can read the backups",
            Some(
                "pgkeep key new --output pgkeep.key   # then set recipients to the public key, and take out encryption"
                    .to_owned(),
            ),
        );
        return Vec::new();
    }
    match keys::parse_recipients(&cluster.recipients) {
        Ok(parsed) => {
            let number = counted(parsed.len() as u64, "public key", "public keys");
            findings.ok(AREA, format!("on, for {number}"));
            parsed
        }
        Err(error) => {
            findings.error(AREA, &error);
            Vec::new()
        }
    }
}

fn fits(identities: &[Identity], recipients: &[Recipient], path: Option<&Path>, findings: &mut Findings) {
    let mut own = identities.iter().map(Identity::to_recipient);
    if recipients.is_empty() || own.any(|own| recipients.contains(&own)) {
        return;
    }
    let file = path.map_or("FILE".to_owned(), |path| {
        quote_for_shell(&path.display().to_string())
    });
    findings.add(
        AREA,
        Severity::Warning,
        "the secret key belongs to none of the recipients",
        "what is dumped now can't be read with it",
        Some(format!(
            "pgkeep key show {file}   # prints its public key: add it to recipients, or name another file"
        )),
    );
}

/// A key that lies with what it locks is lost with it, and protects nothing.
fn beside_the_backups(settings: &Settings, path: &Path, findings: &mut Findings) {
    let urls = settings.cluster.repository.iter();
    for url in urls.map(|url| StoreUrl::parse(url)) {
        if let Ok(StoreUrl::File { path: repository }) = url {
            beside_the_backups_in(&repository, path, findings);
        }
    }
}

fn beside_the_backups_in(repository: &Path, path: &Path, findings: &mut Findings) {
    let (Ok(key), Ok(repository)) = (path.canonicalize(), repository.canonicalize()) else {
        return;
    };
    if !key.starts_with(&repository) {
        return;
    }
    let away = repository
        .parent()
        .map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let quoted = |path: &Path| quote_for_shell(&path.display().to_string());
    findings.add(
        AREA,
        Severity::Warning,
        format!("the secret key lies in the repository itself ({})", key.display()),
        "who takes the repository has the key, and who loses it has neither",
        Some(format!(
            "mv {} {}/   # and set identity_file so; a second copy belongs on another machine",
            quoted(&key),
            quoted(&away)
        )),
    );
}
