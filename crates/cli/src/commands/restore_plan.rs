//! What a restore would do, told.

use pgkeep_base::ByteCount;
use pgkeep_dump::Skipped;
use pgkeep_dump::restore::{PlannedRange, PlannedTable, RestorePlan, TargetPlan};
use serde_json::{Value, json};

use super::latest;
use super::restore::Work;
use crate::context::Context;
use crate::output::{ACCENT, count, styled, time};
use crate::table::{Align, Table};

/// What is said of roles that stay away.
pub const ROLES_LEFT_OUT: &str =
    "Roles that are not made, as the databases don't use them (--all-roles makes them)";

/// What the dump alone tells.
pub fn tell_plan(context: &Context, work: &Work, as_json: bool) {
    let (output, plan) = (&context.output, &work.plan);
    if as_json {
        output.json(&plan_json(plan, &work.skipped));
    }
    latest::tell_skipped(output, &work.skipped);
    if output.is_quiet() {
        return;
    }
    output.prose(format!(
        "Dump {} of {}, from PostgreSQL {}",
        styled(ACCENT, &plan.id),
        time(plan.taken_at),
        plan.server_version
    ));
    output.line("");
    let mut table = Table::new(&[
        ("DATABASE", Align::Left),
        ("INTO", Align::Left),
        ("TABLES", Align::Right),
        ("ROWS", Align::Right),
        ("SIZE", Align::Right),
        ("TO FETCH", Align::Right),
        ("TIMESCALEDB", Align::Left),
    ])
    .dispensable("SIZE");
    for database in &plan.databases {
        let most = if database.ranges.is_empty() {
            ""
        } else {
            "at most "
        };
        table.row(vec![
            database.name.clone(),
            database.target_name.clone(),
            count(database.relations),
            format!("{most}{}", count(database.rows)),
            ByteCount(database.plain_bytes).to_string(),
            ByteCount(database.stored_bytes).to_string(),
            database.timescaledb.clone().unwrap_or_default(),
        ]);
    }
    output.table(&table);
    for range in plan.databases.iter().flat_map(|database| &database.ranges) {
        output.prose(format!("Of {} the rows {}", range.name, range.words));
    }
    latest::tell_omissions(output, &plan.omissions);
    for line in plan.databases.iter().flat_map(|database| &database.left_out) {
        output.prose(line);
    }
}

fn plan_json(plan: &RestorePlan, skipped: &[Skipped]) -> Value {
    let range_json = |range: &PlannedRange| {
        json!({
            "schema": range.name.schema,
            "name": range.name.name,
            "from": range.from,
            "to": range.to,
        })
    };
    let databases = plan.databases.iter().map(|database| {
        json!({
            "name": database.name,
            "target_name": database.target_name,
            "tables": database.relations,
            "rows": database.rows,
            "plain_bytes": database.plain_bytes,
            "stored_bytes": database.stored_bytes,
            "objects": database.objects,
            "timescaledb": database.timescaledb,
            "ranges": database.ranges.iter().map(range_json).collect::<Vec<_>>(),
            "left_out": database.left_out,
        })
    });
    json!({
        "id": plan.id.to_string(),
        "dry_run": true,
        "taken_at": plan.taken_at,
        "server_version": plan.server_version,
        "skipped": latest::skipped_json(skipped),
        "databases": databases.collect::<Vec<_>>(),
        "omissions": plan.omissions,
        "attention": plan.attention,
    })
}

/// What would be done in the target.
pub fn tell_target_plan(context: &Context, work: &Work, planned: &TargetPlan) {
    let output = &context.output;
    if let Value::Object(mut document) = plan_json(&work.plan, &work.skipped) {
        document.insert("target".to_owned(), target_json(planned));
        output.json(&Value::Object(document));
    }
    if output.is_quiet() {
        return;
    }
    for database in &planned.databases {
        output.line("");
        output.prose(format!("Database '{}' {}.", database.target_name, database.does));
        if database.tables.is_empty() {
            continue;
        }
        let mut table = Table::new(&[
            ("TABLE", Align::Left),
            ("ROWS", Align::Right),
            ("WHAT IS DONE", Align::Left),
        ]);
        for planned in &database.tables {
            let most = if planned.is_range { "at most " } else { "" };
            table.row(vec![
                planned.name.to_string(),
                format!("{most}{}", count(planned.rows)),
                planned.action.describe().to_owned(),
            ]);
        }
        output.table(&table);
    }
    for (words, roles) in [
        ("Roles that are made", &planned.roles),
        (ROLES_LEFT_OUT, &planned.roles_left_out),
    ] {
        if !roles.is_empty() {
            output.prose(format!("{words}: {}", roles.join(", ")));
        }
    }
}

fn target_json(planned: &TargetPlan) -> Value {
    let table_json = |table: &PlannedTable| {
        json!({
            "schema": table.name.schema,
            "name": table.name.name,
            "rows": table.rows,
            "range": table.is_range,
            "does": table.action.describe(),
        })
    };
    let databases = planned.databases.iter().map(|database| {
        json!({
            "name": database.name,
            "target_name": database.target_name,
            "does": database.does,
            "tables": database.tables.iter().map(table_json).collect::<Vec<_>>(),
        })
    });
    json!({
        "databases": databases.collect::<Vec<_>>(),
        "roles": planned.roles,
        "roles_left_out": planned.roles_left_out,
        "attention": planned.attention,
        "notes": planned.notes,
    })
}
