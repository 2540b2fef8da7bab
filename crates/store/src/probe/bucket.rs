//! The settings of an S3 bucket. Not every credential may see them: that's fine, and said.

use pgkeep_base::Severity;

use super::ProbeReport;
use crate::counts::Request;
use crate::store::Store;

/// What became of the question.
enum Answer {
    /// The setting's XML.
    Set(String),
    /// The bucket has no such setting.
    Unset,
    /// Not permitted, not understood, or no answer.
    Unknown(String),
}

pub(super) async fn probe(store: &Store, disposable: fn(&str) -> bool, report: &mut ProbeReport) {
    if store.inner.opened.s3.is_none() {
        return;
    }
    let versioning = ask(store, "versioning", "s3:GetBucketVersioning").await;
    probe_versioning(&versioning, report);
    let object_lock = ask(store, "object-lock", "s3:GetBucketObjectLockConfiguration").await;
    probe_object_lock(&object_lock, report);
    let lifecycle = ask(store, "lifecycle", "s3:GetLifecycleConfiguration").await;
    let prefix = store.inner.opened.prefix.as_ref();
    probe_lifecycle(&lifecycle, &Place { prefix, disposable }, report);
}

/// Where in the bucket the backups are.
struct Place<'a> {
    /// The store's own prefix, without a slash at its end.
    prefix: &'a str,
    /// Whether what lies below a prefix, relative to the store's, may go at any time.
    disposable: fn(&str) -> bool,
}

impl Place<'_> {
    /// Whether a rule for this prefix of the bucket reaches backups.
    fn is_reached_by(&self, rule: &str) -> bool {
        let own = match self.prefix {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        match rule.strip_prefix(&own) {
            Some(inside) => !inside.starts_with(super::DIRECTORY_PREFIX) && !(self.disposable)(inside),
            None => own.starts_with(rule),
        }
    }
}

async fn ask(store: &Store, setting: &str, permission: &str) -> Answer {
    let Some(s3) = &store.inner.opened.s3 else {
        return Answer::Unset;
    };
    let asked = store
        .attempt(
            Request::Get,
            store.inner.options.request_timeout,
            s3.setting(setting),
        )
        .await;
    match asked {
        Ok((200, xml)) => Answer::Set(xml),
        // NoSuchLifecycleConfiguration, ObjectLockConfigurationNotFoundError
        Ok((404, _)) => Answer::Unset,
        Ok((403, _)) => Answer::Unknown(format!("these credentials lack {permission}")),
        Ok((status, _)) => Answer::Unknown(format!("the store answered {status}")),
        Err(cause) => Answer::Unknown(cause.why),
    }
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketVersioning.html>
fn probe_versioning(answer: &Answer, report: &mut ProbeReport) {
    const CHECK: &str = "versioning";
    let why = "With versioning, what is deleted by mistake or malice can be brought back.";
    match answer {
        Answer::Set(xml) if text(xml, "Status") == Some("Enabled") => {
            report.capabilities.versioning = Some(true);
            report.add(CHECK, Severity::Ok, "the bucket keeps old versions", why);
        }
        Answer::Set(_) | Answer::Unset => {
            report.capabilities.versioning = Some(false);
            report.add(CHECK, Severity::Info, "the bucket keeps no old versions", why);
        }
        Answer::Unknown(reason) => {
            report.add(
                CHECK,
                Severity::Info,
                format!("versioning: unknown ({reason})"),
                why,
            );
        }
    }
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectLockConfiguration.html>
fn probe_object_lock(answer: &Answer, report: &mut ProbeReport) {
    const CHECK: &str = "object-lock";
    let why = "Under Object Lock nobody can delete a backup before its time, pgkeep's retention included.";
    match answer {
        Answer::Set(xml) if text(xml, "ObjectLockEnabled") == Some("Enabled") => {
            report.capabilities.object_lock = Some(true);
            let mode = text(xml, "Mode").unwrap_or("no default").to_lowercase();
            let time = text(xml, "Days").map(|days| format!(" for {days} days"));
            let time = time
                .or_else(|| text(xml, "Years").map(|years| format!(" for {years} years")))
                .unwrap_or_default();
            let what = format!("Object Lock is on, with {mode} retention{time}");
            report.add(CHECK, Severity::Ok, what, why);
        }
        Answer::Set(_) | Answer::Unset => {
            report.capabilities.object_lock = Some(false);
            report.add(CHECK, Severity::Info, "Object Lock is off", why);
        }
        Answer::Unknown(reason) => {
            report.add(
                CHECK,
                Severity::Info,
                format!("Object Lock: unknown ({reason})"),
                why,
            );
        }
    }
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html>
fn probe_lifecycle(answer: &Answer, place: &Place<'_>, report: &mut ProbeReport) {
    const CHECK: &str = "lifecycle";
    let xml = match answer {
        Answer::Set(xml) => xml,
        Answer::Unset => {
            report.capabilities.lifecycle = Some(false);
            let why = "Nothing interferes with pgkeep's retention; but unfinished multipart uploads stay, and cost.";
            report.add(CHECK, Severity::Ok, "the bucket has no lifecycle rules", why);
            return;
        }
        Answer::Unknown(reason) => {
            let why = "A rule that expires objects would tear backups apart.";
            report.add(
                CHECK,
                Severity::Info,
                format!("lifecycle rules: unknown ({reason})"),
                why,
            );
            return;
        }
    };
    let rules: Vec<&str> = xml
        .split("<Rule>")
        .skip(1)
        .filter(|rule| text(rule, "Status") == Some("Enabled"))
        .collect();
    report.capabilities.lifecycle = Some(!rules.is_empty());
    let mut harmless = true;
    for rule in &rules {
        harmless &= probe_rule(rule, place, report);
    }
    if harmless {
        let what = format!(
            "none of the bucket's {} lifecycle rules touches backups",
            rules.len()
        );
        report.add(
            CHECK,
            Severity::Ok,
            what,
            "A rule that expires objects would tear backups apart.",
        );
    }
}

/// False if the rule does harm to backups.
fn probe_rule(rule: &str, place: &Place<'_>, report: &mut ProbeReport) -> bool {
    const CHECK: &str = "lifecycle";
    let id = text(rule, "ID").unwrap_or("without a name");
    let prefix = text(rule, "Prefix").unwrap_or_default();
    if !place.is_reached_by(prefix) {
        return true;
    }
    let below = match prefix {
        "" => String::new(),
        prefix => format!(" below '{prefix}'"),
    };
    let mut harmless = true;
    if let Some(expiration) =
        element(rule, "Expiration").filter(|e| e.contains("<Days>") || e.contains("<Date>"))
    {
        harmless = false;
        let days = text(expiration, "Days")
            .map(|days| format!(" after {days} days"))
            .unwrap_or_default();
        let what = format!("the lifecycle rule '{id}' expires objects{below}{days}");
        let why =
            "It knows nothing of which objects belong together: the oldest backups would be torn apart.";
        report
            .add(CHECK, Severity::Warning, what, why)
            .mend("remove the rule, and let pgkeep prune decide what goes");
    }
    let classes = elements(rule, "Transition").filter_map(|transition| text(transition, "StorageClass"));
    for class in classes.filter(|class| matches!(*class, "GLACIER" | "DEEP_ARCHIVE")) {
        harmless = false;
        let what = format!("the lifecycle rule '{id}' moves objects{below} to {class}");
        let why = "From there nothing can be read, so nothing restored, before hours of waiting.";
        report
            .add(CHECK, Severity::Warning, what, why)
            .mend("use GLACIER_IR or STANDARD_IA in the rule");
    }
    harmless
}

fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    elements(xml, name).next()
}

/// All elements of a name, of which none is inside another.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&begin)?;
        let (inner, after) = after.split_once(&end)?;
        rest = after;
        Some(inner)
    })
}

