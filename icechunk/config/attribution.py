"""Who makes the requests, as the access logs of the storage show it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from icechunk.base.display import Displayed
from icechunk.base.texts import call, labelled, literal
from icechunk.config.options import invalid_option

__all__ = ["Attribution"]

#: ``name`` or ``name/version`` in the characters of a token (RFC 9110, "User-Agent").
_PRODUCT: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+(/[-!#$%&'*+.^_`|~0-9A-Za-z]+)?")
#: Printable ASCII without what stands between the labels.
_LABEL: Final = re.compile(r"[ -~]*")
_BETWEEN_LABELS: Final = frozenset('()\\;="')
_MAX_ATTRIBUTION: Final = 128


@dataclass(frozen=True, kw_only=True, repr=False)
class Attribution(Displayed):
    r"""Who makes the requests, for the access logs of the storage.

    Parameters
    ----------
    client : str, optional
        The program: ``name`` or ``name/version``, of the characters that HTTP allows there.
    workload, principal : str, optional
        What it does and on whose behalf: printable ASCII without any of ``()\\;="``.

    Raises
    ------
    InvalidInputError
        If a label is longer than 128 bytes, or has other characters.
    """

    client: str | None = None
    workload: str | None = None
    principal: str | None = None

    def __repr__(self) -> str:
        return call("icechunk.Attribution", self._texts())

    def __str__(self) -> str:
        return labelled("icechunk.Attribution", self._texts())

    def _texts(self) -> dict[str, str]:
        return {name: literal(value) for name, value in vars(self).items()}

    def __post_init__(self) -> None:
        for name in ("client", "workload", "principal"):
            value = getattr(self, name)
            if value is None:
                continue
            where = f"Attribution: {name}"
            if not isinstance(value, str):
                raise invalid_option(where, "a string", value)
            if len(value.encode()) > _MAX_ATTRIBUTION:
                raise invalid_option(where, f"at most {_MAX_ATTRIBUTION} bytes long", value)
            if name == "client" and not _PRODUCT.fullmatch(value):
                raise invalid_option(where, "'name' or 'name/version' without spaces", value)
            if not _LABEL.fullmatch(value) or _BETWEEN_LABELS.intersection(value):
                raise invalid_option(where, 'printable ASCII without any of ()\\;="', value)

    def user_agent(self, library: str) -> str:
        """Return the header that carries it, in the form of the official client.

        Parameters
        ----------
        library : str
            The name by which this library identifies itself.
        """
        labels = [
            f"{name}={value}"
            for name, value in (("workload", self.workload), ("principal", self.principal))
            if value is not None
        ]
        comment = [f"({'; '.join(labels)})"] if labels else []
        return " ".join([*([self.client] if self.client else []), library, *comment])
