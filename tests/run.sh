#!/usr/bin/env bash
# The default test suite, one process a core. Arguments go to pytest:  bash tests/run.sh tests/data -k order
# Long proofs (kills, signals, fuzzing, large matrices):  bash tests/run.sh -m slow
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/setup_env.sh"

cd "$root"
say "pytest"
# Tests of one file stay on one process, which shares their fixtures; each process computes on one thread. Files keep
# their order: the plugin's own, those with most tests first, leaves a few long ones for the end.
export OMP_NUM_THREADS=1
exec python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
