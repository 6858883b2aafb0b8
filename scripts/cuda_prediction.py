#!/usr/bin/env python3
"""Writes the predicted step times of docs/cuda.md from build/bench/prediction: what each case asks of one H200, and how near to its limits the
kernels are expected to come. A tool for developers. Nothing here was measured but the two limits; `make gpu-check` measures.

    scripts/cuda_prediction.py BUILD
"""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cuda.md"
FLOPS, BYTES = 790e12, 4.3e12  # of an H200: dense bf16 products, memory; measured
LEAST = 3e-6                   # seconds of a kernel, however small
NARROW = 64                    # a product with a side up to this belongs to an adapter
MASKED = 0.95e12               # numbers a second that dropout can mask: ten rounds of Philox for four of them, 60 operations, 64 a clock and SM
GAPS = 0.015                   # of the sum: between kernels, and the host's read-back of a step

# The share of its limit that a kernel is expected to reach, and why.
WHY = {
    "products, layers": "cuBLASLt, algorithm chosen per shape: 0.87 of the best product from 100 GFLOP a call on, 0.75 from 20 on, 0.55 below",
    "products, head": "the same, in pieces of the rows",
    "products, adapters": "one side is the rank: bound by reading or writing the other, for layers that share it once; 0.6",
    "NF4 decode": "half a byte and its scale read, two bytes written, nothing else; 0.8",
    "attention": "mma.sync and cp.async, no wgmma: FlashAttention-2 reaches 0.45 so on this kind of GPU; 0.40",
    "attention backward": "five products are counted, seven formed, because dQ has a kernel of its own; 0.28",
    "rmsnorm": "one pass, a row per block; 0.75",
    "rmsnorm backward": "one pass and the sum of blocks; 0.7",
    "swiglu": "elementwise, 16 bytes per thread; 0.8",
    "swiglu backward": "elementwise; 0.8",
    "rope": "in place; 0.7",
    "cross-entropy": "two passes over the row, the second from the cache; 0.6",
    "optimizer": "fp32, a few launches; 0.7",
    "others": "copies, zeroing, embedding; 0.6",
}
SHARE = {"NF4 decode": 0.8, "products, adapters": 0.6, "attention": 0.40, "attention backward": 0.28, "rmsnorm": 0.75, "rmsnorm backward": 0.7,
         "swiglu": 0.8, "swiglu backward": 0.8, "rope": 0.7, "cross-entropy": 0.6, "optimizer": 0.7, "others": 0.6}
NAMES = {"attention": "attention", "attention_backward": "attention backward", "rmsnorm": "rmsnorm", "rmsnorm_backward": "rmsnorm backward",
         "swiglu": "swiglu", "swiglu_backward": "swiglu backward", "rope": "rope", "cross_entropy": "cross-entropy", "adamw": "optimizer",
         "square_sums": "optimizer", "codebook4_decode": "NF4 decode"}

COMMON = ["--context_length", "2048", "--batch_size", "4", "--lora_rank", "16"]
CASES = [  # name, goal in tokens/s, options; those of scripts/gpu_check.sh
    ("8B QLoRA, recompute", 12900, ["--model", "bench/shapes/8b", "--train_type", "qlora", "--gradient_checkpointing", "true"]),
    ("8B LoRA bf16, nothing recomputed", 18800, ["--model", "bench/shapes/8b", "--train_type", "lora", "--gradient_checkpointing", "false"]),
    ("70B QLoRA, recompute", 1400, ["--model", "bench/shapes/70b", "--train_type", "qlora", "--gradient_checkpointing", "true"]),
    ("0.6B LoRA bf16, nothing recomputed", 100000, ["--model", "bench/shapes/0.6b", "--train_type", "lora", "--gradient_checkpointing", "false"]),
]


class Line:
    """Kernels of one kind: what they do in a step, the time at the limit, the time expected."""

    def __init__(self):
        self.calls = self.flops = self.bytes = self.limit = self.expected = 0.0

    def add(self, calls, flops, moved, share):
        limit = max(flops / FLOPS, moved / BYTES)
        self.calls += calls
        self.flops += calls * flops
        self.bytes += calls * moved
        self.limit += calls * limit
        self.expected += calls * max(limit / share, LEAST)


