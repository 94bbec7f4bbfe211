# Sourced by the entry scripts: makes or reuses <repository>/.venv with the packages of requirements.lock and activates it.
# Needs python3 (3.10 to 3.13, with venv and pip), git and gcc. PYTHON names another interpreter.

cogvideox_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\n==> %s\n' "$*"; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  echo "error: no Python 3.10, 3.11, 3.12 or 3.13 found (tried PYTHON, python3 and python3.13 to python3.10)" >&2
  return 2
}

setup_env() {
  local venv="$cogvideox_root/.venv" lock="$cogvideox_root/requirements.lock" python stamp
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || return
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
  fi
  stamp="$venv/installed-$(sha256sum "$lock" | cut -c1-16)"
  if [ ! -e "$stamp" ]; then
    # Two steps: torch chooses its own CUDA libraries, everything else is exactly the files whose hashes are known.
    say "installing torch into .venv (once; with its CUDA libraries about 3 GB)"
    "$venv/bin/python" -m pip install --disable-pip-version-check --constraint "$lock" "$(grep '^torch==' "$lock")"
    say "installing the other packages of requirements.lock (once; a few minutes)"
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --require-hashes \
      --requirement "$cogvideox_root/requirements.hashes"
    rm -f "$venv"/installed-*
    touch "$stamp"
  fi
  # shellcheck disable=SC1091
  source "$venv/bin/activate"
}

setup_env
