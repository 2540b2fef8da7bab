//! Which tables of a database a partial restore takes, and which entries of the schema's archive belong to them.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::error::DumpError;
use crate::manifest::{DatabaseManifest, QualifiedName, Relation, RelationKind};
use crate::pattern::{Pattern, how_to_quote};
use crate::restore::archive::Entry;
use crate::restore::left_out::splits;

/// `pg_class`, whose rows are tables, indexes and sequences.
const CLASS_RELATION: u32 = 1259;

/// What was chosen.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The relations with rows, by place.
    pub places: BTreeSet<u32>,
    /// All tables: those with rows, and the partitioned tables above them.
    pub tables: BTreeSet<QualifiedName>,
    /// Hypertables that the patterns fit; they need a way of their own.
    pub hypertables: Vec<QualifiedName>,
    /// Schemas of which everything is taken: functions, types and views too.
    pub schemas: BTreeSet<String>,
    /// Tables whose rows the dump may lack, by oid: keys that refer to them are tried one by one.
    pub without_rows: HashSet<u32>,
    oids: HashSet<u32>,
}

/// Chooses by patterns.
///
/// # Errors
/// A malformed pattern; one that fits nothing.
pub fn select(database: &DatabaseManifest, patterns: &[String]) -> Result<Selection, DumpError> {
    let usage = |message: String| DumpError::Usage {
        message,
        hint: Some("patterns are those of pg_dump".to_owned()),
    };
    let mut selection = Selection::default();
    let hypertables = held_hypertables(database);
    for text in patterns {
        let pattern = Pattern::relation(text).map_err(usage)?;
        let fits = |name: &QualifiedName| pattern.fits(&name.schema, &name.name).map_err(usage);
        let mut found = false;
        for name in &hypertables {
            if fits(name)? {
                found = true;
                selection.hypertables.push(name.clone());
            }
        }
        for (place, relation) in (0_u32..).zip(&database.relations) {
            if relation.kind != RelationKind::Table || hypertables.contains(&relation.name) {
                continue;
            }
            let by_root = relation
                .partition_of
                .as_ref()
                .map(&fits)
                .transpose()?
                .unwrap_or(false);
            if by_root || fits(&relation.name)? {
                found = true;
                selection.add(place, relation);
            }
        }
        if !found {
            return Err(DumpError::Usage {
                message: format!(
                    "no table of database '{}' in the dump fits '{text}'",
                    database.name
                ),
                hint: Some(match how_to_quote(text) {
                    Some(quote) => format!("{quote}; 'pgkeep show ID --tables' lists them"),
                    None => "'pgkeep show ID --tables' lists them".to_owned(),
                }),
            });
        }
    }
    Ok(selection)
}

impl Selection {
    /// Everything that a dump of a part of its database holds.
    ///
    /// # Errors
    /// A malformed pattern in the manifest.
    pub fn of_filtered(database: &DatabaseManifest) -> Result<Self, DumpError> {
        let mut selection = Self::default();
        let hypertables = held_hypertables(database);
        for (place, relation) in (0_u32..).zip(&database.relations) {
            if relation.kind == RelationKind::Table && !hypertables.contains(&relation.name) {
                selection.add(place, relation);
            }
        }
        selection.hypertables = hypertables;
        for text in &database.filters.schemas {
            let message = |message| DumpError::Usage { message, hint: None };
            let pattern = Pattern {
                schema_regex: None,
                name_regex: Pattern::schema(text).map_err(message)?,
            };
            for relation in &database.relations {
                if pattern.fits("", &relation.name.schema).map_err(message)? {
                    selection.schemas.insert(relation.name.schema.clone());
                }
            }
        }
        Ok(selection)
    }

    fn add(&mut self, place: u32, relation: &Relation) {
        self.places.insert(place);
        self.oids.insert(relation.oid);
        self.tables.insert(relation.name.clone());
        self.tables.extend(relation.partition_of.clone());
    }

    /// A chosen table whose rows were left out of the dump.
    pub fn first_without_rows(&self, database: &DatabaseManifest) -> Option<QualifiedName> {
        let mut relations = (0_u32..).zip(&database.relations);
        let found = relations.find(|(place, relation)| {
            relation.data_excluded
                && (self.places.contains(place) || self.hypertables.contains(&relation.name))
        });
        found.map(|(_, relation)| relation.name.clone())
    }