def product_share(flops):
    return 0.87 if flops >= 100e9 else 0.75 if flops >= 20e9 else 0.55


def add_product(lines, o, vocab):
    """A sum of products as CudaBackend forms it: adapters' terms together (adapters_sum), then one product of the library after the other onto
    c, 4-bit weights decoded before."""
    m, n, *depths = o["sizes"]
    ordered = sorted(depths)
    together = sum(1 for k in ordered if k <= NARROW) if o["layout"] == "nn" and min(m, n) > NARROW else 0
    if together > 1:
        ranks = sum(ordered[:together])
        ordered = [ranks] + ordered[together:]
    for i, k in enumerate(ordered):
        narrow = min(m, n, k) <= NARROW or (i == 0 and together > 1)
        rereads = i > 0 or o["accumulates"]
        moved = 2 * (m * k + n * k + m * n * (2 if rereads else 1))
        flops = 2 * m * n * k
        if o["four_bit"] and not narrow:
            scales = n * k / 64 * (1 + 4 / 256)
            lines.setdefault("NF4 decode", Line()).add(o["calls"], 0, n * k * 2.5 + scales, SHARE["NF4 decode"])
        kind = "products, adapters" if narrow else "products, head" if vocab in (n, k) else "products, layers"
        lines.setdefault(kind, Line()).add(o["calls"], flops, moved, SHARE["products, adapters"] if narrow else product_share(flops))


