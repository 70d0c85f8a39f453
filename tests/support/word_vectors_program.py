"""The example of word vectors, run on a small text."""

import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "word_vectors.py"


WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "over",
    "green",
    "hill",
    "while",
    "birds",
    "sang",
    "loud",
    "songs",
    "about",
    "rain",
]


def command(text, out, *options):
    return [
        *(sys.executable, str(EXAMPLE), "--text", str(text), "--out", str(out), "--dim", "8", "--batch", "16"),
        *("--epochs", "4", "--checkpoint-every", "20", *options),
    ]