    /// Chooses one table by its name.
    pub fn add_table(&mut self, database: &DatabaseManifest, name: &QualifiedName) {
        let relation = database.relations.iter().find(|relation| relation.name == *name);
        self.oids.extend(relation.map(|relation| relation.oid));
        self.tables.insert(name.clone());
    }
}

/// Hypertables that somebody made, not those that hold continuous aggregates or compressed rows.
pub fn user_hypertables(database: &DatabaseManifest) -> Vec<QualifiedName> {
    let hypertables = database
        .timescaledb
        .iter()
        .flat_map(|inventory| &inventory.hypertables);
    let made = hypertables.filter(|table| table.kind == pgkeep_timescale::HypertableKind::User);
    made.map(|table| QualifiedName {
        schema: table.schema.clone(),
        name: table.name.clone(),
    })
    .collect()
}

/// Those of them that the dump holds: the inventory is of the whole database.
fn held_hypertables(database: &DatabaseManifest) -> Vec<QualifiedName> {
    let held: HashSet<&QualifiedName> = database.relations.iter().map(|relation| &relation.name).collect();
    let mut hypertables = user_hypertables(database);
    hypertables.retain(|name| held.contains(name));
    hypertables
}

/// What belongs to the chosen tables in the archive's table of contents.
pub struct Picker {
    objects: HashSet<(u32, u32)>,
    texts: HashSet<String>,
    /// Schemas to be made.
    schemas: HashSet<String>,
    whole_schemas: BTreeSet<String>,
    /// Foreign keys of the tables that may not be possible: the other table isn't restored, or not its rows.
    pub outside_keys: HashSet<u32>,
}

/// One line of a dump's list of dependents.
struct Dependent {
    class: u32,
    oid: u32,
    table: u32,
    referenced: Option<u32>,
}

fn parse_dependents(text: &str) -> Vec<Dependent> {
    let parse = |line: &str| {
        let mut numbers = line.split('\t').map(|number| number.parse::<u32>().ok());
        Some(Dependent {
            class: numbers.next()??,
            oid: numbers.next()??,
            table: numbers.next()??,
            referenced: numbers.next().flatten(),
        })
    };
    text.lines().filter_map(parse).collect()
}

impl Picker {
    /// `dependents` is the dump's list; `missing_schemas` are those that the target lacks.
    pub fn new(
        entries: &[Entry],
        selection: &Selection,
        dependents: &str,
        missing_schemas: HashSet<String>,
    ) -> Self {
        let mut tables = selection.oids.clone();
        // Partitioned tables hold no rows, so only the archive knows their oids.
        let named = selection.tables.iter();
        let named: HashSet<String> = named
            .map(|name| format!("TABLE {} {}", name.schema, name.name))
            .collect();
        for entry in entries.iter().filter(|entry| entry.class == CLASS_RELATION) {
            if begins_with_one(&entry.text, &named) {
                tables.insert(entry.oid);
            }
        }
        let mut objects: HashSet<(u32, u32)> = tables.iter().map(|oid| (CLASS_RELATION, *oid)).collect();
        let mut outside_keys = HashSet::new();
        let is_sure = |table: u32| tables.contains(&table) && !selection.without_rows.contains(&table);
        for dependent in parse_dependents(dependents) {
            if !tables.contains(&dependent.table) {
                continue;
            }
            // Whether there is a table that it can refer to is seen at the end.
            if dependent.referenced.is_none_or(is_sure) {
                objects.insert((dependent.class, dependent.oid));
            } else {
                outside_keys.insert(dependent.oid);
            }
        }
        let mut texts = HashSet::new();
        let relations: HashMap<u32, &str> = entries
            .iter()
            .filter(|entry| objects.contains(&(entry.class, entry.oid)) && entry.class == CLASS_RELATION)
            .filter_map(|entry| entry.text.split_once(' ').map(|(_, rest)| (entry.oid, rest)))
            .collect();
        for name in &selection.tables {
            let (schema, table) = (&name.schema, &name.name);
            for text in [
                "ACL {s} TABLE {t}",
                "COMMENT {s} TABLE {t}",
                "ACL {s} COLUMN {t}.",
                "COMMENT {s} COLUMN {t}.",
                "ROW SECURITY {s} {t}",
                "TABLE ATTACH {s} {t}",
                "SECURITY LABEL {s} TABLE {t}",
                "COMMENT {s} INDEX {t}",
            ] {
                texts.insert(text.replace("{s}", schema).replace("{t}", table));
            }
        }
        for rest in relations.values() {
            // Sequences of the tables, and indexes that are attached to those of a partitioned table.
            texts.insert(format!("SEQUENCE OWNED BY {rest}"));
            texts.insert(format!("INDEX ATTACH {rest}"));
            // Where the schema's name ends isn't said.
            for (schema, name_and_owner) in splits(rest) {
                for what in ["ACL", "COMMENT", "SECURITY LABEL"] {
                    texts.insert(format!("{what} {schema} SEQUENCE {name_and_owner}"));
                }
            }
        }
        Self {
            outside_keys,
            objects,
            texts,
            schemas: missing_schemas,
            whole_schemas: selection.schemas.clone(),
        }
    }