fn text<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    element(xml, name)
        .map(str::trim)
        .filter(|text| !text.is_empty() && text.len() < 200 && !text.contains('<'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifecycle(rules: &str) -> ProbeReport {
        let mut report = ProbeReport::default();
        let xml = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
        let place = Place {
            prefix: "a",
            disposable: |prefix| prefix.ends_with("/lease/"),
        };
        probe_lifecycle(&Answer::Set(xml), &place, &mut report);
        report
    }

    fn expiring(prefix: &str) -> String {
        format!(
            "<Rule><ID>old</ID><Status>Enabled</Status><Filter>{prefix}</Filter><Expiration><Days>30</Days>\
             </Expiration></Rule>"
        )
    }

    #[test]
    fn rules_that_would_tear_backups_apart_are_named() {
        let report = lifecycle(&expiring("<Prefix>a/</Prefix>"));
        assert_eq!(report.severity(), Severity::Warning);
        assert!(
            report.findings[0]
                .what
                .contains("'old' expires objects below 'a/' after 30 days"),
            "{report:?}"
        );
        let report = lifecycle(
            "<Rule><ID>cold</ID><Status>Enabled</Status>\
             <Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition></Rule>",
        );
        assert_eq!(report.severity(), Severity::Warning);
    }

    #[test]
    fn every_transition_of_a_rule_is_looked_at() {
        let report = lifecycle(
            "<Rule><ID>steps</ID><Status>Enabled</Status>\
             <Transition><Days>30</Days><StorageClass>STANDARD_IA</StorageClass></Transition>\
             <Transition><Days>90</Days><StorageClass>GLACIER</StorageClass></Transition></Rule>",
        );
        assert_eq!(report.severity(), Severity::Warning);
        assert!(
            report.findings[0]
                .what
                .contains("'steps' moves objects to GLACIER"),
            "{report:?}"
        );
    }

    #[test]
    fn a_rule_is_judged_by_what_lies_below_its_prefix() {
        let severity = |prefix: &str| lifecycle(&expiring(prefix)).severity();
        for reaching in ["", "<Prefix>a</Prefix>", "<Prefix>a/main/dump/</Prefix>"] {
            assert_eq!(severity(reaching), Severity::Warning, "{reaching}");
        }
        for elsewhere in ["b/", "ab/", "a/main/lease/", "a/pgkeep-probe-"] {
            let prefix = format!("<Prefix>{elsewhere}</Prefix>");
            assert_eq!(severity(&prefix), Severity::Ok, "{elsewhere}");
        }
    }

    #[test]
    fn rules_that_do_no_harm_are_let_be() {
        let report = lifecycle(
            "<Rule><ID>off</ID><Status>Disabled</Status><Expiration><Days>30</Days></Expiration></Rule>\
             <Rule><ID>debris</ID><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>1\
             </DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>\
             <Rule><ID>marks</ID><Status>Enabled</Status><Expiration><ExpiredObjectDeleteMarker>true\
             </ExpiredObjectDeleteMarker></Expiration></Rule>",
        );
        assert_eq!(
            (report.severity(), report.capabilities.lifecycle),
            (Severity::Ok, Some(true)),
            "{report:?}"
        );
    }
}
