//! Every key of the repository. Nothing else in the project builds one.

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_pgformat::{SegmentName, Timeline};

use crate::wal::WalObject;

/// Identity and format version of the whole repository.
pub const MARKER: &str = "pgkeep.json";

/// The only format this program writes, and the highest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The name of the object that makes a backup exist.
pub const MANIFEST: &str = "manifest";
/// BLAKE3 sums of all other objects of a backup, as `b3sum --check` reads them.
pub const CHECKSUMS: &str = "checksums.b3";
/// Totals of a backup, small enough to read for a list of all of them.
pub const SUMMARY: &str = "summary";

/// How the names of sealed objects end: encrypted, and not.
pub(crate) const SEALED_SUFFIXES: [&str; 2] = [".zst.age", ".zst"];

/// Which of them an object has.
pub(crate) fn sealed_suffix(is_encrypted: bool) -> &'static str {
    let [encrypted, plain] = SEALED_SUFFIXES;
    if is_encrypted { encrypted } else { plain }
}

/// The folder of all backups of one kind of a cluster, with the slash at the end.
pub fn kind_prefix(cluster: &str, kind: BackupKind) -> String {
    match kind {
        BackupKind::Dump => format!("{cluster}/dump/"),
        BackupKind::Base => format!("{cluster}/base/"),
    }
}

/// The backup whose folder has this name among those of a kind. Other folders there belong to somebody else.
pub(crate) fn backup_of(kind: BackupKind, name: &str) -> Option<BackupId> {
    name.parse().ok().filter(|id: &BackupId| id.kind() == kind)
}

/// The folder of one backup, with the slash at the end.
pub fn backup_prefix(cluster: &str, id: &BackupId) -> String {
    format!("{}{id}/", kind_prefix(cluster, id.kind()))
}

/// One object of a backup, which may be a [`reference`].
pub fn backup_object(cluster: &str, id: &BackupId, name: &str) -> String {
    match reference(name) {
        Some((owner, name)) => format!("{}{name}", backup_prefix(cluster, &owner)),
        None => format!("{}{name}", backup_prefix(cluster, id)),
    }
}

/// The name, in one backup, of an object in the folder of another of the same kind: `../<id>/<name there>`. So a path from
/// the one folder to the other, which stock tools follow, too.
pub fn reference_to(owner: &BackupId, name: &str) -> String {
    match reference(name) {
        Some(_) => name.to_owned(),
        None => format!("../{owner}/{name}"),
    }
}

/// A pack of a base backup, from number 1 on; how its name ends tells which tools open it.
pub fn pack_object(number: u32, suffix: &str) -> String {
    format!("packs/{number:06}{suffix}")
}

/// An object with the records of a base backup's files, from number 1 on.
pub fn records_object(number: u32, suffix: &str) -> String {
    format!("files/{number:06}{suffix}")
}

/// The list of packs that a base backup needs.
pub fn pack_table_object(suffix: &str) -> String {
    format!("packs.table{suffix}")
}

/// In which backup's folder such an object lies, and its name there. `None` for an object in the backup's own folder.
pub fn reference(name: &str) -> Option<(BackupId, &str)> {
    let (owner, name) = name.strip_prefix("../")?.split_once('/')?;
    let owner: BackupId = owner.parse().ok()?;
    Some((owner, name))
}

/// The folder of a cluster's leases.
pub fn lease_prefix(cluster: &str) -> String {
    format!("{cluster}/lease/")
}

/// The folder of the leases of whoever receives a cluster's WAL: beside those of its backups, which they don't keep away.
pub fn wal_lease_prefix(cluster: &str) -> String {
    format!("{cluster}/lease/wal/")
}

/// The folder of a cluster's WAL. An upgraded cluster may use the same names of segments again, so the system identifier
/// stands above them.
pub fn wal_prefix(cluster: &str, system_identifier: u64) -> String {
    format!("{cluster}/wal/{system_identifier}/")
}

/// The size of that WAL's segments.
pub fn wal_segment_bytes(cluster: &str, system_identifier: u64) -> String {
    format!("{}segment_bytes", wal_prefix(cluster, system_identifier))
}

/// The folder of a timeline's WAL.
pub fn wal_timeline_prefix(cluster: &str, system_identifier: u64, timeline: Timeline) -> String {
    format!(
        "{}{:08X}/",
        wal_prefix(cluster, system_identifier),
        timeline.as_u32()
    )
}

