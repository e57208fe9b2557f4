"""The version of this library: packaging and file headers read it here."""

#: The release of the official client that has this API, and as a local version (PEP 440) the
#: release of this project: packages that ask for ``icechunk>=2`` find it.
__version__ = "2.3.0+py0.2.0"

#: The version of this project alone.
RELEASE = __version__.rpartition("+py")[2]


def user_agent() -> str:
    """Return the user agent of this library's requests.

    Examples
    --------
    >>> name = icechunk.user_agent()
    """
    return f"icechunk-py/{RELEASE}"
