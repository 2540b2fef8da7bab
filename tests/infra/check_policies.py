"""check_policies.py --cache DIRECTORY --pgkeep PROGRAM

Runs pgkeep under each policy of infra/policies against an emulator that enforces them (aws.py): with all its permissions it does its
work, and with any one less a command fails and names the permission. So a policy has what pgkeep needs, and nothing that it doesn't.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aws
import policies
from botocore.exceptions import ClientError

PREFIX = "pgkeep/"
NAMES = {"prefix": PREFIX, "cluster": "main"}
MANIFEST = "manifest"
# A writer that was killed on another machine, and an unfinished dump that nobody works on any more.
DEAD_LEASE = {"purpose": "pgkeep dump", "host": "gone", "boot_id": "", "pid": 1, "pid_start_ticks": 1,
              "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T00:05:00Z"}
ORPHAN = "main/dump/d20260101T000000Z-0a0a0a/d1/000001.sql.zst.age"
ORPHAN_BASE = "main/base/b20260101T000000Z-0a0a0a/packs/000001.zst.age"
BACKUP = ["backup", "--fast-checkpoint"]

# What each role is there for: on an empty bucket and on one with backups. The last of each says for which permissions it is tried
# first; without one of the others, all are tried in turn.
WORK = {
    "writer": [
        ("empty", ["doctor"], "s3:GetBucket|s3:GetLifecycle|.*probe"),
        ("empty", ["dump"], "s3:PutObject"),
        ("empty", BACKUP, "s3:PutObject .*(base|wal)"),
        ("backups", BACKUP, "s3:GetObject .*wal"),
        ("backups", ["list"], "s3:GetObject|s3:ListBucket"),
        ("backups", ["dump"], "s3:GetObject .*lease"),
    ],
    "restore": [
        ("backups", ["list"], "s3:GetObject|s3:ListBucket"),
        ("backups", ["restore", "latest", "--into", "files:{new}"], "s3:GetObject"),
        ("backups", ["verify", "latest"], "s3:PutObject"),
    ],
    "prune": [
        ("backups", ["list"], "s3:GetObject|s3:ListBucket"),
        ("backups", ["pin", "latest"], "s3:PutObject .*pin"),
        ("backups", ["-vv", "prune", "--keep-window", "1s"], "s3:PutObject|s3:DeleteObject"),
    ],
}
# The private key isn't on the machine that writes.
WITH_KEY = ("restore", "prune")


class Server:
    """A PostgreSQL server on a socket of its own."""

    def __init__(self, programs, folder):
        self.programs, self.folder = programs, folder
        self.run("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "-N", "--locale=C.UTF-8")

    def run(self, program, *arguments):
        command = [f"{self.programs}/{program}", *arguments]
        if os.getuid() == 0:
            user = "postgres" if subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode == 0 else "nobody"
            group = subprocess.run(["id", "-g", user], capture_output=True, text=True, check=True).stdout.strip()
            command = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *command]
        # Output to a file: the server inherits it, and a pipe would stay open.
        with open(f"{self.folder}/output", "a", encoding="utf-8") as output:
            subprocess.run(command, check=True, stdout=output, stderr=output, timeout=120)

    def __enter__(self):
        settings = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/server.log", "-w", "-t", "60", "-o", settings, "start")
        self.run("psql", "-h", self.folder, "-U", "postgres", "-Xqc", "CREATE TABLE tick AS SELECT n FROM generate_series(1, 1000) n")
        return self

    def __exit__(self, *_):
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")


class Scene:
    """pgkeep, its server and the emulator."""

    def __init__(self, pgkeep, programs, folder):
        self.pgkeep, self.programs, self.folder = pgkeep, programs, folder
        self.emulator = aws.Emulator()
        self.number = 0
        key = self.command(["key", "new", "--output", f"{folder}/key"], {}).stdout
        self.recipient = next(word for word in key.split() if word.startswith("age1"))

    def command(self, arguments, environment):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "NO_COLOR": "1", **environment}
        return subprocess.run([self.pgkeep, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=120)

    def bucket(self, objects):
        """A new bucket with these objects, and its configuration file."""
        self.number += 1
        name = f"bucket-{self.number}"
        self.emulator.s3.create_bucket(Bucket=name)
        self.emulator.s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        for key, body in objects.items():
            self.emulator.s3.put_object(Bucket=name, Key=key, Body=body)
        Path(f"{self.folder}/{name}.toml").write_text(
            f'[cluster.main]\nconnection = "host={self.folder} user=postgres dbname=postgres"\nrepository = ["s3://{name}/pgkeep"]\n'
            f'recipients = ["{self.recipient}"]\npg_bin = "{self.programs}"\n', encoding="utf-8")
        return name

    def policy(self, role, bucket):
        return policies.roles(f"arn:aws:s3:::{bucket}", **NAMES, records_verifications=True)[role]

    def run(self, role, bucket, policy, arguments):
        """pgkeep under a policy: its exit code and all it said."""
        key_id, secret = self.emulator.user(role, policy)
        environment = {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1",
                       "AWS_ENDPOINT_URL_S3": self.emulator.endpoint}
        if role in WITH_KEY:
            environment["PGKEEP_IDENTITY_FILE"] = f"{self.folder}/key"
        arguments = [argument.format(new=f"{self.folder}/{bucket}.files") for argument in arguments]
        done = self.command(["--config", f"{self.folder}/{bucket}.toml", *arguments], environment)
        return done.returncode, done.stdout + done.stderr

    def expect_done(self, role, bucket, arguments):
        code, said = self.run(role, bucket, self.policy(role, bucket), arguments)
        if code != 0 or " lack " in said:
            raise AssertionError(f"{role}: {' '.join(arguments)} ended with {code}\n{said}")

    def contents(self, bucket):
        objects = self.emulator.s3.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {object["Key"]: self.emulator.s3.get_object(Bucket=bucket, Key=object["Key"])["Body"].read() for object in objects}


def backups(scene):
    """What lies in a bucket that has been in use: made by the roles themselves, so that they are seen to work together."""
    bucket = scene.bucket({})
    scene.expect_done("writer", bucket, ["doctor"])
    scene.expect_done("writer", bucket, ["dump"])
    scene.expect_done("writer", bucket, BACKUP)
    scene.expect_done("prune", bucket, ["pin", "latest"])
    scene.expect_done("prune", bucket, ["unpin", "latest"])
    scene.expect_done("restore", bucket, ["verify", "latest"])
    time.sleep(1)  # An id has the second of its start, and the next dump is to be the newer one.
    scene.expect_done("writer", bucket, ["dump"])
    # A base backup that begins in another segment of WAL: what the one before needs goes with it.
    sql = "INSERT INTO tick SELECT 1; SELECT pg_switch_wal(); INSERT INTO tick SELECT 1"
    subprocess.run([f"{scene.programs}/psql", "-h", scene.folder, "-U", "postgres", "-Xqc", sql], check=True, capture_output=True, timeout=60)
    scene.expect_done("writer", bucket, BACKUP)
    objects = {key: body for key, body in scene.contents(bucket).items() if "probe" not in key}
    return {
        **objects,
        f"{PREFIX}{ORPHAN}": b"rows",
        f"{PREFIX}{ORPHAN_BASE}": b"blocks",
        f"{PREFIX}main/lease/0000000009-000000": json.dumps(DEAD_LEASE).encode(),
    }


def work_without(scene, objects, role, action, pattern):
    """Does the role's work without one permission until a command names it. Which one did, or none."""
    def is_late(work):
        return re.match(work[2], f"{action} {pattern}") is None

    for state, arguments, _ in sorted(WORK[role], key=is_late):
        bucket = scene.bucket(objects if state == "backups" else {})
        policy = policies.without(scene.policy(role, bucket), action, pattern.format(bucket=bucket))
        code, said = scene.run(role, bucket, policy, arguments)
        said_so = action in said
        if code != 0 and not said_so:
            raise AssertionError(f"{role} without {action} on {pattern}: '{' '.join(arguments)}' fails and doesn't name it:\n{said}")
        if said_so:
            return f"{' '.join(arguments)} ({code})"
    return None


