"""What the tests stand on: a PostgreSQL server with two databases, SeaweedFS, and configurations of pgkeep in folders of their own.

The servers are those of bench/. PGKEEP_TEST_CACHE is what scripts/test-setup fills, PGKEEP_TEST_PROGRAM is the pgkeep to test.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import dagster as dg

TOP = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TOP / "bench"))
import servers  # noqa: E402

CACHE = Path(os.environ["PGKEEP_TEST_CACHE"]).resolve()
PROGRAM = Path(os.environ["PGKEEP_TEST_PROGRAM"]).resolve()
POSTGRES = CACHE / "postgresql/16/bin"
WEED = CACHE / "stores/bin/weed"

# Given wherever a secret is asked for, so that its appearance anywhere is a finding.
SECRET = "hunter2-is-secret"
ROWS = 2000

SCHEMA = f"""
CREATE TABLE players AS SELECT i AS id, 'player ' || i AS name FROM generate_series(1, {ROWS}) i;
CREATE ROLE reader LOGIN;
CREATE ROLE writer LOGIN SUPERUSER PASSWORD '{SECRET}';
GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
"""


class Place:
    """A folder with servers in it; all gone at `close`."""

    def __init__(self):
        self.work = servers.Work(tempfile.gettempdir())
        settings = {"shared_buffers": "32MB", "fsync": "off"}
        # What is there for TimescaleDB does no harm without it, except its library.
        self.server = servers.Postgres(self.work, POSTGRES, {"shared_preload_libraries": "", **settings})
        self.server.psql("postgres", "CREATE DATABASE app")
        self.server.psql("app", SCHEMA)

    def close(self):
        self.work.close()

    def configure(self, name, repository=None, user="postgres", **settings):
        """A folder with a key and a configuration; the configuration's path."""
        folder = self.work.path / name
        folder.mkdir()
        pgkeep("key", "new", "--output", folder / "key")
        recipient = pgkeep("key", "show", folder / "key").split()[0]
        lines = {
            "connection": f"host={self.server.socket} user={user} dbname=app",
            "repository": repository or f"file://{folder}/repository",
            "recipients": recipient,
            "pg_bin": str(POSTGRES),
            "dump": {"databases": ["app"]},
            **settings,
        }
        config = folder / "pgkeep.toml"
        config.write_text("[cluster.game]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in lines.items()))
        return config

    def script(self, name, text):
        """A program in the place of pgkeep."""
        path = self.work.path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def pgkeep(*arguments, code=0, **more):
    """Runs a command as a person would, outside Dagster; its standard output."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, **more)
    assert done.returncode == code, f"{arguments} ended with {done.returncode}: {done.stderr}"
    return done.stdout


class Events:
    """All that a run left in Dagster's instance."""

    def __init__(self, instance, run_id):
        self.logs = instance.all_logs(run_id)
        # Everything that a person or a program could read of the run.
        self.text = "\n".join(f"{entry} {entry.user_message} {entry.dagster_event}" for entry in self.logs)

    def of(self, event_type):
        return [entry.dagster_event for entry in self.logs if entry.dagster_event and entry.dagster_event.event_type == event_type]

    def materializations(self):
        return [event.step_materialization_data.materialization for event in self.of(dg.DagsterEventType.ASSET_MATERIALIZATION)]

    def checks(self):
        evaluations = [event.asset_check_evaluation_data for event in self.of(dg.DagsterEventType.ASSET_CHECK_EVALUATION)]
        return {evaluation.check_name: evaluation for evaluation in evaluations}

    def failures(self):
        """What Dagster shows of each step that failed."""
        failed = [event.step_failure_data for event in self.of(dg.DagsterEventType.STEP_FAILURE)]
        return [data.user_failure_data.description if data.user_failure_data else str(data.error) for data in failed]

    def logged(self, level):
        return [entry.user_message for entry in self.logs if entry.level == level and not entry.dagster_event]
