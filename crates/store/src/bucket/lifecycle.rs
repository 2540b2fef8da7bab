//! Lifecycle rules. Those of others are written back as they were read, also what isn't known here.

use serde::{Deserialize, Serialize};

use super::xml;

pub(super) const QUERY: &str = "lifecycle";
pub(super) const READ_PERMISSION: &str = "s3:GetLifecycleConfiguration";
pub(super) const WRITE_PERMISSION: &str = "s3:PutLifecycleConfiguration";
const ROOT: &str = "LifecycleConfiguration";
const RULE: &str = "Rule";

/// All rules of a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// In the store's order.
    pub rules: Vec<StoredRule>,
    /// Below which size transitions leave objects where they are: `all_storage_classes_128K`, `varies_by_storage_class`.
    pub transition_minimum: Option<String>,
}

/// A rule, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRule {
    /// What is known of it.
    pub rule: Rule,
    xml: String,
}

/// A lifecycle rule: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_LifecycleRule.html>
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Rule {
    /// When current versions go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Expiration>,
    /// Its name.
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What it is for, in the old form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// `Enabled` or `Disabled`.
    pub status: String,
    /// When current versions move.
    #[serde(rename = "Transition", skip_serializing_if = "Vec::is_empty")]
    pub transitions: Vec<Transition>,
    /// When old versions go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noncurrent_version_expiration: Option<NoncurrentVersionExpiration>,
    /// When the parts of uploads that were never completed go.
    #[serde(
        rename = "AbortIncompleteMultipartUpload",
        skip_serializing_if = "Option::is_none"
    )]
    pub upload_expiration: Option<UploadExpiration>,
}

/// When current versions go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Expiration {
    /// At a time, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// At this age, rounded up to midnight UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Marks of deletion whose versions are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired_object_delete_marker: Option<bool>,
}

/// What a rule is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Filter {
    /// Objects whose names begin so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Objects with this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// Larger objects, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_size_greater_than: Option<u64>,
    /// Smaller objects, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_size_less_than: Option<u64>,
    /// Several conditions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub and: Option<FilterAnd>,
}

/// Several conditions of a filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilterAnd {
    /// Objects whose names begin so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Objects with all of these tags.
    #[serde(rename = "Tag", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// Larger objects, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_size_greater_than: Option<u64>,
    /// Smaller objects, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_size_less_than: Option<u64>,
}

/// A tag of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Tag {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// When current versions move to another storage class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Transition {
    /// At a time, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// At this age.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// To where.
    pub storage_class: String,
}

/// When old versions go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NoncurrentVersionExpiration {
    /// So long after they were replaced or deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noncurrent_days: Option<u32>,
    /// So many stay all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_noncurrent_versions: Option<u32>,
}

/// When the parts of uploads that were never completed go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UploadExpiration {
    /// So long after the upload began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days_after_initiation: Option<u32>,
}

impl Lifecycle {
    pub(super) fn read(text: &str, transition_minimum: Option<String>) -> Result<Self, String> {
        // Taken for the rules, another document would say that there are none, and those of others would be overwritten.
        xml::check_root(text, &[ROOT])?;
        let rules = xml::children(text, RULE)?.into_iter().map(|xml| {
            let rule = xml::read(&xml, &[RULE])?;
            Ok(StoredRule { rule, xml })
        });
        Ok(Self {
            rules: rules.collect::<Result<_, String>>()?,
            transition_minimum,
        })
    }

    /// Whether a rule has S3's old form, a prefix without a filter. Beside one of those S3 takes none with a filter.
    pub fn has_old_form(&self) -> bool {
        let mut rules = self.rules.iter().map(|stored| &stored.rule);
        rules.any(|rule| rule.prefix.is_some() && rule.filter.is_none())
    }

    pub(super) fn write(&self) -> String {
        let rules: Vec<&str> = self.rules.iter().map(|rule| rule.xml.as_str()).collect();
        xml::around(ROOT, &rules)
    }
}

impl StoredRule {
    /// A new rule.
    pub fn new(rule: Rule) -> Self {
        // A structure of strings and numbers: nothing that XML hasn't got a form for.
        let xml = quick_xml::se::to_string_with_root(RULE, &rule).unwrap_or_default();
        Self { rule, xml }
    }
}

impl Rule {
    /// Whether it does anything.
    pub fn is_enabled(&self) -> bool {
        self.status == "Enabled"
    }

    /// What the names of its objects begin with; empty for all.
    pub fn prefix(&self) -> &str {
        let filter = self.filter.as_ref();
        let and = filter.and_then(|filter| filter.and.as_ref());
        let prefix = and
            .and_then(|and| and.prefix.as_deref())
            .or_else(|| filter?.prefix.as_deref());
        prefix.or(self.prefix.as_deref()).unwrap_or_default()
    }

    /// Whether it is only for objects with tags, of which a repository has none.
    pub fn is_for_tagged(&self) -> bool {
        let filter = self.filter.as_ref();
        filter.is_some_and(|filter| {
            filter.tag.is_some() || filter.and.as_ref().is_some_and(|and| !and.tags.is_empty())
        })
    }

