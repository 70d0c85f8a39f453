"""Share work with helpers, then in a forked process and in a fork of that; print how they ended."""

import json
import os

from meetings import meet

assert meet(2)
statuses = []
child = os.fork()
if child == 0:
    good = meet(2)
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(0 if meet(2) else 1)
    os._exit(0 if good and os.waitpid(grandchild, 0)[1] == 0 else 1)
statuses.append(os.waitpid(child, 0)[1])
statuses.append(0 if meet(2) else 1)
print(json.dumps(statuses))
