//! The plan and what came of it, for people and for programs.

use pgkeep_base::{Severity, quote_for_shell};
use pgkeep_repository::bucket::{Applied, Came, Expiry, Move, Need, Plan, SetUp, Step};
use serde_json::{Value, json};

use super::Place;
use crate::args::WantedArgs;
use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{ACCENT, counted, styled};
use crate::table::{Align, Table};

/// What is, what should be, what is to be done.
pub(super) fn plan(context: &Context, plan: &Plan) {
    let mut table = Table::new(&[
        ("SETTING", Align::Left),
        ("NOW", Align::Fold),
        ("WANTED", Align::Fold),
        ("ACTION", Align::Left),
    ]);
    for step in &plan.steps {
        let [setting, now, wanted] = [&step.setting, &step.now, &step.wanted].map(String::clone);
        table.row(vec![setting, now, wanted, action(step.need).to_owned()]);
    }
    context.output.table(&table);
}

fn action(need: Need) -> &'static str {
    match need {
        Need::Nothing => "",
        Need::Change => "to set",
        Need::ByHand => "by hand",
        Need::Unsupported => "none: not supported",
        Need::Unknown => "none: not seen",
    }
}

fn word(need: Need) -> &'static str {
    match need {
        Need::Nothing => "nothing",
        Need::Change => "set",
        Need::ByHand => "by_hand",
        Need::Unsupported => "unsupported",
        Need::Unknown => "unknown",
    }
}

/// The command that sets the bucket up as it is wanted.
pub(super) fn command(args: &WantedArgs, flags: &[String]) -> String {
    let mut words = vec!["pgkeep bucket setup".to_owned()];
    match args.expire_dumps_after {
        Some(Expiry::Never) => words.push("--expire-dumps-after never".to_owned()),
        Some(Expiry::AfterDays(days)) => words.push(format!("--expire-dumps-after {days}")),
        Some(Expiry::AsItIs) | None => {}
    }
    match &args.transition {
        Some(Move::Never) => words.push("--transition never".to_owned()),
        Some(Move::To { class, days }) => words.push(format!("--transition {class}:{days}")),
        Some(Move::AsItIs) | None => {}
    }
    if let Some(days) = args.noncurrent_days {
        words.push(format!("--noncurrent-days {days}"));
    }
    if let Some(lock) = args.object_lock {
        let mode = lock.mode.word().to_lowercase();
        words.push(format!("--object-lock {mode}:{}", lock.days));
    }
    if let Some(key) = &args.kms_key {
        words.push(format!("--kms-key {}", quote_for_shell(key)));
    }
    words.extend(flags.iter().cloned());
    words.join(" ")
}

/// What of the bucket needs something.
pub(super) fn found(context: &Context, place: &Place, plan: &Plan) {
    let output = &context.output;
    notes(context, plan.steps.iter());
    let mend_of = |step: &Step| match step.need {
        Need::Change => Some(place.command.clone()),
        _ => step.mend.clone(),
    };
    for step in plan.needing() {
        let says = match step.need {
            Need::Change => format!("{}: {}, and should be: {}", step.setting, step.now, step.wanted),
            _ => format!("{}: {}", step.setting, step.now),
        };
        tell(context, &says, step, mend_of(step));
    }
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .map(|step| step_json(step, mend_of(step)))
        .collect();
    output.json(&json!({ "repository": place.store.url(), "settings": steps }));
    output.summary(match plan.needing().count() {
        0 => "\nThe bucket is right for backups.".to_owned(),
        number => format!("\n{} to mend.", counted(number as u64, "setting", "settings")),
    });
}

fn step_json(step: &Step, mend: Option<String>) -> Value {
    json!({
        "setting": step.setting,
        "now": step.now,
        "wanted": step.wanted,
        "action": word(step.need),
        "severity": step.severity.word(),
        "why": step.why,
        "mend": mend,
    })
}

/// Something that somebody has to look at.
fn tell(context: &Context, says: &str, step: &Step, mend: Option<String>) {
    let mut text = says.to_owned();
    for line in [Some(step.why.clone()), mend.map(|mend| styled(ACCENT, mend))]
        .into_iter()
        .flatten()
    {
        if !line.is_empty() {
            text.push_str(&format!("\n{line}"));
        }
    }
    context.output.attention(text);
}

/// What is good to know and needs nothing.
fn notes<'a>(context: &Context, steps: impl Iterator<Item = &'a Step>) {
    let known = steps.filter(|step| step.severity == Severity::Info);
    known.for_each(|step| context.output.note(format!("{}: {}", step.setting, step.why)));
}

