"""How hypothesis runs here. Imported once, by conftest.py, for its effect.

No deadline: a slow example on a busy machine is not a failure. In CI the examples are the
same in every run, so that a red run can be repeated; elsewhere they are fresh each time.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")
