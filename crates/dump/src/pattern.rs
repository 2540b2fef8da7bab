//! Patterns of `--table`, `--schema` and the like, as `psql` and `pg_dump` take them
//! (`src/fe_utils/string_utils.c`, `patternToSQLRegex`): `*` and `?` are wild, letters outside double quotes fold to
//! lower case, a dot outside quotes separates schema and name, and the other regular-expression characters mean what
//! they mean.

use pgkeep_base::{quote_for_shell, quote_literal};

/// A pattern turned into regular expressions for PostgreSQL's `~` operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// For the schema, when the pattern has one.
    pub schema_regex: Option<String>,
    /// For the name.
    pub name_regex: String,
}

impl Pattern {
    /// Reads a pattern for relations: `name` or `schema.name`.
    ///
    /// # Errors
    /// A sentence saying what is wrong with it.
    pub fn relation(text: &str) -> Result<Self, String> {
        let mut parts = split(text)?;
        let name_regex = parts.pop().unwrap_or_default();
        let schema_regex = parts.pop();
        if !parts.is_empty() {
            return Err(format!(
                "'{text}' has too many dots: write schema.table, and quote a dot that is part of a name"
            ));
        }
        Ok(Self {
            schema_regex,
            name_regex,
        })
    }

    /// Reads a pattern for schemas: no dots.
    ///
    /// # Errors
    /// A sentence saying what is wrong with it.
    pub fn schema(text: &str) -> Result<String, String> {
        let mut parts = split(text)?;
        match (parts.pop(), parts.is_empty()) {
            (Some(name), true) => Ok(name),
            _ => Err(format!("'{text}' has a dot: a schema's name stands alone")),
        }
    }

    /// Whether it can fit one relation only.
    pub fn is_exact(&self) -> bool {
        let is_plain = |regex: &String| {
            let inner = regex.strip_prefix("^(").and_then(|rest| rest.strip_suffix(")$"));
            let mut characters = inner.unwrap_or("*").chars();
            while let Some(character) = characters.next() {
                match character {
                    '\\' => drop(characters.next()),
                    _ if SPECIAL.contains(character) => return false,
                    _ => {}
                }
            }
            true
        };
        self.schema_regex.as_ref().is_some_and(is_plain) && is_plain(&self.name_regex)
    }

    /// Whether a name fits, asked here instead of on a server.
    ///
    /// # Errors
    /// The pattern isn't a regular expression.
    pub fn fits(&self, schema: &str, name: &str) -> Result<bool, String> {
        let schema_fits = self
            .schema_regex
            .as_ref()
            .map_or(Ok(true), |regex| regex_fits(regex, schema))?;
        Ok(schema_fits && regex_fits(&self.name_regex, name)?)
    }

    /// A condition on two SQL expressions that hold a schema's and a relation's name. Without a schema in the pattern,
    /// any schema fits.
    pub fn condition(&self, schema: &str, name: &str) -> String {
        let name_fits = regex_condition(name, &self.name_regex);
        match &self.schema_regex {
            Some(regex) => format!("({} AND {name_fits})", regex_condition(schema, regex)),
            None => name_fits,
        }
    }
}

/// How a pattern that fits nothing would be written to mean the capitals in it; none where it has none that fold.
pub fn how_to_quote(text: &str) -> Option<String> {
    let folds = |word: &str| word.chars().any(char::is_uppercase);
    if text.contains('"') || !folds(text) {
        return None;
    }
    let mut quoted = String::new();
    for part in text.split_inclusive(|c: char| SPECIAL.contains(c)) {
        let word = part.trim_end_matches(|c: char| SPECIAL.contains(c));
        let special = part.get(word.len()..).unwrap_or_default();
        match folds(word) {
            true => quoted.push_str(&format!("\"{word}\"{special}")),
            false => quoted.push_str(part),
        }
    }
    Some(format!(
        "capitals outside double quotes fold to small letters: to mean them, write {}",
        quote_for_shell(&quoted)
    ))
}

/// What means something in a regular expression.
const SPECIAL: &str = "|*+?()[]{}.^$\\";

