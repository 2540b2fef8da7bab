//! What lies beside the data for whoever restores it without pgkeep.

use std::collections::BTreeSet;
use std::fmt::Write;

use pgkeep_repository::layout;

use crate::blocks::copy_in_statement;
use crate::database::split_data;
use crate::manifest::{DataObject, DatabaseManifest, DumpManifest, RowFormat};
use crate::restore::{archive_major, client_encoding};
use crate::sql;

/// The script that restores with stock tools.
pub const RESTORE_SCRIPT: &str = include_str!("../assets/restore.sh");
/// `pg_constraint`'s own oid, as the lists of `pg_restore` have it.
const CLASS_CONSTRAINT: u32 = 2606;
const README: &str = include_str!("../assets/RESTORE.md");

/// How the objects' names end in a folder of opened files.
pub const OPENED: &str = "";

/// An object's name without what tells which tools open it.
fn bare_name(name: &str) -> &str {
    let name = name.strip_suffix(".age").unwrap_or(name);
    name.strip_suffix(".zst").unwrap_or(name)
}

/// The name of its file in a folder of opened files, which holds the objects of earlier dumps, too: those have folders of
/// their own there, named as the dumps.
pub fn opened_name(name: &str) -> &str {
    let name = bare_name(name);
    name.strip_prefix("../").unwrap_or(name)
}

/// What `restore.sh` runs before and after a database's rows: the step, and the script.
pub fn scripts(database: &DatabaseManifest) -> [(&'static str, String); 4] {
    let timescaledb = database.timescaledb.as_ref();
    let (name, properties) = (&database.name, &database.properties);
    [
        ("create", sql::create_script(name, properties)),
        ("before", sql::before_script(timescaledb)),
        (
            "after",
            sql::after_script(timescaledb, &database.materialized_views),
        ),
        ("settings", sql::database_settings_script(name, properties)),
    ]
}

/// The name of such a script.
pub fn script_name(database: &DatabaseManifest, step: &str, suffix: &str) -> String {
    format!("{}/{step}.sql{suffix}", database.folder)
}

struct Index {
    text: String,
    lines: u64,
    suffix: &'static str,
}

impl Index {
    fn line(&mut self, folder: &str, step: &str, value: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "{folder}\t{step}\t{value}");
        self.lines += 1;
    }

    /// The name of an object where the script lies.
    fn name(&self, name: &str) -> String {
        match self.suffix {
            OPENED => opened_name(name).to_owned(),
            suffix => format!("{}{suffix}", bare_name(name)),
        }
    }

    fn object(&mut self, folder: &str, step: &str, name: &str, bytes: u64) {
        let name = format!("{}\t{bytes}", self.name(name));
        self.line(folder, step, &name);
    }

    fn database(&mut self, database: &DatabaseManifest) {
        let folder = &database.folder;
        self.line(folder, "database", &escape(&database.name));
        if let Some(timescaledb) = &database.timescaledb {
            self.line(folder, "extension_schema", &escape(&timescaledb.schema));
        }
        for (step, text) in scripts(database) {
            let name = script_name(database, step, self.suffix);
            self.object(folder, step, &name, text.len() as u64);
        }
        for object in &database.schema {
            self.object(folder, "schema", &object.name, object.plain_bytes);
        }
        let (configuration, data) = split_data(database);
        for DataObject { object, .. } in configuration {
            self.object(folder, "configuration", &object.name, object.plain_bytes);
        }
        self.line(folder, "encoding", client_encoding(database));
        for DataObject { object, segments } in data {
            self.object(folder, "data", &object.name, object.plain_bytes);
            let relation = segments.first().map(|segment| segment.relation as usize);
            let relation = relation.and_then(|place| database.relations.get(place));
            if let Some(relation) = relation.filter(|relation| relation.format == RowFormat::Binary) {
                let statement =
                    copy_in_statement(relation.target(), &relation.columns, relation.format, false);
                let name = self.name(&object.name);
                self.line(&name, "copy", &escape(&statement));
            }
        }
        if let Some(object) = &database.sequences {
            self.object(folder, "sequences", &object.name, object.plain_bytes);
        }
        for object in &database.large_objects {
            self.object(folder, "large_objects", &object.name, object.plain_bytes);
        }
        for object in database.excluded.iter().flat_map(|excluded| &excluded.left_out) {
            self.line(folder, "left_out", &format!("{} {}", object.class, object.oid));
        }
        for oid in &database.foreign_keys_to_hypertables {
            self.line(folder, "after_foreign_key", &format!("{CLASS_CONSTRAINT} {oid}"));
        }
    }
}

/// What `restore.sh` does in which order, as docs/FORMAT.md has it. `suffix` is how the objects' names end where the
/// script lies.
pub fn index(manifest: &DumpManifest, suffix: &'static str) -> String {
    let mut index = Index {
        text: String::new(),
        lines: 0,
        suffix,
    };
    if let Some(globals) = &manifest.globals {
        index.object("all", "globals", &globals.name, globals.plain_bytes);
    }
    for database in &manifest.databases {
        index.database(database);
    }
    let lines = index.lines.to_string();
    index.line("all", "end", &lines);
    index.text
}

