//! `pgkeep`, the binary: arguments, wiring, printing, exit codes; nothing else (see docs/ARCHITECTURE.md).

mod args;
mod commands;
mod context;
mod exit;
mod logging;
mod output;
mod pipes;
mod printable;
mod progress;
mod signals;
mod table;
mod usage;

use std::process::ExitCode;
use std::time::Duration;

use args::Cli;
use context::Context;
use exit::{FAILED, Failure, Outcome};
use output::Output;
use signals::Cancellation;

/// How long the end waits for work that nobody waits for any more.
const GIVEN_UP_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let is_fetch = usage::is_wal_fetch(std::env::args_os().skip(1));
    if is_fetch {
        exit::panic_is_uncertain();
    }
    let code = match pipes::open() {
        Ok(()) => pipes::close(start()),
        Err(failure) => {
            failure.tell(&Output::new(false, false));
            failure.code()
        }
    };
    ExitCode::from(exit::of_process(code, is_fetch))
}

fn start() -> u8 {
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let output = Output::new(cli.global.json, cli.global.quiet);
    logging::start(cli.global.quiet, cli.global.verbose);
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(run(cli, output));
            // Work that was given up may hang in the kernel: on a file system whose server is away, say.
            runtime.shutdown_timeout(GIVEN_UP_WAIT);
            code
        }
        Err(error) => {
            let failure = Failure::failed("cannot start threads", &error);
            failure.tell(&output);
            failure.code()
        }
    }
}

async fn run(cli: Cli, output: Output) -> u8 {
    let cancellation = match Cancellation::listen() {
        Ok(cancellation) => cancellation,
        Err(failure) => {
            failure.tell(&output);
            return failure.code();
        }
    };
    let context = Context::new(output, cli.global, cancellation);
    let outcome = Box::pin(commands::run(&context, cli.command)).await;
    let code = outcome.map_or_else(
        |failure| {
            failure.tell(&context.output);
            failure.code()
        },
        Outcome::code,
    );
    // What was asked for was done, and nobody could be told.
    if code == exit::DONE && context.output.has_failed() {
        FAILED
    } else {
        code
    }
}
