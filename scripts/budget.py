#!/usr/bin/env python3
"""The budgets of docs/architecture.md, checked: sizes of files and functions, few abstract classes and macros, tests,
third-party headers only where the room may have them. Prints the figures; exits 1 when one is over."""
import pathlib
import re
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
ALLOWED = {  # third-party headers by room (and file, where only that one may)
    "core": {"fmt": None, "spdlog": {"log.cpp"}},
    "backend": {"dnnl": {"gemm_onednn.cpp"}, "hwy": None, "omp.h": None, "cuda": {"device_cuda.h", "runtime_cuda.cpp"},
                "cublas": {"blas_library_cuda.h", "blas_library_cuda.cpp", "matmul_cuda.cpp"}},
    "io": {"nlohmann": None, "openssl": None},
    "comm": {"mpi.h": {"mpi.cpp", "mpi_roll_call.h"}},
    "testing": {"gtest": None, "nlohmann": None},
    "data": {"nlohmann": None, "pcre2": None, "simdjson": None},
    "models": {"nlohmann": None, "pcre2": None},
    "train": {"nlohmann": None},
    "cli": {"yaml-cpp": None, "nlohmann": None},
}
LIBRARIES = ("fmt", "spdlog", "dnnl", "hwy", "omp.h", "nlohmann", "openssl", "curl", "mpi.h", "pcre2", "simdjson",
             "CLI", "yaml-cpp", "gtest", "benchmark", "cuda", "cublas", "nccl")
problems = []


def function_lengths(text):
    """Lengths of bodies that open at the end of a line with no indentation, in clang-format's layout."""
    lines, lengths, start = text.split("\n"), [], None
    for number, line in enumerate(lines):
        opens = line.endswith("{") and line and not line[0].isspace()
        if opens and not re.match(r"(namespace|class|struct|enum|extern|constexpr|const |static const|inline const|union)", line):
            start = number
        elif start is None and opens and re.match(r"(constexpr|const )", line) and "(" in line and "=" not in line:
            start = number
        elif line.startswith("}") and start is not None:
            head = " ".join(line.strip() for line in lines[max(0, start - 4):start + 1])
            kernel = "__global__" in head.rsplit(";", 1)[-1].rsplit("}", 1)[-1]
            lengths.append((number - start + 1, ("kernel " if kernel else "") + lines[start].strip()))
            start = None
    return lengths


def check_headers(path, room, text):
    for header in re.findall(r"#include\s*<([^>]+)>", text):
        library = next((l for l in LIBRARIES if header.startswith(l)), None)
        if library is None or "test" in path.name:
            continue
        allowed = ALLOWED.get(room, {})
        if library not in allowed or (allowed[library] and path.name not in allowed[library]):
            problems.append(f"{path.relative_to(ROOT)}: <{header}> is not for this room")


def main():
    sizes, functions, abstract, macros, code, tests = [], [], [], 0, 0, 0
    for path in sorted(p for p in SRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")):
        if path.parent == SRC:
            problems.append(f"{path.name}: a file at the root of src/")
        text = path.read_text()
        room, lines = path.relative_to(SRC).parts[0], text.count("\n")
        is_test = path.stem.endswith("_test") or path.stem.startswith("test_") or room == "testing"
        code, tests = (code, tests + lines) if is_test else (code + lines, tests)
        if not is_test:
            sizes.append((lines, path.relative_to(ROOT)))
            functions += [(n, f"{path.relative_to(ROOT)}: {head}") for n, head in function_lengths(text)]
            macros += len(re.findall(r"^\s*#\s*define\s+\w+\(", text, re.M))
        # A class that declares pure virtuals of its own is abstract; one that overrides them is not.
        if re.search(r"virtual[^;{]*=\s*0;", text):
            abstract.append(str(path.relative_to(ROOT)))
        check_headers(path, room, text)
    tests += sum(p.read_text().count("\n") for p in (ROOT / "tests").rglob("*") if p.suffix in (".cpp", ".sh"))

    lengths = sorted(n for n, _ in sizes)
    p95 = lengths[int(0.95 * (len(lengths) - 1))]
    kernels = [n for n, head in functions if ": kernel " in head]
    body = sorted(n for n, head in functions if ": kernel " not in head)
    figures = {
        "file median": (statistics.median(lengths), 120), "file p95": (p95, 400), "file longest": (lengths[-1], 800),
        "function median": (statistics.median(body), 8), "function longest": (body[-1], 80),
        "kernel longest": (max(kernels, default=0), 120),
        "headers with abstract classes": (len(abstract), 4), "function-like macros": (macros, 5),
    }
    for name, (value, limit) in figures.items():
        print(f"{name:32} {value:8.0f}   limit {limit}")
        if value > limit:
            problems.append(f"{name} is {value}, the limit is {limit}")
    ratio = tests / max(code, 1)
    print(f"{'test : code lines':32} {ratio:8.2f}   at least 0.5   ({tests} : {code})")
    if ratio < 0.5:
        problems.append(f"test : code is {ratio:.2f}, at least 0.5")
    for n, head in sorted(functions, reverse=True)[:3]:
        print(f"  long function {n:4} {head[:100]}")
    for problem in problems:
        print("over budget:", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
