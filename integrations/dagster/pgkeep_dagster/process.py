"""pgkeep as a process of Dagster Pipes.

Dagster's own PipesSubprocessClient would do for most of it. Not for exit code 3, by which pgkeep says that it has done its work and that
something needs attention: to that client it is a failure like any other. Nor for a failure's reason, which it leaves in the log. And what
doesn't end when a run is terminated, it leaves running. So this is the same session with another end.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

Context = dg.OpExecutionContext | dg.AssetExecutionContext

DONE, FAILED, USAGE, ATTENTION, REFUSED = 0, 1, 2, 3, 4

# How long a terminated pgkeep may take to give up what it began; then it is killed, and the next run cleans up.
TERMINATION_SECONDS = 60

MEND_PROGRAM = "install pgkeep where Dagster's code runs, or name it: pgkeep_assets(program='/path/to/pgkeep')"
MEND_VERSION = "install a pgkeep that speaks Dagster Pipes, as new as this package"


@dataclass(frozen=True)
class Ended:
    """A process of pgkeep that has ended, and what it reported."""

    command: str
    code: int
    results: Sequence[Any]
    documents: Sequence[Mapping[str, Any]]

    def reason(self) -> str:
        """Why it failed, in pgkeep's words, with what mends it."""
        for document in self.documents:
            if "failure" in document:
                return f"{self.command} {self._how()}\n{document['failure']['message']}"
        return f"{self.command} {self._how()} and didn't report why; what it printed is in the step's output"

    def failure(self) -> dg.Failure:
        """The failure of the step. Wrong usage and a refusal are the same at the next try."""
        return dg.Failure(
            description=self.reason(),
            metadata={"exit_code": self.code},
            allow_retries=self.code not in (USAGE, REFUSED),
        )

    def unexpected(self, what: str) -> dg.Failure:
        """The process says that all is well, and what it reported doesn't."""
        return dg.Failure(
            description=f"{self.command} {self._how()} and {what}\nhint: {MEND_VERSION}",
            metadata={"exit_code": self.code},
            allow_retries=False,
        )

    def _how(self) -> str:
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        return f"was ended by {name}"


@dataclass(frozen=True)
class Pgkeep:
    """The program, the arguments that all its commands get, and its variables."""

    program: str
    arguments: Sequence[str]
    environment: Mapping[str, str]

    def run(self, context: Context, command: str, arguments: Sequence[str]) -> Ended:
        """Runs a command to its end, whatever that is. What it logs is in the run's log meanwhile."""
        variables = {**os.environ, **_resolved(self.environment)}
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            process = self._start([command, *arguments], {**variables, **session.get_bootstrap_env_vars()})
            code = _wait(context, process)
        documents = [message for message in session.get_custom_messages() if isinstance(message, dict)]
        # Other arguments aren't named in what Dagster shows.
        return Ended(f"pgkeep {command}", code, session.get_results(implicit_materializations=False), documents)

    def _start(self, arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [self.program, *self.arguments, *arguments],
                env=variables,
                stdin=subprocess.DEVNULL,
                # A Ctrl-C on Dagster's terminal would reach it too, and its second signal ends it at once.
                start_new_session=True,
            )
        except OSError as error:
            raise dg.Failure(
                description=f"cannot start {self.program}: {error.strerror}\nhint: {MEND_PROGRAM}", allow_retries=False
            ) from error


def _wait(context: Context, process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except BaseException:
        # The run is terminated, or Dagster's process is.
        context.log.warning(f"the run is being terminated: pgkeep has {TERMINATION_SECONDS} s to end cleanly")
        process.terminate()
        try:
            process.wait(TERMINATION_SECONDS)
        except subprocess.TimeoutExpired:
            context.log.warning("pgkeep didn't end in time and is killed; the next dump cleans up after it")
            process.kill()
            process.wait()
        raise


def _resolved(environment: Mapping[str, str]) -> dict[str, str]:
    """Values of `dg.EnvVar` are looked up when they are needed, so that they are in no definition."""
    resolved = {}
    for name, value in environment.items():
        if isinstance(value, dg.EnvVar):
            source = value.env_var_name
            found = os.environ.get(source)
            if found is None:
                raise dg.Failure(
                    description=f"the variable {source}, from which {name} is to be taken, isn't set\n"
                    f"hint: set {source} where Dagster runs the step",
                    allow_retries=False,
                )
            value = found
        resolved[name] = value
    return resolved
