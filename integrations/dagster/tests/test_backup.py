"""pgkeep under the real Dagster: what a run shows, for good and for ill. One server and one process; `test_command` starts another."""

import json
import logging
import os
import signal
import subprocess
import sys
import unittest
from datetime import datetime
from unittest import mock
from zoneinfo import ZoneInfo

import dagster as dg
from pgkeep_dagster import pgkeep_assets, process
from place import PROGRAM, ROWS, SECRET, WEED, Events, Place, pgkeep, servers

KEY = dg.AssetKey("backup_postgres_to_s3")
COMPLETE, VERIFIED = "backup_is_complete", "backup_is_verified"


def setUpModule():
    global place
    place = Place()
    unittest.addModuleCleanup(place.close)


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.instance = dg.DagsterInstance.ephemeral()

    def assets(self, config, **more):
        return pgkeep_assets(**{"config": config, "program": PROGRAM, **more})

    def run_job(self, backup, succeeds=True, **more):
        result = backup.job.execute_in_process(instance=self.instance, raise_on_error=False, **more)
        events = Events(self.instance, result.run_id)
        self.assertEqual(result.success, succeeds, events.text)
        self.assertNotIn(SECRET, events.text)
        return events

    def check_alone(self, backup):
        """The verification without a dump before it."""
        result = dg.materialize(
            [backup.asset, backup.verified],
            instance=self.instance,
            selection=dg.AssetSelection.checks(backup.verified),
            raise_on_error=False,
        )
        return result, Events(self.instance, result.run_id)


class Success(Case):
    def test_a_dump_is_materialized_with_its_facts_and_verified(self):
        config = place.configure("facts")
        events = self.run_job(self.assets(config))

        [materialization] = events.materializations()
        self.assertEqual(materialization.asset_key, KEY)
        facts = {name: value.value for name, value in materialization.metadata.items()}
        self.assertIn(facts["dump_id"], pgkeep("list", "--json", "--config", config))
        self.assertEqual(facts["url"], f"file://{config.parent}/repository/game/dump/{facts['dump_id']}/")
        self.assertEqual(facts["databases"], ["app"])
        self.assertEqual((facts["rows"], facts["dagster/row_count"]), (ROWS, ROWS))
        self.assertEqual(facts["tables"], 1)
        self.assertGreater(facts["plain_bytes"], ROWS)
        self.assertGreater(facts["stored_bytes"], 0)
        self.assertGreater(facts["elapsed_seconds"], 0)
        self.assertEqual(facts["attention"], [])
        self.assertEqual(materialization.tags["dagster/data_version"], facts["dump_id"])

        checks = events.checks()
        self.assertEqual({name: check.passed for name, check in checks.items()}, {COMPLETE: True, VERIFIED: True})
        verified = {name: value.value for name, value in checks[VERIFIED].metadata.items()}
        self.assertEqual((verified["dump_id"], verified["depth"]), (facts["dump_id"], "hashes"))
        self.assertTrue(any(f"dump {facts['dump_id']} is complete" in line for line in events.logged(logging.INFO)), events.text)

    def test_the_schedule_ticks_at_two_in_its_time_zone(self):
        config = place.configure("schedule")
        backup = self.assets(config, timezone="Europe/Zurich")
        # What Dagster's daemon does: it finds the schedule in what is loaded, and asks it at the time.
        repository = backup.definitions.get_repository_def()
        schedule = repository.get_schedule_def("backup_postgres_to_s3_schedule")
        self.assertEqual(schedule.default_status, dg.DefaultScheduleStatus.RUNNING)
        after = datetime(2026, 11, 22, 12, tzinfo=ZoneInfo("Europe/Zurich"))
        tick = next(iter_ticks(schedule, after))
        self.assertEqual(tick.isoformat(), "2026-11-23T02:00:00+01:00")
        data = schedule.evaluate_tick(dg.build_schedule_context(self.instance, scheduled_execution_time=tick))
        [request] = data.run_requests
        job = repository.get_job(schedule.job_name)
        result = job.execute_in_process(instance=self.instance, run_config=request.run_config, tags=request.tags)
        [materialization] = Events(self.instance, result.run_id).materializations()
        self.assertEqual(materialization.asset_key, KEY)

    def test_an_id_among_newer_ones_is_verified_with_the_key(self):
        config = place.configure("contents", identity_file=str(place.work.path / "contents/key"))
        backup = self.assets(config, verify="contents", key_prefix=["postgres", "game"])
        [materialization] = self.run_job(backup).materializations()
        pgkeep("dump", "--config", config)
        result, events = self.check_alone(backup)
        self.assertTrue(result.success)
        verified = {name: value.value for name, value in events.checks()[VERIFIED].metadata.items()}
        self.assertEqual(verified["dump_id"], materialization.metadata["dump_id"].value)
        self.assertEqual((verified["depth"], verified["rows"]), ("contents", ROWS))

    def test_into_s3_with_secrets_that_dagster_never_sees(self):
        if not WEED.exists():
            self.skipTest("SeaweedFS not installed by scripts/test-setup")
        with mock.patch.object(servers.Seaweed, "SECRET_KEY", SECRET):
            store = servers.Seaweed(place.work, WEED)
            variables = store.environment()
        config = place.configure("s3", f"s3://{store.BUCKET}/backups", user="writer")
        with mock.patch.dict(os.environ, {"BACKUP_SECRET": variables["PGKEEP_S3__SECRET_ACCESS_KEY"]}):
            variables["PGKEEP_S3__SECRET_ACCESS_KEY"] = dg.EnvVar("BACKUP_SECRET")
            backup = self.assets(config, environment={**variables, "PGPASSWORD": SECRET})
            events = self.run_job(backup)
        [materialization] = events.materializations()
        dump_id = materialization.metadata["dump_id"].value
        self.assertEqual(materialization.metadata["url"].value, f"s3://bench/backups/game/dump/{dump_id}/")
        self.assertTrue(events.checks()[VERIFIED].passed)

    def test_dagsters_own_client_runs_it_too(self):
        config = place.configure("client")

        @dg.asset
        def dumped(context: dg.AssetExecutionContext):
            command = [str(PROGRAM), "--config", str(config), "dump"]
            return dg.PipesSubprocessClient().run(context=context, command=command).get_materialize_result()

        result = dg.materialize([dumped], instance=self.instance)
        [materialization] = Events(self.instance, result.run_id).materializations()
        self.assertEqual(materialization.metadata["rows"].value, ROWS)


