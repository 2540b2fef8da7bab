//! What excluded tables left out of the schema: passed over, told, and for hypertables brought to an end.

use std::collections::HashSet;

use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};
use crate::manifest::{DatabaseManifest, QualifiedName, RelationKind};
use crate::pattern::Pattern;
use crate::restore::archive::Entry;
use crate::restore::connect;

/// Parts of a table, whose entries name the table first, and whose comments end with it.
const PARTS: [&str; 6] = [
    "FK CONSTRAINT",
    "CHECK CONSTRAINT",
    "CONSTRAINT",
    "POLICY",
    "TRIGGER",
    "RULE",
];

/// The lines of an archive's table of contents that can't be restored, because what they need isn't in the dump.
pub fn lines(database: &DatabaseManifest, entries: &[Entry]) -> HashSet<String> {
    let left_out = database.excluded.iter().flat_map(|excluded| &excluded.left_out);
    let objects: HashSet<(u32, u32)> = left_out.map(|object| (object.class, object.oid)).collect();
    if objects.is_empty() {
        return HashSet::new();
    }
    let (mut lines, mut companions) = (HashSet::new(), HashSet::new());
    for entry in entries
        .iter()
        .filter(|entry| objects.contains(&(entry.class, entry.oid)))
    {
        lines.insert(entry.line.clone());
        companions.extend(companions_of(&entry.text));
    }
    let others = entries.iter().filter(|entry| entry.class == 0);
    lines.extend(
        others
            .filter(|entry| companions.contains(&entry.text))
            .map(|entry| entry.line.clone()),
    );
    lines
}

/// The texts that the entries of an object's comment and privileges have. An entry's text is description, schema, tag and
/// owner with spaces between, and any of them may hold spaces: so every way to read it is taken.
fn companions_of(text: &str) -> Vec<String> {
    let part = PARTS
        .into_iter()
        .find_map(|part| Some((part, text.strip_prefix(part)?.strip_prefix(' ')?)));
    let mut companions = Vec::new();
    if let Some((part, rest)) = part {
        let word = part.rsplit(' ').next().unwrap_or(part);
        for (schema, rest) in splits(rest) {
            for (table, rest) in splits(rest) {
                for (name, owner) in splits(rest) {
                    companions.push(format!("COMMENT {schema} {word} {name} ON {table} {owner}"));
                }
            }
        }
        return companions;
    }
    let capitals = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
    for (description, rest) in splits(text).filter(|(description, _)| description.split(' ').all(capitals)) {
        for (schema, rest) in splits(rest) {
            for companion in ["COMMENT", "ACL", "SECURITY LABEL"] {
                companions.push(format!("{companion} {schema} {description} {rest}"));
            }
        }
    }
    companions
}

/// Every way to cut a text in two at a space.
pub fn splits(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices(' ')
        .filter_map(|(place, _)| Some((text.get(..place)?, text.get(place + 1..)?)))
}

/// What a restore of the whole database doesn't bring, by the manifest alone.
pub fn notes(database: &DatabaseManifest) -> Vec<String> {
    let Some(excluded) = &database.excluded else {
        return Vec::new();
    };
    let name = &database.name;
    let told = excluded
        .left_out
        .iter()
        .filter(|object| !object.description.is_empty());
    let mut notes: Vec<String> = told
        .map(|object| {
            format!(
                "database '{name}' comes without {}, which needs what the dump was made without (--exclude-table)",
                object.description
            )
        })
        .collect();
    notes.extend(excluded.empty.iter().map(|relation| {
        format!(
            "{} in database '{name}' comes empty: the dump was made without its rows (--exclude-table), and {} needs it",
            relation.name, relation.needed_by
        )
    }));
    notes
}

/// Tables of an older dump's schema that the filters excluded: they come back empty.
///
/// # Errors
/// A malformed pattern in the manifest.
pub fn empty_tables(database: &DatabaseManifest, entries: &[Entry]) -> Result<Vec<String>, DumpError> {
    let filters = &database.filters;
    let any = !(filters.exclude_tables.is_empty() && filters.exclude_schemas.is_empty());
    if database.excluded.is_some() || !any {
        return Ok(Vec::new());
    }
    let usage = |message| DumpError::Usage { message, hint: None };
    let mut patterns = Vec::new();
    for text in &filters.exclude_tables {
        patterns.push(Pattern::relation(text).map_err(usage)?);
    }
    for text in &filters.exclude_schemas {
        patterns.push(Pattern {
            schema_regex: Some(Pattern::schema(text).map_err(usage)?),
            name_regex: String::new(),
        });
    }
    let held: HashSet<&QualifiedName> = database
        .relations
        .iter()
        .flat_map(|relation| [Some(&relation.name), relation.partition_of.as_ref()])
        .flatten()
        .collect();
    let mut empty = Vec::new();
    for rest in entries
        .iter()
        .filter_map(|entry| entry.text.strip_prefix("TABLE "))
    {
        let Some((schema, rest)) = rest.split_once(' ') else {
            continue;
        };
        // The owner is the last word as a rule; a name that is cut wrongly fits no pattern.
        let name = rest.rsplit_once(' ').map_or(rest, |(name, _)| name);
        let name = QualifiedName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        let mut fits = false;
        for pattern in &patterns {
            fits |= pattern.fits(&name.schema, &name.name).map_err(usage)?;
        }
        if fits && !held.contains(&name) {
            empty.push(format!(
                "{name} in database '{}' is empty: the dump was made without its rows (--exclude-table)",
                database.name
            ));
        }
    }
    Ok(empty)
}

