#!/usr/bin/env python3
"""Runs every fuzz target for so many seconds and prints a table. Starts from tests/fuzz/corpus/NAME; what it learns is kept in
BUILD/corpus/NAME, inputs that break a reader in BUILD/findings/NAME. Exits 1 when there are any. `make fuzz` calls it."""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = ROOT / "tests" / "fuzz" / "corpus"


def statistic(text, name):
    found = re.search(rf"stat::{name}:\s+(\d+)", text)
    return int(found.group(1)) if found else 0


def run(program, folder, name, seconds, timeout):
    corpus, findings = folder / "corpus" / name, folder / "findings" / name
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    words = [str(program), f"-max_total_time={seconds}", f"-timeout={timeout}", "-rss_limit_mb=2048", "-malloc_limit_mb=2048",
             "-max_len=8192", "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={findings}/", "-use_value_profile=0"]
    dictionary = ROOT / "tests" / "fuzz" / f"{name}.dict"
    if dictionary.exists():
        words.append(f"-dict={dictionary}")
    log = folder / f"{name}.log"
    with open(log, "w") as out:
        child = subprocess.Popen(words + [str(corpus), str(SEEDS / name)], stdout=out, stderr=subprocess.STDOUT,
                                 env=dict(os.environ, TESSERA_FUZZ_TARGET=name))
        child.wait()
    for left in pathlib.Path("/dev/shm").glob(f"tessera-fuzz-{child.pid}-*"):
        shutil.rmtree(left, ignore_errors=True)
    text = log.read_text(errors="replace")
    runs = statistic(text, "number_of_executed_units")
    return {"name": name, "runs": runs, "rate": statistic(text, "average_exec_per_sec"),
            "corpus": sum(1 for _ in corpus.iterdir()), "new": len(set(findings.iterdir()) - before), "all": sum(1 for _ in findings.iterdir()),
            "ended": child.returncode, "log": log}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build-fuzz", help="the folder that cmake was given, with TESSERA_FUZZ=ON")
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--timeout", type=int, default=5, help="seconds for one input")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="targets, separated by commas")
    given = parser.parse_args()
    build = pathlib.Path(given.build).resolve()
    names = [n for n in given.only.split(",") if n] or sorted(p.name for p in SEEDS.iterdir())
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(lambda n: run(build / "tests" / "fuzz" / "fuzz", build, n, given.seconds, given.timeout), names))
    print(f"{'target':18}{'inputs run':>12}{'per second':>12}{'corpus':>8}{'findings':>10}")
    failed = False
    for row in rows:
        print(f"{row['name']:18}{row['runs']:12}{row['rate']:12}{row['corpus']:8}{row['new']:10}")
        if row["ended"] != 0:
            failed = True
            print(f"  ended with {row['ended']}: see {row['log']}; the input is in {build / 'findings' / row['name']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
