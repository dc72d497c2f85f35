"""Where measurements are kept: bench/results.json for programs, sections of bench/RESULTS.md for people."""
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = HERE / "results.json"
PAGE = HERE / "RESULTS.md"
# Processes waiting for a processor, above which this machine is not called idle.
IDLE = 0.5
# Share of the processors used by others, above which it is not called idle either.
BUSY = 0.05
TITLE = """# Results

How fast Didact is beside others on the same machine, in the same session. Each section names the command that made it.
Ratios carry over to other machines better than numbers do.
"""


def load():
    """All measurements so far."""
    return json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}


def save(everything):
    """Keeps all measurements."""
    DATA.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def replace_section(name, text):
    """Puts a section into the page, in the place of an older one."""
    begin, end = f"<!-- {name}: made by bench/{name}.py -->\n", f"<!-- end of {name} -->\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else TITLE
    if begin in page:
        before, rest = page.split(begin, 1)
        after = rest.split(end, 1)[1]
    else:
        before, after = page.rstrip("\n") + "\n\n", ""
    PAGE.write_text(before + begin + text + end + after, encoding="utf-8")
    print(f"{name}: written to {PAGE}", file=sys.stderr)


def load_average():
    """Load of the last minute, with a warning when the machine is not idle."""
    load = os.getloadavg()[0]
    if load >= IDLE:
        print(
            f"warning: the load is {load:.2f}: this machine is not idle; it is recorded with the results", file=sys.stderr
        )
    return load


def others(seconds=3.0):
    """Share of this machine's processors that other programs use, looked at for some seconds in which this one sleeps.

    Unlike the load it does not remember what ran just before, such as the last measurement.
    """

    def ticks():
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total, idle = (after - before for after, before in zip(ticks(), (total, idle)))
    except OSError:
        return float("nan")
    share = 1 - idle / max(total, 1)
    if share >= BUSY:
        print(f"warning: other programs use {share:.0%} of this machine: it is not idle; recorded", file=sys.stderr)
    return share


def commit():
    """The commit that is measured, marked when files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "--", "crates"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


def machine(didact):
    """Processor, cores, memory, and the versions of both sides."""
    doctor = json.loads(subprocess.run([didact, "doctor", "--json"], capture_output=True, text=True, check=True).stdout)
    cpu, gigabytes = doctor["cpu"], doctor["memory"]["total_bytes"] / 1e9
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    return (
        f"{cpu['name']}, {cpu['cores']} cores, {cpu['level']}, {gigabytes:.0f} GB; {doctor['os']}; "
        f"didact {doctor['version']}, {versions}"
    )