def add_adapters(lines, o):
    """Kernels of adapters that share an input: its bytes once, and the partial sums of pieces (backend/device_scratch.h), written and read."""
    m, k, *ranks = o["sizes"]
    forward = o["name"] == "adapters"
    cut, each = (k, (m + 63) // 64) if forward else (m, (k + 127) // 128)
    pieces = max(1, min(cut // 512, -(-256 // each)))
    partial = 0 if o["name"] == "adapters_input_gradient" else 8 * pieces * sum(ranks) * (m if forward else k)
    masking = len(ranks) * m * k / MASKED * FLOPS if o["drops"] else 0  # as FLOPs of the same time
    line = lines.setdefault("products, adapters", Line())
    line.add(o["calls"], max(o["flops"], masking), o["bytes"] + partial, SHARE["products, adapters"])
    line.flops -= o["calls"] * max(0, masking - o["flops"])
    if partial:
        line.add(o["calls"], 0, 0, 1)  # the kernel that adds the pieces


def lines_of(run):
    vocab = max(max(o["sizes"][:2], default=0) for o in run["operations"] if o["name"] == "gemm")
    lines = {}
    for o in run["operations"]:
        if o["name"] == "gemm":
            add_product(lines, o, vocab)
        elif o["name"].startswith("adapters"):
            add_adapters(lines, o)
        else:
            kind = NAMES.get(o["name"], "others")
            lines.setdefault(kind, Line()).add(o["calls"], o["flops"], o["bytes"], SHARE[kind])
    return lines


def sums(lines, tokens):
    limit = sum(x.limit for x in lines.values())
    expected = sum(x.expected for x in lines.values()) * (1 + GAPS)
    return limit, expected, tokens / limit, tokens / expected


def what_must_hold(lines, tokens, goal):
    """The share that the large products must reach on average when all others come out as expected."""
    large = [x for kind, x in lines.items() if kind in ("products, layers", "products, head")]
    others = sum(x.expected for kind, x in lines.items() if x not in large)
    left = tokens / goal / (1 + GAPS) - others
    return sum(x.limit for x in large) / left if left > 0 else None


# What could be better than expected: kinds of kernels, and by what their expected time is multiplied.
BETTER = [
    ("large products at 0.92 instead of 0.87", {"products, layers": 0.87 / 0.92, "products, head": 0.87 / 0.92}),
    ("attention at 0.55, its backward at 0.45", {"attention": 0.40 / 0.55, "attention backward": 0.28 / 0.45}),
    ("adapters in two thirds of their time (B added inside the large products, dy read once for dt and dB)", {"products, adapters": 2 / 3}),
]


def faster(lines, tokens, factors):
    seconds = sum(max(x.limit, x.expected * factors.get(kind, 1)) if kind != "products, adapters" else x.expected * factors.get(kind, 1)
                  for kind, x in lines.items())
    return tokens / (seconds * (1 + GAPS))


def milli(seconds):
    return f"{seconds * 1e3:.1f}"


def table(lines):
    out = ["| kernels | calls | TFLOP | GB | at the limit, ms | share expected | expected, ms | why |", "|---|---:|---:|---:|---:|---:|---:|---|"]
    for kind in WHY:
        if kind in lines:
            x = lines[kind]
            out.append(f"| {kind} | {x.calls:,.0f} | {x.flops * 1e-12:.2f} | {x.bytes * 1e-9:.1f} | {milli(x.limit)} | {x.limit / x.expected:.2f} "
                       f"| {milli(x.expected)} | {WHY[kind]} |")
    return out


def main():
    build = sys.argv[1]
    runs = [(name, goal, options, json.loads(subprocess.run([f"{build}/bench/prediction"] + options + COMMON, cwd=ROOT, capture_output=True,
                                                            text=True, check=True).stdout)) for name, goal, options in CASES]
    name, goal, options, run = runs[0]
    lines = lines_of(run)
    limit, expected, best, rate = sums(lines, run["tokens"])
    text = [f"### {name}: batch 4 x 2,048", ""] + table(lines)
    text += [f"| sum, and {GAPS * 100:.1f} % between kernels | {sum(x.calls for x in lines.values()):,.0f} | {sum(x.flops for x in lines.values()) * 1e-12:.1f} "
             f"| {sum(x.bytes for x in lines.values()) * 1e-9:.0f} | {milli(limit)} | {limit / expected:.2f} | {milli(expected)} | |", "",
             f"{run['tokens']:,} tokens: **{rate:,.0f} tokens/s expected**, {best:,.0f} with every kernel at its limit; the goal is {goal:,}.", ""]
    text += ["### All cases, batch 4 x 2,048", "",
             "| case | products, ms | NF4 decode, ms | adapters, ms | attention, ms | the rest, ms | step, ms | tokens/s expected | at the limits | goal "
             "| large products must reach | memory, GiB |", "|---|" + "---:|" * 11]
    for name, goal, options, run in runs:
        lines = lines_of(run)
        limit, expected, best, rate = sums(lines, run["tokens"])
        groups = [("products, layers", "products, head"), ("NF4 decode",), ("products, adapters",), ("attention", "attention backward")]
        parts = [sum(lines[k].expected for k in g if k in lines) for g in groups]
        need = what_must_hold(lines, run["tokens"], goal)
        verdict = f"**{rate:,.0f}**" if rate >= goal else f"{rate:,.0f} (below)"
        text.append("| " + " | ".join([name] + [milli(p) for p in parts] + [milli(expected - sum(parts)), milli(expected), verdict, f"{best:,.0f}",
                    f"{goal:,}", f"{need:.2f} of {FLOPS * 1e-12:.0f} TFLOP/s" if need else "cannot alone", f"{run['needed_bytes'] / 2**30:.1f}"]) + " |")
    text += ["", "### If one thing were better than expected", "", "| what, tokens/s | " + " | ".join(f"{name} ({goal:,})" for name, goal, _, _ in runs) + " |",
             "|---|" + "---:|" * len(runs)]
    for what, factors in [("as expected", {})] + BETTER + [("all of these", {k: f for _, factors in BETTER for k, f in factors.items()})]:
        rates = [(faster(lines_of(run), run["tokens"], factors), goal) for _, goal, _, run in runs]
        text.append(f"| {what} | " + " | ".join(f"**{r:,.0f}**" if r >= goal else f"{r:,.0f}" for r, goal in rates) + " |")
    text += ["", "Each case: `build/bench/prediction OPTIONS " + " ".join(COMMON) + "`, a dry run of the program's own step.", ""]
    text += [f"- {name}: `{' '.join(options)}`; attention " + ("kept" if run["attention_kept"] else "computed again") +
             f", activations of {run['layers_kept']} of {run['layers']} layers kept" for name, goal, options, run in runs]
    page = PAGE.read_text()
    begin, end = "<!-- prediction -->\n", "<!-- end of prediction -->\n"
    head, rest = page.split(begin)
    PAGE.write_text(head + begin + "\n".join(text) + "\n" + end + rest.split(end)[1])


main()
