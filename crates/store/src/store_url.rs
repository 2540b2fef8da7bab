use std::fmt;
use std::path::PathBuf;

use pgkeep_base::nearest;
use url::Url;

/// Where a repository lives, parsed. It displays as the URL, which never holds secrets.
///
/// - `file:///srv/backups`
/// - `s3://bucket/prefix`
/// - `gs://bucket/prefix`
/// - `az://container/prefix` (the account from the options or the environment), `az://container@account/prefix`, or as
///   Hadoop writes it: `abfss://container@account.dfs.core.windows.net/prefix`
/// - `memory://` (private), `memory://name` (shared within the process): tests
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory on this machine.
    File {
        /// Absolute.
        path: PathBuf,
    },
    /// Amazon S3 and compatibles.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Without slashes at either end; may be empty.
        prefix: String,
    },
    /// Google Cloud Storage.
    Gcs {
        /// The bucket's name.
        bucket: String,
        /// Without slashes at either end; may be empty.
        prefix: String,
    },
    /// Azure Blob Storage.
    Azure {
        /// The storage account, where the URL names it.
        account: Option<String>,
        /// The container's name.
        container: String,
        /// Without slashes at either end; may be empty.
        prefix: String,
    },
    /// In memory, gone with the process.
    Memory {
        /// Stores of one name share their objects; an empty name is private.
        name: String,
    },
}

/// The text is not a repository's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a repository URL: {problem}")]
pub struct ParseStoreUrlError {
    /// The text, with anything between `//` and `@`, and after `?`, removed.
    text: String,
    problem: String,
}

/// Longest URL that's looked at. S3 keys end at 1024 bytes.
const URL_LENGTH_MAX: usize = 4096;
/// Paths end at 4096 bytes (`PATH_MAX`).
const PATH_LENGTH_MAX: usize = 4096;
/// As a URL has them, each byte may take three.
const FILE_URL_LENGTH_MAX: usize = 3 * PATH_LENGTH_MAX + "file://".len();

