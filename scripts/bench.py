#!/usr/bin/env python3
"""Measures the rows of docs/benchmarks.md and writes its generated parts. A tool for developers: the product and its tests need none of it.

Each row is a training step (or generation) of build/bench/step, and the same step of PyTorch where --peer names a program for it. The two
run in turns, A B A B, so that both see the same minutes of the machine; the table holds medians. Every reading is kept as a line of
build/bench/results.jsonl: a run that was interrupted goes on with the rows it has not finished.

    scripts/bench.py                              all rows, then the operations (build/bench/ops)
    scripts/bench.py --only 135m-qlora ops        these again, and only these
    scripts/bench.py --peer "python peer_step.py" --prefix "flock /tmp/lock" --rounds 3
"""
import argparse
import datetime
import hashlib
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
THREADS = 2  # of all ranks of a row together
DEFAULT_PEER = [pathlib.Path("/tmp/peer/bin/python"), ROOT.parent / "shared" / "peers" / "peer_step.py"]


class Row:
    """What one line of the table measures, and how both programs are asked for it."""

    def __init__(self, name, shape, kind, seq=512, rows=1, recompute=True, precision="bf16", ranks=1, generate=0, steps=5, peer_steps=5,
                 peer=True):
        self.name, self.ranks, self.generate = name, ranks, generate
        threads = THREADS // ranks
        ours = ["--model", f"bench/shapes/{shape}", "--train_type", kind, "--precision", precision]
        if generate:
            ours += ["--generate", str(generate)]
        else:
            ours += ["--context_length", str(seq), "--batch_size", str(rows), "--gradient_checkpointing", str(recompute).lower()]
            ours += ["--steps", str(steps)]
        self.ours = ours + ["--threads", str(threads), "--json"]
        self.peer = None
        if peer and not generate:
            self.peer = ["--shape", shape, "--mode", kind, "--dtype", precision, "--seq", str(seq), "--bs", str(rows)]
            self.peer += ["--threads", str(threads), "--steps", str(peer_steps)] + ([] if recompute else ["--no-gc"])
            self.peer += ["--fsdp"] if ranks > 1 else []

    def our_command(self, step):
        return (["mpiexec.mpich", "-n", str(self.ranks)] if self.ranks > 1 else []) + [step] + self.ours

    def peer_command(self, peer):
        if self.ranks > 1:
            peer = [peer[0], "-m", "torch.distributed.run", "--nproc-per-node", str(self.ranks)] + peer[1:]
        return peer + self.peer


ROWS = [
    Row("135m-qlora", "135m", "qlora"),
    Row("135m-qlora-keep", "135m", "qlora", recompute=False),
    Row("135m-qlora-default", "135m", "qlora", recompute="auto"),  # what each gives who does not ask
    Row("135m-qlora-bs4", "135m", "qlora", rows=4),
    Row("135m-qlora-bs4-keep", "135m", "qlora", rows=4, recompute=False),
    Row("135m-lora", "135m", "lora"),
    Row("135m-lora-keep", "135m", "lora", recompute=False),
    Row("135m-lora-bs4", "135m", "lora", rows=4),
    Row("135m-lora-bs4-keep", "135m", "lora", rows=4, recompute=False),
    Row("135m-lora-fp32", "135m", "lora", precision="fp32"),
    Row("135m-full", "135m", "full"),
    Row("135m-qlora-4096", "135m", "qlora", seq=4096, steps=3, peer_steps=2),
    Row("135m-qlora-8192", "135m", "qlora", seq=8192, steps=2, peer_steps=1),
    Row("135m-lora-2ranks", "135m", "lora", ranks=2),
    Row("135m-qlora-2ranks", "135m", "qlora", ranks=2, peer=False),  # bitsandbytes does not run under fully_shard
    Row("15m-qlora", "15m", "qlora", seq=256, rows=8, steps=20),
    Row("15m-full", "15m", "full", seq=256, rows=8, steps=20),
    Row("260k-qlora", "260k", "qlora", seq=256, rows=8, steps=200, peer=False),  # the peer has no such shape
    Row("260k-full", "260k", "full", seq=256, rows=8, steps=200, peer=False),
    Row("1b-qlora", "1b", "qlora", seq=256, peer_steps=2),
    Row("1b-qlora-default", "1b", "qlora", seq=256, recompute="auto", peer_steps=2),  # what each gives who does not ask
    Row("1b-qlora-keep", "1b", "qlora", seq=256, recompute=False, peer_steps=2),
    Row("1b-qlora-512x2", "1b", "qlora", rows=2, peer_steps=2),
    Row("1b-lora", "1b", "lora", seq=256, peer_steps=2),
    Row("1b-lora-keep", "1b", "lora", seq=256, recompute=False, peer_steps=2),
    Row("1b-lora-512x2", "1b", "lora", rows=2, peer_steps=2),
    Row("1b-generate-qlora", "1b", "qlora", generate=32),
    Row("1b-generate-bf16", "1b", "lora", generate=32),
]
HEAD = ["row", "tokens/s", "share of limit", "peak RSS (anonymous), MB", "first step, s", "PyTorch tokens/s", "share", "peak RSS, MB",
        "first step, s", "ratio", "limit", "read"]


