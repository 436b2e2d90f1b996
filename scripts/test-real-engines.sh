#!/usr/bin/env bash
# Installs the real vLLM and the real SGLang (CPU), each in an environment of its own under .venvs, and runs tests/real in each.
# Where one cannot be had its tests are skipped, loudly; a test that fails fails this script. Names of engines as arguments.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
status=0
for engine in "${@:-vllm sglang}"; do
  for name in $engine; do
    venv="$PWD/.venvs/$name"
    if [ ! -e "$venv/.ready" ]; then
      if bash "scripts/install-$name-cpu.sh" "$venv" \
        && "$venv/bin/python" -m pip install -q --disable-pip-version-check -e . accelerate pytest pytest-asyncio; then
        touch "$venv/.ready"
      else
        printf '\n!!! SKIPPED: %s could not be installed here, so its real-engine tests did NOT run.\n\n' "$name"
        continue
      fi
    fi
    export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 TOKENIZERS_PARALLELISM=false
    if [ "$name" = sglang ]; then
      export SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 PYTHONPATH="$PWD/scripts/sglang-cpu/shims"
    fi
    printf '\n--- %s, the real one\n' "$name"
    "$venv/bin/python" -m pytest tests/real -p no:cacheprovider -rs || status=1
  done
done
exit $status
