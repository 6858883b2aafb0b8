#!/usr/bin/env python3
"""Writes docs/what_fits.md from `tessera plan --json`: which models, ways to train and contexts fit on which devices.

    scripts/what_fits.py PROGRAM SHAPES     SHAPES holds a folder with config.json for each model below
"""
import json
import subprocess
import sys

MODELS = [("llama2_7b", "7B (Llama 2)"), ("llama31_8b", "8B (Llama 3.1)"), ("llama2_13b", "13B (Llama 2)"),
          ("llama31_70b", "70B (Llama 3.1)"), ("llama31_405b", "405B (Llama 3.1)")]
MACHINES = [(1, 24), (2, 24), (4, 24), (8, 80), (1, 141)]
CONTEXTS = [2048, 8192]
GIB = 1 << 30


def plan(program, shapes, model, train_type, ranks, memory, context):
    command = [program, "plan", "--model", f"{shapes}/{model}", "--train_type", train_type, "--precision", "bf16", "--batch_size", "1",
               "--context_length", str(context), "--num_processes", str(ranks), "--device_memory", f"{memory}GB",
               "--keep_layers", "0", "--search", "false", "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode not in (0, 3):
        sys.exit(" ".join(command) + "\n" + result.stderr)
    return json.loads(result.stdout)


def main():
    program, shapes = sys.argv[1:3]
    lines = ["# What fits", "",
             "GiB per device, everything included, from `tessera plan --json` (batch 1 per rank, bf16, LoRA rank 16 on all linear layers, NF4 with",
             "double quantization, only layers' inputs kept, full_shard). **Bold** fits. Rows with offload will join when offload is built.",
             "Made by `make what-fits`; a plan is a dry run of the program itself (docs/decisions.md), for the CPU's kernels.", ""]
    for context in CONTEXTS:
        lines += [f"## Context {context:,}", "", "| model | way | " + " | ".join(f"{n} x {m} GB" for n, m in MACHINES) + " |",
                  "|---|---|" + "---:|" * len(MACHINES)]
        for folder, name in MODELS:
            for way in ("full", "lora", "qlora"):
                cells = []
                for ranks, memory in MACHINES:
                    p = plan(program, shapes, folder, way, ranks, memory, context)
                    text = f"{p['needed_bytes'] / GIB:.1f}"
                    cells.append(f"**{text}**" if p["fits"] else text)
                lines.append(f"| {name} | {way} | " + " | ".join(cells) + " |")
        lines.append("")
    open("docs/what_fits.md", "w").write("\n".join(lines))


main()