    /// Whether an entry is to be restored.
    pub fn picks(&self, entry: &Entry) -> bool {
        if entry.is_constraint() && self.outside_keys.contains(&entry.oid) {
            return false;
        }
        if self.objects.contains(&(entry.class, entry.oid)) {
            return true;
        }
        let schema = entry.text.strip_prefix("SCHEMA - ");
        if schema.is_some_and(|rest| {
            self.schemas
                .iter()
                .any(|schema| rest.starts_with(&format!("{schema} ")))
        }) {
            return true;
        }
        let in_schema = after_description(&entry.text);
        if self
            .whole_schemas
            .iter()
            .any(|schema| in_schema.starts_with(&format!("{schema} ")))
        {
            return true;
        }
        entry.class == 0 && begins_with_one(&entry.text, &self.texts)
    }
}

/// What follows an entry's description, which is made of words in capitals: `FK CONSTRAINT public t ...`.
fn after_description(text: &str) -> &str {
    let capitals = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(' ').filter(|(word, _)| capitals(word)) {
        rest = after;
    }
    rest
}

/// `text` begins with one of `beginnings`, and there a word ends (or the beginning ends with a dot, before a column's name).
fn begins_with_one(text: &str, beginnings: &HashSet<String>) -> bool {
    let places = text.match_indices([' ', '.']).flat_map(|(place, mark)| {
        let end = if mark == "." { place + 1 } else { place };
        text.get(..end)
    });
    places
        .chain([text])
        .any(|beginning| beginnings.contains(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_to_the_tables_is_picked() {
        let list = "1; 1259 10 TABLE public games app\n2; 1259 11 TABLE public games_old app\n\
            3; 1259 12 INDEX public games_idx app\n4; 2606 13 FK CONSTRAINT public games games_fk app\n\
            5; 0 0 ACL public TABLE games app\n6; 0 0 COMMENT public COLUMN games.name app\n\
            7; 0 0 ACL public TABLE games_old app\n8; 2615 14 SCHEMA - extra app\n9; 1259 15 SEQUENCE public games_id_seq app\n\
            10; 0 0 SEQUENCE OWNED BY public games_id_seq app\n11; 0 0 ACL public SEQUENCE games_id_seq app\n\
            12; 0 0 ACL public SEQUENCE games_old_id_seq app\n";
        let entries = crate::restore::archive::parse_entries(list);
        let mut selection = Selection::default();
        selection.oids.insert(10);
        selection.tables.insert(QualifiedName {
            schema: "public".to_owned(),
            name: "games".to_owned(),
        });
        let dependents = "1259\t12\t10\n2606\t13\t10\t11\n1259\t15\t10\n";
        let picker = Picker::new(
            &entries,
            &selection,
            dependents,
            HashSet::from(["extra".to_owned()]),
        );
        let picked: Vec<&str> = entries
            .iter()
            .filter(|entry| picker.picks(entry))
            .map(|entry| entry.text.as_str())
            .collect();
        assert_eq!(
            picked,
            [
                "TABLE public games app",
                "INDEX public games_idx app",
                "ACL public TABLE games app",
                "COMMENT public COLUMN games.name app",
                "SCHEMA - extra app",
                "SEQUENCE public games_id_seq app",
                "SEQUENCE OWNED BY public games_id_seq app",
                "ACL public SEQUENCE games_id_seq app"
            ]
        );
        assert_eq!(picker.outside_keys, HashSet::from([13]));
    }
}
