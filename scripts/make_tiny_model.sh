#!/bin/sh
# Makes the bundled model again: writes its text and tokenizer, then trains it from random weights (one to two minutes on one core).
#   scripts/make_tiny_model.sh [PROGRAM] [FOLDER]
set -eu
program=${1:-build/tessera}
model=${2:-examples/tiny}
scratch=out/tiny_model

rm -rf "$scratch"
mkdir -p "$scratch"
cmake --build "$(dirname "$program")" --target tiny_text
"$(dirname "$program")/tiny_text" "$model"

# One thread: sums in one order, so the same seed gives the same bytes however many cores there are.
"$program" train --model "$model" --init random --train_type full --dataset "$model/stories.jsonl" --output_dir "$scratch" \
  --context_length 128 --batch_size 16 --lr 3e-3 --num_epochs 2 --threads 1 --logging_steps 25

cp "$scratch/model.safetensors" "$model/"
echo
"$program" generate --model "$model" --prompt "Once there was" --temperature 0.7
ls -l "$model/model.safetensors"
