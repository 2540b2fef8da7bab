//! What `--exclude-table` and `--exclude-schema` do to the schema. What is excluded is in no archive, as with pg_dump. pg_dump
//! leaves what depends on it in, and such an archive doesn't restore; here that is found under the snapshot: views are left
//! out as well, other objects are named in the manifest, and an excluded table without which a dumped one can't be made stays,
//! empty. Of hypertables TimescaleDB's catalog, which comes as rows, knows more than the schema does: they stay until the
//! restore has them dropped by TimescaleDB itself.

use std::collections::{BTreeMap, BTreeSet};

use pgkeep_pg::Session;
use pgkeep_timescale::{HypertableKind, Inventory};

use crate::catalog;
use crate::error::{Context, DumpError};
use crate::manifest::{EmptyRelation, Excluded, Filters, LeftOut, QualifiedName};

/// How many rounds it may take until it is clear which relations have to stay.
const ROUNDS_MAX: usize = 10_000;

/// A relation that the filters exclude.
#[derive(Debug, Clone)]
struct Root {
    name: QualifiedName,
    /// For a column's sequence: the table, with which it comes and goes.
    owner: Option<u32>,
}

/// What the catalog says about something that depends on an excluded relation.
#[derive(Debug, Clone)]
struct Dependent {
    root: u32,
    class: u32,
    oid: u32,
    what: What,
    /// The relation that it is a part of, or that it is itself.
    relation: u32,
    relation_name: Option<QualifiedName>,
    description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A view, materialized or not.
    View,
    /// A table, or a part of one that is made with it.
    Table,
    /// Extended statistics, which some pg_dumps write without their table.
    Statistics,
    /// Whatever has an entry of its own in an archive.
    Object,
}

/// Finds out what is left out; none where nothing is excluded.
///
/// # Errors
/// PostgreSQL's; a malformed pattern.
pub(crate) async fn find(
    session: &mut Session,
    filters: &Filters,
    owners: &str,
    timescaledb: Option<&Inventory>,
) -> Result<Option<Excluded>, DumpError> {
    // Of a dump of chosen tables, what was chosen is restored and nothing else.
    if filters.selects_a_part() {
        return Ok(None);
    }
    let parts = [
        catalog::names_condition(&filters.exclude_tables)?,
        catalog::schemas_condition(&filters.exclude_schemas)?,
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return Ok(None);
    }
    let condition = parts.join(" OR ");
    let mut roots = roots(session, &condition, owners).await?;
    let mut excluded = Excluded::default();
    let hypertables: BTreeSet<QualifiedName> = timescaledb
        .iter()
        .flat_map(|inventory| &inventory.hypertables)
        .filter(|table| table.kind == HypertableKind::User)
        .map(|table| QualifiedName {
            schema: table.schema.clone(),
            name: table.name.clone(),
        })
        .collect();
    let views = timescaledb
        .iter()
        .flat_map(|inventory| &inventory.continuous_aggregates);
    let aggregates: BTreeSet<(&str, &str)> = views
        .map(|view| (view.schema.as_str(), view.name.as_str()))
        .collect();
    roots.retain(|_, root| {
        let is_hypertable = hypertables.contains(&root.name);
        if is_hypertable {
            excluded.hypertables.push(root.name.clone());
        }
        !is_hypertable && !aggregates.contains(&(root.name.schema.as_str(), root.name.name.as_str()))
    });
    let oids: BTreeSet<u32> = roots.keys().copied().collect();
    roots.retain(|_, root| root.owner.is_none_or(|table| oids.contains(&table)));
    let dependents = dependents(session, &roots).await?;
    sort_out(roots, &dependents, &mut excluded)?;
    Ok(Some(excluded))
}

/// Which of the roots go, and what goes with them.
fn sort_out(
    mut roots: BTreeMap<u32, Root>,
    dependents: &[Dependent],
    excluded: &mut Excluded,
) -> Result<(), DumpError> {
    // A table that stays may keep others of them.
    for round in 0.. {
        if round > ROUNDS_MAX {
            return Err(DumpError::Internal(
                "what depends on excluded tables has no end".to_owned(),
            ));
        }
        let kept = dependents.iter().find(|dependent| {
            dependent.what == What::Table
                && roots.contains_key(&dependent.root)
                && !roots.contains_key(&dependent.relation)
        });
        let Some(kept) = kept else { break };
        let Some(root) = roots.remove(&kept.root) else {
            break;
        };
        excluded.empty.push(EmptyRelation {
            name: root.name,
            needed_by: kept.description.clone(),
        });
    }
    let gone = |dependent: &&Dependent| roots.contains_key(&dependent.root);
    let views: BTreeSet<u32> = dependents
        .iter()
        .filter(gone)
        .filter(|dependent| dependent.what == What::View)
        .map(|dependent| dependent.relation)
        .collect();
    let mut seen = BTreeSet::new();
    for dependent in dependents.iter().filter(gone) {
        let is_view = dependent.what == What::View;
        let is_part =
            roots.contains_key(&dependent.relation) || (!is_view && views.contains(&dependent.relation));
        // pg_dump leaves a table's parts out with it, but for statistics; and what a table is made with never gets here.
        if dependent.what == What::Table || (is_part && dependent.what != What::Statistics) {
            continue;
        }
        let told = !is_part;
        if !seen.insert((dependent.class, dependent.oid)) {
            continue;
        }
        excluded
            .relations
            .extend(dependent.relation_name.clone().filter(|_| is_view));
        excluded.left_out.push(LeftOut {
            class: dependent.class,
            oid: dependent.oid,
            description: if told {
                dependent.description.clone()
            } else {
                String::new()
            },
        });
    }
    excluded
        .relations
        .extend(roots.into_values().map(|root| root.name));
    excluded.relations.sort();
    excluded.relations.dedup();
    Ok(())
}

