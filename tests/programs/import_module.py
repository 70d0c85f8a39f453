"""Import a module; print its public names, the modules that are then loaded, and the number of threads.

``python import_module.py MODULE [ABSENT]``: the import of ABSENT fails as if it were not installed.
"""

import importlib
import json
import sys
import threading

sys.modules.update(dict.fromkeys(sys.argv[2:]))  # None, at which an import fails
names = importlib.import_module(sys.argv[1]).__all__
print(json.dumps({"names": sorted(names), "modules": list(sys.modules), "threads": threading.active_count()}))
