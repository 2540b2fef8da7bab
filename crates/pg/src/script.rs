//! SQL scripts taken apart into statements, as psql does it (`src/fe_utils/psqlscan.l`): what `pg_dump` and `pg_dumpall`
//! write, without the data of COPY.

/// One piece of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A statement, without its semicolon and without the comments before it.
    Statement(&'a str),
    /// `\connect`: what follows is for that database.
    Connect(String),
    /// Another of psql's own commands (`restrict`, `unrestrict`, ...): its name, and the rest of its line.
    MetaCommand(&'a str, &'a str),
}

/// The script can't be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the script: {reason}")]
pub struct ScriptError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
}

impl pgkeep_base::Classified for ScriptError {
    fn retry_class(&self) -> pgkeep_base::RetryClass {
        pgkeep_base::RetryClass::Permanent
    }
}

/// The pieces of a script, one after another. It ends after the first error.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    text: &'a str,
    at: usize,
    /// `standard_conforming_strings`, which the script may set.
    conforming: bool,
    failed: bool,
}

/// Takes a script apart.
pub fn pieces(text: &str) -> Pieces<'_> {
    Pieces {
        text,
        at: 0,
        conforming: true,
        failed: false,
    }
}

/// The statements of a script; commands of psql other than `\connect` are left out.
///
/// # Errors
/// The script ends within a statement, or holds a `\connect` or the data of a COPY.
pub fn statements(text: &str) -> Result<Vec<&str>, ScriptError> {
    let mut found = Vec::new();
    let mut pieces = pieces(text);
    while let Some(piece) = pieces.next() {
        match piece? {
            Piece::Statement(statement) => found.push(statement),
            Piece::MetaCommand(..) => {}
            Piece::Connect(_) => return Err(pieces.error("it connects to another database")),
        }
    }
    Ok(found)
}

/// How deep the scanner is in a statement.
#[derive(Default)]
struct Depth {
    parentheses: usize,
    /// `BEGIN` (and `CASE`) without their `END` in the body of `CREATE FUNCTION ... BEGIN ATOMIC`.
    begins: usize,
    /// How many words the statement has so far, and the first letters of the first four, if they are of
    /// CREATE [OR REPLACE] {FUNCTION|PROCEDURE}.
    words: usize,
    initials: [u8; 4],
}

impl Depth {
    fn is_zero(&self) -> bool {
        self.parentheses == 0 && self.begins == 0
    }

    /// psql's own heuristic.
    fn word(&mut self, word: &str) {
        let is = |name: &str| word.eq_ignore_ascii_case(name);
        if ["create", "function", "procedure", "or", "replace"]
            .into_iter()
            .any(is)
            && let Some(initial) = self.initials.get_mut(self.words)
        {
            *initial = word
                .as_bytes()
                .first()
                .copied()
                .unwrap_or_default()
                .to_ascii_lowercase();
        }
        self.words += 1;
        let routine = matches!(
            self.initials,
            [b'c', b'f' | b'p', ..] | [b'c', b'o', b'r', b'f' | b'p']
        );
        if !routine || self.parentheses > 0 {
            return;
        }
        if is("begin") || (is("case") && self.begins > 0) {
            self.begins += 1;
        } else if is("end") {
            self.begins = self.begins.saturating_sub(1);
        }
    }
}

/// psqlscan.l's `space`; what Unicode calls a blank may be part of a name.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

