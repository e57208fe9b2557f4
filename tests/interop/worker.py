"""The official side: runs functions of modules beside this one under the official client.

Started by the fixture `official` with the interpreter of an environment that has the
official client. Each line of standard input names a file with a request as JSON, a list of
the name of a function (see `find`) and its arguments; the answer goes to the file beside
it, and then a line to standard output. All else that is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def find(name: str) -> Callable[..., Any]:
    """Return a function by the names of its module and its own; without a module, of `both`."""
    module, _, function = name.rpartition(".")
    place = import_module(f"tests.interop.{module or 'both'}")
    found: Callable[..., Any] = getattr(place, function)
    return found


def main() -> None:
    # what the client prints by itself must not get between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # behind the installed packages: `icechunk` is the official one
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]
    sys.path.append(str(ROOT))
    import icechunk

    if Path(icechunk.__file__ or "").is_relative_to(ROOT / "icechunk"):
        sys.exit(f"{sys.executable} has no official client: it imports this project instead")
    for line in sys.stdin:
        request = Path(line.rstrip("\n"))
        name, arguments = json.loads(request.read_text(encoding="utf-8"))
        answer: dict[str, Any]
        try:
            answer = {"result": find(name)(*arguments)}
        except BaseException as error:  # panics of the Rust core are no Exception
            answer = {"error": type(error).__name__, "traceback": traceback.format_exc()}
        text = json.dumps(answer)
        request.with_suffix(".answer").write_text(text, encoding="utf-8")
        answers.write("done\n")
        answers.flush()


if __name__ == "__main__":
    main()
