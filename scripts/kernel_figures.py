#!/usr/bin/env python3
"""Registers, spills, stack, shared and constant memory of every kernel of src/backend/cuda, as ptxas tells them for each architecture.
Writes the table between the marks of docs/cuda.md, one line for each kernel with the largest figure of its instances, and all instances
into a text file. Exits 1 and names the kernel when one that runs in every step spills registers."""
import argparse
import concurrent.futures
import datetime
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "--expt-relaxed-constexpr", "-DCUDA_SIDE=cuda", "-Isrc"]  # as cmake/cuda.cmake
MOST_WARPS = {"80": 64, "86": 48, "89": 48, "90": 64}  # resident on a multiprocessor (CUDA programming guide, compute capabilities)
BEGIN, END = "<!-- kernel figures -->", "<!-- end of kernel figures -->"
# Kernels that may spill, and why.
COLD = {
    "random_normal_kernel": "runs once, before the first step",
    "encode4_kernel": "runs once, when a model is loaded",
    "encode8_kernel": "runs once, when a model is loaded",
}


def threads_at_once(registers, arch):
    """Of a multiprocessor: four parts of 16,384 registers each, given to warps in units of 256."""
    units = -(-max(registers, 1) * 32 // 256) * 256
    return min(16384 // units * 4, MOST_WARPS[arch]) * 32


def compile_one(nvcc, source, arch, folder):
    out = pathlib.Path(folder) / f"{source.stem}.{arch}.cubin"
    command = [nvcc, *FLAGS, f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", "-o", str(out), str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} for sm_{arch} does not compile:\n{done.stderr}")
    return source.name, arch, done.stderr


def figures_of(text):
    """[(mangled name, figures)] of what ptxas -v prints."""
    found, name, now = [], None, {}
    for line in text.splitlines():
        entry = re.search(r"Compiling entry function '(\w+)'", line)
        if entry:
            name, now = entry[1], {"registers": 0, "stack": 0, "stores": 0, "loads": 0, "shared": 0, "constant": 0}
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if frame and name:
            now["stack"], now["stores"], now["loads"] = map(int, frame.groups())
        used = re.search(r"Used (\d+) registers", line)
        if used and name:
            now["registers"] = int(used[1])
            now["shared"] = sum(int(n) for n in re.findall(r"(\d+) bytes smem", line))
            now["constant"] = sum(int(n) for n in re.findall(r"(\d+) bytes cmem", line))
            found.append((name, now))
            name = None
    return found


def demangled(names):
    tool = shutil.which("cu++filt") or shutil.which("c++filt") or sys.exit("c++filt is missing. Do this: apt-get install binutils")
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    tidy = (re.sub(r"\(anonymous namespace\)::|tessera::cuda::|tessera::|^void ", "", line) for line in done.stdout.splitlines())
    return dict(zip(names, tidy))


def plain_name(signature):
    return re.split(r"[<(]", signature, 1)[0]


def table(rows, archs):
    """rows: {(file, kernel): {arch: [figures]}}"""
    lines = ["| file | kernel | instances | " + " | ".join(f"sm_{a}" for a in archs) + " | spilled | stack | constant |"
             + " threads at once, " + " / ".join(f"sm_{a}" for a in archs) + " |", "|---|---|---|" + "---|" * (len(archs) + 4)]
    for (file, kernel), by_arch in sorted(rows.items()):
        most = lambda key: max(f[key] for figures in by_arch.values() for f in figures)
        registers = [max(f["registers"] for f in by_arch[a]) for a in archs]
        threads = " / ".join(f"{threads_at_once(r, a):,}" for r, a in zip(registers, archs))
        lines.append(f"| {file} | {kernel} | {len(by_arch[archs[0]])} | " + " | ".join(map(str, registers))
                     + f" | {most('stores') + most('loads')} | {most('stack')} | {most('constant')} | {threads} |")
    return lines


def write_docs(docs, lines):
    text = docs.read_text() if docs.exists() else "# CUDA\n"
    if BEGIN not in text:
        text = text.rstrip() + f"\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    docs.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--architectures", default="80,86,89,90")
    parser.add_argument("--docs", type=pathlib.Path, default=ROOT / "docs/cuda.md")
    parser.add_argument("--list", type=pathlib.Path, help="every instance with its figures")
    parser.add_argument("sources", nargs="*", type=pathlib.Path, help="instead of all; the docs are left alone then")
    args = parser.parse_args()
    if not pathlib.Path(args.nvcc).exists():
        sys.exit("nvcc is missing. Do this: install the CUDA toolkit 13 (developer.nvidia.com)")
    archs, start = args.architectures.split(","), time.time()
    sources = [s.resolve() for s in args.sources] or sorted((ROOT / "src/backend/cuda").glob("*.cu"), key=lambda p: -p.stat().st_size)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda task: compile_one(args.nvcc, *task, folder), [(s, a) for s in sources for a in archs]))
    found = [(file, arch, name, figures) for file, arch, text in results for name, figures in figures_of(text)]
    names = demangled(sorted({name for _, _, name, _ in found}))

    rows, instances, spills = {}, [], []
    for file, arch, name, figures in found:
        kernel = plain_name(names[name])
        rows.setdefault((file, kernel), {}).setdefault(arch, []).append(figures)
        instances.append(f"sm_{arch} {file} " + " ".join(f"{k}={v}" for k, v in figures.items()) + f" {names[name]}")
        if figures["stores"] + figures["loads"] and kernel not in COLD:
            spills.append(f"{file}: {names[name]} spills on sm_{arch}: {figures['stores']} bytes stored, {figures['loads']} loaded")
    version = re.search(r"release [\d.]+, V([\d.]+)", subprocess.run([args.nvcc, "--version"], capture_output=True, text=True).stdout)[1]
    lines = [f"`make kernel-figures`, {datetime.date.today()}, nvcc {version}: {len(rows)} kernels, {len(names)} instances, "
             f"{len(spills)} spills in kernels of a step.",
             "Registers of a thread on each architecture, the most of all instances; bytes spilled, of stack and of constant memory; threads that",
             "a multiprocessor has at once by the registers alone. Shared memory is dynamic: none is static.", "", *table(rows, archs)]
    if args.list:
        args.list.parent.mkdir(parents=True, exist_ok=True)
        args.list.write_text("\n".join(sorted(instances)) + "\n")
    if not args.sources:
        write_docs(args.docs, lines)
    print(f"{len(rows)} kernels, {len(names)} instances, {len(archs)} architectures, {time.time() - start:.0f} s")
    for spill in spills:
        print(spill)
    sys.exit(1 if spills else 0)


if __name__ == "__main__":
    main()
