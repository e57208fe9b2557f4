"""Repositories: create and open them, their branches and tags, their history and maintenance."""

from icechunk.repository.repository import Repository

__all__ = ["Repository"]
