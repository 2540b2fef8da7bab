"""Throwaway servers: PostgreSQL 16 with TimescaleDB, and SeaweedFS, from the cache that scripts/test-setup fills."""

import atexit
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
START_LIMIT_SECONDS = 60


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def cache(*more):
    """Where the programs are; fetches them, and `more` pieces, unless they are there."""
    setup = TOP / "scripts/test-setup"
    pieces = ["tools", "stores", "postgresql-16", "timescaledb-16", *more]
    subprocess.run([setup, *pieces], check=True, stdout=subprocess.DEVNULL)
    return Path(subprocess.run([setup, "--cache"], check=True, capture_output=True, text=True).stdout.strip())


def pgkeep_program(given=None):
    """The release build, unless another is given."""
    if given:
        return Path(given).resolve()
    subprocess.run(["cargo", "build", "--release", "--bin", "pgkeep"], cwd=TOP, check=True)
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    metadata = json.loads(subprocess.run(command, cwd=TOP, check=True, capture_output=True).stdout)
    return Path(metadata["target_directory"]) / "release/pgkeep"


class Work:
    """A directory that goes when the program ends, however it ends. On a real disk, not in memory."""

    def __init__(self, parent):
        self.path = Path(tempfile.mkdtemp(prefix="pgkeep-bench.", dir=parent))
        self.path.chmod(0o755)
        self.closing = []
        atexit.register(self.close)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))

    def close(self):
        while self.closing:
            self.closing.pop()()
        shutil.rmtree(self.path, ignore_errors=True)


def server_user():
    """PostgreSQL refuses to run as root: then `postgres` runs it, or `nobody` where there is none."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def as_server_user(command):
    user = server_user()
    if user is None:
        return command
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *command]


class Postgres:
    """A server on a socket alone, set up as one would for a machine of this size, with fsync on."""

    def __init__(self, work, bin_directory, settings=None, initdb=()):
        self.bin = Path(bin_directory)
        # A socket's path has room for 107 bytes only, so it isn't under the work directory.
        self.socket = Path(tempfile.mkdtemp(prefix="pgkeep-bench.", dir="/tmp"))
        self.data = work.path / "postgres/data"
        self.data.parent.mkdir()
        if server_user():
            for path in (self.socket, self.data.parent):
                os.chown(path, server_user().pw_uid, server_user().pw_gid)
        work.closing.append(self.stop)
        self.log = work.path / "postgres/log"
        all_settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.socket,
            "shared_preload_libraries": "timescaledb",
            "timescaledb.telemetry_level": "off",
            "shared_buffers": "1GB",
            "maintenance_work_mem": "256MB",
            "max_wal_size": "8GB",
            "checkpoint_timeout": "30min",
            "max_locks_per_transaction": "256",
            "autovacuum": "off",
            "timezone": "UTC",
            **(settings or {}),
        }
        options = " ".join(f"-c {name}='{value}'" for name, value in all_settings.items())
        self.server_run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
                        *initdb)
        self.server_run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", START_LIMIT_SECONDS, "-o", options, "start")
        self.pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def server_run(self, program, *arguments):
        command = as_server_user([str(self.bin / program), *map(str, arguments)])
        # pg_ctl's server inherits its output, so that is a file, not a pipe that never ends.
        with open(self.data.parent.parent / "setup.log", "ab") as output:
            subprocess.run(command, cwd="/", check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def stop(self):
        if (self.data / "postmaster.pid").exists():
            self.server_run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.socket, ignore_errors=True)

    def connection(self, database="postgres"):
        return f"host={self.socket} user=postgres dbname={database}"

    def psql(self, database, sql):
        command = [self.bin / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.connection(database)]
        done = subprocess.run(command, input=sql, text=True, capture_output=True)
        if done.returncode != 0:
            raise SystemExit(f"bench: psql: {done.stderr.strip()[-2000:]}")
        return done.stdout.strip()


def free_ports(count):
    # SeaweedFS takes port + 10000 as well for what isn't told otherwise.
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


class Seaweed:
    """SeaweedFS with one bucket."""

    ACCESS_KEY, SECRET_KEY, BUCKET = "pgkeep-bench", "pgkeep-bench-secret", "bench"

    def __init__(self, work, program):
        self.directory = work.path / "seaweed"
        self.directory.mkdir()
        credentials = [{"accessKey": self.ACCESS_KEY, "secretKey": self.SECRET_KEY}]
        identity = {"name": "all", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        config = self.directory / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        names = ["master", "volume", "filer", "s3"]
        ports = free_ports(8)
        listening = [f"-{name}.port={port}" for name, port in zip(names, ports)]
        listening += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:])]
        self.process = subprocess.Popen(
            [program, "server", f"-dir={self.directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *listening,
             f"-filer.localSocket={self.directory}/filer.sock", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0",
             f"-s3.localSocket={self.directory}/s3.sock", f"-s3.config={config}", "-volume.max=0",
             "-master.volumeSizeLimitMB=1024", "-master.telemetry=false"],
            env={**os.environ, "WEED_S3_SSE_KEY": "pgkeep-bench"},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(self.directory / "log", "wb"),
        )
        work.closing.append(self.stop)
        self.endpoint = f"http://127.0.0.1:{ports[3]}"
        self.wait(lambda: status(f"{self.endpoint}/status") == 200 and status(f"http://127.0.0.1:{ports[2]}/") == 200)
        shell = [program, "shell", f"-master=127.0.0.1:{ports[0]}.{ports[4]}", f"-filer=127.0.0.1:{ports[2]}.{ports[6]}"]
        subprocess.run(shell, input=f"s3.bucket.create -name {self.BUCKET}\nexit\n", text=True, check=True,
                       cwd=self.directory, capture_output=True)
        self.wait(lambda: status(f"{self.endpoint}/{self.BUCKET}/none") == 403)

    def wait(self, ready):
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while not ready():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"bench: SeaweedFS doesn't start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self):
        # It takes half a minute to end by itself.
        self.process.kill()
        self.process.wait()

    def environment(self):
        return {
            "PGKEEP_S3__ENDPOINT": self.endpoint,
            "PGKEEP_S3__REGION": "us-east-1",
            "PGKEEP_S3__ACCESS_KEY_ID": self.ACCESS_KEY,
            "PGKEEP_S3__SECRET_ACCESS_KEY": self.SECRET_KEY,
        }
