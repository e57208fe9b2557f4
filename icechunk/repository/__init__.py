"""Repositories: create and open them, their branches and tags, their history and upkeep."""

from icechunk.repository.repository import Repository

__all__ = ["Repository"]
