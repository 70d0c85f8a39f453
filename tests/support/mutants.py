"""Bring slips into copies of the checkout, one at a time, and see whether the tests find each of them.

``python tests/support/mutants.py --jobs 2`` tries all that tests/support/mutations.txt lists, and fails where one
survives. Each job has a copy of its own, whose package is the one that its tests import, also in the programs that they
start. Without a slip the tests must pass, which is looked at first.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mutations import Mutation, mutations

ROOT = Path(__file__).parents[2]
PACKAGE = Path("numba_rmsprop")
PYTEST = "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"
PASSED, FAILED = 0, 1  # what pytest returns; or more, where it could not run the tests
TO_COMPILE, TIMES = 180, 4
"""Seconds, and times as long as without a slip, after which tests count as hanging."""

running: set[subprocess.Popen[bytes]] = set()


class Copy:
    """A copy of the tracked files, in which tests run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache, self._printed = folder / "checkout", folder / "cache", folder / "printed"
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        found = self.run(["-c", "import numba_rmsprop; print(numba_rmsprop.__file__)"], self.cache, TO_COMPILE)[1]
        if not Path(found.strip()).is_relative_to(self.folder):
            raise SystemExit(f"expected tests to import the package from {self.folder}, got {found}")

    def run(self, arguments: list[str], cache: Path, limit: float) -> tuple[int | None, str]:
        """Run Python in the copy; return its exit status, None after ``limit`` seconds, and what it printed."""
        environment = {"PYTHONPATH": str(self.folder), "NUMBA_CACHE_DIR": str(cache), "HYPOTHESIS_PROFILE": "first"}
        with self._printed.open("w") as printed:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.add(process)
        status = None
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(limit)
        end(process)
        running.discard(process)
        return status, self._printed.read_text(errors="replace")

    def try_out(self, mutation: Mutation, limit: float) -> tuple[int | None, str]:
        """Run the tests of a mutation with it, and take it back."""
        path = self.folder / PACKAGE / mutation.file
        text, times = path.read_text(), path.stat()
        # Numba's cache does not notice that a function in another file has changed, so each changed kernel gets a new
        # one. All other slips share that of the tests without a slip, which goes by the times of the kernels' files.
        with tempfile.TemporaryDirectory(dir=self.folder.parent, ignore_cleanup_errors=True) as fresh:
            try:
                path.write_text(text.replace(mutation.old, mutation.new))
                cache = Path(fresh) if mutation.file.startswith("kernels/") else self.cache
                return self.run([*PYTEST, *arguments_of(mutation.tests)], cache, limit)
            finally:
                path.write_text(text)
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those of its group; where tests have started others, pytest ends them when interrupted."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):  # there are none
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def arguments_of(tests: str) -> list[str]:
    return [f"tests/{word}" if ".py" in word else word for word in shlex.split(tests)]


def check(chosen: list[Mutation]) -> None:
    """Refuse mutations that cannot be made, or of which it is not clear where."""
    files = {m.file: (ROOT / PACKAGE / m.file).read_text() for m in chosen}
    wrong = [m for m in chosen if not m.old or not m.tests or m.old == m.new or files[m.file].count(m.old) != 1]
    if wrong:
        raise SystemExit("\n".join(f"{m.file}: expected once: {m.old!r}, and tests: {m.tests!r}" for m in wrong))


def verdict(status: int | None, printed: str) -> str:
    """Return how tests have ended, and which was the first to fail."""
    if status == PASSED:
        return "SURVIVED"
    if status is None:
        return "killed by the time limit"
    if status < 0:
        return f"killed by a crash ({signal.Signals(-status).name})"
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.*?)(?: - .*)?$", printed, re.MULTILINE)
    return f"killed{'' if status == FAILED else ' before a test ran'}: {failed[1] if failed else printed[-200:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time")
    parser.add_argument("--only", metavar="AREA", action="append", help="or a part of a path or of what is changed")
    parser.add_argument("--list", action="store_true", help="show the mutations and try none")
    options = parser.parse_args()
    chosen = [
        m for m in mutations() if not options.only or any(o == m.area or o in m.file + m.old for o in options.only)
    ]
    check(chosen)
    if options.list or not chosen:
        print(*(f"{m.area}: {m.file}: {m.old!r} -> {m.new!r} ({m.tests})" for m in chosen), sep="\n")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no tests are left running
    copies: queue.Queue[Copy] = queue.Queue()
    limits: dict[str, float] = {}
    verdicts: dict[Mutation, str] = {}

    def pass_first(tests: str) -> None:
        copy, began = copies.get(), time.perf_counter()
        status, printed = copy.run([*PYTEST, *arguments_of(tests)], copy.cache, 3600)
        copies.put(copy)
        if status != PASSED or not re.search(r"\d passed", printed):
            raise SystemExit(f"{printed}\nexpected these tests to pass without a slip: {tests}")
        limits[tests] = TO_COMPILE + TIMES * (time.perf_counter() - began)
        print(f"[{len(limits)}/{len(all_tests)}] pass without a slip: {tests}", flush=True)

    def try_out(mutation: Mutation) -> None:
        copy, began = copies.get(), time.perf_counter()
        found = verdicts[mutation] = verdict(*copy.try_out(mutation, limits[mutation.tests]))
        copies.put(copy)
        about = f"{mutation.area}, {mutation.file}, {time.perf_counter() - began:.0f} s"
        print(f"[{len(verdicts)}/{len(chosen)}] {about}: {found}", flush=True)
        if found == "SURVIVED":
            print(f"  {mutation.old!r} -> {mutation.new!r}; {mutation.equivalent or mutation.tests}", flush=True)

    all_tests = list(dict.fromkeys(m.tests for m in chosen))
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        for job in range(options.jobs):
            copies.put(Copy(Path(folder).resolve() / str(job)))
        pool = ThreadPoolExecutor(options.jobs)
        try:
            list(pool.map(pass_first, all_tests))
            list(pool.map(try_out, chosen))
        finally:  # also after an interrupt, or where tests fail
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                end(process)
            pool.shutdown()
    survived = [m for m in chosen if verdicts[m] == "SURVIVED"]
    for area in [*dict.fromkeys(m.area for m in chosen), ""]:
        tried, left = (sum(area in ("", m.area) for m in each) for each in (chosen, survived))
        print(f"{area or 'all':12}{tried:4} tried,{tried - left:4} killed,{left:4} survived")
    sys.exit(any(not m.equivalent for m in survived))


if __name__ == "__main__":
    main()
