"""One transaction: edits on top of a snapshot until they are committed or dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icechunk.base.methods import async_twin, of_part
from icechunk.base.texts import labelled
from icechunk.changes.change_set import ArrayChanges, ChangeSet, OnConflict
from icechunk.changes.codec import decode_change_set, encode_change_set
from icechunk.changes.tree import Tree
from icechunk.changes.zarr_metadata import parse_node_metadata
from icechunk.commit.building import transaction_log
from icechunk.commit.diff import Diff, diff_from_logs
from icechunk.config import RepositoryConfig
from icechunk.config.repository_config import EffectiveConfig
from icechunk.errors import (
    ErrorKind,
    InvalidInputError,
    SessionStateError,
    UnpicklableSessionError,
)
from icechunk.format import v1
from icechunk.format.ids import encode_id, normalize_path
from icechunk.session.array_chunks import ArrayChunks, ChunkType
from icechunk.session.chunks import ChunkStore
from icechunk.session.committer import Committer
from icechunk.session.context import SessionContext, SessionMode
from icechunk.session.copies import Copies
from icechunk.session.edits import Edits
from icechunk.session.overview import session_overview
from icechunk.session.terms import Committed
from icechunk.storage.base import Storage
from icechunk.virtual.resolver import VirtualResolver

if TYPE_CHECKING:
    from icechunk.store import IcechunkStore

__all__ = ["ChunkType", "ForkSession", "Session", "SessionMode"]


class Session:
    """One transaction on a repository. Made by `Repository`, not directly.

    Read-only sessions look at one snapshot for ever. Writable ones collect edits and
    become read-only, at the new snapshot, once they are committed. A session may be used
    from several threads.

    Attributes
    ----------
    chunks : ChunkStore
        Access to single chunks.

    Examples
    --------
    >>> session = repo.writable_session("main")
    >>> zarr.open_array(session.store, path="temperature")[1] = 17.0
    >>> snapshot = session.commit("Warmer")
    """

    def __init__(
        self,
        context: SessionContext,
        snapshot_id: bytes,
        mode: SessionMode,
        branch: str | None = None,
        layers: Sequence[ChangeSet] = (),
        needs: Collection[bytes] = (),
        pack: bool = False,
    ) -> None:
        edits = Edits(context.assets.snapshot, snapshot_id, mode, layers)
        self._take_parts(context, edits, branch, needs=needs, pack=pack)
        self.load()

    def _take_parts(
        self,
        context: SessionContext,
        edits: Edits,
        branch: str | None = None,
        copies: Copies | None = None,
        needs: Collection[bytes] = (),
        pack: bool = False,
    ) -> None:
        self._context = context
        self._copies = copies or Copies()
        self._edits = edits
        self._lock = edits.lock
        self.chunks = ChunkStore(context, edits, pack=pack)
        self._committer = Committer(context, edits, branch, needs, self.chunks.send)
        self._arrays = ArrayChunks(edits, self.chunks, context.virtual)

    # -- properties --------------------------------------------------------------
    @property
    def read_only(self) -> bool:
        """Whether the session refuses edits."""
        return self._edits.mode is SessionMode.readonly

    @property
    def is_fork(self) -> bool:
        """Whether the session is a fork, to be merged and never committed."""
        return False

    @property
    def mode(self) -> SessionMode:
        """Whether the session reads, writes, or rearranges."""
        return self._edits.mode

    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot that the session began at; after a commit, the new one."""
        return encode_id(self._edits.snapshot_id)

    @property
    def branch(self) -> str | None:
        """The branch that a commit moves; None for read-only sessions and forks."""
        return self._committer.branch

    @property
    def storage(self) -> Storage:
        """Where the repository is."""
        return self._context.assets.storage

    @property
    def config(self) -> RepositoryConfig:
        """The configuration that the session works with."""
        return self._context.config

    @property
    def virtual(self) -> VirtualResolver:
        """Access to the files that hold virtual chunks."""
        return self._context.virtual

    @property
    def storage_url(self) -> str:
        """Where the repository is, without credentials."""
        return self._context.assets.storage.url

    @property
    def effective_config(self) -> EffectiveConfig:
        """The configuration, with defaults filled in."""
        return self._context.effective

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether there are changes to commit."""
        return self._edits.has_changes

    @property
    def has_inherited_changes(self) -> bool:
        """Whether the parent of a fork had changes when it was forked."""
        return self._edits.has_inherited_changes

    def __repr__(self) -> str:
        lines = {"read_only": str(self.read_only), "snapshot_id": self.snapshot_id}
        if not self.read_only:
            lines["branch"] = str(self.branch)
            if self.is_loaded:
                lines["has_uncommitted_changes"] = str(self.has_uncommitted_changes)
        return labelled("icechunk.session.Session", lines)

    def _repr_html_(self) -> str:
        return session_overview(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        if self is other:
            return True
        return (
            self._context.assets.storage.url == other._context.assets.storage.url
            and self.snapshot_id == other.snapshot_id
            and self.mode == other.mode
            and self._edits.everything() == other._edits.everything()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def store(self) -> IcechunkStore:
        """The Zarr store of this session."""
        # the one import from a higher layer: users expect the attribute here
        from icechunk.store import IcechunkStore

        return IcechunkStore(self)

    # -- pickling ------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        if not self.read_only:
            raise UnpicklableSessionError(
                "a writable session cannot be pickled: changes made on the copy would be lost. "
                "Send session.fork() to other processes, and merge() what comes back. With Dask, "
                "icechunk.xarray.to_icechunk and icechunk.dask.store_dask do that"
            )
        return {
            "recipe": self._context.recipe,
            "edits": {"snapshot_id": self._edits.snapshot_id, "mode": SessionMode.readonly},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # no request is made, and nothing is decoded, before the session is used: an error
        # here would end the process that receives it
        context = state["recipe"].context()
        edits = Edits(context.assets.snapshot, **state["edits"])
        copies = Copies(state.get("originals", ()))
        self._take_parts(context, edits, copies=copies, pack=state.get("pack", False))

    @property
    def is_loaded(self) -> bool:
        """Whether the snapshot was fetched. A copy in another process fetches it on first use."""
        return self._edits.is_loaded

    def load(self) -> None:
        """Fetch the snapshot, unless it was fetched before."""
        self._edits.load()

    # -- nodes -------------------------------------------------------------------------
    @property
    def tree(self) -> Tree:
        """The node hierarchy, with the edits of this session."""
        return self._edits.tree

    def set_metadata_document(self, path: str, user_data: bytes) -> None:
        """Create a node, or replace its ``zarr.json``.

        Raises
        ------
        ReadOnlyError, SessionStateError
            If the session does not take edits.
        InvalidInputError
            If it is not a Zarr v3 document, or one that the format cannot hold.
        """
        with self._lock:
            self._edits.check_editable()
            # the text first: parsing the document or asking for the version costs more
            if (
                b"rectilinear" in user_data
                and not parse_node_metadata(user_data, path).is_regular
                and self._context.state.spec_version == 1
            ):
                raise v1.irregular_grid(path)
            self._edits.tree.put(path, user_data)

    def delete_nodes(self, path: str, *, below: bool = True) -> None:
        """Delete a node and everything below it. A missing node is ignored.

        With ``below=False`` nodes below an array stay.

        Examples
        --------
        >>> session.delete_nodes("/temperature")
        """
        with self._lock:
            self._edits.check_editable()
            self._edits.tree.delete(path, below=below)

    def move(self, from_path: str, to_path: str) -> None:
        """Move a group or array, with everything below it, to another path.

        Parameters
        ----------
        from_path, to_path : str
            Absolute paths.

        Raises
        ------
        SessionStateError
            If the session is not one from `Repository.rearrange_session`, or the target
            lies within the source or has no group as its parent.
        NodeNotFoundError
            If there is nothing at `from_path`.
        AlreadyExistsError
            If there is a node at `to_path`.

        Examples
        --------
        >>> session = repo.rearrange_session("main")
        >>> session.move("/temperature", "/t")
        """
        if self.mode is not SessionMode.rearrange:
            if self.read_only:
                self._edits.check_editable()
            raise SessionStateError(
                "get one from Repository.rearrange_session(branch)",
                ErrorKind.NON_REARRANGE_SESSION,
            )
        with self._lock:
            self._edits.tree.move(normalize_path(from_path), normalize_path(to_path))

    def get_node_id(self, path: str) -> str:
        """Return the id of a node, which stays the same when the node moves."""
        return encode_id(self._edits.tree.require(normalize_path(path)).id)

    # -- chunks of an array ------------------------------------------------------------
    chunk_refs = of_part("_arrays", ArrayChunks.chunk_refs)
    set_refs = of_part("_arrays", ArrayChunks.set_refs)
    written_chunks = of_part("_arrays", ArrayChunks.written_chunks)
    changed_chunks = of_part("_arrays", ArrayChunks.changed_chunks)
    chunk_type = of_part("_arrays", ArrayChunks.chunk_type)
    all_virtual_chunk_locations = of_part("_arrays", ArrayChunks.all_virtual_chunk_locations)
    chunk_coordinates = of_part("_arrays", ArrayChunks.chunk_coordinates)
    chunk_batches = of_part("_arrays", ArrayChunks.chunk_batches)
    shift_array = of_part("_arrays", ArrayChunks.shift_array)
    reindex_array = of_part("_arrays", ArrayChunks.reindex_array)

    # -- changes -----------------------------------------------------------------------
    def array_changes(self) -> list[ArrayChanges]:
        """Return how many chunks of each array were changed, and their size in bytes.

        For a fork, only those since it was forked.
        """
        return self._edits.own().array_changes()

    def status(self) -> Diff:
        """Return the uncommitted changes.

        Examples
        --------
        >>> zarr.open_array(session.store, path="temperature")[1] = 17.0
        >>> session.status().updated_chunks
        {'/temperature': [[1, 0]]}
        """
        changes, tree = self._edits.own(), self._edits.tree
        log = transaction_log(tree.snapshot.id, tree.snapshot, changes)
        return diff_from_logs([log], tree.snapshot, {node.id: node for node in tree.nodes()})

    def changes(self) -> ChangeSet:
        """Return the uncommitted changes; for a fork, those since it was forked."""
        with self._lock:
            self.chunks.send()
            return self._edits.own()

    def change_set_bytes(self) -> bytes:
        """Return the uncommitted changes, to be sent to the coordinator of a job.

        For a fork, these are the changes since it was forked. The chunks are already stored:
        only their places travel.
        """
        self._edits.check_written()
        changes = self.changes()
        self._context.assets.storage.sync()
        return encode_change_set(changes)

    def discard_changes(self) -> None:
        """Drop all uncommitted changes.

        Examples
        --------
        >>> session.discard_changes()
        >>> session.has_uncommitted_changes
        False
        """
        if self.read_only:
            self._edits.check_editable()
        with self._lock:
            self._edits.discard()
            self.chunks.discard()

    def discard_inherited_changes(self) -> None:
        """Drop all uncommitted changes; for a fork, also those that its parent had made before.

        Examples
        --------
        >>> session.discard_inherited_changes()
        """
        if self.read_only:
            self._edits.check_editable()
        with self._lock:
            self._edits.discard(inherited=True)
            self.chunks.discard()

    def fork(self, *, pack: bool | None = None) -> ForkSession:
        """Return a session for other processes, which sees what this one has done.

        It pickles. What is written through it, or through its copies, comes back by
        `merge`, or as `change_set_bytes` for `merge_change_sets`.

        Parameters
        ----------
        pack : bool, optional
            Whether small chunks share objects, as for `Repository.writable_session`.
            Default: as in this session.

        Examples
        --------
        >>> fork = session.fork()  # pickle it, and write to it elsewhere
        >>> zarr.open_array(fork.store, path="temperature")[1] = 17.0
        >>> session.merge(fork)
        """
        if self.mode is not SessionMode.writable:
            raise SessionStateError(
                "cannot fork a read-only session: it pickles, for reading"
                if self.read_only
                else "only a writable session can be forked",
                ErrorKind.CANNOT_FORK_READ_ONLY_SESSION,
            )
        with self._lock:
            self.chunks.send()
            lineage, inherited = self._edits.fork()
            packs = self.chunks.packs if pack is None else pack
            start = self._edits.snapshot_id
        return ForkSession(self._context, start, lineage, inherited, packs)

    def merge(self, *others: ForkSession) -> None:
        """Take over what forks of this session did.

        Parameters
        ----------
        *others : ForkSession
            In any order. A fork that was sent to other processes has none of what was done
            there: merge what comes back. The session itself is ignored. What two forks did
            alike counts once: an array that both shift by a chunk is shifted by one.

        Raises
        ------
        ConflictError
            If two forks, or a fork and what this session did after the fork was made,
            disagree about a chunk or a node. Nothing is taken over then.
        SessionStateError
            If copies of a fork were sent to other processes, and none came back.

        Examples
        --------
        >>> fork = session.fork()
        >>> zarr.open_array(fork.store, path="temperature")[1] = 17.0
        >>> session.merge(fork)
        >>> session.has_uncommitted_changes
        True
        """
        forks = _forks(self, others)
        self._copies.check(fork._copies for fork in forks)
        self.merge_parts(*forks)

    def merge_parts(self, *others: ForkSession) -> None:
        """Take over what forks did, on the way to the session that merges all of them.

        This is `merge` without the check for copies: where Dask combines results on its
        workers, it sends copies around. The session that merges the result makes the check.
        """
        forks = _forks(self, others)
        for fork in forks:
            fork._edits.check_written()
        self._edits.merge([fork.changes() for fork in forks])
        self._copies.take_over(fork._copies for fork in forks)

    def merge_change_sets(
        self, change_sets: Iterable[bytes], *, on_conflict: OnConflict = "error"
    ) -> None:
        """Take over what other processes did, from their `change_set_bytes`.

        Parameters
        ----------
        change_sets : iterable of bytes
            In any order. One that comes twice counts once.
        on_conflict : {"error", "last"}
            What to do where two disagree.

        Raises
        ------
        FormatError
            If some bytes are damaged, or are not a change set.
        SessionStateError
            If a change set was made on another snapshot, or on nodes that this session
            does not have.
        ConflictError
            If two disagree about a chunk or a node, or one with this session. In all three
            cases nothing is taken over.

        Examples
        --------
        >>> fork = session.fork()
        >>> session.merge_change_sets([fork.change_set_bytes()])
        """
        parts = [decode_change_set(data, f"change set {i}") for i, data in enumerate(change_sets)]
        self._edits.merge(parts, on_conflict)

    # -- committing ----------------------------------------------------------------------
    commit = of_part("_committer", Committer.commit)
    amend = of_part("_committer", Committer.amend)
    flush = of_part("_committer", Committer.flush)
    rebase = of_part("_committer", Committer.rebase)
    rewrite_manifests = of_part("_committer", Committer.rewrite_manifests)

    @property
    def committed(self) -> Committed | None:
        """What the commit of this session took, or None before the commit."""
        return self._committer.committed

    def distributed_commit(
        self,
        message: str,
        change_sets: Iterable[bytes],
        metadata: Mapping[str, Any] | None = None,
        *,
        on_conflict: OnConflict = "error",
        allow_empty: bool = False,
    ) -> str:
        """Commit the changes of this session and of other processes: all or nothing.

        Takes the parameters of `commit` and `merge_change_sets`, and raises their errors.
        If it raises, the session is as it was before.

        Examples
        --------
        >>> fork = session.fork()
        >>> zarr.open_array(fork.store, path="temperature")[1] = 17.0
        >>> snapshot = session.distributed_commit("Warmer", [fork.change_set_bytes()])
        """
        with self._lock:
            top = self._edits.layers[-1]
            self.merge_change_sets(change_sets, on_conflict=on_conflict)
            try:
                return self.commit(message, metadata, allow_empty=allow_empty)
            except BaseException:
                self._edits.restore(top)
                raise

    chunk_type_async = async_twin(chunk_type)
    all_virtual_chunk_locations_async = async_twin(all_virtual_chunk_locations)
    move_async = async_twin(move)
    get_node_id_async = async_twin(get_node_id)
    merge_async = async_twin(merge)
    commit_async = async_twin(commit)
    amend_async = async_twin(amend)
    flush_async = async_twin(flush)
    rebase_async = async_twin(rebase)
    distributed_commit_async = async_twin(distributed_commit)


class ForkSession(Session):
    """A session for work in other processes. Made by `Session.fork`.

    It starts with what its parent had done, pickles with its changes, and cannot commit:
    the session that it was forked from merges it.

    Examples
    --------
    >>> fork = session.fork()
    >>> zarr.open_array(fork.store, path="temperature")[1] = 17.0
    >>> session.merge(fork)
    """

    def __init__(
        self,
        context: SessionContext,
        snapshot_id: bytes,
        lineage: bytes,
        inherited: Sequence[ChangeSet],
        pack: bool = False,
    ) -> None:
        layers = [*inherited, ChangeSet(snapshot_id, lineage)]
        edits = Edits(
            context.assets.snapshot,
            snapshot_id,
            SessionMode.writable,
            layers,
            len(inherited),
            lineage,
        )
        self._take_parts(context, edits, pack=pack)
        self.load()

    @property
    def is_fork(self) -> bool:
        """Always true."""
        return True

    def __getstate__(self) -> dict[str, Any]:
        self._edits.check_written()
        with self._lock:
            self.chunks.send()
            edits = self._edits.to_send()
        # whoever commits the changes knows nothing about this process's files
        self._context.assets.storage.sync()
        return {
            "recipe": self._context.recipe,
            "edits": edits,
            "originals": self._copies.send(),
            "pack": self.chunks.packs,
        }


def _forks(session: Session, others: Iterable[object]) -> list[ForkSession]:
    """Return what is to be merged into a session, without that session itself."""
    forks = []
    for other in others:
        if other is session:
            continue
        if not isinstance(other, ForkSession):
            raise InvalidInputError(
                f"merge takes forks of this session, not a {type(other).__name__}",
                ErrorKind.MERGE_NOT_ALLOWED,
            )
        forks.append(other)
    return forks