impl<'a> Pieces<'a> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    fn rest(&self, at: usize) -> &'a str {
        self.text.get(at..).unwrap_or_default()
    }

    fn error_at(&self, at: usize, reason: &'static str) -> ScriptError {
        let before = self
            .text
            .as_bytes()
            .get(..at.min(self.text.len()))
            .unwrap_or_default();
        ScriptError {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            reason,
        }
    }

    fn error(&self, reason: &'static str) -> ScriptError {
        self.error_at(self.at, reason)
    }

    fn step(&mut self) -> Result<Option<Piece<'a>>, ScriptError> {
        loop {
            self.at = self.skip_blank(self.at)?;
            match self.byte(self.at) {
                None => return Ok(None),
                Some(b'\\') => return self.meta_command().map(Some),
                // An empty statement.
                Some(b';') => self.at += 1,
                Some(_) => return self.statement().map(Some),
            }
        }
    }

    /// Skips blanks and comments.
    fn skip_blank(&self, mut at: usize) -> Result<usize, ScriptError> {
        loop {
            match (self.byte(at), self.byte(at + 1)) {
                (Some(byte), _) if is_blank(char::from(byte)) => at += 1,
                (Some(b'-'), Some(b'-')) | (Some(b'/'), Some(b'*')) => at = self.skip_comment(at)?,
                _ => return Ok(at),
            }
        }
    }

    /// From the start of a comment to its end.
    fn skip_comment(&self, start: usize) -> Result<usize, ScriptError> {
        if self.byte(start) == Some(b'-') {
            return Ok(self
                .rest(start)
                .find(['\n', '\r'])
                .map_or(self.text.len(), |end| start + end));
        }
        let (mut at, mut depth) = (start + 2, 1_usize);
        while depth > 0 {
            match (self.byte(at), self.byte(at + 1)) {
                (Some(b'/'), Some(b'*')) => (at, depth) = (at + 2, depth + 1),
                (Some(b'*'), Some(b'/')) => (at, depth) = (at + 2, depth - 1),
                (Some(_), _) => at += 1,
                (None, _) => return Err(self.error_at(start, "a comment has no end")),
            }
        }
        Ok(at)
    }

    fn meta_command(&mut self) -> Result<Piece<'a>, ScriptError> {
        let line = self.rest(self.at).lines().next().unwrap_or_default();
        let command = line.trim_start_matches('\\').trim_end();
        let (name, arguments) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let arguments = arguments.trim();
        let piece = match name {
            "connect" | "c" => {
                let database = connect_database(arguments);
                Piece::Connect(database.ok_or_else(|| self.error("the \\connect names no database"))?)
            }
            _ => Piece::MetaCommand(name, arguments),
        };
        self.at += line.len();
        Ok(piece)
    }

    fn statement(&mut self) -> Result<Piece<'a>, ScriptError> {
        let start = self.at;
        let mut depth = Depth::default();
        let mut at = start;
        loop {
            let Some(byte) = self.byte(at) else {
                if !depth.is_zero() {
                    return Err(self.error_at(start, "the statement that begins here has no end"));
                }
                break;
            };
            at = match byte {
                b';' if depth.is_zero() => break,
                b'(' => {
                    depth.parentheses += 1;
                    at + 1
                }
                b')' => {
                    depth.parentheses = depth.parentheses.saturating_sub(1);
                    at + 1
                }
                b'\'' => self.skip_string(at, !self.conforming)?,
                b'"' => self.skip_to(at, "\"", "a quoted identifier has no end")?,
                b'$' => self.skip_dollar(at)?,
                b'-' if self.byte(at + 1) == Some(b'-') => self.skip_comment(at)?,
                b'/' if self.byte(at + 1) == Some(b'*') => self.skip_comment(at)?,
                b'\\' => return Err(self.error_at(at, "a command of psql stands within a statement")),
                byte if is_word_start(byte) => self.skip_word(at, &mut depth)?,
                byte if byte.is_ascii_digit() => self.word_end(at),
                _ => at + 1,
            };
        }
        self.at = at + usize::from(self.byte(at) == Some(b';'));
        let statement = self
            .text
            .get(start..at)
            .unwrap_or_default()
            .trim_end_matches(is_blank);
        if is_copy_from_stdin(statement) {
            return Err(self.error_at(start, "the data of a COPY follows"));
        }
        self.note_setting(statement);
        Ok(Piece::Statement(statement))
    }

    fn word_end(&self, at: usize) -> usize {
        let rest = self.text.as_bytes().get(at..).unwrap_or_default();
        at + rest.iter().position(|byte| !is_word(*byte)).unwrap_or(rest.len())
    }

    /// A word; with the letter E before a quote, a string with backslashes follows.
    fn skip_word(&self, at: usize, depth: &mut Depth) -> Result<usize, ScriptError> {
        let end = self.word_end(at);
        let word = self.text.get(at..end).unwrap_or_default();
        if self.byte(end) == Some(b'\'') && word.eq_ignore_ascii_case("e") {
            return self.skip_string(end, true);
        }
        depth.word(word);
        Ok(end)
    }

    fn skip_to(&self, start: usize, end: &str, reason: &'static str) -> Result<usize, ScriptError> {
        let found = self
            .rest(start + 1)
            .find(end)
            .ok_or_else(|| self.error_at(start, reason))?;
        Ok(start + 1 + found + end.len())
    }

    /// A string in single quotes, with what continues it on another line (SQL: literals separated by a newline).
    fn skip_string(&self, start: usize, escapes: bool) -> Result<usize, ScriptError> {
        let mut at = start + 1;
        loop {
            match self.byte(at) {
                Some(b'\\') if escapes => at += 2,
                Some(b'\'') if self.byte(at + 1) == Some(b'\'') => at += 2,
                Some(b'\'') => {
                    let blank = self.rest(at + 1);
                    let blank = blank
                        .get(..blank.len() - blank.trim_start_matches(is_blank).len())
                        .unwrap_or_default();
                    let next = at + 1 + blank.len();
                    if !(blank.contains(['\n', '\r']) && self.byte(next) == Some(b'\'')) {
                        return Ok(at + 1);
                    }
                    at = next + 1;
                }
                Some(_) => at += 1,
                None => return Err(self.error_at(start, "a string has no end")),
            }
        }
    }

    /// `$tag$ ... $tag$`, or only a dollar (`$1`).
    fn skip_dollar(&self, start: usize) -> Result<usize, ScriptError> {
        let rest = self.text.as_bytes().get(start + 1..).unwrap_or_default();
        let tag_length = rest
            .iter()
            .position(|byte| *byte == b'$' || !is_word(*byte))
            .unwrap_or(rest.len());
        let closed = rest.get(tag_length) == Some(&b'$');
        if !closed || rest.first().is_some_and(u8::is_ascii_digit) {
            return Ok(start + 1);
        }
        let delimiter = self.text.get(start..start + tag_length + 2).unwrap_or_default();
        let body = start + delimiter.len();
        let end = self
            .rest(body)
            .find(delimiter)
            .ok_or_else(|| self.error_at(start, "a dollar-quoted string has no end"))?;
        Ok(body + end + delimiter.len())
    }

    /// `SET standard_conforming_strings = off` changes how strings are read.
    fn note_setting(&mut self, statement: &str) {
        let mut words = statement
            .split(|c: char| c.is_whitespace() || c == '=')
            .filter(|word| !word.is_empty());
        let mut is = |name: &str| words.next().is_some_and(|word| word.eq_ignore_ascii_case(name));
        if is("set") && is("standard_conforming_strings") {
            self.conforming = !is("off");
        }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, ScriptError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let result = self.step();
        self.failed = result.is_err();
        result.transpose()
    }
}

