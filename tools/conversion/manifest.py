"""`conversion.json` beside a result: what it was made of and what was written, with hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cogvideox.weights.torch_file import sha256_of

MANIFEST = "conversion.json"


def write_manifest(folder: Path, inputs: Iterable[Path], facts: Mapping[str, Any]) -> None:
    """Describe every file that is in `folder` by now. facts: what else is to be known of the result."""
    outputs = sorted(file for file in folder.rglob("*") if file.is_file())
    content = {
        "inputs": [_describe(str(file.resolve()), file) for file in inputs],
        "outputs": [_describe(str(file.relative_to(folder)), file) for file in outputs],
        **facts,
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _describe(name: str, file: Path) -> dict[str, Any]:
    return {"path": name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
