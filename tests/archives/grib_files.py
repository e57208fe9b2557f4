"""Makes GRIB messages, and reads files of them with ecCodes: the truth to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import numpy.typing as npt

#: Shape (j, i) of the small grid, and its parallels and meridians.
SHAPE = (3, 5)
REGULAR = "regular_ll_sfc_grib{edition}"


def handle_of(
    sample: str = REGULAR, *, edition: int = 2, values: Any = None, small: bool = True, **keys: Any
) -> Any:
    """Return the handle of a message; keys are set in their order, values last."""
    name = sample.format(edition=edition)
    handle = eccodes.codes_grib_new_from_samples(name)
    if small:
        backwards, upwards = keys.get("iScansNegatively", 0), keys.get("jScansPositively", 0)
        parallels = (10, 20) if upwards else (20, 10)
        meridians = (8, 4) if backwards else (4, 8)
        for key, value in {
            "Ni": SHAPE[1],
            "Nj": SHAPE[0],
            "latitudeOfFirstGridPointInDegrees": parallels[0],
            "latitudeOfLastGridPointInDegrees": parallels[1],
            "longitudeOfFirstGridPointInDegrees": meridians[0],
            "longitudeOfLastGridPointInDegrees": meridians[1],
            "iDirectionIncrementInDegrees": 1,
            "jDirectionIncrementInDegrees": 5,
        }.items():
            eccodes.codes_set(handle, key, value)
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    if values is None and small:
        values = np.arange(float(np.prod(SHAPE))) + 100
    if values is not None:
        eccodes.codes_set_values(handle, np.ravel(values).astype(float))
    return handle


def message(sample: str = REGULAR, **options: Any) -> bytes:
    """Return the bytes of a message; options as of `handle_of`."""
    handle = handle_of(sample, **options)
    try:
        data: bytes = eccodes.codes_get_message(handle)
    finally:
        eccodes.codes_release(handle)
    return data


def sections_of(data: bytes) -> dict[int, bytes]:
    """Return the sections of a message of edition 2 with one field."""
    found = {}
    position = 16
    while data[position:] != b"7777":
        length = int.from_bytes(data[position : position + 4], "big")
        found[data[position + 4]] = data[position : position + length]
        position += length
    return found


def several_fields(messages: Sequence[bytes], section: int = 4) -> bytes:
    """Return one message with the fields of all; they share what comes before `section`."""
    body = b"".join(data for _, data in sorted(sections_of(messages[0]).items()))
    for data in messages[1:]:
        parts = sorted(sections_of(data).items())
        body += b"".join(part for number, part in parts if number >= section)
    return whole_message(messages[0], body)


def whole_message(like: bytes, body: bytes) -> bytes:
    """Return a message of edition 2 with these sections."""
    return like[:8] + (len(body) + 20).to_bytes(8, "big") + body + b"7777"


@dataclass
class Truth:
    """A field as ecCodes has it.

    Attributes
    ----------
    name, date, time, step : Any
    start, end : int
        When the forecast begins, and when it is for: seconds since 1970.
    points : float64[n, 3]
        Latitude, longitude and value, NaN where it is missing, in the order of ecCodes'
        iterator. Empty if it has no coordinates.
    values : array
        In the order of the message.
    """

    name: str
    date: int
    time: int
    step: str
    level: float
    kind: str
    number: int | None
    start: int
    end: int
    points: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]


def in_order(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sort points by place, and those of one place by value."""
    return points[np.lexsort(points.T[::-1])]


def truths(path: Path) -> list[Truth]:
    """Read all fields of all messages of a file with ecCodes."""
    return list(_truths(path))


def _truths(path: Path) -> Iterator[Truth]:
    eccodes.codes_grib_multi_support_on()
    try:
        with open(path, "rb") as file:
            while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
                yield _truth(handle)
                eccodes.codes_release(handle)
    finally:
        eccodes.codes_grib_multi_support_off()


def _truth(handle: Any) -> Truth:
    eccodes.codes_set(handle, "missingValue", 1e300)
    values = eccodes.codes_get_array(handle, "values")
    try:
        # what codes_grib_get_data makes dictionaries of
        points = eccodes.codes_get_array(handle, "latLonValues", float).reshape(-1, 3)
    except eccodes.CodesInternalError:
        points = np.empty((0, 3))
    points[points[:, 2] == 1e300, 2] = np.nan
    get = eccodes.codes_get
    values = np.where(values == 1e300, np.nan, values)
    return Truth(
        get(handle, "shortName"),
        get(handle, "dataDate"),
        get(handle, "dataTime"),
        get(handle, "endStep", str),
        get(handle, "level", float),
        get(handle, "typeOfLevel"),
        get(handle, "number") if eccodes.codes_is_defined(handle, "number") else None,
        _seconds(get(handle, "dataDate"), get(handle, "dataTime")),
        _seconds(get(handle, "validityDate"), get(handle, "validityTime")),
        points,
        values,
    )


def _seconds(date: int, time: int) -> int:
    """Return the seconds since 1970 of a date and a time that are written as numbers."""
    if not 1 <= date // 100 % 100 <= 12:
        return 0
    moment = datetime(date // 10000, date // 100 % 100, date % 100, time // 100, time % 100)
    return int(moment.replace(tzinfo=UTC).timestamp())
