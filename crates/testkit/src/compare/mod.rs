//! The referee: what two servers or databases hold, item by item, and in what they differ.
//!
//! It asks through `psql` and the server's own `pg_dump --schema-only`; nothing of pgkeep's code takes part.

mod queries;

use std::{collections::BTreeMap, path::PathBuf};

use crate::Cluster;

/// How much of two differing texts is shown.
const EXCERPT_LINES_MAX: usize = 12;
const DIFFERENCES_SHOWN_MAX: usize = 40;

/// What to take an inventory of, and how.
#[derive(Debug, Clone, Default)]
pub struct InventoryOptions {
    /// Schemas to leave out, such as one in which a restore keeps its progress.
    pub exclude_schemas: Vec<String>,
    /// The programs of another version, whose `pg_dump` prints the schema. To compare servers of different versions, the
    /// newer one's directory goes here for both.
    pub pg_bin: Option<PathBuf>,
    /// Leaves out the schema's text, which two versions never print alike.
    pub without_schema: bool,
}

/// What a server or a database holds: items by name, in an order that doesn't depend on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    items: BTreeMap<String, String>,
}

impl Inventory {
    /// What belongs to the cluster as a whole: roles with their passwords, memberships and settings, and the databases'
    /// own properties.
    pub fn of_globals(cluster: &Cluster) -> Self {
        let mut inventory = Self {
            items: BTreeMap::new(),
        };
        inventory.add_rows(&cluster.psql("postgres", queries::GLOBALS));
        inventory
    }

    /// What a database holds: every table's count and hash, its schema, sequences, large objects and, with TimescaleDB,
    /// hypertables, dimensions, chunks, continuous aggregates and jobs.
    pub fn of_database(cluster: &Cluster, database: &str, options: &InventoryOptions) -> Self {
        let mut inventory = Self {
            items: BTreeMap::new(),
        };
        let excluded: Vec<String> = options
            .exclude_schemas
            .iter()
            .map(|name| format!("'{}'", name.replace('\'', "''")))
            .collect();
        let excluded = if excluded.is_empty() {
            "ARRAY[]::text[]".to_owned()
        } else {
            format!("ARRAY[{}]", excluded.join(", "))
        };
        let mut scripts = vec![queries::TABLES, queries::SEQUENCES, queries::LARGE_OBJECTS];
        let has_timescaledb = "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'";
        if cluster.psql(database, has_timescaledb) == "1" {
            scripts.push(queries::TIMESCALEDB);
        }
        for script in scripts {
            let script = script.replace(":EXCLUDED", &excluded);
            inventory.add_rows(&cluster.psql(database, &format!("{}{script}", queries::SETTINGS)));
        }
        if !options.without_schema {
            inventory.add_schema(cluster, database, options);
        }
        inventory
    }

    /// The item's value, for a test that looks at one.
    pub fn get(&self, item: &str) -> Option<&str> {
        self.items.get(item).map(String::as_str)
    }

    /// The names of all items.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.items.keys().map(String::as_str)
    }

    /// In what the two differ, a text for each item; `self` is called the first, `other` the second. Empty when they
    /// are the same.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (name, value) in &self.items {
            match other.items.get(name) {
                None => differences.push(format!("only in the first: {name} = {}", excerpt(value))),
                Some(theirs) if theirs != value => {
                    differences.push(format!("differs: {name}\n{}", line_difference(value, theirs)));
                }
                Some(_) => {}
            }
        }
        for (name, value) in &other.items {
            if !self.items.contains_key(name) {
                differences.push(format!("only in the second: {name} = {}", excerpt(value)));
            }
        }
        differences
    }

    /// Adds rows that queries print as a name, U+001F and a value.
    fn add_rows(&mut self, rows: &str) {
        for row in rows.lines() {
            let (name, value) = row
                .split_once('\u{1f}')
                .unwrap_or_else(|| panic!("no item: {row}"));
            let before = self.items.insert(name.to_owned(), value.to_owned());
            assert!(before.is_none(), "two items are called {name}");
        }
    }

    fn add_schema(&mut self, cluster: &Cluster, database: &str, options: &InventoryOptions) {
        let bin = options
            .pg_bin
            .clone()
            .unwrap_or_else(|| cluster.pg_bin().to_owned());
        let mut command = crate::process::clean_command(bin.join("pg_dump"));
        command
            .arg("--schema-only")
            .args(["--encoding=UTF8", "-d", &cluster.conninfo(database)]);
        for schema in &options.exclude_schemas {
            command.arg(format!("--exclude-schema=\"{}\"", schema.replace('"', "\"\"")));
        }
        for (name, text) in schema_items(&crate::process::run(&mut command)) {
            self.items.insert(name, text);
        }
    }
}

