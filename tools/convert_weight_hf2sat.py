"""Convert diffusers weights to what SAT and this framework train. `--help` says how; docs/architecture.md says why."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.diffusers_import.convert import convert
from cogvideox.conversion.diffusers_import.model_yaml import check_yamls, write_yamls
from cogvideox.conversion.diffusers_import.options import parse_options
from cogvideox.conversion.diffusers_import.plan import make_plan
from cogvideox.conversion.verification import naming_result
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    """Download, plan, convert, verify. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    begin = time.perf_counter()
    plan = make_plan(parse_options(argv))
    for line in plan.describe():
        print(line)
    check_yamls(plan)
    convert(plan)
    commands = write_yamls(plan)
    print(f"wrote {plan.options.output} in {time.perf_counter() - begin:.1f} s")
    if plan.options.verify:
        from cogvideox.conversion.diffusers_import.verify import (
            verify,  # diffusers and the model cost seconds to import
        )

        naming_result(plan.options.output, lambda: verify(plan))
    for line in commands:
        print(line)


if __name__ == "__main__":
    sys.exit(run_cli(main))
