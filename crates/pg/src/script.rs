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
                Some(b'\\') => return Ok(Some(self.meta_command())),
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
                (Some(byte), _) if byte.is_ascii_whitespace() || byte == 0x0b => at += 1,
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
                .find('\n')
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

    fn meta_command(&mut self) -> Piece<'a> {
        let rest = self.rest(self.at);
        let line = rest.lines().next().unwrap_or_default();
        self.at += line.len();
        let command = line.trim_start_matches('\\').trim_end();
        let (name, arguments) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let arguments = arguments.trim();
        match name {
            "connect" | "c" => Piece::Connect(connect_database(arguments)),
            _ => Piece::MetaCommand(name, arguments),
        }
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
        let statement = self.text.get(start..at).unwrap_or_default().trim_end();
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
                        .get(..blank.len() - blank.trim_start().len())
                        .unwrap_or_default();
                    let next = at + 1 + blank.len();
                    if !(blank.contains('\n') && self.byte(next) == Some(b'\'')) {
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
fn connect_database(arguments: &str) -> String {
    let (conninfo, argument) = match arguments.strip_prefix("-reuse-previous=on") {
        Some(rest) => (true, rest.trim()),
        None => (false, arguments),
    };
    let quoted = argument
        .strip_prefix('"')
        .and_then(|inner| inner.strip_suffix('"'));
    let text = quoted.map_or_else(|| argument.to_owned(), |inner| inner.replace("\"\"", "\""));
    if !conninfo {
        return text;
    }
    crate::Conninfo::parse(&text)
        .ok()
        .and_then(|parsed| parsed.setting("dbname").map(str::to_owned))
        .unwrap_or(text)
}
