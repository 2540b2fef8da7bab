//! The findings, for people and for programs: first those that need something, then the rest; each group by area.

use pgkeep_base::Severity;
use serde_json::{Value, json};

use super::{Finding, Findings};
use crate::context::Context;
use crate::output::{ACCENT, BOLD, DIM, Output, counted, fold, styled, terminal_width};

/// Where the texts of findings begin.
const INDENT: usize = 12;

pub(super) fn tell(context: &Context, findings: &Findings) {
    let output = &context.output;
    findings
        .all
        .iter()
        .for_each(|finding| output.json(&finding.json()));
    if problems(output, findings) && !output.is_quiet() {
        output.line("");
    }
    if !output.is_quiet() {
        group(output, findings, |severity| !severity.needs_something());
    }
    match (findings.errors(), findings.warnings()) {
        (0, 0) => output.summary("\nEverything is in place."),
        (0, warnings) => output.summary(format!(
            "\nIt works, with {}: see above.",
            counted(warnings, "warning", "warnings")
        )),
        (errors, _) => output.summary(format!(
            "\n{} to mend: see above.",
            counted(errors, "error", "errors")
        )),
    }
}

impl Finding {
    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "area": self.area,
            "severity": self.severity.word(),
            "what": self.what,
            "why": self.why,
            "mend": self.mend,
        })
    }
}

/// What needs something; whether there was any.
pub(super) fn problems(output: &Output, findings: &Findings) -> bool {
    group(output, findings, Severity::needs_something)
}

fn group(output: &Output, findings: &Findings, belongs: impl Fn(Severity) -> bool) -> bool {
    let mut areas: Vec<&str> = Vec::new();
    for finding in findings.all.iter().filter(|finding| belongs(finding.severity)) {
        if !areas.contains(&finding.area) {
            areas.push(finding.area);
        }
    }
    for (place, area) in areas.iter().enumerate() {
        if place > 0 {
            output.line("");
        }
        output.line(styled(BOLD, area));
        for finding in &findings.all {
            if finding.area == *area && belongs(finding.severity) {
                one(output, finding);
            }
        }
    }
    !areas.is_empty()
}

fn one(output: &Output, finding: &Finding) {
    let style = match finding.severity {
        Severity::Ok => ACCENT,
        Severity::Info => DIM,
        Severity::Warning | Severity::Error => BOLD,
    };
    let pad = " ".repeat("warning".len() - finding.severity.word().len());
    let indent = " ".repeat(INDENT);
    let folded = |text: &str| {
        fold(text, terminal_width(), INDENT)
            .iter()
            .for_each(|line| output.line(line));
    };
    folded(&format!(
        "  {}{pad}   {}",
        styled(style, finding.severity.word()),
        finding.what
    ));
    if finding.severity == Severity::Ok {
        return;
    }
    if !finding.why.is_empty() {
        folded(&format!("{indent}{}", styled(DIM, &finding.why)));
    }
    if let Some(mend) = &finding.mend {
        // Never folded: it is there to be copied.
        output.line(format!("{indent}{}", styled(ACCENT, mend)));
    }
}
