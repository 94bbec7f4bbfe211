"""Contexts of captions that are known beforehand, in one file for all processes of a machine.

Letters: n different captions, b batch, l text tokens, e text width.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

import torch
from torch import Tensor

from cogvideox.errors import DataError
from cogvideox.log import amount

_PAGE = 4096  # bytes


class ContextFile:
    """Contexts [l, e] of n different captions, in a file that the processes of a machine map together.

    They are kept whole, padding included: the encoder has no attention mask, and the transformer was trained on the
    states of the padding as well. So one of 226 tokens of width 4096 takes 1.85 MB in 16 bits, and 10,000 captions
    18.5 GB. The processes share these pages, and the system may write them to the disk where memory is short.

    Each row is filled once, by the process that needs it first; others wait for it. A process that ends while it fills
    one leaves it to the next.

    file: open for reading and writing, empty or opened by other processes for the same captions, sizes and type. Its
    name is not needed from here on.
    Raises: OSError for a disk without locks, or one that can't be mapped.
    """

    def __init__(self, file: IO[bytes], captions: Sequence[str], shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._file = file
        self._rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        self._shape, self._dtype = shape, dtype
        self._filled_for_us: set[int] = set()
        # A mark for each row, and from the next page on the rows.
        start = -(-max(len(self._rows), 1) // _PAGE) * _PAGE
        self.num_bytes = start + len(self._rows) * shape[0] * shape[1] * dtype.itemsize
        fcntl.lockf(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_UN)
        os.ftruncate(file.fileno(), self.num_bytes)
        mapped = torch.frombuffer(mmap.mmap(file.fileno(), self.num_bytes), dtype=torch.uint8)
        self._marks = mapped[: len(self._rows)]
        self._contexts = mapped[start:].view(dtype).view(len(self._rows), *shape)

    def __contains__(self, caption: str) -> bool:
        return caption in self._rows

    def reserve(self) -> None:
        """Take the place on the disk now: writing into mapped pages that it has no room for would end the process.

        Raises: DataError that says how much is needed and how much there is.
        """
        try:
            os.posix_fallocate(self._file.fileno(), 0, self.num_bytes)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise DataError(
                f"the contexts of {len(self._rows)} captions need {amount(self.num_bytes)} in {folder}, where "
                f"{amount(shutil.disk_usage(folder).free)} are free ({error.strerror}); set TMPDIR to a folder with "
                "more room (in /dev/shm they take memory), or args.text_encoder_device=device, which keeps none"
            ) from error

    def fill(self, caption: str, encode: Callable[[], Tensor]) -> None:
        """Store what `encode` gives, [l, e] of any type on any device, unless some process has done so."""
        row = self._rows[caption]
        if row in self._filled_for_us:
            return
        # The lock is the system's: it ends with the process, and what was written under it is seen after it.
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, row)
        try:
            if not self._marks[row]:
                self._contexts[row] = encode()
                self._marks[row] = 1
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, row)
        self._filled_for_us.add(row)

    def read(self, captions: Sequence[str], *, pin: bool = False) -> Tensor:
        """captions (b of them, all filled) -> a copy [b, l, e] on the CPU. pin: in pinned memory, from where a CUDA
        device fetches it while the host goes on."""
        rows = torch.tensor([self._rows[caption] for caption in captions])
        copy = torch.empty(len(rows), *self._shape, dtype=self._dtype, pin_memory=pin)
        return torch.index_select(self._contexts, 0, rows, out=copy)


def own_context_file(captions: Sequence[str], shape: tuple[int, int], dtype: torch.dtype) -> ContextFile:
    """One that no other process maps, with its place reserved. Raises: DataError."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the contexts are
        contexts = ContextFile(file, captions, shape, dtype)
    except OSError as error:
        raise DataError(no_temporary_file(error)) from error
    contexts.reserve()
    return contexts


def no_temporary_file(error: OSError) -> str:
    """What to say where the file of contexts can't be made."""
    return f"no temporary file for the contexts of captions: {error}; set TMPDIR to a folder of a local disk"