    /// Whether it is only for objects of some sizes.
    pub fn is_for_some_sizes(&self) -> bool {
        let filter = self.filter.as_ref();
        filter.is_some_and(|filter| {
            let and = filter.and.as_ref();
            filter.object_size_greater_than.is_some()
                || filter.object_size_less_than.is_some()
                || and.is_some_and(|and| {
                    and.object_size_greater_than.is_some() || and.object_size_less_than.is_some()
                })
        })
    }

    /// The same rule in one form, to compare it: stores have several for a prefix, and for nothing.
    pub fn normalized(&self) -> Self {
        let mut rule = self.clone();
        rule.transitions
            .sort_by(|a, b| (a.days, &a.storage_class).cmp(&(b.days, &b.storage_class)));
        rule.expiration = rule
            .expiration
            .filter(|expiration| *expiration != Expiration::default());
        rule.noncurrent_version_expiration = rule
            .noncurrent_version_expiration
            .filter(|expiration| *expiration != NoncurrentVersionExpiration::default());
        rule.upload_expiration = rule
            .upload_expiration
            .filter(|expiration| expiration.days_after_initiation.is_some());
        if let Some(expiration) = &mut rule.expiration {
            expiration.expired_object_delete_marker =
                expiration.expired_object_delete_marker.filter(|on| *on);
        }
        if !self.is_for_tagged() && !self.is_for_some_sizes() {
            rule.prefix = None;
            rule.filter = Some(Filter {
                prefix: Some(self.prefix().to_owned()),
                ..Filter::default()
            });
        }
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "<Rule><ID>theirs &amp; ours</ID><Status>Enabled</Status><Filter><And><Prefix>a/</Prefix><Tag>\
        <Key>k</Key><Value>v</Value></Tag></And></Filter><Expiration><Days> 30\n</Days></Expiration><Future><Days>1</Days>\
        </Future></Rule>";

    #[test]
    fn what_is_not_known_of_a_rule_is_written_back() {
        let text = format!(
            "<?xml version=\"1.0\"?><LifecycleConfiguration xmlns=\"x\">\n{FOREIGN}\n</LifecycleConfiguration>"
        );
        let lifecycle = Lifecycle::read(&text, None).unwrap();
        let rule = &lifecycle.rules[0].rule;
        assert_eq!(rule.id.as_deref(), Some("theirs & ours"));
        assert_eq!((rule.prefix(), rule.is_for_tagged()), ("a/", true));
        assert_eq!(rule.expiration.as_ref().unwrap().days, Some(30));
        assert!(lifecycle.write().contains(FOREIGN), "{}", lifecycle.write());
        assert_eq!(Lifecycle::read(&lifecycle.write(), None).unwrap(), lifecycle);
    }

    #[test]
    fn nothing_else_is_taken_for_no_rules() {
        for other in [
            "ErrorResponse",
            "GetBucketLifecycleConfigurationResponse",
            "ListBucketResult",
        ] {
            let read = Lifecycle::read(&format!("<{other}></{other}>"), None);
            assert!(read.unwrap_err().contains(other));
        }
        assert_eq!(
            Lifecycle::read("<LifecycleConfiguration/>", None),
            Ok(Lifecycle::default())
        );
    }

    #[test]
    fn own_rules_are_escaped_and_read_back() {
        let rule = Rule {
            id: Some("a <b> & 'c'".to_owned()),
            status: "Enabled".to_owned(),
            filter: Some(Filter {
                prefix: Some("x&y/".to_owned()),
                ..Filter::default()
            }),
            expiration: Some(Expiration {
                days: Some(7),
                ..Expiration::default()
            }),
            transitions: vec![Transition {
                days: Some(3),
                storage_class: "GLACIER_IR".to_owned(),
                date: None,
            }],
            ..Rule::default()
        };
        let lifecycle = Lifecycle {
            rules: vec![StoredRule::new(rule.clone())],
            transition_minimum: None,
        };
        let read = Lifecycle::read(&lifecycle.write(), None).unwrap();
        assert_eq!(read.rules[0].rule, rule);
        assert!(!lifecycle.write().contains("<b>"), "{}", lifecycle.write());
    }

    #[test]
    fn one_rule_in_several_forms_is_the_same() {
        let read = |inside: &str| {
            let text = format!(
                "<LifecycleConfiguration><Rule>{inside}<Status>Enabled</Status></Rule></LifecycleConfiguration>"
            );
            Lifecycle::read(&text, None).unwrap().rules[0].rule.normalized()
        };
        let same = [
            "<Prefix/>",
            "<Filter/>",
            "<Filter><Prefix></Prefix></Filter>",
            "<Filter><And><Prefix/></And></Filter>",
        ];
        for form in same {
            assert_eq!(read(form), read(""), "{form}");
        }
        assert_ne!(read("<Prefix>a</Prefix>"), read(""));
    }
}
