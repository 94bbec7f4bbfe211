"""Convert a SAT checkpoint to what diffusers opens. `--help` says how; docs/architecture.md says why."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.diffusers_export.convert import convert, push_to_hub
from cogvideox.conversion.diffusers_export.options import parse_options
from cogvideox.conversion.diffusers_export.plan import make_plan
from cogvideox.conversion.next_steps import after_diffusers, show
from cogvideox.conversion.verification import naming_result
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    """Plan, convert, verify, upload. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    begin = time.perf_counter()
    plan = make_plan(parse_options(argv))
    for line in plan.describe():
        print(line)
    convert(plan)
    print(f"wrote {plan.options.output} in {time.perf_counter() - begin:.1f} s")
    if plan.options.verify:
        from cogvideox.conversion.diffusers_export.verify import (
            verify,  # diffusers and the model cost seconds to import
        )

        naming_result(plan.options.output, lambda: verify(plan))
    show(after_diffusers(plan.options.output))
    if plan.options.push_to_hub:
        print(f"uploaded to {push_to_hub(plan.options.output)}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