/// For `printf %b`, so that a name may hold tabs and line feeds.
fn escape(name: &str) -> String {
    name.replace('\\', "\\\\")
        .replace('\t', "\\t")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
}

/// What a person needs to open the objects.
struct Tools {
    needed: &'static str,
    key_option: &'static str,
    checksums: &'static str,
    open: &'static str,
}

/// `RESTORE.md`, filled in; `suffix` as in [`index`].
pub fn readme(manifest: &DumpManifest, suffix: &str) -> String {
    let tools = match suffix {
        OPENED => Tools {
            needed: ", `sha256sum` (or `shasum`, or `b3sum`)",
            key_option: "",
            checksums: "`checksums.b3` or `checksums.sha256`: `b3sum --check checksums.b3` or `sha256sum -c checksums.sha256`",
            open: "The files are as they are: pgkeep opened the objects of the dump when it wrote this folder. (`manifest` names them as \
                   they were stored, with `.zst` or `.zst.age`.)",
        },
        ".zst" => Tools {
            needed: ", `zstd`",
            key_option: "",
            checksums: "`checksums.b3`: `b3sum --check checksums.b3`",
            open: "Every object opens with `zstd -dc OBJECT`. zstd doesn't notice when one was cut off just between two of its frames: \
                   compare `wc -c` with the size in `index.tsv`, as the script does.",
        },
        _ => Tools {
            needed: ", `zstd`, `age` and the private key file",
            key_option: " -i KEYFILE",
            checksums: "`checksums.b3`: `b3sum --check checksums.b3`",
            open: "Every object opens with `age -d -i KEYFILE OBJECT | zstd -dc`.",
        },
    };
    let server_major = manifest.server_version_num / 10_000;
    // What wrote the archives is the least that reads them.
    let databases = manifest.databases.iter();
    let program_major = databases
        .map(|database| archive_major(database, server_major))
        .max();
    let program_major = program_major.unwrap_or(server_major).to_string();
    let major = server_major.to_string();
    let (timescaledb_server, timescaledb_note) = timescaledb_notes(manifest);
    let others = other_folders(manifest, suffix);
    let values = [
        ("{{version}}", manifest.pgkeep_version.as_str()),
        ("{{started_at}}", &manifest.started_at.to_string()),
        ("{{server_version}}", manifest.server_version.as_str()),
        ("{{id}}", manifest.id.as_str()),
        ("{{major}}", &major),
        ("{{program_major}}", &program_major),
        ("{{tools}}", tools.needed),
        ("{{key_option}}", tools.key_option),
        ("{{checksums}}", tools.checksums),
        ("{{open}}", tools.open),
        ("{{suffix}}", suffix),
        ("{{timescaledb_server}}", &timescaledb_server),
        ("{{timescaledb_note}}", &timescaledb_note),
        ("{{others}}", &others),
    ];
    values
        .iter()
        .fold(README.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// What the server needs, and what is to be done afterwards.
fn timescaledb_notes(manifest: &DumpManifest) -> (String, String) {
    let versions: Vec<String> = manifest
        .databases
        .iter()
        .filter_map(|database| database.timescaledb.as_ref())
        .map(|inventory| inventory.version.clone())
        .collect();
    match versions.first() {
        Some(version) => (
            format!(" with TimescaleDB {version} installed and in shared_preload_libraries"),
            format!(
                "\n## TimescaleDB\nThe extension is made at version {version}, the one that was dumped; later \
                 `ALTER EXTENSION timescaledb UPDATE` works. All jobs stay off, because an overdue retention policy would \
                 delete what was just restored. Check the data, then `SELECT alter_job(ID, scheduled => true)`.\n"
            ),
        ),
        None => (String::new(), String::new()),
    }
}

/// Where else rows lie.
fn other_folders(manifest: &DumpManifest, suffix: &str) -> String {
    let data = manifest.databases.iter().flat_map(|database| &database.data);
    let owners: BTreeSet<String> = data
        .filter_map(|data| layout::reference(&data.object.name).map(|(owner, _)| owner.to_string()))
        .collect();
    if owners.is_empty() || suffix == OPENED {
        return String::new();
    }
    format!(
        " Rows that haven't changed since earlier dumps lie in those dumps' folders: bring them, too, beside this one ({}).",
        owners.into_iter().collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects lose what tells how they are sealed when they are written opened; databases keep their names.
    #[test]
    fn the_index_renames_objects_and_nothing_else() {
        let object = serde_json::json!({ "name": "d1/schema.dump.zst", "stored_bytes": 1, "hash": "", "plain_bytes": 7 });
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
        let sizes = scripts(&manifest.databases[0]).map(|(_, text)| text.len());
        let [create, before, after, settings] = sizes;
        for suffix in [OPENED, ".zst"] {
            assert_eq!(
                index(&manifest, suffix),
                format!(
                    "d1\tdatabase\tlogs.zst\nd1\tcreate\td1/create.sql{suffix}\t{create}\nd1\tbefore\td1/before.sql{suffix}\t{before}\n\
                     d1\tafter\td1/after.sql{suffix}\t{after}\nd1\tsettings\td1/settings.sql{suffix}\t{settings}\n\
                     d1\tschema\td1/schema.dump{suffix}\t7\nd1\tencoding\tUTF8\nall\tend\t7\n"
                )
            );
        }
    }
}
