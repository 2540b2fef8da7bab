//! Patterns that fit nothing. Those of what to leave out pg_dump takes in silence, and somebody who mistyped one believes that
//! something is left out; those of what to dump it refuses without a word on how to write them.

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

/// Names that users gave, of what would be in the dump.
const OF_USERS: &str = "n.nspname OPERATOR(pg_catalog.!~) '^pg_' AND n.nspname <> 'information_schema'";

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
    let mut sought = Vec::new();
    for Exclusion { option, pattern } in &unfit {
        // Only what would be in the dump without it.
        sought.push(match *option {
            SCHEMAS => schemas(pattern, OF_USERS)?,
            _ => relations(pattern, OF_USERS)?,
        });
    }
    let found = exist(session, &owners, &sought, database).await?;
    let mut found = found.into_iter();
    unfit.retain(|_| found.next() != Some(true));
    Ok(unfit)
}

/// Refuses to dump what fits nothing in the session's database, before pg_dump does so in its words. It reads the patterns
/// of one of the options.
///
/// # Errors
/// PostgreSQL's; a malformed pattern; none fits anything.
pub(crate) async fn refuse_empty_selection(
    session: &mut Session,
    filters: &Filters,
    database: &str,
) -> Result<(), DumpError> {
    let patterns = filters.tables.iter().map(|pattern| relations(pattern, "true"));
    let patterns = patterns.chain(filters.schemas.iter().map(|pattern| schemas(pattern, "true")));
    let sought: Vec<String> = patterns.collect::<Result<_, _>>()?;
    if sought.is_empty() {
        return Ok(());
    }
    let owners = owners_query(filters, session, database).await?;
    if exist(session, &owners, &sought, database).await?.contains(&true) {
        return Ok(());
    }
    let what = if filters.tables.is_empty() {
        "schema"
    } else {
        "table"
    };
    Err(DumpError::Usage {
        message: format!("no {what} of database '{database}' fits what was asked for"),
        hint: Some(hint_of_selection(filters)),
    })
}

/// Whether each of the queries has rows.
async fn exist(
    session: &mut Session,
    owners: &str,
    queries: &[String],
    database: &str,
) -> Result<Vec<bool>, DumpError> {
    let columns: Vec<String> = queries.iter().map(|query| format!("EXISTS ({query})")).collect();
    let sql = format!("WITH owner AS ({owners}) SELECT {}", columns.join(", "));
    let context = || format!("looking in database '{database}' for what the patterns fit");
    let rows = session.query(&sql).await.context(context)?;
    let fits = |place| rows.first().map(|row| row.get(place)).transpose();
    (0..queries.len())
        .map(|place| Ok(fits(place).context(context)?.unwrap_or(false)))
        .collect()
}

fn schemas(pattern: &str, which: &str) -> Result<String, DumpError> {
    let message = |message| DumpError::Usage { message, hint: None };
    let regex = Pattern::schema(pattern).map_err(message)?;
    Ok(format!(
        "SELECT FROM pg_catalog.pg_namespace n WHERE {which} AND {}",
        regex_condition("n.nspname", &regex)
    ))
}

fn relations(pattern: &String, which: &str) -> Result<String, DumpError> {
    let condition = catalog::names_condition(std::slice::from_ref(pattern))?;
    Ok(format!(
        "SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN owner o ON o.relid = c.oid
         {names}
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND {which} AND {condition}",
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
