"""Save in a folder that this user may not write to: nothing is left there."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from numba_rmsprop import RMSprop

opt = RMSprop()
opt.build([np.ones(3)])
folder = Path(tempfile.mkdtemp())
folder.chmod(0o555)
try:
    if os.geteuid() == 0:
        os.seteuid(65534)  # to root every folder is writable
    with pytest.raises(PermissionError):
        opt.save(folder / "opt")
    assert not os.listdir(folder)
finally:
    os.seteuid(os.getuid())
    folder.rmdir()
