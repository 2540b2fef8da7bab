//! The setting `repository`: URLs, each alone or in a table with what is set for it alone.

use pgkeep_base::{Secret, nearest};
use toml::de::{DeTable, DeValue};

use crate::cluster::Cluster;
use crate::file::nearest_setting;
use crate::input::Input;
use crate::settings::{SETTINGS, setting};

/// What may be set for one repository: how it is reached, and what is kept there.
const OF_ONE: [&str; 5] = ["s3.", "gcs.", "azure.", "keep.", "limits.upload_bytes_per_second"];
const OF_ONE_IN_WORDS: &str = "s3, gcs, azure, keep and limits.upload_bytes_per_second";
const SCHEMES: [&str; 6] = ["file", "s3", "gs", "az", "abfss", "memory"];

/// One repository as it was given.
pub(crate) struct RepositoryInput {
    pub url: String,
    /// Name and value of its own settings, which were checked.
    pub own: Vec<(&'static str, Secret)>,
}

impl Input<'_> {
    /// Lightly: what the store refuses in more words it refuses itself. Credentials are refused here, because URLs are
    /// printed.
    pub(crate) fn repositories(&self) -> Result<Vec<RepositoryInput>, String> {
        let repositories = match self {
            Self::Value(DeValue::Table(table)) => vec![in_table(table)?],
            Self::Value(DeValue::Array(array))
                if array
                    .iter()
                    .any(|item| matches!(item.get_ref(), DeValue::Table(_))) =>
            {
                let each = array.iter().map(|item| match item.get_ref() {
                    DeValue::Table(table) => in_table(table),
                    value => Input::Value(value).string().map(alone),
                });
                each.collect::<Result<Vec<_>, _>>()?
            }
            _ => self.list()?.into_iter().map(alone).collect(),
        };
        for repository in &repositories {
            check(&repository.url)?;
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut urls = repositories.iter().map(|repository| &repository.url);
        match urls.find(|url| !seen.insert(url.trim_end_matches('/'))) {
            Some(url) => Err(format!("names '{url}' twice")),
            None => Ok(repositories),
        }
    }
}

fn alone(url: String) -> RepositoryInput {
    RepositoryInput { url, own: Vec::new() }
}

/// `{ url = "s3://...", keep = { window = "90d" } }`
fn in_table(table: &DeTable<'_>) -> Result<RepositoryInput, String> {
    let url = table.get("url").ok_or_else(|| {
        "has a table without its url: { url = \"s3://bucket/prefix\", keep = { ... } }".to_owned()
    })?;
    let url = Input::Value(url.get_ref()).string()?;
    let mut own = Vec::new();
    of_one(table, "", &mut own)?;
    Ok(RepositoryInput { url, own })
}

fn of_one(table: &DeTable<'_>, prefix: &str, own: &mut Vec<(&'static str, Secret)>) -> Result<(), String> {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        if name == "url" {
            continue;
        }
        match (setting(&name), value.get_ref()) {
            (Some(setting), value) if OF_ONE.iter().any(|of_one| name.starts_with(of_one)) => {
                setting
                    .apply(&mut Cluster::default(), &Input::Value(value))
                    .map_err(|problem| format!("has a table in which '{name}' {problem}"))?;
                own.push((setting.name, Secret::new(as_text(value))));
            }
            (None, DeValue::Table(inner)) if is_table(&name) => of_one(inner, &format!("{name}."), own)?,
            (Some(_), _) => {
                return Err(format!(
                    "has a table with '{name}', which can't be set for one repository alone; what can: {OF_ONE_IN_WORDS}"
                ));
            }
            (None, _) => {
                let meant = nearest_setting(prefix, key.get_ref())
                    .or_else(|| {
                        nearest(key.get_ref(), ["url", "keep", "s3", "gcs", "azure"]).map(str::to_owned)
                    })
                    .map(|meant| format!("; did you mean '{meant}'?"));
                return Err(format!(
                    "has a table with '{name}', which is no setting{}",
                    meant.unwrap_or_else(|| format!(
                        "; what can be set for one repository: {OF_ONE_IN_WORDS}"
                    ))
                ));
            }
        }
    }
    Ok(())
}

fn is_table(name: &str) -> bool {
    let inner = format!("{name}.");
    SETTINGS.iter().any(|setting| setting.name.starts_with(&inner))
}

/// A checked value as the text that means the same.
fn as_text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map_or_else(|_| integer.as_str().to_owned(), |number| number.to_string()),
        _ => String::new(),
    }
}

fn check(url: &str) -> Result<(), String> {
    if url.starts_with(['[', '{', '"']) {
        return Err("must be URLs and nothing around them where it isn't in the file; several with commas between them: \
                    s3://bucket/prefix,file:///directory"
            .to_owned());
    }
    let did_you_mean = |scheme: &str| {
        let meant = nearest(scheme, SCHEMES).map(|meant| format!("; did you mean '{meant}://'?"));
        meant.unwrap_or_default()
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(match url.strip_prefix('/') {
            Some(path) => format!("must be a URL; for this directory write 'file:///{path}'"),
            None => format!(
                "must be a URL such as s3://bucket/prefix or file:///directory{}",
                url.split_once(':')
                    .map(|(word, _)| did_you_mean(word))
                    .unwrap_or_default()
            ),
        });
    };
    if !SCHEMES.contains(&scheme) {
        let known = "file, s3, gs or az";
        return Err(format!(
            "must be a URL that begins with {known}, and one begins with '{scheme}'{}",
            did_you_mean(scheme)
        ));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let has_password = authority
        .split_once('@')
        .is_some_and(|(user, _)| user.contains(':'));
    if has_password || rest.contains('?') {
        return Err(
            "holds credentials or parameters in a URL, which would be printed; credentials go into \
             the environment, a profile or the [...s3] table"
                .to_owned(),
        );
    }
    Ok(())
}
