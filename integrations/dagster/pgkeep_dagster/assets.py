"""The asset, its checks, its job and its schedule."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import dagster as dg

from pgkeep_dagster.process import ATTENTION, DONE, FAILED, Ended, Pgkeep

COMPLETE = "backup_is_complete"
VERIFIED = "backup_is_verified"

DESCRIPTION = """A dump of the PostgreSQL cluster in pgkeep's repository: whole, or not there. The metadata say what is in it and where
it lies; `pgkeep restore DUMP_ID --into ...` brings it back."""


@dataclass(frozen=True)
class PgkeepAssets:
    """What one call of `pgkeep_assets` makes. `definitions` holds all of it."""

    asset: dg.AssetsDefinition
    verified: dg.AssetChecksDefinition
    job: dg.JobDefinition
    schedule: dg.ScheduleDefinition
    definitions: dg.Definitions


def pgkeep_assets(
    *,
    cluster: str | None = None,
    config: str | os.PathLike[str] | None = None,
    program: str | os.PathLike[str] = "pgkeep",
    environment: Mapping[str, str] | None = None,
    dump_arguments: Sequence[str] = (),
    verify: Literal["stored", "contents"] = "stored",
    name: str = "backup_postgres_to_s3",
    key_prefix: Sequence[str] = (),
    group_name: str = "backups",
    deps: Sequence[dg.AssetKey | str] = (),
    cron_schedule: str = "0 2 * * *",
    timezone: str = "UTC",
    schedule_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.RUNNING,
    attention_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
    retry_policy: dg.RetryPolicy | None = None,
) -> PgkeepAssets:
    """Makes the asset `backup_postgres_to_s3` with its checks, its job, and its schedule: every day at 02:00.

    Args:
        cluster: The cluster of pgkeep's configuration; may be left out where it has one.
        config: pgkeep's configuration file, where pgkeep wouldn't find it by itself.
        program: The program, where it isn't in the PATH.
        environment: Variables for pgkeep besides those of the Dagster process. Secrets are best given as `dg.EnvVar("NAME")`, which
            is looked up when pgkeep is started. They appear nowhere in Dagster; arguments would be in the machine's list of processes.
        dump_arguments: More arguments for `pgkeep dump`.
        verify: `stored` compares hashes of what is stored and needs no key; `contents` also decrypts, and counts and hashes the rows of
            every table, with the secret key that pgkeep's configuration names.
        name: The asset's name; the job and the schedule are named after it. Several clusters need several names or prefixes.
        key_prefix: Goes before the name in the asset's key.
        group_name: The asset's group.
        deps: Assets to which the backup is shown to belong.
        cron_schedule: When to back up.
        timezone: The schedule's time zone, such as `Europe/Zurich`.
        schedule_status: Whether the schedule runs from the start. A backup that waits for somebody to switch it on is none.
        attention_severity: Of the check `backup_is_complete`, when pgkeep said that something needs attention.
        retry_policy: For the dump and for its verification. What a retry can't mend isn't tried again.
    """
    key = dg.AssetKey([*key_prefix, name])
    pgkeep = Pgkeep(os.fspath(program), _global_arguments(cluster, config), dict(environment or {}))
    # For a person `latest` is the newest; here it is the dump that the asset's last materialization made.
    verify_arguments = ["--stored-only"] if verify == "stored" else []

    @dg.asset(
        key=key,
        description=DESCRIPTION,
        group_name=group_name,
        kinds={"postgres"},
        deps=list(deps),
        retry_policy=retry_policy,
        check_specs=[dg.AssetCheckSpec(COMPLETE, asset=key, description="Nothing was left out of the dump that should be in it.")],
    )
    def backup(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        ended = pgkeep.run(context, "dump", dump_arguments)
        return _materialized(ended, key, attention_severity)

    @dg.asset_check(
        asset=key,
        name=VERIFIED,
        # What is damaged must not look like a success: the run fails, and what depends on the backup doesn't run.
        blocking=True,
        description="The dump that was made last is in the store as it was written.",
        retry_policy=retry_policy,
    )
    def verified(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        dump_id = _last_dump(context.op_execution_context.instance, key)
        ended = pgkeep.run(context.op_execution_context, "verify", [dump_id or "latest", *verify_arguments])
        return _verification(ended)

    joined = "__".join(key.path)
    job = dg.define_asset_job(f"{joined}_job", selection=dg.AssetSelection.assets(key), description=f"Backs up to {key.to_user_string()}.")
    schedule = dg.ScheduleDefinition(
        name=f"{joined}_schedule",
        job=job,
        cron_schedule=cron_schedule,
        execution_timezone=timezone,
        default_status=schedule_status,
    )
    definitions = dg.Definitions(assets=[backup], asset_checks=[verified], jobs=[job], schedules=[schedule])
    return PgkeepAssets(backup, verified, definitions.resolve_job_def(job.name), schedule, definitions)


def _global_arguments(cluster: str | None, config: str | os.PathLike[str] | None) -> list[str]:
    arguments = []
    if config is not None:
        arguments += ["--config", os.fspath(config)]
    if cluster is not None:
        arguments += ["--cluster", cluster]
    return arguments


def _materialized(ended: Ended, key: dg.AssetKey, attention_severity: dg.AssetCheckSeverity) -> dg.MaterializeResult:
    if ended.code not in (DONE, ATTENTION):
        raise ended.failure()
    made = [result for result in ended.results if isinstance(result, dg.MaterializeResult) and result.asset_key == key]
    if len(made) != 1:
        raise ended.unexpected("reported no dump over Dagster Pipes")
    metadata = made[0].metadata or {}
    attention = metadata.get("attention")
    complete = dg.AssetCheckResult(
        check_name=COMPLETE,
        asset_key=key,
        passed=ended.code == DONE,
        severity=attention_severity,
        description=None if ended.code == DONE else "The dump is there, and pgkeep says that something needs attention.",
        metadata={} if attention is None else {"attention": attention},
    )
    return dg.MaterializeResult(asset_key=key, metadata=metadata, data_version=made[0].data_version, check_results=[complete])


def _verification(ended: Ended) -> dg.AssetCheckResult:
    report = next((document for document in ended.documents if "passed" in document), None)
    if report is None or ended.code not in (DONE, FAILED):
        # It isn't known whether the dump is good: that is a failure of the check, not its result.
        raise ended.failure() if ended.code != DONE else ended.unexpected("reported no verification over Dagster Pipes")
    if report["passed"] is not (ended.code == DONE):
        raise ended.unexpected(f"reported that the verification {'passed' if report['passed'] else 'failed'}")
    return dg.AssetCheckResult(
        passed=report["passed"],
        severity=dg.AssetCheckSeverity.ERROR,
        description=None if report["passed"] else ended.reason(),
        metadata=dict(_verification_metadata(report)),
    )


def _verification_metadata(report: Mapping[str, object]) -> Iterator[tuple[str, dg.MetadataValue]]:
    yield "dump_id", dg.MetadataValue.text(str(report["id"]))
    yield "depth", dg.MetadataValue.text(str(report["depth"]))
    yield "elapsed_seconds", dg.MetadataValue.float(float(str(report["elapsed_seconds"])))
    for name in ("objects", "objects_total", "stored_bytes", "rows", "tables"):
        yield name, dg.MetadataValue.int(int(str(report[name])))
    failures = report.get("failures")
    if isinstance(failures, list) and failures:
        yield "failures", dg.MetadataValue.json(failures)


def _last_dump(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    event = instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event else None
    value = materialization.metadata.get("dump_id") if materialization else None
    return str(value.value) if value else None
