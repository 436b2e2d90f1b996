#!/usr/bin/env bash
# Runs tests/real in the embedded engine, the real vLLM and the real SGLang (CPU), each in an environment of its own: $VENV (.venv), and
# two under .venvs, into which the engines are installed. A real model is made first (scripts/real-model.sh). What cannot be had is
# skipped, loudly; a test that fails fails this script. Names of engines as arguments: transformers, vllm, sglang; after --install,
# they are only installed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
install=
[ "${1:-}" = --install ] && install=only && shift
[ $# -gt 0 ] || set -- transformers vllm sglang
status=0

have() { # the environment of an engine; installs it where that has not been done
  [ "$1" = transformers ] || [ -e ".venvs/$1/.ready" ] && return
  bash "scripts/install-$1-cpu.sh" ".venvs/$1" \
    && ".venvs/$1/bin/python" -m pip install -q --disable-pip-version-check -e . accelerate pytest pytest-asyncio \
    && touch ".venvs/$1/.ready"
}

[ "$install" ] || scripts/real-model.sh build/smollm2 || [ $? = 3 ] || status=1
for name in "$@"; do
  if ! have "$name"; then
    printf '\n!!! SKIPPED: %s could not be installed here, so its real-engine tests did NOT run.\n\n' "$name"
    continue
  fi
  [ "$install" ] && continue
  venv=".venvs/$name"
  [ "$name" = transformers ] && venv="${VENV:-.venv}"
  printf '\n--- %s, the real one\n' "$name"
  (
    export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 TOKENIZERS_PARALLELISM=false
    if [ "$name" = sglang ]; then
      export SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 PYTHONPATH="$PWD/scripts/sglang-cpu/shims"
    fi
    "$venv/bin/python" -m pytest "tests/real$([ "$name" = transformers ] && echo /test_model.py)" -p no:cacheprovider -rs --durations=8
  ) || status=1
done
exit $status
