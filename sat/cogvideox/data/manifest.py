"""All samples of a run as columns in one memory-mapped Arrow file. No torch.

A million samples take no Python object each: the file is mapped, shared by all processes of a machine, and only what is
looked at becomes a Sample.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from cogvideox.data.media import IMAGE_SUFFIXES, Media
from cogvideox.data.order import SampleIds, hash_each, hash_words
from cogvideox.data.sample import Sample
from cogvideox.data.sources.spec import Rows
from cogvideox.errors import DataError

_AT_A_TIME = 10_000
_MOST_BYTES_SENT = 2**28  # about 1.5 million samples
_NOTHING = -1
_IS_IMAGE = rf"(?i)[^/.][^/]*({'|'.join(map(re.escape, IMAGE_SUFFIXES))})$"  # as Media.is_image
# Paths are bytes: file systems don't promise text.
_MEDIA = (("path", pa.binary()), ("offset", pa.int64()), ("num_bytes", pa.int64()), ("name", pa.binary()))
_FIELDS = [
    ("identity", pa.string()),  # what the sample id is made of
    *_MEDIA,  # num_bytes is null for a whole file
    ("captions", pa.list_(pa.string())),
    ("source", pa.int32()),
    *((f"image_{name}", kind) for name, kind in _MEDIA),  # all null for the first frame
]


class ManifestWriter:
    """Writes a manifest. Memory does not grow with it but for 8 bytes a sample.

    The file is written where temporary files go, and has no name: it ends with the last process that uses it.
    """

    def __init__(self) -> None:
        self._token = os.urandom(16)
        self._schema = pa.schema(_FIELDS, metadata={b"token": self._token})
        self._ids: list[SampleIds] = []
        try:
            self._file: IO[bytes] = _unnamed_file()
        except OSError as error:
            raise DataError(_no_room(error)) from error
        self._writer = pa.ipc.new_file(self._file, self._schema)

    def add(self, source: int, rows: Rows) -> None:
        """Append samples of an entry. Raises: DataError without room for the file."""
        if not rows.names:
            return
        count = len(rows.names)
        columns = [
            _strings(rows.names),
            *_media_columns(rows.medias),
            _caption_column(rows.captions),
            _ints(np.full(count, source, np.int32)),
            *(_media_columns(rows.images) if any(rows.images) else [pa.nulls(count, kind) for _, kind in _MEDIA]),
        ]
        try:
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        except OSError as error:
            raise DataError(_no_room(error)) from error
        self._ids.append(ids_of(rows.names))

    def finish(self) -> Manifest:
        """The manifest. Raises: DataError without room for the file."""
        try:
            self._writer.close()
            self._file.flush()
        except OSError as error:
            raise DataError(_no_room(error)) from error
        content = _Content(self._file, self._token)
        ids = np.concatenate(self._ids) if self._ids else np.zeros(0, np.int64)
        return Manifest(content, _counted_on(ids, content.table), np.arange(len(ids)))


def ids_of(names: Sequence[str]) -> SampleIds:
    """int64 [n]: hash_words("sample", name, 0) of each name."""
    return hash_each("sample", (f"{name}\0000" for name in names))


def _media_columns(medias: Sequence[Media | str | None]) -> list[Any]:
    count = len(medias)
    if set(map(type, medias)) == {str}:
        there = np.zeros(count, np.int64)
        return [_bytes(medias), _ints(there), pa.nulls(count, pa.int64()), pa.nulls(count, pa.binary())]  # type: ignore[arg-type]
    found: list[Media | None] = [Media(media) if isinstance(media, str) else media for media in medias]
    return [
        _bytes([None if media is None else media.path for media in found]),
        pa.array([media and media.offset for media in found], pa.int64()),
        pa.array([media and media.num_bytes for media in found], pa.int64()),
        _bytes([None if media is None else media.name or None for media in found]),
    ]


def _strings(texts: Sequence[str]) -> Any:
    """An Arrow array of texts. pa.array gives the same, but imports pandas for it, which takes half a second.

    Raises: UnicodeEncodeError.
    """
    together = "".join(texts)
    encoded = together.encode()
    sizes = map(len, texts) if len(encoded) == len(together) else (len(text.encode()) for text in texts)
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(np.fromiter(sizes, np.int64, len(texts)), out=offsets[1:])
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(encoded))


def _ints(values: NDArray[Any]) -> Any:
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _bytes(texts: Sequence[str | None]) -> Any:
    try:
        whole = [text for text in texts if text is not None]
        return (_strings(whole) if len(whole) == len(texts) else pa.array(texts, pa.string())).view(pa.binary())
    except UnicodeEncodeError:  # names that are not UTF-8
        return pa.array([None if text is None else os.fsencode(text) for text in texts], pa.binary())


def _caption_column(captions: Sequence[tuple[str, ...]] | Sequence[str]) -> Any:
    if set(map(type, captions)) == {str}:
        offsets = _ints(np.arange(len(captions) + 1, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, _strings(captions))  # type: ignore[arg-type]
    return pa.array([(each,) if isinstance(each, str) else each for each in captions], pa.list_(pa.string()))


def _counted_on(ids: SampleIds, table: Any) -> SampleIds:
    """Ids of which no two are the same: where a name comes again, the later one counts on."""
    order = np.argsort(ids, kind="stable")
    starts = np.r_[True, ids[order][1:] != ids[order][:-1]] if len(ids) else np.zeros(0, bool)
    begin = np.maximum.accumulate(np.where(starts, np.arange(len(ids)), 0))
    again = order[~starts]
    counts = (np.arange(len(ids)) - begin)[~starts]
    names = table.column("identity").take(pa.array(again)).to_pylist() if len(again) else []
    result = ids.copy()
    for place, name, count in zip(again.tolist(), names, counts.tolist(), strict=True):
        result[place] = hash_words("sample", name, count)
    return result


class _Content:
    """The mapped file. Processes of the same machine open the same one; others get its bytes."""

    def __init__(self, file: IO[bytes], token: bytes) -> None:
        self._file, self._token = file, token
        self.path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        self.table = pa.ipc.open_file(pa.memory_map(self.path)).read_all()

    def __reduce__(self) -> tuple[Any, ...]:
        size = os.fstat(self._file.fileno()).st_size
        content = os.pread(self._file.fileno(), size, 0) if size <= _MOST_BYTES_SENT else None
        return _received, (self.path, self._token, content)


def _received(path: str, token: bytes, content: bytes | None) -> _Content:
    """The same file where it is of this machine, else a copy. Raises: DataError."""
    try:
        file: IO[bytes] = open(path, "rb")  # noqa: SIM115 (stays open as long as the manifest)
        if pa.ipc.open_file(pa.memory_map(path)).schema.metadata == {b"token": token}:
            return _Content(file, token)
        file.close()
    except (OSError, pa.ArrowException):
        pass
    if content is None:
        raise DataError(
            "the list of samples is too long to be sent to another machine: give fewer clips, or larger ones"
        )
    try:
        file = _unnamed_file()
        file.write(content)
        file.flush()
    except OSError as error:
        raise DataError(_no_room(error)) from error
    return _Content(file, token)


class Manifest(Sequence[Sample]):
    """Samples in a fixed order: rows of the file, or a choice of them. Picklable.

    Args:
        content: the file.
        ids: int64 [n], sample ids.
        rows: int64 [n], the row of the file that each sample is.
        windows: int32 [n], which full window of a long clip each is; None: the first.
        cuts: Arrow lists [n], where the video of each cuts to another scene; None where nobody looked.
    """

    def __init__(
        self,
        content: _Content,
        ids: SampleIds,
        rows: NDArray[np.int64],
        windows: NDArray[np.int32] | None = None,
        cuts: Any = None,
    ) -> None:
        self._content, self._ids, self._rows = content, ids, rows
        self._windows, self._cuts = windows, cuts

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Manifest: ...
    def __getitem__(self, index: int | slice) -> Sample | Manifest:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        place = range(len(self))[index]
        return self._samples(place, place + 1)[0]

    def __iter__(self) -> Iterator[Sample]:
        for first in range(0, len(self), _AT_A_TIME):
            yield from self._samples(first, min(first + _AT_A_TIME, len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether they hold the same samples."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def sample_ids(self) -> SampleIds:
        """int64 [n]."""
        return self._ids

    def column(self, name: str) -> Any:
        """A column of the file for these samples: an Arrow array of n values."""
        return self._content.table.column(name).take(pa.array(self._rows))

    def select(
        self,
        places: NDArray[np.int64],
        *,
        sample_ids: SampleIds | None = None,
        windows: NDArray[np.int32] | None = None,
        cuts: Any = None,
    ) -> Manifest:
        """The samples at these places, in this order; a place may come more than once.

        Args:
            places: int64 [m].
            sample_ids: int64 [m], new ids, as for several windows of one clip; None keeps them.
            windows: int32 [m]; cuts: Arrow lists [m]; None keeps them.
        """
        return Manifest(
            self._content,
            self._ids[places] if sample_ids is None else sample_ids,
            self._rows[places],
            windows if windows is not None or self._windows is None else self._windows[places],
            cuts if cuts is not None or self._cuts is None else self._cuts.take(pa.array(places)),
        )

    def has_images(self) -> bool:
        """Whether any sample has a first image of its own."""
        return self.column("image_path").null_count < len(self)

    def num_images(self) -> int:
        """How many samples are images."""
        compute = pa.compute
        names = compute.coalesce(self.column("name"), self.column("path"))
        return compute.sum(compute.match_substring_regex(names, _IS_IMAGE)).as_py() or 0

    def captions(self) -> list[str]:
        """Every caption that the samples can be trained with, each once, in order."""
        return pa.compute.unique(pa.compute.list_flatten(self.column("captions"))).to_pylist()

    def each_media(self) -> Iterator[Media]:
        """Where the videos are, in order."""
        for first in range(0, len(self), _AT_A_TIME):
            yield from self.medias(first, min(first + _AT_A_TIME, len(self)))

    def file_numbers(self) -> NDArray[np.int64]:
        """int64 [n], the same number for samples of the same video."""
        paths = self.column("path").combine_chunks().dictionary_encode().indices.to_numpy()
        offsets, place = np.unique(self.column("offset").to_numpy(), return_inverse=True)
        return paths.astype(np.int64) * max(1, len(offsets)) + place

    def medias(self, first: int, last: int) -> list[Media]:
        """Where the videos of these samples are, without anything else of them."""
        return _medias(self._part(first, last, [name for name, _ in _MEDIA]), "")

    def _samples(self, first: int, last: int) -> list[Sample]:
        part = self._part(first, last)
        images: list[Media | None] = [None] * (last - first)
        if part.column("image_path").null_count < last - first:
            images = _medias(part, "image_")  # type: ignore[assignment]
        samples = []
        for place, media, captions, source, image in zip(
            range(first, last),
            _medias(part, ""),
            part.column("captions").to_pylist(),
            part.column("source").to_pylist(),
            images,
            strict=True,
        ):
            window = 0 if self._windows is None else int(self._windows[place])
            cuts = () if self._cuts is None else tuple(self._cuts[place].as_py())
            samples.append(Sample(media, tuple(captions), int(self._ids[place]), source, image, window, cuts))
        return samples

    def _part(self, first: int, last: int, names: Sequence[str] = ()) -> Any:
        table = self._content.table.select(list(names)) if names else self._content.table
        rows = self._rows[first:last]
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
            return table.slice(int(rows[0]), len(rows))
        return table.take(pa.array(rows))


def _medias(table: Any, prefix: str) -> list[Media]:
    """None among them where there is no path."""
    if prefix == "" and table.column("num_bytes").null_count == len(table):  # files of their own
        return [Media(path) for path in _decoded(table.column("path"))]
    columns = (table.column(prefix + name).to_pylist() for name, _ in _MEDIA)
    return [
        None if path is None else Media(os.fsdecode(path), offset, num_bytes, os.fsdecode(name or b""))  # type: ignore[misc]
        for path, offset, num_bytes, name in zip(*columns, strict=True)
    ]


def _decoded(paths: Any) -> list[str]:
    try:
        return paths.cast(pa.string()).to_pylist()
    except pa.ArrowInvalid:  # names that are not UTF-8
        return [os.fsdecode(path) for path in paths.to_pylist()]


def _unnamed_file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="cogvideox-manifest-")


def _no_room(error: OSError) -> str:
    place = tempfile.gettempdir()
    return f"the list of samples can't be written in {place}: {error.strerror or error}; set TMPDIR to another folder"