/// Whether one of the expressions of a pattern fits a name, asked here instead of on a server.
///
/// # Errors
/// It isn't a regular expression.
pub fn regex_fits(regex: &str, name: &str) -> Result<bool, String> {
    // Names may hold line feeds, which the dot of PostgreSQL's expressions takes like any other character.
    let regex = regex::Regex::new(&format!("(?s){regex}")).map_err(|error| error.to_string())?;
    Ok(regex.is_match(name))
}

/// `expression ~ regex`, with PostgreSQL's own operator and a fixed collation.
pub fn regex_condition(expression: &str, regex: &str) -> String {
    format!(
        "({expression} OPERATOR(pg_catalog.~) {} COLLATE pg_catalog.\"C\")",
        quote_literal(regex)
    )
}

/// Splits at dots outside quotes and makes an anchored regular expression of each part.
fn split(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("a pattern is empty".to_owned());
    }
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                part.push('"');
                characters.next();
            }
            '"' => quoted = !quoted,
            _ if quoted => {
                if SPECIAL.contains(character) {
                    part.push('\\');
                }
                part.push(character);
            }
            '.' => parts.push(std::mem::take(&mut part)),
            '*' => part.push_str(".*"),
            '?' => part.push('.'),
            // A dollar is a common letter in names and never useful as an anchor here.
            '$' => part.push_str("\\$"),
            _ => part.extend(character.to_lowercase()),
        }
    }
    if quoted {
        return Err(format!(
            "'{text}' has an opening double quote without a closing one"
        ));
    }
    parts.push(part);
    Ok(parts.into_iter().map(|part| format!("^({part})$")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_capitals_are_meant_is_told_where_they_fold() {
        for (text, written, schema, name) in [
            ("Upper Case", "'\"Upper Case\"'", "any", "Upper Case"),
            ("public.Game*", "'public.\"Game\"*'", "public", "Games"),
            ("App.games", "'\"App\".games'", "App", "games"),
            ("É", "'\"É\"'", "any", "É"),
        ] {
            let told = how_to_quote(text).unwrap();
            assert!(told.ends_with(&format!("write {written}")), "{told}");
            let pattern = Pattern::relation(written.trim_matches('\'')).unwrap();
            assert_eq!(pattern.fits(schema, name), Ok(true), "{written}");
            assert_eq!(
                Pattern::relation(text).unwrap().fits(schema, name),
                Ok(false),
                "{text}"
            );
        }
        for text in ["games", "a b*", "\"Upper\"", "\"Upper\".X", "?"] {
            assert_eq!(how_to_quote(text), None, "{text}");
        }
    }

    #[test]
    fn patterns_mean_what_they_mean_to_pg_dump() {
        let games = Pattern::relation("Public.game*").unwrap();
        assert_eq!(games.schema_regex.as_deref(), Some("^(public)$"));
        assert_eq!(games.name_regex, "^(game.*)$");
        let odd = Pattern::relation("\"Odd.Name \"\"x\"\"*\"").unwrap();
        assert_eq!(
            (odd.schema_regex.clone(), odd.name_regex.as_str()),
            (None, "^(Odd\\.Name \"x\"\\*)$")
        );
        assert_eq!(Pattern::schema("a|b").unwrap(), "^(a|b)$");
        assert!(games.fits("public", "games") == Ok(true) && games.fits("app", "games") == Ok(false));
        assert!(
            odd.clone().fits("any", "Odd.Name \"x\"*") == Ok(true) && odd.fits("any", "odd") == Ok(false)
        );
        for bad in ["", "a.b.c", "\"open"] {
            assert!(Pattern::relation(bad).is_err(), "{bad}");
        }
        assert!(Pattern::schema("a.b").is_err());
        for (text, exact) in [
            ("s.games", true),
            ("\"S\".\"a*.b\\\"", true),
            ("s.a$b", true),
            ("games", false),
            ("s.game?", false),
            ("s.a|b", false),
            ("*.games", false),
        ] {
            assert_eq!(Pattern::relation(text).unwrap().is_exact(), exact, "{text}");
        }
    }
}
