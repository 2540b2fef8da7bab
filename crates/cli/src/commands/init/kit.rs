//! What has to be kept apart from everything else, and what brings everything back.

use pgkeep_base::{ByteCount, quote_for_shell};
use pgkeep_config::SETTINGS;
use pgkeep_dump::DumpReport;
use pgkeep_dump::check::ServerFacts;
use pgkeep_dump::verify::VerifyReport;

use super::Plan;
use super::files::Key;
use crate::context::{Context, Settings};
use crate::output::{BOLD, count, counted, styled};

pub(super) fn tell(
    context: &Context,
    plan: &Plan,
    settings: &Settings,
    first: Option<&(DumpReport, VerifyReport)>,
) {
    let output = &context.output;
    output.json(&plan.json(first));
    if output.is_quiet() {
        return;
    }
    plan.tell_written(context);
    if let Some((report, verified)) = first {
        tell_first(context, report, verified);
    }
    output.line(format!(
        "\n{}: keep this and the key apart from this machine, in two places.\n",
        styled(BOLD, "Recovery kit")
    ));
    let facts = plan.source.facts.as_ref();
    output.facts(&[
        ("repository", plan.repository.clone()),
        ("cluster", plan.name.clone()),
        ("secret key", secret_key(plan)),
        ("public key", plan.key.recipients().join(", ")),
        ("server", facts.map(server).unwrap_or_default()),
        ("databases", facts.map(databases).unwrap_or_default()),
    ]);
    let (identity, from) = match plan.key {
        Key::None => ("", ""),
        _ => (" --identity pgkeep.key", ", the key in pgkeep.key"),
    };
    output.line(format!(
        "\nOn another machine, with pgkeep{from} and access to the repository:\n"
    ));
    let at = format!("{}{identity}{}", place(plan), further(plan));
    output.line(format!("  pgkeep list {}{}", place(plan), further(plan)));
    output.line(format!("  pgkeep verify latest {at}"));
    output.line(format!(
        "  pgkeep restore latest {at} --into image:{}",
        image(plan)
    ));
    output.line(
        "\n'--into postgres://...' restores into a server that runs, '--into files:DIRECTORY' opens the files. Without pgkeep: \
         RESTORE.md in each dump.",
    );
    let config = match context.config_path() {
        Some(path) => format!(" --config {}", quote_for_shell(&path.display().to_string())),
        None => String::new(),
    };
    output.line(format!(
        "\nEvery night:  pgkeep run{config}   (dump.schedule: {}, {})",
        plan.schedule,
        settings.cluster.timezone.iana_name().unwrap_or("local time")
    ));
}

fn tell_first(context: &Context, report: &DumpReport, verified: &VerifyReport) {
    let totals = report.manifest.totals;
    let what = format!(
        "{} in {}, {} stored in {}",
        counted(totals.rows, "row", "rows"),
        counted(totals.relations, "table", "tables"),
        ByteCount(totals.plain_bytes),
        ByteCount(totals.stored_bytes)
    );
    let proof = if verified.passed() {
        format!("read back whole ({} objects)", count(verified.objects))
    } else {
        "and it is DAMAGED: 'pgkeep verify' says where".to_owned()
    };
    context
        .output
        .line(format!("The first dump, {}: {what}; {proof}.", report.id));
}

fn secret_key(plan: &Plan) -> String {
    match &plan.key {
        Key::None => "none: dumps are not encrypted".to_owned(),
        Key::Public(_) => "yours, of which the public key is below".to_owned(),
        Key::Secret { file, .. } => format!("{} (without it no dump can be read)", file.display()),
    }
}

fn server(facts: &ServerFacts) -> String {
    let timescaledb = timescaledb(facts).map(|version| format!(", TimescaleDB {version}"));
    format!("PostgreSQL {}{}", facts.version, timescaledb.unwrap_or_default())
}

fn timescaledb(facts: &ServerFacts) -> Option<&str> {
    facts
        .databases
        .iter()
        .find_map(|database| database.timescaledb.as_deref())
}

fn databases(facts: &ServerFacts) -> String {
    let one = |database: &pgkeep_dump::check::DatabaseFacts| match database.bytes {
        Some(bytes) => format!("{} ({})", database.name, ByteCount(bytes)),
        None => database.name.clone(),
    };
    facts.databases.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn place(plan: &Plan) -> String {
    format!(
        "--repository {} --cluster {}",
        quote_for_shell(&plan.repository),
        quote_for_shell(&plan.name)
    )
}

/// How the store is reached, as it was given here. Secrets aren't printed.
fn further(plan: &Plan) -> String {
    let of_store = |name: &str| {
        let is_secret = SETTINGS
            .iter()
            .any(|setting| setting.name == name && setting.secret);
        !is_secret
            && ["s3.", "gcs.", "azure."]
                .iter()
                .any(|store| name.starts_with(store))
    };
    let given = plan.set.iter().filter(|(name, _)| of_store(name));
    given
        .map(|(name, value)| format!(" --set {}", quote_for_shell(&format!("{name}={value}"))))
        .collect()
}

/// An image with which the dump can be restored.
fn image(plan: &Plan) -> String {
    if let Some(image) = &plan.source.image {
        return quote_for_shell(image);
    }
    let Some(facts) = &plan.source.facts else {
        return "postgres".to_owned();
    };
    match timescaledb(facts) {
        Some(version) => format!("timescale/timescaledb:{version}-pg{}", facts.major),
        None => format!("postgres:{}", facts.major),
    }
}