def check_minimal(scene, objects, role):
    for state, arguments, _ in WORK[role]:
        scene.expect_done(role, scene.bucket(objects if state == "backups" else {}), arguments)
    print(f"{role}: does its work")
    for action, pattern in policies.permissions(scene.policy(role, "{bucket}")):
        named_by = work_without(scene, objects, role, action, pattern)
        if named_by is None:
            raise AssertionError(f"{role}: pgkeep needs no {action} on {pattern}: take it out of the policy")
        print(f"  without {action} on {pattern.removeprefix('arn:aws:s3:::')}: {named_by}")


def check_copy(scene, objects):
    source, destination = scene.bucket(objects), scene.bucket({})
    policy = policies.joined(*(scene.policy(role, bucket) for role, bucket in
                               [("restore", source), ("restore", destination), ("writer", destination)]))
    for statement in policy["Statement"]:
        del statement["Sid"]  # Unique in one policy; in life these are three.
    code, said = scene.run("copy", source, policy, ["copy", "all", "--to", f"s3://{destination}/pgkeep"])
    # With 3, because base backups can't be copied yet.
    if code != 3 or "is a base backup" not in said:
        raise AssertionError(f"copy ended with {code}\n{said}")
    scene.expect_done("restore", destination, ["verify", "all"])
    print("writer and restore together are enough for a copy's destination")
    damaged = next(key for key in objects if key.endswith("/d1/000001.sql.zst.age") and ORPHAN not in key)
    scene.emulator.s3.put_object(Bucket=destination, Key=damaged, Body=b"damaged")
    repair = ["copy", "all", "--to", f"s3://{destination}/pgkeep", "--repair"]
    code, said = scene.run("copy", source, policy, repair)
    if code == 0 or "s3:DeleteObject" not in said:
        raise AssertionError(f"repair without the right to delete ended with {code}\n{said}")
    policy = policies.joined(*(scene.policy(role, bucket) for role, bucket in
                               [("restore", source), ("restore", destination), ("writer", destination), ("prune", destination)]))
    for statement in policy["Statement"]:
        del statement["Sid"]
    code, said = scene.run("copy", source, policy, repair)
    if code != 3 or "1 written anew" not in said or "is a base backup" not in said:
        raise AssertionError(f"repair ended with {code}\n{said}")
    scene.expect_done("restore", destination, ["verify", "all"])
    print("with prune they are enough to repair it")


