"""Sample videos: `python sat/sample_video.py --base model.yaml inference.yaml [key=value ...] [--seed N]
[--check]`."""

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
    """Check, join the other processes, sample. Raises: UserError."""
    adopt_launch(os.environ)
    choose_allocator(os.environ)
    end_with_launcher(os.environ)
    command = parse_cli(argv, "sample")
    setup_logging("DEBUG" if command.debug else "INFO")
    config = command.load()
    if command.check:
        from cogvideox.sampling.jobs import check_jobs

        check_jobs(config)
        print("the configuration is valid")
        return
    setup_logging("DEBUG" if command.debug else config.sample_args.log_level)
    get_logger(__name__).info("starting: PyTorch and SwissArmyTransformer take some seconds to load")

    # Imported only now: torch and SAT cost seconds, which a check does not need.
    from cogvideox.parallel.groups import start_process_groups

    args = config.sample_args
    with start_process_groups(args.device, args.rendezvous_timeout_s, args.collective_timeout_s) as groups:
        from cogvideox.sampling.run import run_sampling

        run_sampling(config, groups)


if __name__ == "__main__":
    sys.exit(run_cli(main))
