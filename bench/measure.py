"""Measuring a command: wall, CPU of the client and of the server, peak memory; and the machine's limits."""

import os
import re
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SAMPLE_PAUSE_SECONDS = 0.05


@dataclass
class Run:
    """What one command took."""

    wall_seconds: float = 0.0
    client_cpu_seconds: float = 0.0
    server_cpu_seconds: float = 0.0
    # Of the process itself: its high-water mark, read while it runs. Programs that it starts are not in it.
    peak_bytes: int = 0
    # Of the process and all it started, sampled.
    tree_peak_bytes: int = 0
    output_bytes: int = 0
    load_average: float = 0.0
    notes: dict = field(default_factory=dict)

    @property
    def cpu_seconds(self):
        return self.client_cpu_seconds + self.server_cpu_seconds

    def __add__(self, other):
        return Run(
            self.wall_seconds + other.wall_seconds,
            self.client_cpu_seconds + other.client_cpu_seconds,
            self.server_cpu_seconds + other.server_cpu_seconds,
            max(self.peak_bytes, other.peak_bytes),
            max(self.tree_peak_bytes, other.tree_peak_bytes),
            self.output_bytes + other.output_bytes,
            max(self.load_average, other.load_average),
        )


def read_stat(pid):
    """Parent, own CPU ticks and those of children that were waited for (proc(5)), or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rsplit(")", 1)[1].split()
    return int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])


def descendants(root):
    """The process and all below it, as (pid, stat)."""
    found = {int(name): read_stat(name) for name in os.listdir("/proc") if name.isdigit()}
    found = {pid: stat for pid, stat in found.items() if stat}
    below, added = {root}, True
    while added:
        more = {pid for pid, stat in found.items() if stat[0] in below} - below
        below |= more
        added = bool(more)
    return [(pid, found[pid]) for pid in below if pid in found]


def server_cpu_seconds(postmaster):
    """CPU of a PostgreSQL server so far. A backend that has ended is in the postmaster's sum of its children."""
    ticks = 0
    for pid, (_, own, children) in descendants(postmaster):
        ticks += own + (children if pid == postmaster else 0)
    return ticks / TICKS_PER_SECOND


def memory(pid, key):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def run(command, server=None, environment=None, output=None):
    """Runs a command to its end and measures it. A command that fails is an error with its last words."""
    before = server_cpu_seconds(server.pid) if server else 0
    result = Run(load_average=os.getloadavg()[0])
    begun = time.monotonic()
    child = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    said = []
    pipes = [pipe for pipe in (child.stdout, child.stderr) if pipe]
    readers = [threading.Thread(target=lambda pipe=pipe: said.append(pipe.read())) for pipe in pipes]
    for reader in readers:
        reader.start()
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        result.peak_bytes = max(result.peak_bytes, memory(child.pid, "VmHWM"))
        tree = sum(memory(pid, "VmRSS") for pid, _ in descendants(child.pid))
        result.tree_peak_bytes = max(result.tree_peak_bytes, tree)
        time.sleep(SAMPLE_PAUSE_SECONDS)
    result.wall_seconds = time.monotonic() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    for reader in readers:
        reader.join()
    result.client_cpu_seconds = usage.ru_utime + usage.ru_stime
    if server:
        result.server_cpu_seconds = server_cpu_seconds(server.pid) - before
    if child.returncode not in (0, 3) or (child.returncode == 3 and "pgkeep" not in str(command[0])):
        words = b"\n".join(said).decode(errors="replace")[-2000:]
        raise SystemExit(f"bench: '{' '.join(map(str, command[:3]))} ...' ended with {child.returncode}:\n{words}")
    return result


def rounds(repeat, ways_of, say):
    """Runs all ways in each round, so that each of a pair sees the same load. `ways_of(number)` gives names and what to call."""
    results = {}
    for number in range(repeat):
        ways = list(ways_of(number).items())
        # Every other round in reverse, so that nobody always comes first.
        for name, way in ways if number % 2 == 0 else reversed(ways):
            taken = way()
            results.setdefault(name, []).append(taken)
            say(f"  {number + 1}. {name}: {taken.wall_seconds:.1f} s, CPU {taken.client_cpu_seconds:.1f} + "
                f"{taken.server_cpu_seconds:.1f} s, {taken.peak_bytes >> 20} MiB, load {taken.load_average:.1f}")
    return {name: results[name] for name, _ in ways}


def tree_bytes(path):
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def median(runs, attribute):
    return statistics.median(getattr(run, attribute) for run in runs)


def ratio(ours, theirs, attribute="wall_seconds"):
    """The median of the ratios of runs that were made one after the other."""
    return statistics.median(
        getattr(a, attribute) / getattr(b, attribute) for a, b in zip(ours, theirs) if getattr(b, attribute) > 0
    )


# --- limits -----------------------------------------------------------------------------------------------------------


def disk_write_bytes_per_second(directory, size=1 << 30):
    block = os.urandom(1 << 22)
    path = Path(directory) / "write"
    begun = time.monotonic()
    with open(path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    elapsed = time.monotonic() - begun
    path.unlink()
    return size / elapsed


def zstd_bytes_per_second(zstd, sample, level=3):
    """One core, CPU time rather than wall, because the machine is shared. Also the ratio."""
    target = Path(f"{sample}.zst")
    taken = run([zstd, f"-{level}", "-T1", "--quiet", "--force", "-o", target, sample])
    speed = sample.stat().st_size / taken.client_cpu_seconds
    factor = sample.stat().st_size / target.stat().st_size
    target.unlink()
    return speed, factor