/// Panics with the differences, readable, unless there are none.
pub fn assert_same(first: &Inventory, second: &Inventory) {
    let differences = first.differences(second);
    let shown = differences
        .iter()
        .take(DIFFERENCES_SHOWN_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        differences.is_empty(),
        "{} differences:\n{shown}",
        differences.len()
    );
}

/// Compares the globals and these databases of two servers and panics with the differences.
pub fn assert_same_servers(
    first: &Cluster,
    second: &Cluster,
    databases: &[&str],
    options: &InventoryOptions,
) {
    assert_same(&Inventory::of_globals(first), &Inventory::of_globals(second));
    for database in databases {
        let take = |cluster| Inventory::of_database(cluster, database, options);
        assert_same(&take(first), &take(second));
    }
}

/// `pg_dump`'s text in its entries: the heading names it (`Name: players; Type: TABLE; Schema: game; Owner: app_owner`).
/// What depends on the run (versions, the key of `\restrict`) is left out.
fn schema_items(text: &str) -> BTreeMap<String, String> {
    let mut items: BTreeMap<String, String> = BTreeMap::new();
    let mut name = "schema: preamble".to_owned();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("-- Name: ") {
            name = format!("schema: {heading}");
        } else if !is_of_the_run(line) {
            let item = items.entry(name.clone()).or_default();
            item.push_str(line);
            item.push('\n');
        }
    }
    items.values_mut().for_each(|item| *item = normalised(item));
    items
}

/// pg_dump puts an inherited table's columns into its parent's order, whatever order they had: there the order says
/// nothing.
fn normalised(item: &str) -> String {
    let item = item.trim_end();
    if !item.lines().any(|line| line.starts_with("INHERITS (")) {
        return item.to_owned();
    }
    let mut lines: Vec<&str> = item.lines().map(|line| line.trim_end_matches(',')).collect();
    lines.sort_unstable();
    lines.join("\n")
}

fn is_of_the_run(line: &str) -> bool {
    line == "--"
        || line.is_empty()
        || [
            "\\restrict ",
            "\\unrestrict ",
            "-- Dumped from database version ",
            "-- Dumped by pg_dump version ",
        ]
        .iter()
        .any(|prefix| line.starts_with(prefix))
}

fn excerpt(value: &str) -> String {
    let mut lines: Vec<&str> = value.lines().take(EXCERPT_LINES_MAX + 1).collect();
    if lines.len() > EXCERPT_LINES_MAX {
        lines[EXCERPT_LINES_MAX] = "...";
    }
    lines.join("\n    ")
}

/// The lines that only one of two texts has.
fn line_difference(first: &str, second: &str) -> String {
    let only_in = |text: &str, other: &str, sign: &str| {
        let others: Vec<&str> = other.lines().collect();
        text.lines()
            .filter(|line| !others.contains(line))
            .map(|line| format!("    {sign} {line}"))
            .collect::<Vec<_>>()
    };
    let mut lines = only_in(first, second, "first: ");
    lines.truncate(EXCERPT_LINES_MAX);
    let mut theirs = only_in(second, first, "second:");
    theirs.truncate(EXCERPT_LINES_MAX);
    lines.extend(theirs);
    if lines.is_empty() {
        "    the same lines in another order or number".to_owned()
    } else {
        lines.join("\n")
    }
}