class Attention(Case):
    def test_a_dump_that_lacks_something_is_there_with_a_warning(self):
        config = place.configure("attention", user="reader")
        events = self.run_job(self.assets(config))
        [materialization] = events.materializations()
        [lacks] = materialization.metadata["attention"].value
        self.assertIn("password", lacks)
        complete = events.checks()[COMPLETE]
        self.assertEqual((complete.passed, complete.severity), (False, dg.AssetCheckSeverity.WARN))
        self.assertEqual(complete.metadata["attention"].value, [lacks])
        self.assertTrue(events.checks()[VERIFIED].passed)
        self.assertIn(lacks, events.logged(logging.WARNING))

    def test_a_damaged_dump_fails_the_check_and_the_run(self):
        config = place.configure("damage")
        backup = self.assets(config)
        [materialization] = self.run_job(backup).materializations()
        folder = config.parent / "repository/game/dump" / materialization.metadata["dump_id"].value
        (folder / "d1/schema.dump.zst.age").write_bytes(b"damaged")
        result, events = self.check_alone(backup)
        self.assertFalse(result.success)
        verified = events.checks()[VERIFIED]
        self.assertEqual((verified.passed, verified.severity), (False, dg.AssetCheckSeverity.ERROR))
        self.assertIn("is damaged", verified.description)
        self.assertIn("schema.dump", str(verified.metadata["failures"].value))


