"""Whether a service that has the credentials of a machine answers at all."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import urlsplit

from icechunk.base.public_url import public_url

__all__ = ["LINK_LOCAL", "unanswered"]

#: Where the clouds have it.
LINK_LOCAL: Final = "http://169.254.169.254"
#: In seconds, until the first byte of an answer. It is on the machine, or next to it.
_PATIENCE: Final = 2.0


def unanswered(url: str, header: str = "") -> str | None:
    """Say that nobody answers, or return None if somebody does, whatever the answer is.

    The clients of obstore would ask for half a minute.

    Parameters
    ----------
    url : str
        Of the service. Only one without TLS is asked.
    header : str, optional
        Sent to the service, and expected in its answer.

    Examples
    --------
    >>> unanswered("http://127.0.0.1:9")
    'http://127.0.0.1:9 does not answer (Connection refused)'
    """
    import socket

    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return None
    headers = [f"Host: {parts.netloc}", *filter(None, [header])]
    sent = "".join(f"{line}\r\n" for line in ["GET / HTTP/1.0", *headers, ""])
    end = time.monotonic() + _PATIENCE
    try:
        where = (parts.hostname, parts.port or 80)
        with socket.create_connection(where, timeout=_PATIENCE) as line:
            line.settimeout(max(end - time.monotonic(), 0.1))
            line.sendall(sent.encode())
            if header.lower() in line.recv(4096).decode("latin-1").lower():
                return None
            why = f"as expected, with {header}"
    except ValueError:
        return None  # not a port, which the client says
    except TimeoutError:
        why = f"within {_PATIENCE:g} s"
    except OSError as error:
        why = f"({error.strerror or type(error).__name__})"
    return f"{public_url(url)} does not answer {why}"
