"""Uncommitted edits, and the node hierarchy as it looks with them on top."""
