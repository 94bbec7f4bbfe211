"""Look at the data of a training run, and make a page that shows it: what there is, what is wrong, what training sees.

    python tools/check_dataset.py --base model.yaml sft.yaml args.train_data=[clips] --output report.html
    python tools/check_dataset.py --base model.yaml sft.yaml args.train_data=[clips] --json report.json
    python tools/check_dataset.py --base model.yaml sft.yaml args.train_data=[clips] --explain 12      one sample's way
    python tools/check_dataset.py --base model.yaml sft.yaml args.train_data=[clips] --explain cat.mp4

The page is one file that needs no network. What was seen of a file is remembered, so a second look is quick. No weights
are needed. Exit status: 0, or 2 when training would refuse the data; the page is written all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.config.load import load_config
from cogvideox.doctor.run import make_page
from cogvideox.doctor.subject import Subject
from cogvideox.errors import ConfigError, run_cli
from cogvideox.log import setup_logging
from cogvideox.training.preflight import buckets_of, clip_spec, data_section, source_specs


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", required=True, metavar="YAML", help="files, and key=value")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="win over the files")
    parser.add_argument("--output", type=Path, metavar="HTML", help="the page; default: report.html, or clip.html")
    parser.add_argument("--json", type=Path, metavar="JSON", help="the same figures for programs")
    parser.add_argument(
        "--explain", metavar="N", help="one sample: the number of its clip on the page, or its file name"
    )
    parser.add_argument("--no-pictures", action="store_true", help="don't decode frames")
    parser.add_argument("--processes", type=int, default=1, help="of the run that is planned, for steps per epoch")
    parser.add_argument("--overwrite", action="store_true", help="replace files that this tool did not write")
    parser.add_argument("--allow-unknown", action="store_true", help="unknown keys only warn")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_intermixed_args(argv)
    setup_logging("WARNING")
    if options.processes < 1:
        raise ConfigError(f"--processes is {options.processes}; it has to be at least 1")
    words = [*options.base, *options.overrides]
    files = [word for word in words if "=" not in word or os.path.isfile(word)]
    overrides = [word for word in words if word not in files]
    config = load_config(files, overrides, "train", options.allow_unknown)
    written = {"train_data": config.train_args.train_data, "valid_data": config.train_args.valid_data}
    subject = Subject(
        config,
        {name: source_specs(entries, data_section(config)) for name, entries in written.items() if entries},
        clip_spec(config),
        buckets_of(config),
        options.processes,
    )
    if options.explain is not None:
        from cogvideox.doctor.explain import explain  # imports torch

        explain(subject, options.explain, options.output or Path("clip.html"), overwrite=options.overwrite)
        return
    output = options.output or (None if options.json else Path("report.html"))
    make_page(subject, output, options.json, with_pictures=not options.no_pictures, overwrite=options.overwrite)


if __name__ == "__main__":
    sys.exit(run_cli(main))
