"""What bench/gemm.py and bench/attention.py share: the two sides that take turns, and how results are recorded."""
import datetime
import os
import pathlib
import subprocess
import time

THREADS = int(os.environ.get("THREADS", os.cpu_count()))
# Idle threads of the side that waits must not spin. Read when PyTorch is imported, so this module comes first.
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["GOMP_SPINCOUNT"] = "0"

from results import commit, load_average, replace_section  # noqa: E402


class Didact:
    """The Rust side: a program that answers each line with a line of numbers."""

    def __init__(self, *command):
        env = dict(os.environ, RAYON_NUM_THREADS=str(THREADS))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        self.about = self.process.stdout.readline().strip()

    def ask(self, *words):
        """The numbers that the program answers."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return [float(x) for x in self.process.stdout.readline().split()]


def repeat(seconds, f):
    """Seconds that `f` takes, on average over about `seconds`, after a first time that does not count."""
    f()
    start, times = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        f()
        times += 1
    return (time.perf_counter() - start) / times


def processor():
    """The processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def record(name, title, versions, pairs, header, rows):
    """Writes a section of bench/RESULTS.md."""
    columns = len(header)
    table = ["| " + " | ".join(header) + " |", "|---" * columns + "|"]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    text = (
        f"## {title}\n\n`python bench/{name}.py`, commit {commit()}, {datetime.date.today()}, load before it "
        f"{load_average():.1f}; {processor()}, {THREADS} threads; {versions}. Medians of {pairs} alternating pairs; in "
        "brackets the lowest and highest ratio of a pair.\n\n" + "\n".join(table) + "\n"
    )
    replace_section(name, text)
