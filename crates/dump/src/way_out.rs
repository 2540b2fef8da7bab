//! What lies beside the data for whoever restores it without pgkeep.

use std::fmt::Write;

use crate::blocks::copy_in_statement;
use crate::database::split_data;
use crate::manifest::{DumpManifest, RowFormat};
use crate::restore::{archive_major, client_encoding};

/// The script that restores with stock tools.
pub const RESTORE_SCRIPT: &str = include_str!("../assets/restore.sh");
/// `pg_constraint`'s own oid, as the lists of `pg_restore` have it.
const CLASS_CONSTRAINT: u32 = 2606;
const README: &str = include_str!("../assets/RESTORE.md");

/// Lines of folder, step and object (or name), separated by tabs, in the order in which `restore.sh` uses them.
/// `object_name` says how an object is called where the script lies.
pub fn index(manifest: &DumpManifest, object_name: impl Fn(&str) -> &str) -> String {
    let mut text = String::new();
    let mut line = |folder: &str, step: &str, value: &str| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{folder}\t{step}\t{value}");
    };
    if let Some(globals) = &manifest.globals {
        line("all", "globals", object_name(&globals.name));
    }
    for database in &manifest.databases {
        let folder = &database.folder;
        line(folder, "database", &escape(&database.name));
        if let Some(timescaledb) = &database.timescaledb {
            line(folder, "extension_schema", &escape(&timescaledb.schema));
        }
        for object in &database.schema {
            line(folder, "schema", object_name(&object.name));
        }
        let (configuration, data) = split_data(database);
        for object in configuration {
            line(folder, "configuration", object_name(&object.object.name));
        }
        line(folder, "encoding", client_encoding(database));
        for object in data {
            line(folder, "data", object_name(&object.object.name));
            let relation = object.segments.first().map(|segment| segment.relation as usize);
            let relation = relation.and_then(|place| database.relations.get(place));
            if let Some(relation) = relation.filter(|relation| relation.format == RowFormat::Binary) {
                let statement =
                    copy_in_statement(relation.target(), &relation.columns, relation.format, false);
                line(stem(&object.object.name), "copy", &escape(&statement));
            }
        }
        if let Some(object) = &database.sequences {
            line(folder, "sequences", object_name(&object.name));
        }
        for object in &database.large_objects {
            line(folder, "large_objects", object_name(&object.name));
        }
        for oid in &database.foreign_keys_to_hypertables {
            line(folder, "after_foreign_key", &format!("{CLASS_CONSTRAINT} {oid}"));
        }
    }
    text
}

/// An object's name up to its first dot: `d1/000001`.
fn stem(name: &str) -> &str {
    name.split_once('.').map_or(name, |(stem, _)| stem)
}

/// For `printf %b`, so that a name may hold tabs and line feeds.
fn escape(name: &str) -> String {
    name.replace('\\', "\\\\")
        .replace('\t', "\\t")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
}

/// `RESTORE.md`, filled in.
pub fn readme(manifest: &DumpManifest, encrypted: bool) -> String {
    let suffix = if encrypted { ".zst.age" } else { ".zst" };
    let server_major = manifest.server_version_num / 10_000;
    // What wrote the archives is the least that reads them.
    let databases = manifest.databases.iter();
    let program_major = databases
        .map(|database| archive_major(database, server_major))
        .max();
    let program_major = program_major.unwrap_or(server_major).to_string();
    let major = server_major.to_string();
    let versions: Vec<String> = manifest
        .databases
        .iter()
        .filter_map(|database| database.timescaledb.as_ref())
        .map(|inventory| inventory.version.clone())
        .collect();
    let (timescaledb_server, timescaledb_note) = match versions.first() {
        Some(version) => (
            format!(" with TimescaleDB {version} installed and in shared_preload_libraries"),
            format!(
                "\n## TimescaleDB\nThe extension is made at version {version}, the one that was dumped; later \
                 `ALTER EXTENSION timescaledb UPDATE` works. All jobs stay off, because an overdue retention policy would \
                 delete what was just restored. Check the data, then `SELECT alter_job(ID, scheduled => true)`.\n"
            ),
        ),
        None => (String::new(), String::new()),
    };
    let values = [
        ("{{version}}", manifest.pgkeep_version.as_str()),
        ("{{started_at}}", &manifest.started_at.to_string()),
        ("{{server_version}}", manifest.server_version.as_str()),
        ("{{id}}", manifest.id.as_str()),
        ("{{major}}", &major),
        ("{{program_major}}", &program_major),
        (
            "{{age_tool}}",
            if encrypted {
                ", `age` and the private key file"
            } else {
                ""
            },
        ),
        ("{{key_option}}", if encrypted { " -i KEYFILE" } else { "" }),
        ("{{suffix}}", suffix),
        ("{{timescaledb_server}}", &timescaledb_server),
        ("{{timescaledb_note}}", &timescaledb_note),
        (
            "{{open_command}}",
            if encrypted {
                " `age -d -i KEYFILE OBJECT | zstd -dc`"
            } else {
                " `zstd -dc OBJECT`"
            },
        ),
    ];
    values
        .iter()
        .fold(README.to_owned(), |text, (name, value)| text.replace(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects lose what tells how they are sealed when they are written opened; databases keep their names.
    #[test]
    fn the_index_renames_objects_and_nothing_else() {
        let object = serde_json::json!({ "name": "d1/schema.dump.zst", "stored_bytes": 1, "hash": "", "plain_bytes": 1 });
        let database = serde_json::json!({
            "name": "logs.zst", "folder": "d1", "properties": crate::manifest::DatabaseProperties::default(),
            "snapshot_at": "2026-01-01T00:00:00Z", "extensions": [], "pg_dump_version": "", "schema": [object],
            "dependents": object, "large_objects": [], "materialized_views": [], "relations": [], "data": [],
        });
        let manifest: DumpManifest = serde_json::from_value(serde_json::json!({
            "format": 1, "id": "x", "cluster": "c", "pgkeep_version": "0", "started_at": "2026-01-01T00:00:00Z",
            "finished_at": "2026-01-01T00:00:00Z", "system_identifier": "1", "server_version": "16",
            "server_version_num": 160_000, "databases": [database], "totals": crate::manifest::Totals::default(),
        }))
        .unwrap();
        assert_eq!(
            index(&manifest, |name| name.trim_end_matches(".zst")),
            "d1\tdatabase\tlogs.zst\nd1\tschema\td1/schema.dump\nd1\tencoding\tUTF8\n"
        );
    }
}