impl StoreUrl {
    /// Parses a repository's URL. Pure: it looks at nothing but the text.
    ///
    /// # Errors
    /// The text is not one of the forms above; the message says which part is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, ParseStoreUrlError> {
        parse(text).map_err(|problem| ParseStoreUrlError {
            text: redact(text),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<StoreUrl, String> {
    const FORMS: &str =
        "write file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
    let length_max = match text.starts_with("file:") {
        true => FILE_URL_LENGTH_MAX,
        false => URL_LENGTH_MAX,
    };
    if text.len() > length_max {
        return Err(format!("it's longer than {length_max} characters"));
    }
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err("there are blanks or control characters around or in it".to_owned());
    }
    if text.starts_with('/') {
        return Err(format!("write file://{text}"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let meant = text.split_once(':').map(|(word, _)| did_you_mean(word));
        return Err(format!("{FORMS}{}", meant.unwrap_or_default()));
    };
    match scheme {
        "file" => return parse_file(text, rest),
        "memory" => return parse_memory(rest),
        "s3" | "s3a" | "gs" | "gcs" | "az" | "azure" | "abfs" | "abfss" => {}
        "http" | "https" => {
            return Err("write s3://bucket/prefix, and the server's address as the S3 endpoint".to_owned());
        }
        _ => {
            let meant = did_you_mean(scheme);
            return Err(format!("the scheme {scheme}:// is unknown; {FORMS}{meant}"));
        }
    }
    if rest.contains(['?', '#']) {
        return Err(
            "'?' and '#' have no meaning here; endpoint, region and the like are settings".to_owned(),
        );
    }
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.password().is_some() || url.port().is_some() {
        return Err(
            "passwords and ports don't belong in it; endpoint and credentials are settings".to_owned(),
        );
    }
    // The host of a URL with an unknown scheme is kept as it's written.
    let host = rest.split('/').next().unwrap_or_default();
    let path = rest.get(host.len()..).unwrap_or_default();
    let prefix = parse_prefix(path)?;
    match scheme {
        "s3" | "s3a" => Ok(StoreUrl::S3 {
            bucket: parse_bucket(host)?,
            prefix,
        }),
        "gs" | "gcs" => Ok(StoreUrl::Gcs {
            bucket: parse_bucket(host)?,
            prefix,
        }),
        _ => parse_azure(host, prefix),
    }
}

/// The schemes that are told to people.
const SCHEMES: [&str; 4] = ["file", "s3", "gs", "az"];

fn did_you_mean(scheme: &str) -> String {
    nearest(scheme, SCHEMES)
        .map(|meant| format!(" (did you mean {meant}://?)"))
        .unwrap_or_default()
}

fn parse_file(text: &str, rest: &str) -> Result<StoreUrl, String> {
    if !rest.starts_with('/') {
        // What stands before an '@' or after a '?' may be a password.
        let path = if rest.contains(['@', '?']) {
            "directory"
        } else {
            rest
        };
        return Err(format!("the path must be absolute: file:///{path}"));
    }
    if rest.contains(['?', '#']) {
        return Err("write '?' as %3F and '#' as %23".to_owned());
    }
    // An encoded dot is a dot to the URL's parser.
    if rest.split('/').any(|part| part == "..") || rest.to_ascii_lowercase().contains("%2e") {
        return Err("'..' in it may lead anywhere; write the directory out".to_owned());
    }
    // Decoded, it would part what the URL's parser took for one name.
    if rest.to_ascii_lowercase().contains("%2f") {
        return Err("write '/' as it is, not as %2F".to_owned());
    }
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let path = url
        .to_file_path()
        .map_err(|()| "it names no path on this machine".to_owned())?;
    let Some(path_text) = path.to_str() else {
        return Err("its path is not UTF-8".to_owned());
    };
    if path_text.contains("/../") || path_text.ends_with("/..") || path_text.chars().any(char::is_control) {
        return Err("'..' and control characters are not allowed in it".to_owned());
    }
    if path_text.len() > PATH_LENGTH_MAX {
        return Err(format!("its path is longer than {PATH_LENGTH_MAX} bytes"));
    }
    if path_text.trim_end_matches('/').is_empty() {
        return Err("the root directory can't be a repository; name a directory below it".to_owned());
    }
    Ok(StoreUrl::File {
        path: PathBuf::from(path_text.trim_end_matches('/')),
    })
}

fn parse_memory(rest: &str) -> Result<StoreUrl, String> {
    match rest.trim_matches('/') {
        name if name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') =>
        {
            Ok(StoreUrl::Memory {
                name: name.to_owned(),
            })
        }
        _ => Err("a store in memory is named by letters, digits, '-' and '_'".to_owned()),
    }
}

fn parse_azure(host: &str, prefix: String) -> Result<StoreUrl, String> {
    let (container, account) = match host.split_once('@') {
        None => (host, None),
        Some((container, account)) => {
            let suffixes = [".dfs.core.windows.net", ".blob.core.windows.net"];
            let account = suffixes
                .iter()
                .find_map(|suffix| account.strip_suffix(suffix))
                .unwrap_or(account);
            if account.is_empty()
                || !account
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            {
                return Err("a storage account's name has lower-case letters and digits only".to_owned());
            }
            (container, Some(account.to_owned()))
        }
    };
    Ok(StoreUrl::Azure {
        account,
        container: parse_bucket(container)?,
        prefix,
    })
}

/// The common part of the three clouds' rules: what passes here can't change the meaning of a request's URL.
fn parse_bucket(name: &str) -> Result<String, String> {
    if name.contains('@') {
        return Err("credentials don't belong in it; they are settings".to_owned());
    }
    if name.is_empty() {
        return Err("the bucket's name is missing".to_owned());
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.len() < 3 || name.len() > 222 || !name.chars().all(legal) || name.contains("..") {
        return Err(format!("'{name}' can't be a bucket's name"));
    }
    Ok(name.to_owned())
}

fn parse_prefix(path: &str) -> Result<String, String> {
    let prefix = path.trim_matches('/');
    if prefix.split('/').any(|part| part == "." || part == "..") {
        return Err("'.' and '..' mean nothing in an object store".to_owned());
    }
    if prefix.contains("//") {
        return Err("'//' in the prefix: many stores don't keep it".to_owned());
    }
    if prefix.contains(['%', '\\', ' ']) || !prefix.is_ascii() {
        return Err(
            "the prefix may have letters, digits and punctuation, but no '%', '\\', blanks or accents"
                .to_owned(),
        );
    }
    Ok(prefix.to_owned())
}

/// An error shows no more of a text than this.
const SHOWN_LENGTH_MAX: usize = 200;

/// Removes what people put into URLs and shouldn't: user information and query strings.
fn redact(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let shown = match (text.find("://"), text.rfind('@')) {
        (Some(scheme_end), Some(at)) if at > scheme_end => {
            let (scheme, rest) = (text.get(..scheme_end), text.get(at..));
            format!(
                "{}://[removed]{}",
                scheme.unwrap_or_default(),
                rest.unwrap_or_default()
            )
        }
        _ => text,
    };
    // Only now: a password may hold a '?', and be longer than what is shown.
    let shown = shown.split('?').next().unwrap_or_default();
    shown.chars().take(SHOWN_LENGTH_MAX).collect()
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |f: &mut fmt::Formatter<'_>, scheme: &str, host: &str, prefix: &str| match prefix {
            "" => write!(f, "{scheme}://{host}"),
            prefix => write!(f, "{scheme}://{host}/{prefix}"),
        };
        match self {
            Self::File { path } => match Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", path.display()),
            },
            Self::S3 { bucket, prefix } => join(f, "s3", bucket, prefix),
            Self::Gcs { bucket, prefix } => join(f, "gs", bucket, prefix),
            Self::Azure {
                account: None,
                container,
                prefix,
            } => join(f, "az", container, prefix),
            Self::Azure {
                account: Some(account),
                container,
                prefix,
            } => join(f, "az", &format!("{container}@{account}"), prefix),
            Self::Memory { name } => write!(f, "memory://{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_understood() {
        let s3 = |bucket: &str, prefix: &str| StoreUrl::S3 {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        assert_eq!(StoreUrl::parse("s3://my.bucket/a/b/"), Ok(s3("my.bucket", "a/b")));
        assert_eq!(StoreUrl::parse("s3://bucket"), Ok(s3("bucket", "")));
        assert_eq!(
            StoreUrl::parse("file:///srv/my%20backups/"),
            Ok(StoreUrl::File {
                path: "/srv/my backups".into()
            })
        );
        let azure = StoreUrl::parse("abfss://box@acct.dfs.core.windows.net/x").unwrap();
        assert_eq!(azure.to_string(), "az://box@acct/x");
        assert_eq!(StoreUrl::parse("az://box/x").unwrap().to_string(), "az://box/x");
        assert_eq!(
            StoreUrl::parse("gs://bucket/x").unwrap().to_string(),
            "gs://bucket/x"
        );
        assert_eq!(
            StoreUrl::parse("memory://").unwrap(),
            StoreUrl::Memory { name: String::new() }
        );
    }

    #[test]
    fn what_is_wrong_is_named_and_secrets_are_not() {
        for (bad, says) in [
            ("", "write file:///"),
            ("/srv/backups", "write file:///srv/backups"),
            ("file://srv/backups", "file:///srv/backups"),
            ("file:///", "root directory"),
            ("file:///a/../b", ".."),
            ("file:///a/%2e%2e/b", ".."),
            ("file:///.%2F./", "write '/' as it is"),
            ("s3:/bucket", "write file:///"),
            ("s4://bucket", "s4:// is unknown"),
            ("flie:///srv/backups", "(did you mean file://?)"),
            ("fils:/srv/backups", "(did you mean file://?)"),
            ("s3:///prefix", "bucket's name is missing"),
            ("s3://bu cket/x", "bu cket"),
            ("s3://bucket/a//b", "'//'"),
            ("s3://bucket/a/../b", "'..'"),
            ("s3://bucket:9000/x", "ports"),
            ("https://s3.amazonaws.com/bucket", "endpoint"),
            ("s3://AKIA:hunter2@bucket/x", "credentials"),
            ("s3://hunter2@bucket/x", "credentials"),
            ("s3://bucket/x?secret=hunter2", "settings"),
            ("s3://user:hunter2?x@bucket/x", "'?'"),
            ("file://user:hunter2@srv/x", "absolute"),
            ("file://srv/x?secret=hunter2", "absolute"),
            (" s3://bucket", "blanks"),
            ("az://box@UPPER/x", "lower-case"),
        ] {
            let message = StoreUrl::parse(bad).expect_err(bad).to_string();
            assert!(message.contains(says), "{bad}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_it_takes_survives_a_round_trip(text in "(file|s3|gs|az|abfss|memory)?(://)?\\PC{0,60}") {
            if let Ok(url) = StoreUrl::parse(&text) {
                prop_assert_eq!(StoreUrl::parse(&url.to_string()), Ok(url));
            }
        }

        #[test]
        fn likely_names_survive_a_round_trip(bucket in "[a-z0-9][a-z0-9.-]{1,30}[a-z0-9]", prefix in "([a-z0-9_=+,-]{1,9}/){0,3}[a-z0-9]{1,9}") {
            prop_assume!(!bucket.contains(".."));
            let text = format!("s3://{bucket}/{prefix}");
            let url = StoreUrl::parse(&text).unwrap();
            prop_assert_eq!(url.to_string(), text);
        }
    }
}
