"""Load files that promise more than they hold: none takes more memory than its size.

``python load_hostile_headers.py FOLDER``; the headers promise arrays of a terabyte, or hold texts that grow when they
are parsed, or deep brackets.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from numba_rmsprop import RMSprop

SIZE = 30_000_000

path = Path(sys.argv[1], "opt")
opt = RMSprop()
opt.build([np.ones(3)])
opt.save(path)
content = path.read_bytes()
length = int.from_bytes(content[:8], "little")
header, data = json.loads(content[8 : 8 + length]), content[8 + length :]


def memory_peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refuse(header_text, data=b"", length=None):
    """Write a file and try to load it."""
    path.write_bytes((length or len(header_text)).to_bytes(8, "little") + header_text + data)
    before = memory_peak()
    with pytest.raises(ValueError, match=str(path)) as caught:
        RMSprop.load(path, [np.ones(3)])
    grown = memory_peak() - before
    print(grown, str(caught.value)[:150])
    assert grown < SIZE


large = {
    name: entry if name == "__metadata__" else entry | {"shape": [2**37], "data_offsets": [0, 2**40]}
    for name, entry in header.items()
}
refuse(json.dumps(large).encode(), data)
brackets = header["__metadata__"] | {"config": "[" + "[]," * (SIZE // 3) + "[]]"}
refuse(json.dumps(header | {"__metadata__": brackets}).encode(), data)
refuse(json.dumps(header | {"deep": json.loads("[" * 500 + "]" * 500)}).encode())
refuse(b"[" * SIZE)
refuse(b'{"a":' + b"[]," * (SIZE // 3), length=SIZE)
