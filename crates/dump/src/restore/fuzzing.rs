//! The part of [`crate::fuzzing`] that restores have.
#![allow(clippy::unwrap_used, reason = "here a panic is how a defect is reported")]

use std::collections::HashSet;

use pgkeep_base::{BackupId, quote_identifier};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::script;

use crate::manifest::{DataObject, DumpManifest, QualifiedName, Relation};
use crate::restore::archive::parse_entries;
use crate::restore::options::RestoreOptions;
use crate::restore::roles::{Statement, classify};
use crate::restore::selection::{Picker, Selection, select, user_hypertables};
use crate::restore::{counts, plan};

/// What is planned by a manifest that was found right.
pub(crate) fn planned(id: &BackupId, manifest: &DumpManifest) {
    let planned = plan(id, manifest, &options(&[])).unwrap();
    let total = |part: fn(&plan::PlannedDatabase) -> u64| planned.databases.iter().map(part).sum::<u64>();
    let _ = (
        total(|database| database.rows),
        total(|database| database.stored_bytes),
    );
    for database in &manifest.databases {
        let tasks = plan::load_tasks(database, |_| true);
        let mut loaded: Vec<&DataObject> = tasks.iter().flat_map(|task| task.objects.clone()).collect();
        loaded.extend(crate::database::split_data(database).0);
        let once: HashSet<*const DataObject> =
            loaded.iter().map(|object| std::ptr::from_ref(*object)).collect();
        assert_eq!(
            (once.len(), loaded.len()),
            (database.data.len(), database.data.len()),
            "not all is loaded once"
        );
        let _ = counts::expectations(database, None);
        let _ = user_hypertables(database);
        let _ = Selection::of_filtered(database);
        for pattern in ["*", "public.*", "\"games\""] {
            if let Ok(selection) = select(database, &[pattern.to_owned()]) {
                let _ = counts::expectations(database, Some(&selection.places));
                let _ = plan(id, manifest, &options(&[pattern]));
            }
        }
    }
}

fn options(tables: &[&str]) -> RestoreOptions {
    RestoreOptions {
        databases: Vec::new(),
        tables: tables.iter().map(ToString::to_string).collect(),
        hypertable: None,
        target_database: None,
        overwrite: false,
        resume: false,
        jobs: 1,
        roles: true,
        all_roles: false,
        owners: true,
        privileges: true,
        analyze: true,
        enable_jobs: false,
        update_extensions: false,
        programs: ProgramSearch::default(),
        work_directory: None,
    }
}

/// What is picked from a table of contents.
pub(crate) fn archive(list: &str, dependents: &str, relation: &Relation) {
    let entries = parse_entries(list);
    let mut selection = Selection::default();
    selection.tables.insert(relation.name.clone());
    selection.tables.insert(QualifiedName {
        schema: "{t}".to_owned(),
        name: "u".to_owned(),
    });
    let picker = Picker::new(&entries, &selection, dependents, HashSet::from(["s".to_owned()]));
    for entry in &entries {
        assert!(!entry.line.contains('\n') && entry.line.ends_with(&entry.text));
        let _ = (
            picker.picks(entry),
            entry.is_constraint(),
            entry.is_made_beforehand(None),
        );
    }
}

/// What the statements of globals are taken for.
pub(crate) fn globals(text: &str) {
    for statement in script::statements(text).unwrap_or_default() {
        let _ = classify(statement);
    }
    if text.contains('\0') {
        return;
    }
    let name = quote_identifier(text);
    let same = |found: Statement<'_>, expected: Statement<'_>| assert_eq!(found, expected);
    same(
        classify(&format!("CREATE ROLE {name}")),
        Statement::CreateRole(text.to_owned()),
    );
    let change = || Statement::ChangeRole(text.to_owned());
    same(classify(&format!("ALTER ROLE {name} WITH LOGIN")), change());
    same(
        classify(&format!("ALTER ROLE {name} SET work_mem TO '1MB'")),
        change(),
    );
    same(classify(&format!("COMMENT ON ROLE {name} IS 'x'")), change());
    let member = || Statement::Grant {
        role: text.to_owned(),
        member: text.to_owned(),
        grantor: Some(text.to_owned()),
    };
    same(
        classify(&format!(
            "GRANT {name} TO {name} WITH INHERIT TRUE GRANTED BY {name}"
        )),
        member(),
    );
    same(
        classify(&format!("CREATE TABLESPACE {name} OWNER x LOCATION ''")),
        Statement::CreateTablespace(text.to_owned()),
    );
    same(
        classify(&format!("GRANT ALL ON TABLESPACE {name} TO x")),
        Statement::Tablespace,
    );
    same(
        classify(&format!("ALTER TABLESPACE {name} SET (x=1)")),
        Statement::Tablespace,
    );
}
