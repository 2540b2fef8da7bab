//! Questions, where there is somebody to answer them.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::context::Context;
use crate::exit::Failure;
use crate::output::{ACCENT, styled};

/// How often an answer that can't be is asked for again.
const ATTEMPTS_MAX: u32 = 5;

pub(super) struct Ask<'a> {
    context: &'a Context,
    interactive: bool,
}

impl<'a> Ask<'a> {
    /// Asks only on a terminal, and only people.
    pub(super) fn new(context: &'a Context, yes: bool) -> Self {
        let output = &context.output;
        let interactive = !yes
            && !output.is_json()
            && !output.is_quiet()
            && io::stdin().is_terminal()
            && io::stderr().is_terminal();
        Self { context, interactive }
    }

    pub(super) fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// An answer; the default where nothing is answered or nobody is there. `flag` says it without a question.
    pub(super) async fn value(
        &self,
        question: &str,
        default: Option<&str>,
        flag: &str,
    ) -> Result<String, Failure> {
        if !self.interactive {
            return default.map(str::to_owned).ok_or_else(|| {
                Failure::usage(
                    format!("nobody is here to answer: {question}"),
                    format!("add {flag}"),
                )
            });
        }
        for _ in 0..ATTEMPTS_MAX {
            let answer = self.line(question, default).await?;
            match (answer.trim(), default) {
                ("", Some(default)) => return Ok(default.to_owned()),
                ("", None) => {}
                (answer, _) => return Ok(answer.to_owned()),
            }
        }
        Err(Failure::usage("there was no answer", format!("add {flag}")))
    }

    /// One of several, by its number.
    pub(super) async fn choice(&self, question: &str, choices: &[String]) -> Result<usize, Failure> {
        let mut text = question.to_owned();
        for (place, choice) in choices.iter().enumerate() {
            text.push_str(&format!("\n  {}  {choice}", place + 1));
        }
        for _ in 0..ATTEMPTS_MAX {
            let answer = self.line(&text, Some("1")).await?;
            let number = match answer.trim() {
                "" => Ok(1),
                answer => answer.parse::<usize>(),
            };
            match number {
                Ok(number) if (1..=choices.len()).contains(&number) => return Ok(number - 1),
                _ => self
                    .context
                    .output
                    .note(format!("a number from 1 to {}, please", choices.len())),
            }
        }
        Err(Failure::usage(
            "there was no answer",
            "name the server with --container or --connection",
        ))
    }

    async fn line(&self, question: &str, default: Option<&str>) -> Result<String, Failure> {
        let default = default.map(|default| format!(" [{default}]")).unwrap_or_default();
        let text = format!("{}{default}\n{} ", question, styled(ACCENT, ">"));
        let reading = tokio::task::spawn_blocking(move || {
            let mut stderr = anstream::stderr().lock();
            write!(stderr, "{text}").and_then(|()| stderr.flush())?;
            let mut line = String::new();
            match io::stdin().lock().read_line(&mut line)? {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => Ok(line),
            }
        });
        match reading.await {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) => Err(Failure::failed("cannot read the answer", &error)),
            Err(error) => Err(Failure::failed("cannot read the answer", &error)),
        }
    }
}
