"""Whether weight files are whole: a file, or every one below a folder (checkpoints, converted models, downloads).

What this framework wrote is compared with the hashes that it wrote beside (manifest.json, conversion.json). Files of
others are compared with the checksums inside them: a torch file has one for every tensor, a safetensors file has none.
In all of them NaN and infinity are looked for. Damage ends with status 2.

    python tools/check_weights.py ckpts/lora-06-01-12-00
    python tools/check_weights.py CogVideoX-2b-sat/transformer CogVideoX-2b-sat/vae/3d-vae.pt --sha256
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.command_line import Parser
from cogvideox.errors import CheckpointError, run_cli
from cogvideox.log import setup_logging
from cogvideox.weights.checksums import WITHOUT, check_own_checksums
from cogvideox.weights.hashes import SHA256, hash_of
from cogvideox.weights.integrity import WEIGHT_SUFFIXES, check_hash
from cogvideox.weights.manifest import find_record, listed_files
from cogvideox.weights.safetensors_stream import is_finite
from cogvideox.weights.torch_file import load_file, named_tensors
from cogvideox.weights.zero_shards import STAND_INS


def main(argv: Sequence[str]) -> None:
    """Check all of them, then say how many are damaged. Raises: CheckpointError."""
    setup_logging("WARNING")
    parser = Parser(__doc__ or "")
    parser.add_argument("paths", nargs="+", type=Path, help="weight files, and folders of them")
    parser.add_argument("--sha256", action="store_true", help="print the SHA-256 of each, to compare with the source's")
    options = parser.parse_args(list(argv))
    damaged = 0
    files = list(dict.fromkeys(find_files(options.paths)))
    for file in files:
        try:
            proof = prove(file)
            print(f"ok       {file}: {proof}" if proof else f"unknown  {file}: {WITHOUT}")
        except CheckpointError as error:
            damaged += 1
            print(f"DAMAGED  {error}")
        if options.sha256 and file.is_file():
            print(f"         SHA-256 {hash_of(file, SHA256)}")
    if damaged:
        raise CheckpointError(f"{damaged} of {len(files)} files are damaged, see above")


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Weight files, and whatever a manifest lists. Raises: CheckpointError when there are none."""
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in WEIGHT_SUFFIXES and file.is_file())
            found += [file for folder in (path, *path.rglob("*/")) for file in listed_files(folder)]
        if not found or not (path.is_file() or path.is_dir()):
            raise CheckpointError(
                f"no weight file at {path}; valid are files and folders of {', '.join(WEIGHT_SUFFIXES)}"
            )
        yield from found


def prove(file: Path) -> str:
    """What shows that a file is whole; nothing when it has no checksums. Raises: CheckpointError for damage."""
    recorded = find_record(file)
    if recorded is not None:
        check_hash(recorded)
        proof = f"as it was written ({recorded.manifest.name})"
    else:
        proof = "every checksum inside it is right" if check_own_checksums(file) else ""
    if file.suffix in WEIGHT_SUFFIXES:
        broken = [name for name, value in named_tensors(load_file(file, STAND_INS)) if not is_finite(value)]
        if broken:
            raise CheckpointError(f"{file} holds NaN or infinity in {len(broken)} tensors, e.g. {broken[0]}")
    return proof


if __name__ == "__main__":
    sys.exit(run_cli(main))
