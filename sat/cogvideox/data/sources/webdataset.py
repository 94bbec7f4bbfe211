"""WebDataset's tar shards: `x.mp4` and `x.txt` (or `x.json`) are one sample. Videos are read in place, by offset."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import tarfile
from collections.abc import Iterator

from cogvideox.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Media
from cogvideox.data.sources.columns import CAPTION_COLUMNS, identity, is_usable, read_captions
from cogvideox.data.sources.spec import MAX_CAPTION_BYTES, Reading, Rows, check_file, in_batches
from cogvideox.errors import DataError
from cogvideox.text_files import split_lines

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000
_MAX_BYTES = 1_000_000  # of a member that describes a clip
_Item = tuple[str, Media, tuple[str, ...], "Media | None"]


def read(reading: Reading) -> Iterator[Rows]:
    """Rows of one tar file, of all that a pattern means, or of all in a folder, in the order of their names.

    Raises:
        DataError: no such file, one that is compressed, cut short or no tar file.
    """
    for shard in shards_of(reading.spec.path):
        for batch in in_batches(_samples(shard, reading)):
            names, medias, captions, images = (list(column) for column in zip(*batch, strict=True))
            yield Rows(names, medias, captions, images)


def shards_of(pattern: str) -> list[str]:
    """The files that a path, a folder, or a pattern with {000..009}, {a,b}, * or ? means. Raises: DataError."""
    if os.path.isdir(pattern):
        return _some(sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar"))), pattern)
    if os.path.exists(pattern):
        return [pattern]
    found: list[str] = []
    for name in _expanded(pattern):
        if any(each in name for each in "*?["):
            found += sorted(glob.glob(name))
        elif not os.path.exists(name):
            raise DataError(f"{name}: does not exist (from {pattern})")
        else:
            found.append(name)
    return _some(list(dict.fromkeys(found)), pattern)


def _some(found: list[str], pattern: str) -> list[str]:
    if not found:
        raise DataError(f"{pattern}: no tar file has such a name")
    return found


def _expanded(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span is None:
        words = match[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if last < first or last - first >= _MOST_SHARDS:
            raise DataError(f"{pattern}: {match[0]} is no range of at most {_MOST_SHARDS:,} files")
        words = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    return [full for word in words for full in _expanded(pattern[: match.start()] + word + pattern[match.end() :])]


def _samples(shard: str, reading: Reading) -> Iterator[_Item]:
    key, members = "", list[tarfile.TarInfo]()
    for member in _members(shard, reading):
        folder, _, base = member.name.rpartition("/")
        this = f"{folder}/{base.partition('.')[0]}"
        if this != key and members:
            yield from _sample(shard, members, reading)
            members = []
        key = this
        members.append(member)
    if members:
        yield from _sample(shard, members, reading)


def _members(shard: str, reading: Reading) -> Iterator[tarfile.TarInfo]:
    """The files of a shard in order. Raises: DataError."""
    _check_plain(shard)
    size, end, last = os.path.getsize(shard), 0, ""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end, last = member.offset_data + member.size, member.name
                if end > size and not member.issparse():
                    raise DataError(
                        f"{shard}: is cut short at {member.name}: it has {size} bytes of at least {end}; copy it again"
                    )
                if member.issparse():
                    reading.note(
                        "incomplete row", f"{shard}:{member.name}", "is a sparse file, write it as a plain one"
                    )
                elif member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    yield member
                tar.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
            _check_end(shard, tar.offset, last)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        text = f"{shard}: can't be read as a tar file: {error}"
        raise DataError(f"{text}; copy it again" if size else f"{shard}: is empty (0 bytes)") from error


def _check_end(shard: str, place: int, last: str) -> None:
    """tarfile takes the end of the file, and whatever is no member, for the end of the archive.

    place: where it stopped; last: the member before. Raises: DataError without the empty block that ends a tar file.
    """
    with open(shard, "rb") as file:
        file.seek(place)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise DataError(
            f"{shard}: is cut short after {last}: the empty blocks that end a tar file are missing; copy it again. If "
            f"nothing is missing, this adds them: head -c 1024 /dev/zero >> {shlex.quote(shard)}"
            if not block
            else f"{shard}: is cut short after {last}: the next member is incomplete; copy it again"
        )
    if any(block):
        raise DataError(f"{shard}: is damaged after {last}: what follows is no member of a tar file; copy it again")


def _check_plain(shard: str) -> None:
    check_file(shard)
    try:
        with open(shard, "rb") as file:
            begin = file.read(6)
    except OSError as error:
        raise DataError(f"{shard}: can't be read: {error.strerror or error}") from error
    packed = next((name for mark, name in _PACKED.items() if begin.startswith(mark)), None)
    if packed is not None:
        raise DataError(
            f"{shard}: is compressed with {packed}, so that its videos can't be read in place; unpack it once, for "
            f"instance: {packed} -d {os.path.basename(shard)} (videos don't get smaller by it)"
        )


def _sample(shard: str, members: list[tarfile.TarInfo], reading: Reading) -> Iterator[_Item]:
    videos = [each for each in members if each.name.lower().endswith(VIDEO_SUFFIXES)]
    images = [each for each in members if each.name.lower().endswith(IMAGE_SUFFIXES)]
    clips, firsts = (videos, images) if videos else (images, [])
    if not clips:
        return
    reading.num_videos += 1
    where = f"{shard}:{clips[0].name}"
    if len(clips) > 1:
        reading.note("incomplete row", where, f"{clips[1].name} has the same name before its first dot")
        return
    media = _media(shard, clips[0])
    if not is_usable(media, None, where, reading):
        return
    captions = read_captions(_caption(shard, members, where, reading), where, reading)
    if captions is not None:
        name = identity(f"{os.path.basename(shard)}/{clips[0].name}")
        yield name, media, captions, _media(shard, firsts[0]) if firsts else None


def _media(shard: str, member: tarfile.TarInfo) -> Media:
    return Media(shard, member.offset_data, member.size, member.name)


def _caption(shard: str, members: list[tarfile.TarInfo], where: str, reading: Reading) -> object:
    """What a sample's .txt or .json says; None where there is neither."""
    wanted = reading.spec.caption_column
    for member in members:
        kind = member.name.rpartition("/")[2].partition(".")[2].lower()
        if kind.rpartition(".")[2] == "json":
            content = _content(shard, member, where)
            try:
                described = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{shard}:{member.name}: is no valid JSON: {error}") from error
            keys = [wanted] if wanted is not None else list(CAPTION_COLUMNS)
            found = [described[key] for key in keys if isinstance(described, dict) and key in described]
            if found:
                return found[0]
        elif kind == wanted or (wanted is None and kind.rpartition(".")[2] in ("txt", "caption", "text")):
            content = _content(shard, member, where)
            lines = [line for line in split_lines(content) if line.strip()]
            return (lines or "") if reading.wanted.captions == "random" else (split_lines(content) or [""])[0]
    return None


def _content(shard: str, member: tarfile.TarInfo, where: str) -> str:
    if member.size > max(_MAX_BYTES, MAX_CAPTION_BYTES):
        raise DataError(f"{shard}:{member.name}: holds {member.size / 1e6:.1f} MB, too much for the caption of {where}")
    with open(shard, "rb") as file:
        file.seek(member.offset_data)
        try:
            return file.read(member.size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{shard}:{member.name}: is not UTF-8; save it as UTF-8") from error
