"""Store latents and contexts of a training: cache_dataset.py --base configs/model.yaml configs/sft.yaml args.cache=DIR
[key=value ...] [--verify N | --stat | --prune [--yes]]

One process with `python`, several with `tools/launch.py` or `torchrun`, or the same command on several machines that
share the folder. Files and keys are those of train_video.py; args.load is not needed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence

from cogvideox.caching.options import read_options
from cogvideox.config.load import parse_cli
from cogvideox.errors import run_cli
from cogvideox.log import get_logger, setup_logging
from cogvideox.parallel.devices import choose_allocator
from cogvideox.parallel.launch import adopt_launch
from cogvideox.parallel.parent import end_with_launcher

# The transformer is not needed, nor is a run to go on from.
_NO_TRANSFORMER = ("args.mode=pretrain", "args.load=null", "args.resume=null", "args.base_model=null")


def main(argv: Sequence[str]) -> None:
    adopt_launch(os.environ)
    choose_allocator(os.environ)
    end_with_launcher(os.environ)
    options, words = read_options(argv)
    command = parse_cli(words, "train")
    setup_logging("DEBUG" if command.debug else "INFO")
    config = dataclasses.replace(command, overrides=(*command.overrides, *_NO_TRANSFORMER)).load()
    if command.check:
        print("the configuration is valid")
        return
    setup_logging("DEBUG" if command.debug else config.train_args.log_level)
    get_logger(__name__).info("starting: PyTorch takes some seconds to load")

    from cogvideox.training.fill_cache import run_cache_command

    run_cache_command(config, options)


if __name__ == "__main__":
    sys.exit(run_cli(main))
