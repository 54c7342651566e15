#!/usr/bin/env bash
# The lab, step by step, as a chain of single commands: every step prints its result on stdout, for the next one.
#   scripts/lab.sh               the built-in model, on any machine
#   MODEL=microsoft/Phi-3.5-mini-instruct scripts/lab.sh
set -euo pipefail
MODEL=${MODEL:-tiny}
ADAPTER=${ADAPTER:-travel}
export PHICLI_MODEL=$MODEL

phicli inspect data/data_sample_travel.jsonl
BASE=$(phicli quantize --algorithm awq)
TUNED=$(phicli finetune --base "$BASE" --data data/data_sample_travel.jsonl --name "$ADAPTER" --max-steps 100)
ONNX=$(phicli optimize --base "$BASE" --adapter "$ADAPTER=$TUNED")
phicli evaluate --adapter "$ADAPTER"
phicli chat --path "$ONNX" --adapter "$ADAPTER" --prompt "What should I see first in Kyoto?"
