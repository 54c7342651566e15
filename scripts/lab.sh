#!/usr/bin/env bash
# The lab, step by step, as a chain of single commands: every step prints its result on stdout, for the next one.
#   scripts/lab.sh               the built-in model, on any machine
#   MODEL=microsoft/Phi-3.5-mini-instruct scripts/lab.sh
# The command is the one on the PATH, else that of `make install` in the checkout; pipx install . puts it on the PATH.
set -euo pipefail
command -v phicli >/dev/null || PATH=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH
command -v phicli >/dev/null || { echo "no phicli here yet: make install, or pipx install ." >&2; exit 4; }
MODEL=${MODEL:-tiny}
ADAPTER=${ADAPTER:-travel}
export PHICLI_MODEL=$MODEL

phicli inspect data/data_sample_travel.jsonl
BASE=$(phicli quantize --algorithm awq)
TUNED=$(phicli finetune --base "$BASE" --data data/data_sample_travel.jsonl --name "$ADAPTER" --max-steps 100)
ONNX=$(phicli optimize --base "$BASE" --adapter "$ADAPTER=$TUNED")
phicli evaluate --adapter "$ADAPTER"
phicli chat --path "$ONNX" --adapter "$ADAPTER" --prompt "What should I see first in Kyoto?"
