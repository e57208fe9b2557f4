"""What names mean on Windows, beside the file of that name. Told from the text alone."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_elsewhere", "name_problem"]

#: Devices, in every folder and with every extension; ``COM¹`` is one, too.
_DEVICE: Final = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])[ ]*(?:[.:].*)?",
    re.IGNORECASE | re.DOTALL,
)
_NOT_IN_NAMES: Final = re.compile(r'[\x00-\x1f<>"|?*]')
#: Of other hosts, ``\\host\share``, and of devices, ``\\.\`` and ``\\?\`` and ``\??\``.
_ELSEWHERE: Final = re.compile(r"[\\/](?:[\\/]|\?\?[\\/])")


def name_problem(name: str) -> str | None:
    r"""Say why a name between slashes is that of no file on Windows.

    Short names, ``PROGRA~1``, are other names of files of the same folder, and no problem.

    Parameters
    ----------
    name : str

    Returns
    -------
    str or None
        A predicate for a message; None for the name of a file or folder.

    Examples
    --------
    >>> name_problem("nul.txt")
    'is the name of a device'
    """
    if name in ("", ".", ".."):
        return "leads to another folder"
    if "\\" in name or "/" in name:
        return "has more than one segment"
    if _DEVICE.fullmatch(name):
        return "is the name of a device"
    if ":" in name:
        return "names a drive or a stream inside of a file"
    if _NOT_IN_NAMES.search(name):
        return "has a character that no file has there"
    if name.endswith((".", " ")):
        return "ends with a dot or a blank, which is cut off there"
    return None


def is_elsewhere(path: str) -> bool:
    r"""Whether a path of Windows is that of another host or of a device.

    To look for such a file is a request to that host, which carries a name and a password's hash.

    Examples
    --------
    >>> is_elsewhere(r"\\host\share\x"), is_elsewhere(r"C:\data\x")
    (True, False)
    """
    return _ELSEWHERE.match(path) is not None
