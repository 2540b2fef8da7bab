//! What a file of pg_dump's formats can't be without. TimescaleDB's catalog comes as rows, and would name what isn't there. The
//! restore of a repository's dump has TimescaleDB drop hypertables; nobody does so for pg_restore and psql.

use pgkeep_base::quote_for_shell;
use pgkeep_timescale::{HypertableKind, Inventory};

use crate::error::DumpError;
use crate::manifest::{Filters, QualifiedName};
use crate::pattern::{Pattern, regex_fits};

/// A relation that TimescaleDB's catalog names.
struct Part {
    name: QualifiedName,
    kind: Kind,
    /// The hypertable that has its rows.
    hypertable: QualifiedName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Hypertable,
    ContinuousAggregate,
    /// What TimescaleDB made for one of those.
    Internal,
}

/// Refuses filters that would leave one of them out.
///
/// # Errors
/// They do; a malformed pattern.
pub(crate) fn refuse_excluded(
    database: &str,
    inventory: &Inventory,
    filters: &Filters,
) -> Result<(), DumpError> {
    // In a file of chosen tables, TimescaleDB's catalog isn't.
    if filters.selects_a_part() {
        return Ok(());
    }
    let usage = |message| DumpError::Usage { message, hint: None };
    let tables = filters.exclude_tables.iter().map(|text| Pattern::relation(text));
    let tables: Vec<Pattern> = tables.collect::<Result<_, _>>().map_err(usage)?;
    let schemas = filters.exclude_schemas.iter().map(|text| Pattern::schema(text));
    let schemas: Vec<String> = schemas.collect::<Result<_, _>>().map_err(usage)?;
    for part in parts(inventory) {
        let QualifiedName { schema, name } = &part.name;
        for pattern in &tables {
            // Without a schema, pg_dump looks along the search path, where TimescaleDB's schemas aren't.
            let may_fit = part.kind != Kind::Internal || pattern.schema_regex.is_some();
            if may_fit && pattern.fits(schema, name).map_err(usage)? {
                return Err(refusal(database, &part));
            }
        }
        for regex in &schemas {
            if regex_fits(regex, schema).map_err(usage)? {
                return Err(refusal(database, &part));
            }
        }
    }
    Ok(())
}

/// Those first that somebody made: they say best what is the matter.
fn parts(inventory: &Inventory) -> Vec<Part> {
    let qualified = |schema: &str, name: &str| QualifiedName {
        schema: schema.to_owned(),
        name: name.to_owned(),
    };
    let mut parts = Vec::new();
    for table in &inventory.hypertables {
        let hypertable = qualified(&table.schema, &table.name);
        let mut add = |name, kind| {
            parts.push(Part {
                name,
                kind,
                hypertable: hypertable.clone(),
            });
        };
        let kind = match table.kind {
            HypertableKind::User => Kind::Hypertable,
            _ => Kind::Internal,
        };
        add(hypertable.clone(), kind);
        for chunk in &table.chunks {
            add(qualified(&chunk.schema, &chunk.name), Kind::Internal);
            if let Some(compressed) = &chunk.compressed_relation {
                add(qualified(&compressed.schema, &compressed.name), Kind::Internal);
            }
        }
    }
    for aggregate in &inventory.continuous_aggregates {
        let rows = &aggregate.materialization;
        parts.push(Part {
            name: qualified(&aggregate.schema, &aggregate.name),
            kind: Kind::ContinuousAggregate,
            hypertable: qualified(&rows.schema, &rows.name),
        });
    }
    parts.sort_by_key(|part| part.kind);
    parts
}

