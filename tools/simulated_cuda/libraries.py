"""The two small C++ libraries, built once for each torch into a cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from cogvideox.errors import ConfigError

_HERE = Path(__file__).resolve().parent
_FLAGS = ("-O0", "-std=c++20", "-shared", "-fPIC")
_PATIENCE_S = 300


def preload_library() -> Path:
    """What has to be in LD_PRELOAD before torch is loaded. Raises: ConfigError as `guard_library`."""
    return _built("accelerator.cpp", "", ())


def guard_library(torch_folder: Path, torch_version: str) -> Path:
    """What is loaded after torch. It belongs to one torch, whose headers it is built with.

    Raises: ConfigError where there is no g++, or it fails.
    """
    options = (f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu")
    return _built("guard.cpp", torch_version, options)


def _built(source: str, version: str, options: tuple[str, ...]) -> Path:
    """The library in the cache. Of several processes that need it at once, one builds and the others wait."""
    text = (_HERE / source).read_bytes()
    key = hashlib.sha256(b"\0".join([text, version.encode(), *map(str.encode, _FLAGS)])).hexdigest()[:16]
    library = _cache_folder() / f"{Path(source).stem}-{key}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with open(library.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                unfinished = library.with_suffix(".part")
                _compile(_HERE / source, unfinished, options)
                unfinished.rename(library)
    except OSError as error:
        raise ConfigError(
            f"{library} can't be written ({error.strerror}): set XDG_CACHE_HOME to a folder of yours"
        ) from error
    return library


def _compile(source: Path, library: Path, options: tuple[str, ...]) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise ConfigError(
            "the simulated device needs g++, once, to build a small library: install it (apt install g++)"
        )
    command = [compiler, *_FLAGS, str(source), *options, "-ldl", "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"g++ did not build {source.name} within {_PATIENCE_S} s: {' '.join(command)}") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"status {done.returncode}"]
        raise ConfigError(f"g++ could not build {source.name} for this torch: {errors[0].strip()}")


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "cogvideox-sat" / "simulated_cuda"
