"""Tables, into docs/benchmarks.md between markers."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import measure

TOP = Path(__file__).resolve().parent.parent
PAGE = TOP / "docs/benchmarks.md"
MIB = 1 << 20


def write_section(name, text):
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    page = PAGE.read_text()
    before, rest = page.split(begin, 1)
    _, after = rest.split(end, 1)
    PAGE.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}")


def commit():
    done = subprocess.run(["git", "-C", TOP, "describe", "--always", "--dirty", "--abbrev=9"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def machine():
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB of memory, Linux {platform.release().split('-')[0]}"


def today():
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def spread(runs, attribute):
    values = sorted(getattr(run, attribute) for run in runs)
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{measure.median(runs, attribute):.1f} ({values[0]:.1f}-{values[-1]:.1f})"


def mib(value):
    return f"{value / MIB:,.0f}"


def comparison(results, baseline):
    """A row for each way: medians, with the ratios of pairs that ran one after the other."""
    lines = [
        "| | wall s (from-to) | CPU s, client + server | peak memory MiB | size MiB | wall, of the baseline's | CPU, of the baseline's |",
        "|---|---|---|---|---|---|---|",
    ]
    base = results[baseline]
    for name, runs in results.items():
        client, server = (measure.median(runs, f"{side}_cpu_seconds") for side in ("client", "server"))
        if name == baseline:
            wall, cpu = "1 (baseline)", "1"
        else:
            wall, cpu = f"**{measure.ratio(runs, base):.2f}**", f"{measure.ratio(runs, base, 'cpu_seconds'):.2f}"
        size = runs[0].output_bytes
        lines.append(
            f"| {name} | {spread(runs, 'wall_seconds')} | {client:.1f} + {server:.1f} | {mib(max(r.peak_bytes for r in runs))} "
            f"| {mib(size) if size else ''} | {wall} | {cpu} |"
        )
    return "\n".join(lines)
