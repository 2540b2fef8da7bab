//! `pgkeep doctor`: what is in place, what isn't, and what to do about it.

mod configuration;
mod encryption;
mod print;
mod repository;
mod server;

use pgkeep_base::Classified;
use pgkeep_config::Overrides;
use pgkeep_dump::check::ServerFacts;
use serde_json::Value;

use crate::context::{Context, Settings};
use crate::exit::{Failure, Outcome};

/// The oldest server that is supported.
const MAJOR_MIN: u32 = 15;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Ok,
    /// Good to know.
    Info,
    /// It works, with something missing or at risk.
    Warning,
    /// It doesn't work.
    Error,
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    /// Whether somebody should do something.
    fn needs_something(self) -> bool {
        matches!(self, Self::Warning | Self::Error)
    }
}

/// One check.
struct Finding {
    area: &'static str,
    mark: Mark,
    what: String,
    why: String,
    mend: Option<String>,
}

/// All checks.
#[derive(Default)]
pub struct Findings {
    all: Vec<Finding>,
    /// What the server is, where it could be reached.
    pub server: Option<ServerFacts>,
}

impl Findings {
    fn add(
        &mut self,
        area: &'static str,
        mark: Mark,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: Option<String>,
    ) {
        self.all.push(Finding {
            area,
            mark,
            what: what.into(),
            why: why.into(),
            mend,
        });
    }

    fn ok(&mut self, area: &'static str, what: impl Into<String>) {
        self.add(area, Mark::Ok, what, "", None);
    }

    fn error(&mut self, area: &'static str, error: &dyn Classified) {
        let mend = error.hint().map(|hint| hint.to_string());
        self.add(area, Mark::Error, error.to_string(), "", mend);
    }

    fn failure(&mut self, area: &'static str, failure: &Failure) {
        let mend = failure.hint().map(str::to_owned);
        self.add(area, Mark::Error, failure.text(), "", mend);
    }

    fn number_of(&self, mark: Mark) -> u64 {
        self.all.iter().filter(|finding| finding.mark == mark).count() as u64
    }

    /// What a dump would do without, or may be lost.
    pub fn warnings(&self) -> u64 {
        self.number_of(Mark::Warning)
    }

    /// What is to be done before a dump can be made.
    pub fn errors(&self) -> u64 {
        self.number_of(Mark::Error)
    }
}

/// `pgkeep doctor`
pub async fn run(context: &Context) -> Result<Outcome, Failure> {
    let settings = context.settings(Overrides::default())?;
    let findings = examine(&settings).await;
    print::tell(context, &findings);
    Ok(match (findings.errors(), findings.warnings()) {
        (0, 0) => Outcome::Done,
        (0, _) => Outcome::Attention,
        _ => Outcome::Failed,
    })
}

/// Every check.
pub async fn examine(settings: &Settings) -> Findings {
    let mut findings = Findings::default();
    configuration::check(settings, &mut findings);
    encryption::check(settings, &mut findings);
    server::check(settings, &mut findings).await;
    repository::check(settings, &mut findings).await;
    findings
}

/// Tells people what needs something, with its mends.
pub fn tell_problems(context: &Context, findings: &Findings) {
    if print::problems(&context.output, findings) {
        context.output.line("");
    }
}

/// What needs something, for programs.
pub fn problems_json(findings: &Findings) -> Vec<Value> {
    let problems = findings
        .all
        .iter()
        .filter(|finding| finding.mark.needs_something());
    problems.map(Finding::json).collect()
}