class Failure(Case):
    def fails(self, backup, *texts):
        events = self.run_job(backup, succeeds=False)
        self.assertEqual(events.materializations(), [])
        self.assertEqual(events.checks(), {})
        [failure] = events.failures()
        for text in texts:
            self.assertIn(text, failure)
        return events

    def test_the_reason_and_the_mend_are_shown(self):
        config = place.configure("unreachable", connection=f"postgres://writer:{SECRET}@127.0.0.1:1/app")
        events = self.fails(self.assets(config), "pgkeep dump ended with exit code 1\n", "connection refused", "hint: ")
        # The log has it as Dagster has it from the process, too.
        self.assertIn("PgkeepFailed", events.text)

    def test_what_a_retry_cannot_mend_is_not_tried_again(self):
        config = place.configure("usage")
        retries = dg.RetryPolicy(max_retries=2)
        backup = self.assets(config, dump_arguments=["--database", "nix"], retry_policy=retries)
        events = self.fails(backup, "exit code 2", "there is no database 'nix'", "hint: it has: ")
        self.assertEqual(events.of(dg.DagsterEventType.STEP_UP_FOR_RETRY), [])

    def test_wrong_arguments_are_told_although_the_program_did_not_get_far(self):
        config = place.configure("arguments")
        self.fails(self.assets(config, dump_arguments=["--nonsense"]), "exit code 2", "unexpected argument '--nonsense'")

    def test_a_missing_program_and_a_missing_variable_are_named(self):
        self.fails(self.assets("x", program="/nonexistent/pgkeep"), "cannot start /nonexistent/pgkeep", "pgkeep_assets(program=")
        self.fails(self.assets("x", environment={"PGPASSWORD": dg.EnvVar("NOT_SET_HERE")}), "NOT_SET_HERE", "isn't set")

    def test_exit_code_0_alone_is_no_success(self):
        """An older pgkeep, or something else of its name."""
        for name, code in (("zero", 0), ("three", 3)):
            program = place.script(name, f"exit {code}")
            self.fails(self.assets("x", program=program), "reported no dump", "hint: install a pgkeep")

    def test_a_killed_process_is_a_failure(self):
        self.fails(self.assets("x", program=place.script("killed", "kill -9 $$")), "was ended by SIGKILL")

    def test_a_dump_that_is_gone_is_not_verified(self):
        config = place.configure("gone")
        backup = self.assets(config)
        [materialization] = self.run_job(backup).materializations()
        folder = config.parent / "repository/game/dump" / materialization.metadata["dump_id"].value
        (folder / "manifest").unlink()
        pgkeep("dump", "--config", config)
        result, events = self.check_alone(backup)
        self.assertFalse(result.success)
        self.assertEqual(events.checks(), {})
        [failure] = events.failures()
        self.assertIn(materialization.metadata["dump_id"].value, failure)

    def test_a_terminated_run_lets_pgkeep_end_cleanly(self):
        """Dagster raises where its process waits. A program that takes no notice is killed."""
        marker = place.work.path / "ended"
        polite = place.script("polite", f"trap 'echo cleanly > {marker}; exit 1' TERM\necho > {marker}.ready\nwhile :; do sleep 0.02; done")
        deaf = place.script("deaf", f"trap '' TERM\necho > {marker}.ready\nwhile :; do sleep 0.02; done")
        for program, seconds in ((polite, 60), (deaf, 0.1)):
            started = []
            ready = place.work.path / "ended.ready"
            ready.unlink(missing_ok=True)
            wait = subprocess.Popen.wait

            def interrupted(self, timeout=None, started=started, ready=ready, wait=wait):
                if str(self.args[0]).startswith(str(place.work.path)) and not started:
                    started.append(self)
                    while not ready.exists():
                        assert self.poll() is None
                    raise dg.DagsterExecutionInterruptedError
                return wait(self, timeout)

            with mock.patch.object(subprocess.Popen, "wait", interrupted), mock.patch.object(process, "TERMINATION_SECONDS", seconds):
                self.assets("x", program=program).job.execute_in_process(instance=self.instance, raise_on_error=False)
            [child] = started
            self.assertEqual(child.returncode, 1 if program == polite else -signal.SIGKILL)
        self.assertEqual(marker.read_text(), "cleanly\n")


class Command(Case):
    def test_command(self):
        """`dagster asset materialize` on the package's own definitions, with what pgkeep finds by its variables."""
        config = place.configure("command")
        home = config.parent / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
            "PGKEEP_CONFIG": str(config),
            "PGKEEP_TIMEZONE": "Europe/Zurich",
        }
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "pgkeep_dagster.definitions", "--select", KEY.path[0]]
        # A process for each step would cost as many seconds again.
        command += ["--config-json", json.dumps({"execution": {"config": {"in_process": {}}}})]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("RUN_SUCCESS", done.stderr)
        self.assertIn(VERIFIED, done.stderr)
        [folder] = (config.parent / "repository/game/dump").iterdir()
        self.assertTrue((folder / "manifest").exists())


def iter_ticks(schedule, after):
    """The times at which Dagster's daemon asks the schedule, by Dagster's own reckoning."""
    from dagster._utils.schedules import schedule_execution_time_iterator

    return schedule_execution_time_iterator(after.timestamp(), schedule.cron_schedule, schedule.execution_timezone)


if __name__ == "__main__":
    unittest.main()
