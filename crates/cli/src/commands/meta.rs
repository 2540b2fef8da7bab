//! `pgkeep completions` and `pgkeep version`: about the program itself.

use clap::CommandFactory;
use serde_json::json;

use crate::args::{Cli, CompletionsArgs};
use crate::context::Context;
use crate::exit::{Failure, Outcome};

/// `pgkeep completions SHELL`
pub fn completions(context: &Context, args: &CompletionsArgs) -> Result<Outcome, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pgkeep", &mut script);
    let script = String::from_utf8_lossy(&script);
    context.output.script(script.trim_end());
    context
        .output
        .json(&json!({ "shell": args.shell.to_string(), "script": script }));
    Ok(Outcome::Done)
}

/// `pgkeep version`
pub fn version(context: &Context) -> Result<Outcome, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    context.output.line(format!("pgkeep {version}"));
    context
        .output
        .json(&json!({ "name": "pgkeep", "version": version }));
    Ok(Outcome::Done)
}
