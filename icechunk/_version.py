"""The version of this library: packaging and file headers read it here."""

__version__ = "0.1.0"


def user_agent() -> str:
    """Return what this library calls itself in requests."""
    return f"icechunk-py/{__version__}"
