#!/usr/bin/env bash
# The default test suite. Arguments go to pytest:  bash tests/run.sh tests/data -k order
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/setup_env.sh"

cd "$root"
say "pytest"
exec python -m pytest "$@"
