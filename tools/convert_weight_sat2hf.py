"""Convert a SAT checkpoint to what diffusers opens. `--help` says how; docs/architecture.md says why."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tools")]

from cogvideox.errors import run_cli  # noqa: E402
from cogvideox.log import setup_logging  # noqa: E402
from conversion.next_steps import after_diffusers, show  # noqa: E402
from conversion.verification import naming_result  # noqa: E402
from diffusers_export.convert import convert, push_to_hub  # noqa: E402
from diffusers_export.options import parse_options  # noqa: E402
from diffusers_export.plan import make_plan  # noqa: E402


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
        from diffusers_export.verify import verify  # diffusers and the model cost seconds to import

        naming_result(plan.options.output, lambda: verify(plan))
    show(after_diffusers(plan.options.output))
    if plan.options.push_to_hub:
        print(f"uploaded to {push_to_hub(plan.options.output)}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
