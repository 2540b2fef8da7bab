//! Patterns of what to leave out that fit nothing: pg_dump takes them in silence, and somebody who mistyped one believes that
//! something is left out.

use pgkeep_pg::Session;

use crate::catalog;
use crate::database::owners_query;
use crate::error::{Context, DumpError};
use crate::manifest::Filters;
use crate::pattern::{Pattern, how_to_quote, regex_condition};

/// A pattern, and the option it was given with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exclusion {
    option: &'static str,
    pattern: String,
}

const SCHEMAS: &str = "--exclude-schema";

fn exclusions(filters: &Filters) -> Vec<Exclusion> {
    let kinds = [
        ("--exclude-table", &filters.exclude_tables),
        (SCHEMAS, &filters.exclude_schemas),
        ("--exclude-table-data", &filters.exclude_table_data),
    ];
    let exclusion = |option, pattern: &String| Exclusion {
        option,
        pattern: pattern.clone(),
    };
    let all = kinds
        .iter()
        .flat_map(|(option, patterns)| patterns.iter().map(|pattern| exclusion(*option, pattern)));
    all.collect()
}

/// Those that fit nothing in the session's database.
///
/// # Errors
/// PostgreSQL's; a malformed pattern.
pub(crate) async fn in_database(
    session: &mut Session,
    filters: &Filters,
    database: &str,
) -> Result<Vec<Exclusion>, DumpError> {
    let mut unfit = exclusions(filters);
    if unfit.is_empty() {
        return Ok(unfit);
    }
    let owners = owners_query(filters, session, database).await?;
    let mut columns = Vec::new();
    for exclusion in &unfit {
        columns.push(format!("EXISTS ({})", sought(exclusion)?));
    }
    let sql = format!("WITH owner AS ({owners}) SELECT {}", columns.join(", "));
    let context = || format!("looking in database '{database}' for what is to be left out");
    let rows = session.query(&sql).await.context(context)?;
    let mut found = Vec::new();
    for place in 0..unfit.len() {
        let fits: Option<bool> = rows
            .first()
            .map(|row| row.get(place))
            .transpose()
            .context(context)?;
        found.push(fits == Some(true));
    }
    let mut found = found.into_iter();
    unfit.retain(|_| found.next() != Some(true));
    Ok(unfit)
}

/// What a pattern may fit: only what would be in the dump without it.
fn sought(exclusion: &Exclusion) -> Result<String, DumpError> {
    const OF_USERS: &str = "n.nspname OPERATOR(pg_catalog.!~) '^pg_' AND n.nspname <> 'information_schema'";
    if exclusion.option == SCHEMAS {
        let message = |message| DumpError::Usage { message, hint: None };
        let regex = Pattern::schema(&exclusion.pattern).map_err(message)?;
        return Ok(format!(
            "SELECT FROM pg_catalog.pg_namespace n WHERE {OF_USERS} AND {}",
            regex_condition("n.nspname", &regex)
        ));
    }
    let condition = catalog::names_condition(std::slice::from_ref(&exclusion.pattern))?;
    Ok(format!(
        "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN owner o ON o.relid = c.oid
         {names}
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND {OF_USERS} AND {condition}",
        names = catalog::FILTERED_NAMES,
        condition = condition.as_deref().unwrap_or("false"),
    ))
}

/// What is said of those that fit nothing in any of the dumped databases, of each of which the unfit ones are given.
pub(crate) fn attention<'a>(databases: impl IntoIterator<Item = (&'a str, &'a [Exclusion])>) -> Vec<String> {
    let mut names = Vec::new();
    let mut common: Option<Vec<Exclusion>> = None;
    for (name, unfit) in databases {
        names.push(format!("'{name}'"));
        match &mut common {
            None => common = Some(unfit.to_vec()),
            Some(common) => common.retain(|exclusion| unfit.contains(exclusion)),
        }
    }
    let place = match names.as_slice() {
        [name] => format!("database {name}"),
        names => format!("databases {}", names.join(", ")),
    };
    let told = common.into_iter().flatten().map(|Exclusion { option, pattern }| {
        let what = match option {
            SCHEMAS => "schema",
            _ => "table",
        };
        let quote = how_to_quote(&pattern).map(|quote| format!("; {quote}"));
        format!(
            "{option} '{pattern}' leaves nothing out: it fits no {what} of {place}{}",
            quote.unwrap_or_default()
        )
    });
    told.collect()
}

/// How to write patterns of which none fits.
pub(crate) fn hint_of_selection(filters: &Filters) -> String {
    let patterns = filters.tables.iter().chain(&filters.schemas);
    let quote = patterns.filter_map(|pattern| how_to_quote(pattern)).next();
    quote.unwrap_or_else(|| "patterns are those of pg_dump: --table 'schema.name*'".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_in_one_of_the_databases_is_not_told() {
        let filters = Filters {
            exclude_tables: vec!["big".to_owned(), "bgi".to_owned()],
            exclude_schemas: vec!["lgo".to_owned()],
            ..Filters::default()
        };
        let all = exclusions(&filters);
        assert!(attention([("app", &all[1..]), ("postgres", &all[..1])]).is_empty());
        assert_eq!(
            attention([("app", &all[1..]), ("postgres", &all[..])]),
            [
                "--exclude-table 'bgi' leaves nothing out: it fits no table of databases 'app', 'postgres'",
                "--exclude-schema 'lgo' leaves nothing out: it fits no schema of databases 'app', 'postgres'",
            ]
        );
        assert!(attention([]).is_empty());
    }

    #[test]
    fn capitals_that_fold_are_told() {
        let filters = Filters {
            tables: vec!["games".to_owned(), "Games".to_owned()],
            exclude_tables: vec!["Big".to_owned()],
            ..Filters::default()
        };
        let told = attention([("app", exclusions(&filters).as_slice())]);
        assert!(told[0].ends_with("write '\"Big\"'"), "{told:?}");
        assert!(hint_of_selection(&filters).ends_with("write '\"Games\"'"));
        assert!(hint_of_selection(&Filters::default()).contains("those of pg_dump"));
    }
}