/// The mark that WAL of a timeline was pruned: what isn't there before the first of it is missing.
pub fn wal_pruned(cluster: &str, system_identifier: u64, timeline: Timeline) -> String {
    format!(
        "{}{WAL_PRUNED}",
        wal_timeline_prefix(cluster, system_identifier, timeline)
    )
}

/// The name of that mark.
pub(crate) const WAL_PRUNED: &str = "pruned";

/// The folder of the segments whose names have the same middle part.
pub fn wal_log_prefix(cluster: &str, system_identifier: u64, segment: SegmentName) -> String {
    format!(
        "{}{:08X}/",
        wal_timeline_prefix(cluster, system_identifier, segment.timeline()),
        segment.log()
    )
}

/// An object with WAL; `suffix` as that of every sealed object.
pub fn wal_object(cluster: &str, system_identifier: u64, object: &WalObject, suffix: &str) -> String {
    let folder = match object.segment() {
        Some(segment) => wal_log_prefix(cluster, system_identifier, segment),
        None => wal_prefix(cluster, system_identifier),
    };
    format!("{folder}{object}{suffix}")
}

/// The folder of the markers that say which database clusters may write under this name, one for each system
/// identifier.
pub fn identity_prefix(cluster: &str) -> String {
    format!("{cluster}/identity/")
}

/// The folder of one backup's pins.
pub fn pin_prefix(cluster: &str, id: &BackupId) -> String {
    format!("{cluster}/pin/{id}/")
}

/// Whether nothing below this prefix is part of a backup or says anything of one that counts later, so that a lifecycle
/// rule of a few days may delete it: old leases.
pub fn is_disposable(prefix: &str) -> bool {
    matches!(prefix.split('/').collect::<Vec<_>>().as_slice(), [_, "lease", ..])
}

/// Whether nothing but base backups, or WAL, lies below this prefix.
pub fn is_physical(prefix: &str) -> bool {
    matches!(
        prefix.split('/').collect::<Vec<_>>().as_slice(),
        [cluster, "base" | "wal", ..] if !cluster.is_empty()
    )
}

/// Whose dumps they are, if nothing but a cluster's dumps lies below this prefix.
pub fn cluster_of_dumps(prefix: &str) -> Option<&str> {
    match prefix.split('/').collect::<Vec<_>>().as_slice() {
        [cluster, "dump", ..] if !cluster.is_empty() => Some(cluster),
        _ => None,
    }
}

/// The folder of all pins of a cluster.
pub fn pins_prefix(cluster: &str) -> String {
    format!("{cluster}/pin/")
}

/// The folder of what verifications found.
pub fn evidence_prefix(cluster: &str) -> String {
    format!("{cluster}/verify/")
}

/// The folder of what verifications of one backup found.
pub fn backup_evidence_prefix(cluster: &str, id: &BackupId) -> String {
    format!("{cluster}/verify/{id}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_are_known_by_their_prefix() {
        let dumps = kind_prefix("main", BackupKind::Dump);
        assert_eq!(cluster_of_dumps(&dumps), Some("main"));
        assert_eq!(cluster_of_dumps("main/dump/d2026"), Some("main"));
        assert_eq!(cluster_of_dumps("main/dump"), Some("main"));
        for prefix in ["", "main", "main/dum", "main/pin/", "/dump/x"] {
            assert_eq!(cluster_of_dumps(prefix), None, "{prefix}");
        }
    }

    #[test]
    fn base_backups_and_wal_are_known_by_their_prefix() {
        for prefix in ["main/base/", "main/wal/7/00000001/", "main/wal"] {
            assert!(is_physical(prefix), "{prefix}");
        }
        for prefix in [
            "",
            "main",
            "main/dump/",
            "main/lease/wal/",
            "/wal/x",
            "main/base2/",
        ] {
            assert!(!is_physical(prefix), "{prefix}");
        }
    }

    #[test]
    fn only_leases_are_disposable() {
        assert!(is_disposable(&lease_prefix("main")));
        assert!(is_disposable("main/lease/0000000001-"));
        for prefix in [
            "",
            "main",
            "main/",
            "main/dump/",
            "main/pin/",
            "main/identity/",
            "lease/dump/",
        ] {
            assert!(!is_disposable(prefix), "{prefix}");
        }
    }
}