/// Drops the hypertables that were excluded, of which the schema and TimescaleDB's catalog know: with their policies, by
/// TimescaleDB itself. One that something else depends on stays, which is told.
///
/// # Errors
/// The connection fails.
pub async fn drop_hypertables(
    database: &DatabaseManifest,
    target: &Target,
    attention: &mut Vec<String>,
) -> Result<(), DumpError> {
    let hypertables = database
        .excluded
        .iter()
        .flat_map(|excluded| &excluded.hypertables);
    let hypertables: Vec<&QualifiedName> = hypertables.collect();
    if hypertables.is_empty() {
        return Ok(());
    }
    let mut session: Session = connect(target).await?;
    for name in hypertables {
        let drop = format!("DROP TABLE IF EXISTS {}", name.quoted());
        match session.execute(&drop).await {
            Ok(_) => {}
            Err(error) if error.sqlstate().is_some() => attention.push(format!(
                "{name} in database '{}' is empty: the dump was made without its rows (--exclude-table), and it can't be \
                 dropped: {error}",
                target.database()
            )),
            Err(source) => {
                return Err(source).context(|| format!("dropping {name}, which the dump was made without"));
            }
        }
    }
    session.close().await;
    Ok(())
}

/// The oids of tables of which the dump may lack rows that others refer to.
pub fn oids_without_rows(database: &DatabaseManifest, entries: &[Entry]) -> HashSet<u32> {
    let without = |relation: &&crate::manifest::Relation| relation.data_excluded;
    let mut names: HashSet<&QualifiedName> = HashSet::new();
    let mut oids: HashSet<u32> = HashSet::new();
    for relation in database.relations.iter().filter(without) {
        oids.insert(relation.oid);
        names.extend(relation.partition_of.as_ref());
    }
    if let Some(excluded) = &database.excluded {
        names.extend(excluded.empty.iter().map(|relation| &relation.name));
        names.extend(&excluded.hypertables);
    }
    let beginnings: Vec<String> = names
        .iter()
        .map(|name| format!("TABLE {} {} ", name.schema, name.name))
        .collect();
    let is_named = |entry: &&Entry| beginnings.iter().any(|name| entry.text.starts_with(name));
    oids.extend(
        entries
            .iter()
            .filter(|_| !names.is_empty())
            .filter(is_named)
            .map(|entry| entry.oid),
    );
    // Excluded partitions of a table that isn't: its other partitions are there.
    let excludes =
        !(database.filters.exclude_tables.is_empty() && database.filters.exclude_schemas.is_empty());
    if excludes {
        let held: HashSet<u32> = database
            .relations
            .iter()
            .filter(|relation| relation.kind == RelationKind::Table && relation.partition_of.is_none())
            .map(|relation| relation.oid)
            .collect();
        let tables = entries.iter().filter(|entry| entry.text.starts_with("TABLE "));
        oids.extend(
            tables
                .filter(|entry| !held.contains(&entry.oid))
                .map(|entry| entry.oid),
        );
    }
    oids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::archive::parse_entries;

    #[test]
    fn comments_and_privileges_go_with_their_object() {
        assert!(
            companions_of("FK CONSTRAINT public my table fk x app")
                .contains(&"COMMENT public CONSTRAINT fk x ON my table app".to_owned())
        );
        let function = companions_of("FUNCTION public f(integer, text) app");
        assert!(function.contains(&"ACL public FUNCTION f(integer, text) app".to_owned()));
        assert!(
            companions_of("MATERIALIZED VIEW s v app")
                .contains(&"COMMENT s MATERIALIZED VIEW v app".to_owned())
        );
        let entries = parse_entries(
            "1; 2606 7 FK CONSTRAINT public t fk app\n2; 0 0 COMMENT public CONSTRAINT fk ON t app\n\
             3; 0 0 COMMENT public CONSTRAINT fk ON u app\n4; 1259 7 TABLE public t app\n",
        );
        let object = serde_json::json!({ "name": "", "stored_bytes": 1, "hash": "", "plain_bytes": 1 });
        let database: DatabaseManifest = serde_json::from_value(serde_json::json!({
            "name": "d", "folder": "d1", "properties": crate::manifest::DatabaseProperties::default(),
            "snapshot_at": "2026-01-01T00:00:00Z", "extensions": [], "pg_dump_version": "", "schema": [],
            "dependents": object, "large_objects": [], "materialized_views": [], "relations": [], "data": [],
            "excluded": { "left_out": [{ "class": 2606, "oid": 7 }] },
        }))
        .unwrap();
        let lines = lines(&database, &entries);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines
                .iter()
                .all(|line| line.starts_with("1;") || line.starts_with("2;"))
        );
    }
}
