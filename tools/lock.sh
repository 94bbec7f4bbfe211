#!/usr/bin/env bash
# Makes requirements.lock and requirements.hashes from pyproject.toml, for every Python that it supports.
#   bash tools/lock.sh              keeps the versions that are locked, as far as pyproject.toml still allows them
#   bash tools/lock.sh --upgrade    takes the newest; other arguments of `uv pip compile` work too
# torch is pinned by hand in the next line. It has no hash: its CUDA and CPU builds are different files of one version.
set -euo pipefail
torch=torch==2.13.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/setup_env.sh"
cd "$root"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# What torch's CUDA build brings along is chosen by torch itself.
sed 's/ \\$//' requirements.lock >"$work/all"
echo "$torch" >"$work/torch"
uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
  --constraint "$work/torch" --generate-hashes --no-header --no-annotate --quiet --output-file "$work/all" "$@"
python - "$work/all" <<'PYTHON'
import re
import sys
from pathlib import Path

OF_CUDA = re.compile(r"(nvidia|cuda)-")
blocks = re.split(r"\n(?=[a-z0-9])", Path(sys.argv[1]).read_text().strip())
blocks = [each for each in blocks if not OF_CUDA.match(each)]
pins = [each.splitlines()[0].removesuffix(" \\") for each in blocks]
Path("requirements.lock").write_text(
    "# Exact versions of everything that the scripts and tests need, for Python 3.10 to 3.13. Made by tools/lock.sh.\n"
    "# Ranges that the code supports are in pyproject.toml. torch brings the CUDA libraries of its own build.\n"
    + "\n".join(pins) + "\n"
)
Path("requirements.hashes").write_text(
    "# requirements.lock with the hashes of the files, but for torch (see tools/lock.sh, which makes both).\n"
    + "\n".join(each for each in blocks if not each.startswith("torch==")) + "\n"
)
print(f"{len(pins)} packages in requirements.lock")
PYTHON
