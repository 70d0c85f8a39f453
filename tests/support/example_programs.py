"""Start the programs in the folder examples."""

import signal
from pathlib import Path

from processes import finish, start

EXAMPLES = Path(__file__).parents[2] / "examples"

COMPILED = {"NUMBA_DISABLE_JIT": "0"}
"""As plain Python an example would take minutes; the library under it is tested both ways."""

TEXT = "the cat sat on a mat and dog ran over green hill while birds sang loud songs about rain"
WORDS = TEXT.split()


def start_example(name, *arguments, **environment):
    return start(EXAMPLES / name, *arguments, **COMPILED | environment)


def run_example(name, *arguments, **environment):
    return finish(start_example(name, *arguments, **environment))


def write_text(path):
    """Write a small text to learn word vectors from."""
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 12)) for i in range(400)]
    path.write_text("\n".join(lines), encoding="utf8")


def word_vectors_arguments(text, out, *options):
    return [
        *("--text", str(text), "--out", str(out), "--dim", "8", "--batch", "16", "--epochs", "4"),
        *("--checkpoint-every", "20", *options),
    ]


def interrupted_at(call, function):
    """Return the function, with a Ctrl-C before its call number ``call``."""
    calls = []

    def called(*args, **options):
        calls.append(args)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **options)

    return called