/// What the setup doesn't do.
fn left(context: &Context, plan: &Plan) -> Outcome {
    let mut outcome = Outcome::Done;
    for step in plan.needing().filter(|step| step.need != Need::Change) {
        tell(
            context,
            &format!("{}: {}", step.setting, step.now),
            step,
            step.mend.clone(),
        );
        outcome = Outcome::Attention;
    }
    outcome
}

/// Nothing was changed: nothing was to be, or only the plan was asked for.
pub(super) fn without_changes(context: &Context, place: &Place, plan: &Plan, dry_run: bool) -> Outcome {
    notes(context, plan.steps.iter());
    dumps_that_go(context, plan);
    let outcome = left(context, plan);
    let number = plan.steps.iter().filter(|step| step.need == Need::Change).count();
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .map(|step| step_json(step, step.mend.clone()))
        .collect();
    context.output.json(&json!({
        "repository": place.store.url(),
        "dry_run": dry_run,
        "settings": steps,
        "applied": [],
        "left": plan.needing().map(|step| step_json(step, step.mend.clone())).collect::<Vec<_>>(),
    }));
    context.output.summary(match number {
        0 => "\nNothing to do.".to_owned(),
        number => format!(
            "\n{} would be set; nothing was.",
            counted(number as u64, "setting", "settings")
        ),
    });
    outcome
}

/// What a rule will delete is told before it does.
fn dumps_that_go(context: &Context, plan: &Plan) {
    let steps = plan.steps.iter().filter(|step| step.need == Need::Change);
    for step in steps.filter(|step| step.setting.starts_with("dumps of ") && !step.why.is_empty()) {
        context.output.note(format!("{}: {}", step.setting, step.why));
    }
}

/// What came of the changes.
pub(super) fn set_up(context: &Context, place: &Place, plan: &Plan, set_up: &SetUp) -> Outcome {
    let output = &context.output;
    let applied = &set_up.applied;
    dumps_that_go(context, plan);
    // By now the store has said what it hasn't got; of a bucket that was just made nobody knew.
    notes(
        context,
        plan.steps.iter().filter(|step| step.need == Need::Nothing),
    );
    notes(
        context,
        set_up
            .after
            .steps
            .iter()
            .filter(|step| step.need != Need::Nothing),
    );
    let mut outcome = left(context, &set_up.after);
    let mut done = 0_u64;
    for one in applied {
        match problem(one) {
            None => done += 1,
            Some(problem) => {
                let cost = plan.steps.iter().find(|step| step.setting == one.setting);
                let cost = cost.map(|step| step.why.as_str()).filter(|why| !why.is_empty());
                output.attention(match cost {
                    Some(cost) => format!("{problem}\n{cost}"),
                    None => problem,
                });
                outcome = Outcome::Attention;
            }
        }
    }
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .map(|step| step_json(step, step.mend.clone()))
        .collect();
    output.json(&json!({
        "repository": place.store.url(),
        "dry_run": false,
        "settings": steps,
        "applied": applied.iter().map(applied_json).collect::<Vec<_>>(),
        "left": set_up.after.needing().map(|step| step_json(step, step.mend.clone())).collect::<Vec<_>>(),
    }));
    let of = applied.len() as u64;
    output.summary(match done == of {
        true => format!("\nSet {}.", counted(done, "setting", "settings")),
        false => format!(
            "\nSet {done} of {}: see above.",
            counted(of, "setting", "settings")
        ),
    });
    outcome
}

fn problem(applied: &Applied) -> Option<String> {
    let setting = &applied.setting;
    match &applied.came {
        Came::Done(_) => None,
        Came::Ignored => Some(format!(
            "{setting}: the store took it, and hasn't got it: it isn't supported there"
        )),
        Came::Refused(said) => Some(format!("{setting}: the store didn't take it: {said}")),
        Came::Forbidden(permission) => Some(format!(
            "{setting}: these credentials lack {permission}: allow them that, and run it again"
        )),
        Came::Failed(error) => Some(format!("{setting}: {error}")),
        Came::Lost(rules) => Some(format!(
            "{setting}: rules of others are not as they were: {}. Somebody else may have changed them just now; look after them",
            rules.join(", ")
        )),
    }
}

fn applied_json(applied: &Applied) -> Value {
    let state = match &applied.came {
        Came::Done(_) => "done",
        Came::Ignored => "ignored",
        Came::Refused(_) => "refused",
        Came::Forbidden(_) => "forbidden",
        Came::Failed(_) => "failed",
        Came::Lost(_) => "lost",
    };
    json!({ "setting": applied.setting, "state": state, "problem": problem(applied) })
}
