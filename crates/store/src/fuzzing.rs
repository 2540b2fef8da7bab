//! What a fuzz target of fuzz/ does with outside bytes: they are read or refused, and no message shows a secret. The test
//! runs the committed corpus through it.

use crate::StoreUrl;

/// Stands for credentials in a URL.
const SECRET: &str = "hunter2";

/// Repository URLs.
pub fn store_url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match StoreUrl::parse(&text) {
        Ok(url) => assert_eq!(StoreUrl::parse(&url.to_string()).as_ref(), Ok(&url)),
        Err(error) => drop(error.to_string()),
    }
    // Where user information and parameters end must be beyond doubt, or the secret is a part of something else.
    if text.to_lowercase().contains(SECRET) || text.contains(['@', '?', '#', '\\']) {
        return;
    }
    for scheme in ["s3", "gs", "az", "abfss", "file", "https", "s4"] {
        let mut texts = vec![
            format!("{scheme}://user:{SECRET}{text}@host/prefix"),
            format!("{scheme}://user:?{text}{SECRET}@host/prefix"),
            format!("{scheme}://host/prefix?{text}{SECRET}"),
        ];
        // On Azure a container stands before the '@'.
        if !matches!(scheme, "az" | "abfss") {
            texts.push(format!("{scheme}://{SECRET}@{text}"));
        }
        for own in texts {
            let said = match StoreUrl::parse(&own) {
                Ok(url) => url.to_string(),
                Err(error) => error.to_string(),
            };
            assert!(!said.contains(SECRET), "{own}: {said}");
        }
    }
}

/// What a store says of a bucket's settings.
pub fn bucket(data: &[u8]) {
    crate::bucket::read_or_refuse(&String::from_utf8_lossy(data));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_read_or_refused() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 2] = [("store_url", store_url), ("bucket", bucket)];
        for (name, target) in targets {
            let folder = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            let entries: Vec<_> = std::fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
            assert!(!entries.is_empty(), "{folder}");
            for entry in entries {
                target(&std::fs::read(entry.path()).unwrap());
            }
        }
    }
}
