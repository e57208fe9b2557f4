"""The command line, as ``python -m icechunk``."""

from icechunk.cli import main

main()
