#!/usr/bin/env python3
"""Writes docs/what_fits.md from `tessera plan --json`: which models, ways to train and contexts fit on which GPUs.

    scripts/what_fits.py PROGRAM SHAPES     SHAPES holds a folder with config.json for each model below
"""
import json
import subprocess
import sys

MODELS = [("llama2_7b", "7B (Llama 2)"), ("llama31_8b", "8B (Llama 3.1)"), ("llama2_13b", "13B (Llama 2)"),
          ("llama2_70b", "70B (Llama 2)"), ("llama31_70b", "70B (Llama 3.1)"), ("llama31_405b", "405B (Llama 3.1)")]
WEIGHTS, OPTIMIZER, INPUTS = "--use_cpu_offload", "--optimizer_offload", "--use_activation_cpu_offload"
ALL = (WEIGHTS, OPTIMIZER, INPUTS)
MACHINES = [("1 x 24 GB", 1, 24, ()), ("1 x 24 GB, offload", 1, 24, ALL), ("2 x 24 GB", 2, 24, ()), ("2 x 24 GB, offload", 2, 24, ALL),
            ("8 x 80 GB", 8, 80, ()), ("1 x H200", 1, 141, ())]
OFFLOADS = [("nothing", ()), ("weights", (WEIGHTS,)), ("weights, optimizer", (WEIGHTS, OPTIMIZER)), ("weights, inputs", (WEIGHTS, INPUTS)),
            ("all", ALL)]
CONTEXTS = [2048, 8192]
GIB = 1 << 30


def plan(program, shapes, model, train_type, ranks, memory, context, offload, batch=1):
    command = [program, "plan", "--model", f"{shapes}/{model}", "--train_type", train_type, "--precision", "bf16",
               "--batch_size", str(batch), "--context_length", str(context), "--num_processes", str(ranks),
               "--device_memory", f"{memory}GB", "--keep_layers", "0", "--search", "false", "--json"]
    for flag in offload:
        command += [flag, "true"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode not in (0, 3):
        sys.exit(" ".join(command) + "\n" + result.stderr)
    return json.loads(result.stdout)


def cell(p, with_host):
    text = f"{p['needed_bytes'] / GIB:.1f}"
    text = f"**{text}**" if p["fits"] else text
    return text + (f" + {p['host_needed_bytes'] / GIB:.0f}" if with_host else "")


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)] + ["| " + " | ".join(r) + " |" for r in rows] + [""]


def main():
    program, shapes = sys.argv[1:3]
    lines = ["# What fits", "",
             "GiB per GPU, everything included, from `tessera plan --json` (batch 1 per rank, bf16, LoRA rank 16 on all linear layers, NF4 with",
             "double quantization, only layers' inputs kept, full_shard). **Bold** fits. With offload, `+` GiB of the host's memory per machine:",
             "`--use_cpu_offload` keeps the frozen weights there, `--optimizer_offload` masters and optimizer state,",
             "`--use_activation_cpu_offload` the inputs of layers; the columns named offload have all three.",
             "Made by `make what-fits`; a plan is a dry run of the program itself (docs/decisions.md). 0.6 GiB of each is for CUDA's context and",
             "libraries, 0.5 GiB of the host for each process: estimates, until a GPU has been measured.", "",
             "## 70B on two GPUs of 24 GB", "", "QLoRA, batch 2 per GPU, context 2,048. Columns: what waits on the host.", ""]
    rows = []
    for folder, name in MODELS[3:5]:
        plans = [plan(program, shapes, folder, "qlora", 2, 24, 2048, flags, 2) for _, flags in OFFLOADS]
        rows.append([name, "2 x 24 GB (RTX 3090)"] + [cell(p, True) for p in plans])
    lines += table(["model", "GPUs"] + [name for name, _ in OFFLOADS], rows)
    for context in CONTEXTS:
        lines += [f"## Context {context:,}", ""]
        rows = []
        for folder, name in MODELS:
            for way in ("full", "lora", "qlora"):
                rows.append([name, way] + [cell(plan(program, shapes, folder, way, ranks, memory, context, offload), bool(offload))
                                           for _, ranks, memory, offload in MACHINES])
        lines += table(["model", "way"] + [name for name, *_ in MACHINES], rows)
    open("docs/what_fits.md", "w").write("\n".join(lines))


main()
