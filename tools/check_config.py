"""Check configuration files without building anything.

    python tools/check_config.py configs/*.yaml                       each file by itself; what is missing is fine
    python tools/check_config.py --together model.yaml sft.yaml key=value      as one complete configuration
    python tools/check_config.py --together --paths model.yaml sft.yaml        ... whose paths must exist as well, and
                                                                               whose clips and captions are looked at

The kind of run is inferred from the keys; --kind sets it. Exit status: 0 when all is valid,
2 when something is wrong, which is then listed with file, line and key.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.config.check import check_alone, infer_kinds
from cogvideox.config.load import load_config
from cogvideox.config.schema import Kind
from cogvideox.errors import ConfigError, run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="YAML files; with --together also key=value")
    parser.add_argument("--together", action="store_true", help="one configuration instead of one per file")
    parser.add_argument("--kind", choices=("train", "sample"), help="instead of inferring it")
    parser.add_argument("--paths", action="store_true", help="with --together: paths must exist, and hold usable data")
    parser.add_argument("--allow-unknown", action="store_true", help="unknown keys only warn")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(argv)
    setup_logging("WARNING")
    kinds: list[Kind] | None = [options.kind] if options.kind else None
    if options.together:
        base = [word for word in options.files if "=" not in word or os.path.isfile(word)]
        overrides = [word for word in options.files if word not in base]
        for kind in kinds or infer_kinds(base)[:1]:
            config = load_config(base, overrides, kind, options.allow_unknown, check_files=options.paths)
            if options.paths and kind == "train":
                from cogvideox.training.preflight import check_run

                print(*check_run(config), sep="\n")
            print(f"valid for {_NAMES[kind]}: {' '.join(options.files)}")
        return
    failures = []
    for file in options.files:
        try:
            checked = check_alone(file, kinds, allow_unknown=options.allow_unknown)
            print(f"valid for {' and '.join(_NAMES[kind] for kind in checked)}: {file}")
        except ConfigError as error:
            failures.append(str(error))
    if failures:
        raise ConfigError("\n".join(failures))


_NAMES = {"train": "training", "sample": "sampling"}

if __name__ == "__main__":
    sys.exit(run_cli(main))
