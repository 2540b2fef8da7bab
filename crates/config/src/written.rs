//! A cluster's settings, written as `pgkeep.toml` has them.

use toml::Value;
use toml::de::{DeTable, DeValue};

use crate::cluster::Cluster;
use crate::input::{Input, items};
use crate::settings::{Setting, setting};

/// Tables stand on one line up to this length, and a line for each setting beyond.
const LINE_CHARACTERS_MAX: usize = 100;
/// A table's key and its value.
const KEY: &str = "value";

/// A cluster's settings on their way into a file.
#[derive(Debug, Clone, Default)]
pub struct Written {
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    setting: &'static Setting,
    literal: String,
    comment: &'static str,
}

impl Written {
    /// Puts a setting, by the text that a flag or variable gives it, in the place of what was there of it. It comes where
    /// it was, or else behind all others, with those of its table. What isn't a setting, or not a value that it takes, is
    /// left out: flags were checked before.
    pub fn put(&mut self, name: &str, text: &str, comment: &'static str) {
        if let Some(setting) = setting(name) {
            self.insert(setting, literal(setting, &Input::Text(text)), comment);
        }
    }

    /// The same for a list of which each item is given by itself.
    pub fn put_list(&mut self, name: &str, texts: &[String], comment: &'static str) {
        if let Some(setting) = setting(name) {
            self.insert(setting, literal(setting, &Input::Texts(texts)), comment);
        }
    }

    fn insert(&mut self, setting: &'static Setting, literal: Option<String>, comment: &'static str) {
        let Some(literal) = literal else { return };
        match self
            .lines
            .iter_mut()
            .find(|line| line.setting.name == setting.name)
        {
            Some(line) => line.literal = literal,
            None => self.lines.push(Line {
                setting,
                literal,
                comment,
            }),
        }
    }

    /// The cluster's table, with what is said of it.
    pub fn text(&self, cluster: &str) -> String {
        let mut rows: Vec<(&str, String, &str)> = Vec::new();
        // First what is in no table: what stands behind is no part of one that was there before.
        let (alone, tables): (Vec<&Line>, Vec<&Line>) =
            self.lines.iter().partition(|line| line.table().is_none());
        for line in alone {
            rows.push((line.setting.name, line.literal.clone(), line.comment));
        }
        let mut done: Vec<&str> = Vec::new();
        for table in tables.iter().filter_map(|line| line.table()) {
            if done.contains(&table) {
                continue;
            }
            done.push(table);
            let within: Vec<&&Line> = tables.iter().filter(|line| line.table() == Some(table)).collect();
            let literals: Vec<String> = within.iter().map(|line| line.in_table()).collect();
            let inline = format!("{{ {} }}", literals.join(", "));
            let is_short = table.len() + inline.len() <= LINE_CHARACTERS_MAX && !inline.contains('\n');
            if is_short {
                let comment = within
                    .iter()
                    .map(|line| line.comment)
                    .find(|text| !text.is_empty());
                rows.push((table, inline, comment.unwrap_or_default()));
            } else {
                let each = within.iter();
                rows.extend(each.map(|line| (line.setting.name, line.literal.clone(), line.comment)));
            }
        }
        let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let mut text = format!("[cluster.{}]\n", key(cluster));
        for (name, literal, comment) in rows {
            let comment = match comment {
                "" => String::new(),
                comment => format!("   # {comment}"),
            };
            text.push_str(&format!("{name:<width$} = {literal}{comment}\n"));
        }
        text
    }
}

impl Line {
    /// The table that it is in: `keep` of `keep.window`.
    fn table(&self) -> Option<&'static str> {
        self.setting.name.split_once('.').map(|(table, _)| table)
    }

    /// As it stands within its table.
    fn in_table(&self) -> String {
        let name = self.setting.name;
        let (_, name) = name.split_once('.').unwrap_or(("", name));
        format!("{name} = {}", self.literal)
    }
}

/// How the file says what a flag or variable says: the first form that the setting reads from a file to the same end.
fn literal(setting: &Setting, input: &Input<'_>) -> Option<String> {
    let mut wanted = Cluster::default();
    setting.apply(&mut wanted, input).ok()?;
    let list = |items: &[String]| {
        let items = items.iter().map(|item| string(item)).collect::<Vec<_>>();
        format!("[{}]", items.join(", "))
    };
    let mut forms = match input {
        Input::Text(text) => vec![string(text), text.trim().to_owned(), list(&items(text))],
        Input::Texts(texts) => vec![list(texts), string(&texts.join(",")), texts.join(",")],
        Input::Value(_) => return None,
    };
    // `yes`, say.
    forms.extend(["true", "false"].map(str::to_owned));
    forms.into_iter().find(|form| {
        let mut found = Cluster::default();
        let line = format!("{KEY} = {form}");
        // A text that is more than one value is none of the forms.
        let Ok(table) = DeTable::parse(&line) else {
            return false;
        };
        let mut values = table.get_ref().iter();
        let (Some((_, value)), None) = (values.next(), values.next()) else {
            return false;
        };
        is_plain(value.get_ref())
            && setting.apply(&mut found, &Input::Value(value.get_ref())).is_ok()
            && found == wanted
    })
}

fn is_plain(value: &DeValue<'_>) -> bool {
    !matches!(value, DeValue::Table(_) | DeValue::Datetime(_))
}

fn string(text: &str) -> String {
    Value::from(text).to_string()
}

/// A cluster's name may hold dots.
fn key(name: &str) -> String {
    let is_bare = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
    match !name.is_empty() && name.chars().all(is_bare) {
        true => name.to_owned(),
        false => string(name),
    }
}
