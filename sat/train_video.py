"""Fine-tune a CogVideoX transformer: train_video.py --base configs/model.yaml configs/sft.yaml [key=value ...]

One process with `python`, several with `tools/launch.py`, `torchrun`, `deepspeed`, `srun` or `mpirun`. `--check` checks
the configuration, looks at clips and captions, and stops.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cogvideox.config.load import parse_cli
from cogvideox.errors import run_cli
from cogvideox.log import get_logger, setup_logging
from cogvideox.parallel.devices import choose_allocator
from cogvideox.parallel.launch import adopt_launch
from cogvideox.parallel.parent import end_with_launcher


def main(argv: Sequence[str]) -> None:
    adopt_launch(os.environ)
    choose_allocator(os.environ)
    end_with_launcher(os.environ)
    command = parse_cli(argv, "train")
    setup_logging("DEBUG" if command.debug else "INFO", keep=True)
    config = command.load()
    if command.check:
        from cogvideox.training.preflight import check_run

        print(*check_run(config), "the configuration is valid", sep="\n")
        return
    setup_logging("DEBUG" if command.debug else config.train_args.log_level, keep=True)
    get_logger(__name__).info("starting: PyTorch, SwissArmyTransformer and DeepSpeed take some seconds to load")

    # Imported now: a check should not wait for torch, and DeepSpeed chooses its device when it is imported.
    from cogvideox.parallel.groups import start_process_groups

    args = config.train_args
    with start_process_groups(args.device, args.rendezvous_timeout_s, args.collective_timeout_s) as groups:
        from cogvideox.training.trainer import Trainer

        Trainer(config, groups).fit()


if __name__ == "__main__":
    sys.exit(run_cli(main))