def output_of(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def commit():
    changed = output_of(["git", "status", "--porcelain", "-uno", "--", "src", "bench", "CMakeLists.txt", "cmake"])
    return output_of(["git", "rev-parse", "--short", "HEAD"]) + ("+" if changed else "")


def machine():
    """The processor, the cores this process may use, the memory."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda key: (re.search(rf"^{key}\s*: (.*)$", info, re.M) or [None, "?"])[1]
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / 2**20
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{f}\b", info)]
    cores = len(os.sched_getaffinity(0))
    processor = f"{field('model name')} (family {field('cpu family')}, model {field('model')}; {', '.join(flags)})"
    return f"{processor}, {cores} cores, {memory:.0f} GiB"


def peer_versions(peer):
    names = ["torch", "transformers", "peft", "bitsandbytes"]
    text = output_of([peer[0], "-c", f"import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in {names}), sep=', ')"])
    return text or "versions unknown"


def run(command, prefix, timeout):
    """The JSON object of the command's last line of output, or {"error": why}."""
    try:
        done = subprocess.run(prefix + command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {timeout} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = (done.stderr.strip().splitlines() or ["nothing"])
    return {"error": f"exit {done.returncode}: " + next((l for l in reversed(said) if "Error" in l), said[-1])[:200]}


class Results:
    """build/bench/results.jsonl: one reading per line. A reading belongs to the program that made it, by the hash of its file."""

    def __init__(self, path, program):
        self.path = path
        self.program = hashlib.sha256(program.read_bytes()).hexdigest()[:12]
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def add(self, **reading):
        line = dict(reading, program=self.program, commit=commit(), date=datetime.date.today().isoformat())
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def of(self, row, side):
        return [l["result"] for l in self.lines if (l["row"], l["side"], l["program"]) == (row, side, self.program)]

    def forget(self, row):
        self.lines = [l for l in self.lines if l["row"] != row or l["program"] != self.program]
        self.path.write_text("".join(json.dumps(l) + "\n" for l in self.lines))


def measure(row, results, options):
    """All rounds of a row, the two programs in turns."""
    commands = {"tessera": row.our_command(str(options.step))}
    if options.peer and row.peer:
        commands["peer"] = row.peer_command(options.peer)
    if not options.again and all(len(results.of(row.name, side)) >= options.rounds for side in commands):
        return
    results.forget(row.name)
    for number in range(options.rounds):
        for side, command in commands.items():
            result = run(command, options.prefix, options.timeout)
            results.add(row=row.name, round=number, side=side, command=shlex.join(command), result=result)
            rate = result.get("tokens_per_second", result.get("tok_s", result.get("error")))
            print(f"{row.name:22} {side:8} round {number + 1}: {rate} tokens/s", file=sys.stderr, flush=True)


def median(results, key):
    return statistics.median(r[key] for r in results)


def cells(row, ours, peer, asked_peer):
    """The cells of a row between its name and `read`."""
    failed = next((r["error"] for r in ours if "error" in r), None)
    if failed:
        return [f"fails: {failed}"] + ["-"] * 9
    rate = median(ours, "tokens_per_second")
    if row.generate:
        share, limit = median(ours, "share_of_read"), f"{median(ours, 'read_gbytes_per_second'):.0f} GB/s"
    else:
        share, limit = median(ours, "share_of_peak"), f"{median(ours, 'gemm_peak_gflops'):.0f} GF/s"
    memory = f"{median(ours, 'peak_rss_mb'):,.0f} ({median(ours, 'rss_anonymous_mb'):,.0f})"
    out = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}", f"{100 * share:.0f} %", memory, f"{median(ours, 'first_step_seconds'):.2f}"]
    if not row.peer or not asked_peer:
        return out + ["-" if not row.peer else "not run"] + ["-"] * 4 + [limit]
    failed = next((r["error"] for r in peer if "error" in r), None)
    if failed:
        return out + ["fails: " + failed.replace("|", "/")] + ["-"] * 4 + [limit]
    theirs = median(peer, "tok_s")
    their_share = theirs * median(ours, "flops_per_token") / median(ours, "gemm_peak_gflops") * 1e-9
    return out + [f"{theirs:,.0f}", f"{100 * their_share:.0f} %", f"{median(peer, 'rss_mb'):,.0f}", f"{median(peer, 'first_step_s'):.1f}",
                  f"{rate / theirs:.2f}", limit]


def table_line(cells_of_line):
    return "| " + " | ".join(cells_of_line) + " |"


def kept_rows(page):
    """The lines of the table as the page has them, by name."""
    found = re.search(r"<!-- steps -->(.*?)<!-- end of steps -->", page, re.S)
    lines = found[1].splitlines() if found else []
    return {l.split("|")[1].strip(): l for l in lines if l.startswith("|") and len(l.split("|")) == len(HEAD) + 2}


def steps_part(page, measured, results, options):
    lines = kept_rows(page)
    for row in measured:
        read = [l for l in results.lines if l["row"] == row.name][-1]
        values = cells(row, results.of(row.name, "tessera"), results.of(row.name, "peer"), options.peer)
        lines[row.name] = table_line([row.name] + values + [f"{read['commit']}, {read['date']}"])
    peer = f"PyTorch: {peer_versions(options.peer)}. " if options.peer else ""
    out = [f"Machine: {machine()}. {peer}Each row: {options.rounds} rounds, the programs in turns, medians."]
    out += ["Written by `scripts/bench.py`; a `+` after a commit: with changes that were not committed.", ""]
    out += [table_line(HEAD), "|" + "---|" * len(HEAD)]
    out += [lines[row.name] for row in ROWS if row.name in lines]
    out += ["", "The commands, with `STEP` = `build/bench/step` and `PEER` = " +
            (f"`{shlex.join(options.shown_peer)}`" if options.peer else "what `--peer` names") + ":", ""]
    for row in ROWS:
        out.append(f"    {row.name}: {shlex.join(row.our_command('STEP'))}")
        if row.peer:
            out.append(f"    {' ' * len(row.name)}  {peer_line(row)}")
    return "\n".join(out)


def peer_line(row):
    return shlex.join(row.peer_command(["PEER"])) if row.ranks == 1 else shlex.join(row.peer_command(["python", "PEER_SCRIPT"]))


def ops_part(options):
    command = [str(options.ops), f"--threads={THREADS}", "--benchmark_format=json", f"--benchmark_min_time={options.min_time}"]
    print("operations: some minutes", file=sys.stderr, flush=True)
    done = subprocess.run(options.prefix + command, cwd=ROOT, capture_output=True, text=True, check=True)
    read = json.loads(done.stdout)
    out = [f"Machine: {machine()}; {read['context']['backend']}. Commit {commit()}, {datetime.date.today().isoformat()}:"]
    out += [f"`build/bench/ops --threads={THREADS} --benchmark_min_time={options.min_time}`", ""]
    out += ["| operation | time, us | reached | limit | share |", "|---|---|---|---|---|"]
    for case in read["benchmarks"]:
        unit = "GF/s" if "GF/s" in case else "GB/s"
        name = case["name"].removesuffix("/real_time")
        out.append(f"| {name} | {case['real_time']:,.1f} | {case[unit]:,.1f} {unit} | {case['limit']:,.0f} | {100 * case['share']:.0f} % |")
    return "\n".join(out)


def write_part(name, text):
    page = PAGE.read_text()
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if not all(mark in page for mark in marks):
        sys.exit(f"{PAGE}: there is no {marks[0]} ... {marks[1]}\n  do this: put both lines where the table shall stand")
    begin, end = page.index(marks[0]) + len(marks[0]), page.index(marks[1])
    PAGE.write_text(page[:begin] + "\n" + text + "\n" + page[end:])


def read_options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default="build", help="the folder the programs were built in")
    p.add_argument("--only", nargs="+", metavar="NAME", help="measure these rows again (ops: the operations), leave the others")
    p.add_argument("--again", action="store_true", help="measure all rows again, also those that this program has finished")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--peer", help="the command of the PyTorch program; '': none")
    p.add_argument("--prefix", default="", help="a command to put before each command that is timed, e.g. 'taskset -c 0,1'")
    p.add_argument("--timeout", type=int, default=1800, help="seconds for one command")
    p.add_argument("--min_time", type=float, default=0.2, help="seconds for one operation, at least")
    p.add_argument("--list", action="store_true", help="print the names of the rows")
    o = p.parse_args()
    if o.list:
        print("\n".join([row.name for row in ROWS] + ["ops"]))
        sys.exit(0)
    unknown = set(o.only or []) - {row.name for row in ROWS} - {"ops"}
    if unknown:
        sys.exit(f"--only {' '.join(sorted(unknown))}: there is no such row\n  allowed: the names that --list prints")
    if o.peer is None:
        o.peer = [str(p) for p in DEFAULT_PEER] if all(p.exists() for p in DEFAULT_PEER) else []
    else:
        o.peer = shlex.split(o.peer)
    o.shown_peer = [os.path.relpath(w, ROOT) if w.startswith(str(ROOT.parent) + "/") else w for w in o.peer]
    o.prefix = shlex.split(o.prefix)
    o.again = o.again or bool(o.only)
    o.step, o.ops = (ROOT / o.build / "bench" / name for name in ("step", "ops"))
    for program in (o.step, o.ops):
        if not program.exists():
            sys.exit(f"{program}: is not there\n  do this: make bench, or cmake -DTESSERA_BENCH=ON and build bench_step and bench_ops")
    return o


def main():
    options = read_options()
    results = Results(options.step.parent / "results.jsonl", options.step)
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    for row in chosen:
        measure(row, results, options)
        write_part("steps", steps_part(PAGE.read_text(), [row], results, options))
    if not options.only or "ops" in options.only:
        write_part("operations", ops_part(options))
    return 1 if any("error" in r for row in chosen for r in results.of(row.name, "tessera")) else 0


if __name__ == "__main__":
    sys.exit(main())