fn is_copy_from_stdin(statement: &str) -> bool {
    let mut words = statement.split_whitespace();
    if !words.next().is_some_and(|word| word.eq_ignore_ascii_case("copy")) {
        return false;
    }
    let words: Vec<&str> = words.collect();
    words
        .windows(2)
        .any(|pair| pair[0].eq_ignore_ascii_case("from") && pair[1].eq_ignore_ascii_case("stdin"))
}

/// The database of `\connect name`, `\connect "Name"` or `\connect -reuse-previous=on "dbname='name'"`
/// (`appendPsqlMetaConnect`).
fn connect_database(arguments: &str) -> Option<String> {
    let (conninfo, argument) = match arguments.strip_prefix("-reuse-previous=on") {
        Some(rest) => (true, rest.trim()),
        None => (false, arguments),
    };
    let quoted = argument
        .strip_prefix('"')
        .and_then(|inner| inner.strip_suffix('"'));
    let text = quoted.map_or_else(|| argument.to_owned(), |inner| inner.replace("\"\"", "\""));
    if !conninfo {
        return (!text.is_empty()).then_some(text);
    }
    crate::Conninfo::parse(&text)
        .ok()?
        .setting("dbname")
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &str) -> Vec<&str> {
        statements(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_hides_a_semicolon() {
        for statement in [
            "SELECT 1",
            "SELECT ';', 'it''s;', E'\\';', e'\\\\', N';', U&'\\0061;'",
            "SELECT 'a'\n  ';' , E'a'\n  '\\';'",
            "SELECT \";\", \"a\"\";\"",
            "SELECT $$;$$, $tag$ ; $$ ; $tag$, $ü1$;$ü1$, a$b$c",
            "SELECT 1 -- ;\n, 2 /* ; /* ; */ ; */, 3",
            "PREPARE x AS SELECT $1, $2",
            "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
            "CREATE OR REPLACE PROCEDURE p(a int) BEGIN ATOMIC INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); END",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'select 1;'",
            "SELECT 1e5, 2.e, a.\"b;\"",
        ] {
            assert_eq!(
                split(&format!(
                    "-- comment\n{statement};\n\n/* x */ {statement} ; ;\n{statement}"
                )),
                [statement; 3]
            );
        }
        assert_eq!(
            split("BEGIN; SELECT 1; END; ;; COMMIT"),
            ["BEGIN", "SELECT 1", "END", "COMMIT"]
        );
        assert!(split("").is_empty() && split("-- x").is_empty() && split(" ; \n;").is_empty());
    }

    #[test]
    fn blanks_and_ends_of_lines_are_those_of_psql() {
        assert_eq!(
            split("SELECT 1 AS a\u{a0} ;SELECT 2"),
            ["SELECT 1 AS a\u{a0}", "SELECT 2"]
        );
        assert_eq!(
            split("-- comment\rSELECT 1; SELECT 'a'\r'\\;'"),
            ["SELECT 1", "SELECT 'a'\r'\\;'"]
        );
    }

    #[test]
    fn strings_follow_standard_conforming_strings() {
        let text = "SET standard_conforming_strings = off; SELECT '\\';'; SET standard_conforming_strings = on; SELECT '\\'; SELECT 1";
        assert_eq!(split(text).len(), 5);
    }

    #[test]
    fn commands_of_psql_are_told_apart() {
        let text = "\\restrict abc\nSELECT 1;\n\\connect app\nSELECT 2;\n\\connect \"My \"\"db\"\n\
                    \\connect -reuse-previous=on \"dbname='a b\"\"c\\'d'\"\n\\unrestrict abc\n";
        let found: Vec<_> = pieces(text).map(Result::unwrap).collect();
        assert_eq!(
            found,
            [
                Piece::MetaCommand("restrict", "abc"),
                Piece::Statement("SELECT 1"),
                Piece::Connect("app".to_owned()),
                Piece::Statement("SELECT 2"),
                Piece::Connect("My \"db".to_owned()),
                Piece::Connect("a b\"c'd".to_owned()),
                Piece::MetaCommand("unrestrict", "abc"),
            ]
        );
        assert_eq!(split("\\restrict x\nSELECT 1;\n\\unrestrict x\n"), ["SELECT 1"]);
        assert!(statements(text).is_err());
    }

    #[test]
    fn what_has_no_end_is_told_with_its_line() {
        for (text, line) in [
            ("SELECT 1;\nSELECT 'x;", 2),
            ("SELECT \"x", 1),
            ("\n\n/* x /* */", 3),
            ("SELECT $a$ $b$", 1),
            ("SELECT (1;", 1),
            ("CREATE FUNCTION f() BEGIN ATOMIC SELECT 1;", 1),
            ("SELECT 1 \\gexec", 1),
            ("SELECT 1;\nCOPY public.t (a, b) FROM stdin;\n1\t2\n\\.\n", 2),
        ] {
            assert_eq!(statements(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn it_takes_linear_time() {
        // Each of these is quadratic in a careless scanner; then this would take hours.
        for piece in [
            "$1 ",
            "'a'\n",
            "SELECT 1; ",
            "/*",
            "-- \n",
            ";",
            "$a",
            "((",
            "begin ",
        ] {
            let text = piece.repeat(200_000);
            let _ = pieces(&text).count();
        }
    }

    fn fragment() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z0-9 ,.]{0,10}",
            "[;'\"\\\\\n()$-/*]{0,6}".prop_map(|text| format!("'{}'", text.replace('\'', "''"))),
            "[;'\"\\\\\n()$-/*]{0,6}".prop_map(|text| format!("\"{}\"", text.replace('"', "\"\""))),
            "[;'\"\\\\\n()$/*-]{0,6}"
                .prop_map(|text| { format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")) }),
            "[;'\"\\\\\n()/*-]{0,6}".prop_map(|text| format!(" $q${text}$q$")),
            "[;'\"\\\\$()]{0,6}".prop_map(|text| format!("--{text}\n")),
            "[;'\"\\\\$()\n]{0,6}".prop_map(|text| format!("/*{text}*/")),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_split_or_refused(text in any::<String>(), sql in "[a-z;'\"$()/*\\\\ \n-]{0,60}") {
            for text in [text, sql] {
                let bytes: usize = pieces(&text).map_while(Result::ok).map(|piece| match piece {
                    Piece::Statement(statement) => statement.len(),
                    _ => 0,
                }).sum();
                prop_assert!(bytes <= text.len());
            }
        }

        #[test]
        fn statements_come_back_whole(bodies in prop::collection::vec(prop::collection::vec(fragment(), 0..6), 0..6)) {
            let written: Vec<String> =
                bodies.iter().map(|fragments| format!("SELECT {} x", fragments.join(" "))).collect();
            let script = written.iter().map(|statement| format!("{statement};\n")).collect::<String>();
            prop_assert_eq!(statements(&script).unwrap(), written);
        }
    }
}