/// The relations that fit, and the sequences that their columns own.
async fn roots(
    session: &mut Session,
    condition: &str,
    owners: &str,
) -> Result<BTreeMap<u32, Root>, DumpError> {
    let context = || "listing what is excluded".to_owned();
    let sql = format!(
        "WITH owner AS ({owners}),
         fit AS (
           SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           LEFT JOIN owner o ON o.relid = c.oid
           {names}
           WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND ({condition})),
         owned AS (
           SELECT d.objid AS oid, d.refobjid AS table_oid FROM pg_catalog.pg_depend d
           WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
             AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0)
         SELECT c.oid, n.nspname, c.relname,
           (SELECT i.table_oid FROM owned i WHERE i.oid = c.oid AND c.relkind = 'S' LIMIT 1)
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE (c.oid IN (SELECT oid FROM fit)
             OR (c.relkind = 'S' AND c.oid IN (SELECT oid FROM owned WHERE table_oid IN (SELECT oid FROM fit))))
           AND c.relpersistence IN ('p', 'u') AND n.nspname OPERATOR(pg_catalog.!~) '^(pg_|_timescaledb_)'
           AND n.nspname <> 'information_schema' AND NOT EXISTS (
             SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
               AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e')",
        names = catalog::FILTERED_NAMES,
    );
    let mut roots = BTreeMap::new();
    for row in session.query(&sql).await.context(context)? {
        let root = Root {
            name: QualifiedName {
                schema: row.get(1).context(context)?,
                name: row.get(2).context(context)?,
            },
            owner: row.get(3).context(context)?,
        };
        roots.insert(row.get(0).context(context)?, root);
    }
    Ok(roots)
}

/// Everything that depends on the roots, through whatever lies between. What depends on a view's rule depends on the view: so
/// from a part the way leads to the whole, too.
async fn dependents(session: &mut Session, roots: &BTreeMap<u32, Root>) -> Result<Vec<Dependent>, DumpError> {
    let context = || "looking for what depends on what is excluded".to_owned();
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    let oids: Vec<String> = roots.keys().map(ToString::to_string).collect();
    let sql = DEPENDENTS_SQL.replace("OIDS", &oids.join(","));
    let mut dependents = Vec::new();
    for row in session.query(&sql).await.context(context)? {
        let what: String = row.get(3).context(context)?;
        let (schema, name): (Option<String>, Option<String>) =
            (row.get(5).context(context)?, row.get(6).context(context)?);
        dependents.push(Dependent {
            root: row.get(0).context(context)?,
            class: row.get(1).context(context)?,
            oid: row.get(2).context(context)?,
            what: match what.as_str() {
                "view" => What::View,
                "table" => What::Table,
                "statistics" => What::Statistics,
                _ => What::Object,
            },
            relation: row.get(4).context(context)?,
            relation_name: schema
                .zip(name)
                .map(|(schema, name)| QualifiedName { schema, name }),
            description: row.get(7).context(context)?,
        });
    }
    Ok(dependents)
}

const DEPENDENTS_SQL: &str = "
    WITH RECURSIVE dependent AS (
      SELECT r.oid AS root, 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid AS classid, r.oid AS objid
      FROM pg_catalog.unnest('{OIDS}'::pg_catalog.oid[]) AS r(oid)
      UNION
      SELECT p.root, step.classid, step.objid FROM dependent p CROSS JOIN LATERAL (
        SELECT d.classid, d.objid FROM pg_catalog.pg_depend d
        WHERE d.refclassid = p.classid AND d.refobjid = p.objid AND d.deptype IN ('n', 'a', 'i', 'P', 'S')
        UNION ALL
        SELECT d.refclassid, d.refobjid FROM pg_catalog.pg_depend d
        WHERE d.classid = p.classid AND d.objid = p.objid AND d.deptype = 'i'
          AND p.classid NOT IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_type'::pg_catalog.regclass)
        UNION ALL
        SELECT d.refclassid, d.refobjid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class c ON c.oid = p.objid
        WHERE p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.relkind IN ('i', 'I', 'c')
          AND d.classid = p.classid AND d.objid = p.objid AND d.deptype = 'i') step),
    found AS (
      SELECT d.root, d.classid, d.objid,
        CASE d.classid
          WHEN 'pg_catalog.pg_class'::pg_catalog.regclass THEN coalesce(
            (SELECT i.indrelid FROM pg_catalog.pg_index i WHERE i.indexrelid = d.objid), d.objid)
          WHEN 'pg_catalog.pg_rewrite'::pg_catalog.regclass THEN (SELECT ev_class FROM pg_catalog.pg_rewrite WHERE oid = d.objid)
          WHEN 'pg_catalog.pg_attrdef'::pg_catalog.regclass THEN (SELECT adrelid FROM pg_catalog.pg_attrdef WHERE oid = d.objid)
          WHEN 'pg_catalog.pg_constraint'::pg_catalog.regclass THEN (SELECT conrelid FROM pg_catalog.pg_constraint WHERE oid = d.objid)
          WHEN 'pg_catalog.pg_trigger'::pg_catalog.regclass THEN (SELECT tgrelid FROM pg_catalog.pg_trigger WHERE oid = d.objid)
          WHEN 'pg_catalog.pg_policy'::pg_catalog.regclass THEN (SELECT polrelid FROM pg_catalog.pg_policy WHERE oid = d.objid)
          WHEN 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass THEN (SELECT stxrelid FROM pg_catalog.pg_statistic_ext WHERE oid = d.objid)
          ELSE 0 END AS relation
      FROM dependent d)
    SELECT f.root, f.classid, f.objid,
      CASE
        WHEN f.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND f.objid = f.relation
          AND c.relkind IN ('v', 'm') AND n.nspname OPERATOR(pg_catalog.!~) '^_timescaledb_' THEN 'view'
        WHEN f.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND f.objid = f.relation THEN 'table'
        WHEN f.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass THEN 'table'
        WHEN f.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.contype NOT IN ('f', 'x') THEN 'table'
        WHEN f.classid = 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass THEN 'statistics'
        ELSE 'object' END,
      coalesce(f.relation, 0), n.nspname, c.relname, pg_catalog.pg_describe_object(f.classid, f.objid, 0)
    FROM found f
    LEFT JOIN pg_catalog.pg_class c ON c.oid = f.relation LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_constraint k
      ON k.oid = f.objid AND f.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
    LEFT JOIN pg_catalog.pg_trigger g ON g.oid = f.objid AND f.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass
    LEFT JOIN pg_catalog.pg_type t ON t.oid = f.objid AND f.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
    LEFT JOIN pg_catalog.pg_class tc ON tc.oid = t.typrelid
    WHERE (c.oid IS NULL OR c.relkind NOT IN ('t', 'c'))
      AND (g.oid IS NULL OR NOT g.tgisinternal) AND (k.oid IS NULL OR k.conparentid = 0)
      AND (t.oid IS NULL OR (coalesce(tc.relkind, 'c') = 'c'
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.typarray = t.oid)))
      AND f.classid NOT IN ('pg_catalog.pg_publication_rel'::pg_catalog.regclass)
    ORDER BY f.root, f.classid, f.objid";

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str) -> Root {
        Root {
            name: name_of(name),
            owner: None,
        }
    }

    fn name_of(name: &str) -> QualifiedName {
        QualifiedName {
            schema: "s".to_owned(),
            name: name.to_owned(),
        }
    }

    fn dependent(root: u32, oid: u32, what: What, relation: u32) -> Dependent {
        Dependent {
            root,
            class: 1,
            oid,
            what,
            relation,
            relation_name: (relation != 0).then(|| name_of(&relation.to_string())),
            description: format!("object {oid}"),
        }
    }

    /// A table that must stay keeps the one that it is made from; what needs neither doesn't go.
    #[test]
    fn what_stays_keeps_what_it_needs() {
        let roots = BTreeMap::from([(1, root("a")), (2, root("b")), (3, root("c"))]);
        let dependents = [
            dependent(1, 2, What::Table, 2),
            dependent(1, 9, What::Table, 9),
            dependent(1, 5, What::Object, 20),
            dependent(2, 9, What::Table, 9),
            dependent(3, 6, What::Object, 20),
            dependent(3, 7, What::View, 7),
            dependent(3, 8, What::Object, 7),
            dependent(3, 10, What::Statistics, 3),
        ];
        let mut excluded = Excluded::default();
        sort_out(roots, &dependents, &mut excluded).unwrap();
        let empty: Vec<&str> = excluded
            .empty
            .iter()
            .map(|relation| relation.name.name.as_str())
            .collect();
        assert_eq!(empty, ["a", "b"]);
        assert_eq!(excluded.relations, [name_of("7"), name_of("c")]);
        let left_out: Vec<(u32, &str)> = excluded
            .left_out
            .iter()
            .map(|left_out| (left_out.oid, left_out.description.as_str()))
            .collect();
        assert_eq!(left_out, [(6, "object 6"), (7, "object 7"), (10, "")]);
    }
}
