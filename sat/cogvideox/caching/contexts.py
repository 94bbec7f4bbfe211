"""Stored contexts: what the text encoder made of captions, each once.

Letters: l text tokens, e text width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cogvideox.caching.entries import read_entry, write_entry
from cogvideox.caching.keys import Recipe, context_key
from cogvideox.errors import DataError


@dataclass(frozen=True)
class ContextStore:
    """Contexts in a cache. They are whole, padding included: the encoder has no attention mask, so that the states of
    the padding count.

    Args:
        root: the cache folder.
        recipe: how they were made.
        shape: (l, e).
    """

    root: str
    recipe: Recipe
    shape: tuple[int, int]

    def place(self, caption: str) -> tuple[str, Path]:
        """Key and file of a caption."""
        key = context_key(self.recipe, caption)
        return key, self.recipe.entry(self.root, key)

    def missing(self, captions: Iterable[str]) -> list[str]:
        """Those that are not there, each once, in order."""
        return [caption for caption in dict.fromkeys(captions) if not self.place(caption)[1].is_file()]

    def read(self, caption: str) -> Tensor:
        """[l, e]. Raises: DataError, of which NotCachedError."""
        key, file = self.place(caption)
        entry = read_entry(file, key)
        context = entry.tensors.get("context")
        if context is None or context.shape != self.shape or entry.facts.get("caption") != caption:
            raise DataError(f"{file}: is not the context of {caption!r}; remove it, and fill the cache again")
        return context

    def write(self, caption: str, context: Tensor) -> int:
        """context: [l, e], in the dtype to store. Returns: bytes written. Raises: DataError."""
        key, file = self.place(caption)
        return write_entry(file, {"context": context.cpu().contiguous()}, {"key": key, "caption": caption})
