"""Which chunks of an array have a value, or have changed, as a mask that notebooks draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from icechunk.base.display import Displayed
from icechunk.base.html import Cell, Html, card, cell_map, fields, section, table
from icechunk.base.texts import counted
from icechunk.changes.zarr_metadata import chunk_runs
from icechunk.format.nodes import Node

__all__ = ["GridMask"]

#: Cells of the picture along each axis, and chunks that are listed.
_CELLS: Final = 32
_LISTED: Final = 50


class GridMask(Displayed, np.ndarray[Any, np.dtype[np.bool_]]):
    """A mask in the shape of a chunk grid. Notebooks show a map of it.

    What is computed with it, parts of it, and copies that were pickled are masks without a map.

    Parameters
    ----------
    mask : bool[...]
        In the shape of the chunk grid.
    kind : str
        What a chunk is where the mask is set, such as ``written``.
    node : Node
        The array.
    """

    _of: tuple[str, Node] | None

    def __new__(cls, mask: npt.NDArray[np.bool_], kind: str, node: Node) -> GridMask:
        """Make one of a mask."""
        made = mask.view(cls)
        made._of = (kind, node)
        return made

    def __array_finalize__(self, other: object) -> None:
        self._of = None

    def __array_wrap__(
        self, array: Any, context: Any = None, return_scalar: bool = False, /
    ) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __repr__(self) -> str:
        return repr(np.asarray(self))

    def _repr_html_(self) -> str:
        mask = np.asarray(self)
        if self._of is None:
            return super()._repr_html_()
        kind, node = self._of
        grid = _Grid(mask, node)
        count = int(mask.sum())
        rest = np.argwhere(~mask)
        rows = [(", ".join(map(str, coord)), grid.elements(coord)) for coord in rest[:_LISTED]]
        title = f"Not {kind}: {len(rest):,}"
        if len(rest) > _LISTED:
            title = f"{title}, of which the first {_LISTED}"
        return card(
            f"Chunks {kind}",
            node.path,
            fields({kind: f"{count:,} of {mask.size:,}", "grid": grid.told() or None}),
            grid.picture(),
            section(title, table(("chunk", "elements"), rows)),
        )


class _Grid:
    """A chunk grid: its axes by name, and which elements a chunk has."""

    def __init__(self, mask: npt.NDArray[np.bool_], node: Node) -> None:
        assert node.array is not None
        self.mask = mask
        # what is stored may contradict itself
        names = dict(enumerate(node.array.dimension_names or ()))
        self.names = [names.get(i) or f"axis {i}" for i in range(mask.ndim)]
        self.shape = (node.array.shape + mask.shape)[: mask.ndim]
        self.runs = chunk_runs(node.user_data, self.shape)

    def told(self) -> str:
        """Return the number of chunks along each axis, and how long they are."""
        return ", ".join(
            f"{name}: {counted(count, 'chunk')}" + (f" of {runs[0][0]:,}" if len(runs) == 1 else "")
            for name, count, runs in zip(self.names, self.mask.shape, self.runs, strict=True)
        )

    def elements(
        self,
        first: Sequence[int],
        last: Sequence[int] | None = None,
        axes: Sequence[int] | None = None,
    ) -> str:
        """Return the elements from one chunk to another, along some axes, as slices."""
        return ", ".join(
            f"{self.names[i]} {self._start(i, int(a))}:{self._start(i, int(b) + 1)}"
            for i, a, b in zip(axes or range(self.mask.ndim), first, last or first, strict=True)
        )

    def _start(self, axis: int, chunk: int) -> int:
        start = 0
        for size, times in self.runs[axis]:
            taken = min(chunk, times)
            start += taken * size
            chunk -= taken
        return min(start, self.shape[axis])

    def picture(self) -> Html:
        """Draw the two longest axes. In a cell, and along other axes, chunks are counted."""
        if self.mask.size <= 1:
            return Html("")
        longest = sorted(range(self.mask.ndim), key=lambda i: -self.mask.shape[i])[:2]
        axes = sorted(longest)
        others = tuple(i for i in range(self.mask.ndim) if i not in axes)
        counts = self.mask.sum(axis=others, dtype=np.int64)
        totals = np.full(counts.shape, self.mask.size // counts.size)
        steps = [-(-count // _CELLS) for count in counts.shape]
        for axis, step in enumerate(steps):
            starts = np.arange(0, counts.shape[axis], step)
            counts = np.add.reduceat(counts, starts, axis=axis)
            totals = np.add.reduceat(totals, starts, axis=axis)
        cells = []
        for place in np.ndindex(counts.shape):
            first = [i * step for i, step in zip(place, steps, strict=True)]
            last = [
                min(a + step, self.mask.shape[i]) - 1
                for i, a, step in zip(axes, first, steps, strict=True)
            ]
            count, total = int(counts[place]), int(totals[place])
            elements = self.elements(first, last, axes)
            y, x = (0, *place)[-2:]
            cells.append(Cell(y, x, count / total, f"{elements}: {count:,} of {total:,}"))
        return cell_map(cells, [(self.names[i], 0, self.mask.shape[i] - 1) for i in axes])
