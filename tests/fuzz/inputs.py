"""Hundreds of damaged, foreign and hostile inputs, and the program's answer to each.

    python tests/fuzz/inputs.py                      all kinds
    python tests/fuzz/inputs.py --only "T5 settings" --seed 3 --show

The right answer is one of our errors or a right result: no traceback, no hang, no crash, nothing executed, and nothing
read with other content than was written where a checksum tells. Each kind runs in a process of its own, which is
started again behind a case that ends it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("sat", "tools", "tests") if str(ROOT / name) not in sys.path]

from fuzz.kinds import KINDS  # noqa: E402
from fuzz.run import TIME_LIMIT_S, Answer, prepared  # noqa: E402

START_S = 300.0  # to import torch, transformers and diffusers, and make a specimen, on a busy machine
_COLUMNS = ("cases", "read", "refused", "traceback", "message", "silent", "executed", "hang", "crash")


def main() -> int:
    """Run, print the table and every wrong answer; status 1 when there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="a kind; repeat for several")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of cases")
    parser.add_argument("--show", action="store_true", help="also print what is said about refused inputs")
    options = parser.parse_args()
    begin, answers = time.perf_counter(), []
    print(f"{'kind':<20}" + "".join(f"{name:>10}" for name in _COLUMNS))
    for name in options.only or KINDS:
        found = _run_apart(name, options.seed, max(1, round(KINDS[name].count * options.scale)))
        answers += found
        print(_row(name, found), flush=True)
    print(_row("all", answers))
    for answer in answers:
        if answer.is_wrong or (options.show and answer.text):
            print(f"{answer.outcome}: {answer.kind} {answer.index}: {answer.text}")
    wrong = sum(answer.is_wrong for answer in answers)
    print(f"{len(answers)} inputs, seed {options.seed}, {wrong} wrong answers, {time.perf_counter() - begin:.0f} s")
    return 1 if wrong else 0


def _row(name: str, answers: list[Answer]) -> str:
    counts = Counter(answer.outcome for answer in answers)
    return f"{name:<20}{len(answers):>10}" + "".join(f"{counts[column]:>10}" for column in _COLUMNS[1:])


def _run_apart(name: str, seed: int, count: int) -> list[Answer]:
    """In another process. One that dies or stands still loses its case and is started again behind it."""
    answers: list[Answer] = []
    context = multiprocessing.get_context("spawn")
    while len(answers) < count:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(theirs, name, seed, len(answers), count), daemon=True)
        process.start()
        theirs.close()
        _wait_until_ready(ours, name)
        outcome = "crash"
        try:
            while len(answers) < count:
                if not ours.poll(3 * TIME_LIMIT_S):
                    outcome = "hang"
                    break
                answers.append(ours.recv())
        except EOFError:
            pass
        if len(answers) < count:
            process.kill()
            process.join()
            answers.append(Answer(name, len(answers), outcome, f"its process ended with {process.exitcode}"))
        process.join()
    return answers


def _wait_until_ready(pipe: Connection, name: str) -> None:
    try:
        if pipe.poll(START_S):
            pipe.recv()
            return
    except EOFError:
        pass
    raise RuntimeError(f"{name}: the specimen can't be made or read")


def _child(pipe: Connection, name: str, seed: int, first: int, count: int) -> None:
    with prepared(name, seed) as run:
        pipe.send(None)  # ready
        for index in range(first, count):
            pipe.send(run(index))


if __name__ == "__main__":
    sys.exit(main())
