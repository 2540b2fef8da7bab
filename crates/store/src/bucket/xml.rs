//! XML of S3, read and written by `quick-xml`.

use quick_xml::Reader;
use quick_xml::events::Event;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketLifecycleConfiguration.html> and its like.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// Reads a document whose root must be one of `roots`: some stores answer questions that they don't understand with a listing,
/// or with an error and the status of success. Any document would do for a type whose fields all have defaults.
pub(super) fn read<T: DeserializeOwned>(text: &str, roots: &[&str]) -> Result<T, String> {
    check_root(text, roots)?;
    quick_xml::de::from_str(text).map_err(|error| format!("its answer can't be read: {error}"))
}

/// Whether it is one of the documents that are looked for.
pub(super) fn check_root(text: &str, roots: &[&str]) -> Result<(), String> {
    let found = root_of(text)?;
    if roots.contains(&found.as_str()) {
        return Ok(());
    }
    let root = roots.first().copied().unwrap_or_default();
    Err(format!("it answers with {found} in place of {root}"))
}

/// The root element's name.
fn root_of(text: &str) -> Result<String, String> {
    let mut reader = Reader::from_str(text);
    loop {
        match reader.read_event() {
            Ok(Event::Start(start) | Event::Empty(start)) => {
                return Ok(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
            }
            Ok(Event::Eof) => return Err("its answer is empty".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("its answer is no XML: {error}")),
        }
    }
}

/// Writes a document.
pub(super) fn write<T: Serialize>(value: &T, root: &str) -> Result<String, String> {
    let text = quick_xml::se::to_string_with_root(root, value).map_err(|error| error.to_string())?;
    let inside = text
        .strip_prefix(&format!("<{root}>"))
        .ok_or_else(|| format!("{root} would be empty"))?;
    Ok(format!("<{root} xmlns=\"{NAMESPACE}\">{inside}"))
}

/// A document around elements that are XML already.
pub(super) fn around(root: &str, elements: &[&str]) -> String {
    format!("<{root} xmlns=\"{NAMESPACE}\">{}</{root}>", elements.concat())
}

/// The elements of a name right below the root, each as it stands in the text.
pub(super) fn children(text: &str, name: &str) -> Result<Vec<String>, String> {
    let mut reader = Reader::from_str(text);
    let mut found = Vec::new();
    let mut depth = 0_usize;
    loop {
        let begin = reader.buffer_position();
        let event = reader
            .read_event()
            .map_err(|error| format!("its answer is no XML: {error}"))?;
        match event {
            Event::Start(start) if depth == 1 && start.local_name().as_ref() == name.as_bytes() => {
                let end = start.to_end().into_owned();
                reader
                    .read_to_end(end.name())
                    .map_err(|error| format!("its answer is no XML: {error}"))?;
                let span = usize::try_from(begin)
                    .ok()
                    .zip(usize::try_from(reader.buffer_position()).ok());
                let element = span.and_then(|(begin, end)| text.get(begin..end));
                found.push(element.ok_or("its answer is no XML")?.to_owned());
            }
            Event::Start(_) => depth += 1,
            Event::End(_) => depth = depth.saturating_sub(1),
            Event::Eof if depth > 0 => return Err("its answer ends too early".to_owned()),
            Event::Eof => return Ok(found),
            _ => {}
        }
    }
}

/// The error's code and message, as the store has them; empty where it says nothing.
pub(super) fn error_of(text: &str) -> (String, String) {
    #[derive(serde::Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Told {
        code: String,
        message: String,
    }
    let told: Told = read(text, &["Error"]).unwrap_or_default();
    (told.code, told.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_taken_as_they_stand() {
        let text = "<?xml version=\"1.0\"?>\n<A xmlns=\"x\">\n<Rule><ID>a &amp; b</ID><New at=\"1\"><Rule/></New></Rule> <Rule>\
                    <ID>c</ID></Rule></A>";
        assert_eq!(
            children(text, "Rule").unwrap(),
            [
                "<Rule><ID>a &amp; b</ID><New at=\"1\"><Rule/></New></Rule>",
                "<Rule><ID>c</ID></Rule>"
            ]
        );
        assert_eq!(children("<A/>", "Rule").unwrap(), Vec::<String>::new());
        for bad in ["<A><Rule>", "<A><Rule></A>", "<A>"] {
            assert!(children(bad, "Rule").is_err(), "{bad}");
        }
    }

    #[test]
    fn another_document_is_not_taken_for_the_one_that_was_asked_for() {
        for other in ["ListBucketResult", "ErrorResponse", "GetBucketAclResponse"] {
            let text = format!("<{other}><Status>Enabled</Status></{other}>");
            let error = read::<super::super::Versioning>(&text, &["V", "GetVResponse"]).unwrap_err();
            assert!(error.contains(other), "{error}");
        }
        assert!(read::<super::super::Versioning>("<GetVResponse/>", &["V", "GetVResponse"]).is_ok());
        assert_eq!(
            error_of("<Error><Code>A</Code><Message>b &lt; c</Message></Error>"),
            ("A".to_owned(), "b < c".to_owned())
        );
        assert_eq!(error_of("<html>oh"), (String::new(), String::new()));
    }
}