fn refusal(database: &str, part: &Part) -> DumpError {
    let Part {
        name,
        kind,
        hypertable,
    } = part;
    let what = match kind {
        Kind::Hypertable => "a hypertable".to_owned(),
        Kind::ContinuousAggregate => "a continuous aggregate".to_owned(),
        Kind::Internal if name == hypertable => "a hypertable of TimescaleDB's own".to_owned(),
        Kind::Internal => format!("a part of hypertable {hypertable}"),
    };
    let without_rows = quote_for_shell(&hypertable.quoted());
    let repository = match kind {
        Kind::Hypertable => ", or dump into a repository (without --format), where it may be excluded",
        _ => "",
    };
    DumpError::Usage {
        message: format!(
            "in database '{database}' {name} is {what}: a file of pg_dump's formats without it can't be restored"
        ),
        hint: Some(format!(
            "leave its rows out with --exclude-table-data {without_rows} instead{repository}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use pgkeep_timescale::{Chunk, ContinuousAggregate, Hypertable, RelationName};

    use super::*;

    fn relation(schema: &str, name: &str) -> RelationName {
        RelationName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        }
    }

    fn hypertable(kind: HypertableKind, schema: &str, name: &str, chunk: &str) -> Hypertable {
        let chunk = Chunk {
            schema: "_timescaledb_internal".to_owned(),
            name: chunk.to_owned(),
            compressed_relation: Some(relation("_timescaledb_internal", &format!("{chunk}_compressed"))),
            ..Chunk::default()
        };
        Hypertable {
            schema: schema.to_owned(),
            name: name.to_owned(),
            kind,
            chunks: vec![chunk],
            ..Hypertable::default()
        }
    }

    /// A hypertable and a continuous aggregate on it.
    fn inventory() -> Inventory {
        Inventory {
            hypertables: vec![
                hypertable(HypertableKind::User, "public", "events", "_hyper_1_1_chunk"),
                hypertable(
                    HypertableKind::Materialization,
                    "_timescaledb_internal",
                    "_materialized_hypertable_2",
                    "_hyper_2_2_chunk",
                ),
            ],
            continuous_aggregates: vec![ContinuousAggregate {
                schema: "reports".to_owned(),
                name: "Daily".to_owned(),
                materialization: relation("_timescaledb_internal", "_materialized_hypertable_2"),
                ..ContinuousAggregate::default()
            }],
            ..Inventory::default()
        }
    }

    fn refused(tables: &[&str], schemas: &[&str]) -> Option<(String, String)> {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let filters = Filters {
            exclude_tables: owned(tables),
            exclude_schemas: owned(schemas),
            ..Filters::default()
        };
        match refuse_excluded("app", &inventory(), &filters) {
            Err(DumpError::Usage { message, hint }) => Some((message, hint.unwrap())),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn a_continuous_aggregate_is_not_left_out() {
        let (message, hint) = refused(&["reports.\"Daily\""], &[]).unwrap();
        assert_eq!(
            message,
            "in database 'app' reports.Daily is a continuous aggregate: a file of pg_dump's formats without it can't be restored"
        );
        assert_eq!(
            hint,
            "leave its rows out with --exclude-table-data '\"_timescaledb_internal\".\"_materialized_hypertable_2\"' instead"
        );
        assert_eq!(
            refused(&["*"], &["reports"])
                .unwrap()
                .0
                .matches("public.events is")
                .count(),
            1
        );
        assert!(refused(&[], &["reports"]).unwrap().0.contains("reports.Daily is"));
        // Folded, it means another name.
        assert_eq!(refused(&["reports.Daily", "reports.other"], &["other"]), None);
    }

    #[test]
    fn what_timescaledb_made_for_it_is_not_left_out_either() {
        for (table, what) in [
            (
                "_timescaledb_internal._materialized*",
                "is a hypertable of TimescaleDB's own",
            ),
            (
                "_timescaledb_internal._hyper_2_*",
                "is a part of hypertable _timescaledb_internal._materialized_hypertable_2",
            ),
            ("*.*_compressed", "is a part of hypertable public.events"),
        ] {
            let (message, _) = refused(&[table], &[]).unwrap();
            assert!(message.contains(what), "{table}: {message}");
        }
        assert!(refused(&[], &["_timescaledb*"]).is_some());
        // pg_dump looks for these along the search path.
        assert_eq!(refused(&["_hyper_*", "*_chunk*"], &[]), None);
    }

    #[test]
    fn a_hypertable_may_be_left_out_in_the_repository() {
        let (message, hint) = refused(&["events"], &[]).unwrap();
        assert!(message.contains("public.events is a hypertable:"), "{message}");
        assert!(hint.contains("dump into a repository"), "{hint}");
        let chosen = Filters {
            tables: vec!["other".to_owned()],
            exclude_tables: vec!["events".to_owned()],
            ..Filters::default()
        };
        refuse_excluded("app", &inventory(), &chosen).unwrap();
    }
}