def refused(scene, role, bucket, operation, **arguments):
    client = scene.emulator.client("s3", *scene.emulator.user(role, scene.policy(role, bucket)))
    try:
        getattr(client, operation)(Bucket=bucket, **arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("AccessDenied", "403"):
            return
        raise
    raise AssertionError(f"{role} may {operation} {arguments}")


def check_refusals(scene, objects):
    """What somebody who breaks into the machine can't do with its credentials."""
    bucket = scene.bucket(objects)
    rows = next(key for key in objects if key.endswith("/d1/000001.sql.zst.age") and ORPHAN not in key)
    manifest = next(key for key in objects if key.endswith(MANIFEST))
    version = scene.emulator.s3.head_object(Bucket=bucket, Key=rows)["VersionId"]
    for role in ("writer", "restore", "prune"):
        refused(scene, role, bucket, "put_object", Key=manifest, Body=b"replaced")
        refused(scene, role, bucket, "put_object", Key=f"{PREFIX}elsewhere", Body=b"", IfNoneMatch="*")
        refused(scene, role, bucket, "delete_object", Key=rows, VersionId=version)
        refused(scene, role, bucket, "put_bucket_versioning", VersioningConfiguration={"Status": "Suspended"})
    for role in ("writer", "prune"):
        refused(scene, role, bucket, "get_object", Key=rows)
    for role in ("writer", "restore"):
        refused(scene, role, bucket, "delete_object", Key=manifest)
    refused(scene, "writer", bucket, "put_object", Key=f"{PREFIX}other/dump/d20260101T000000Z-0a0a0a/manifest", Body=b"", IfNoneMatch="*")
    refused(scene, "writer", bucket, "put_object", Key=f"{PREFIX}main/pin/d20260101T000000Z-0a0a0a/000001", Body=b"", IfNoneMatch="*")
    refused(scene, "prune", bucket, "put_object", Key=f"{PREFIX}main/dump/d20260101T000000Z-0a0a0a/d1/1", Body=b"", IfNoneMatch="*")
    refused(scene, "prune", bucket, "delete_object", Key=f"{PREFIX}pgkeep.json")
    print("nobody replaces an object or deletes an old version; who writes reads no rows and deletes nothing")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", required=True)
    parser.add_argument("--pgkeep", required=True)
    arguments = parser.parse_args()
    programs = f"{arguments.cache}/postgresql/16/bin"
    with tempfile.TemporaryDirectory(prefix="pgkeep-policies-") as folder:
        os.chmod(folder, 0o777)
        with Server(programs, folder):
            scene = Scene(arguments.pgkeep, programs, folder)
            objects = backups(scene)
            for role in WORK:
                check_minimal(scene, objects, role)
            check_copy(scene, objects)
            check_refusals(scene, objects)


if __name__ == "__main__":
    try:
        main()
    except AssertionError as failure:
        sys.exit(f"{failure}")
