"""Look for crashes and half-written calls with a coverage-guided fuzzer; ``make fuzz`` does it for all targets.

``python tests/support/fuzz.py gradients --seconds 300`` runs one target, compiled and with bounds checked in the
kernels. ``--plain`` runs the kernels as plain Python, where the fuzzer sees into them. Without a target, all run in
turn, in both ways. A finding is left as a file ``crash-*`` in the folder of its target in ``--corpus``;
``python tests/support/fuzz.py gradients --repeat FILE`` repeats it. The targets themselves are in ``hostile_calls.py``.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

SEEDS = 64
SHORT_TABLE = 4
TARGETS = ("gradients", "weights", "config", "load")
MEMORY_LIMIT = 4096
"""MiB that a process may use at most; compiling uses about a quarter of it."""


def main():
    options = arguments()
    if options.target is None:
        sys.exit(run_all(options))
    if not options.child:
        sys.exit(run(options.target, options))
    fuzz(options)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=TARGETS, help="one target; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="how long to look, for each target and way")
    parser.add_argument("--plain", action="store_true", help="run kernels as plain Python")
    parser.add_argument("--corpus", type=Path, help="a folder to keep inputs in; a temporary one by default")
    parser.add_argument("--repeat", type=Path, help="run one input, and nothing else")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_all(options):
    failed = []
    for target in TARGETS:
        for options.plain in (False, True):
            if run(target, options):
                failed.append(f"{target}{' --plain' * options.plain}")
    print("findings in:" if failed else "no findings", ", ".join(failed))
    return bool(failed)


def run(target, options):
    """Run a target in a process of its own, so that a crash is seen, and return its exit code."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus = options.corpus or Path(folder)
        inputs = corpus / target
        inputs.mkdir(parents=True, exist_ok=True)
        for seed in range(SEEDS):  # a target without bytes left makes the simplest choices
            (inputs / f"seed-{seed}").write_bytes(random.Random(seed).randbytes(400))
        # Numba's cache does not notice that bounds are checked.
        environment = os.environ | {
            "NUMBA_CACHE_DIR": str(corpus / "numba"),
            "OMP_WAIT_POLICY": "passive",
            ("NUMBA_DISABLE_JIT" if options.plain else "NUMBA_BOUNDSCHECK"): "1",
        }
        command = [sys.executable, __file__, target, "--child", f"--seconds={options.seconds}", f"--corpus={inputs}"]
        command += ["--plain"] * options.plain
        command += [f"--repeat={options.repeat}"] if options.repeat else []
        print(f"{target}, {'plain Python' if options.plain else 'compiled'}, {options.seconds} s", flush=True)
        return subprocess.run(command, env=environment, check=False).returncode


def fuzz(options):
    import atheris

    faulthandler.enable()
    # Numba cannot compile the calls that the instrumentation adds to a function.
    root = Path(__file__).parents[2]
    files = [] if options.plain else (root / "numba_rmsprop" / "kernels").rglob("*.py")
    kernels = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    with atheris.instrument_imports(include=["numba_rmsprop"], exclude=kernels):
        import hostile_calls
    import numba_rmsprop.runtime.launching
    import numba_rmsprop.state.skipped_steps

    if options.plain:  # filling the table takes most of the time; gaps beyond it are computed in another way
        numba_rmsprop.state.skipped_steps.TABLE_GAPS = numba_rmsprop.kernels.skip_factors.TABLE_GAPS = SHORT_TABLE

    target = hostile_calls.TARGETS[options.target]
    serial_items = numba_rmsprop.runtime.launching.SERIAL_ITEMS

    def one_input(data):
        provider = atheris.FuzzedDataProvider(data)
        source = hostile_calls.Source(provider.ConsumeIntInRange)
        numba_rmsprop.runtime.launching.SERIAL_ITEMS = 0 if source.rarely() else serial_items
        target(source)

    limits = [f"-max_total_time={options.seconds}", f"-rss_limit_mb={MEMORY_LIMIT}", "-timeout=120"]
    limits += ["-max_len=1024", "-len_control=0"]
    places = [str(options.repeat)] if options.repeat else [str(options.corpus), f"-artifact_prefix={options.corpus}/"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", *places], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
