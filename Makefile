# What a user and CI type. Everything is built in build/ in Release with the ordinary compiler.
#   make quickstart   packages, build, fine-tune the bundled model on 2 ranks, print a sample before and after
#   make test         packages, build, all tests
#   make build        the program at build/tessera
#   make bench        packages, build, measure everything of docs/benchmarks.md anew (hours with PyTorch beside it);
#                     BENCH_ARGS="--only 135m-qlora" for a row of it, see scripts/bench.py --help
#   make asan         the unit tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make fuzz SECONDS=30   every reader of foreign files under libFuzzer and both sanitizers (clang 14), so long for each
#   make what-fits  docs/what_fits.md from `tessera plan`; SHAPES=folder of folders with a config.json
#   make torture      kills ranks of a tiny run at random moments, KILLS times (1,000), and prints the figures; SEED=.. for others
#   make bundle       build/tessera-VERSION-linux-x86_64.tar.gz: program, tests, benchmarks, libraries; runs without root and packages
#   make bundle-test  unpacks it into an empty root and trains there as an ordinary user; needs root here
#   make kernel-figures  registers and spills of every CUDA kernel into docs/cuda.md; fails when one spills; 3 minutes
#   make gpu-check    tests, sanitizer and benchmarks on the GPU, one JSON of results; 8 minutes
#   make cuda-prediction  the expected times of docs/cuda.md, from a dry run of the program's steps
#   make model        trains the bundled model again from random weights (examples/tiny)
#   make format check-format budget
BUILD ?= build
JOBS ?= $(shell nproc)
PACKAGES = g++ cmake ninja-build libdnnl-dev libhwy-dev libmpich-dev mpich libyaml-cpp-dev nlohmann-json3-dev libsimdjson-dev \
  libspdlog-dev libfmt-dev libpcre2-dev libssl-dev
TEST_PACKAGES = libgtest-dev clang-format-14 python3
BENCH_PACKAGES = libbenchmark-dev python3
FUZZ_PACKAGES = clang-14 libclang-rt-14-dev libomp-14-dev python3
BENCH_ARGS ?=
BUNDLE_PACKAGES = patchelf binutils busybox-static
SECONDS ?= 30
TINY = examples/tiny
KILLS ?= 1000
SEED ?= 1

.PHONY: quickstart test without-cuda build packages test-packages bench unit asan fuzz torture bundle bundle-test gpu-check kernel-figures cuda-prediction model format check-format budget clean

build: packages
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=OFF
	cmake --build $(BUILD) -j $(JOBS) --target tessera

packages:
	@scripts/packages.sh $(PACKAGES)

test-packages: packages
	@scripts/packages.sh $(TEST_PACKAGES)

test: test-packages check-format budget
	@scripts/packages.sh $(BENCH_PACKAGES)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=ON -DTESSERA_BENCH=ON
	cmake --build $(BUILD) -j $(JOBS)
	@$(MAKE) --no-print-directory without-cuda
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

# Where nvcc was found, the program is built once more as on a machine that has none; its objects that know of CUDA are few.
without-cuda:
	@if grep -q '^NVCC:FILEPATH=/' $(BUILD)/CMakeCache.txt; then \
	  cmake -S . -B $(BUILD)-without-cuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=OFF -DTESSERA_CUDA=OFF && \
	  cmake --build $(BUILD)-without-cuda -j $(JOBS) --target tessera; fi

bench: packages
	@scripts/packages.sh $(BENCH_PACKAGES)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=OFF -DTESSERA_BENCH=ON
	cmake --build $(BUILD) -j $(JOBS) --target bench_step bench_ops
	@scripts/bench.py --build $(BUILD) $(BENCH_ARGS)

asan: test-packages
	cmake -S . -B $(BUILD)-asan -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DTESSERA_TESTS=ON -DTESSERA_SANITIZE=ON
	cmake --build $(BUILD)-asan -j $(JOBS)
	ASAN_OPTIONS=detect_leaks=0 ctest --test-dir $(BUILD)-asan --output-on-failure -j $(JOBS) -L unit

fuzz: packages
	@scripts/packages.sh $(FUZZ_PACKAGES)
	cmake -S . -B $(BUILD)-fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=clang++-14 -DTESSERA_TESTS=OFF -DTESSERA_FUZZ=ON
	cmake --build $(BUILD)-fuzz -j $(JOBS) --target fuzz
	@scripts/fuzz.py --build $(BUILD)-fuzz --seconds $(SECONDS) --jobs $(JOBS)

bundle: test-packages
	@scripts/packages.sh $(BENCH_PACKAGES) $(BUNDLE_PACKAGES)
	cmake -S . -B $(BUILD)-bundle -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=ON -DTESSERA_BENCH=ON -DTESSERA_BUNDLE=ON
	cmake --build $(BUILD)-bundle -j $(JOBS)
	@scripts/bundle.sh $(BUILD)-bundle $(BUILD)

bundle-test: bundle
	@scripts/bundle_test.sh $(BUILD)

gpu-check: test-packages
	@scripts/packages.sh $(BENCH_PACKAGES)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=ON -DTESSERA_BENCH=ON
	cmake --build $(BUILD) -j $(JOBS)
	@scripts/gpu_check.sh --build $(BUILD)

kernel-figures:
	@scripts/kernel_figures.py --jobs $(JOBS) --list $(BUILD)/kernel_figures.txt

torture: test-packages
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=ON
	cmake --build $(BUILD) -j $(JOBS) --target e2e_test
	TESSERA_KILLS=$(KILLS) TESSERA_SEED=$(SEED) $(BUILD)/tests/e2e_test --gtest_filter=KillLoop.*

quickstart: build
	@scripts/quickstart.sh $(BUILD)/tessera $(TINY)

model: build
	@scripts/make_tiny_model.sh $(BUILD)/tessera $(TINY)

cuda-prediction: packages
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTESSERA_TESTS=OFF -DTESSERA_BENCH=ON
	cmake --build $(BUILD) -j $(JOBS) --target bench_prediction
	@scripts/cuda_prediction.py $(BUILD)

SHAPES ?= ../shared/models/shapes
what-fits: build
	@scripts/what_fits.py $(BUILD)/tessera $(SHAPES)

format:
	@git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' | xargs clang-format-14 -i

check-format:
	@git ls-files '*.h' '*.cpp' '*.cu' | xargs clang-format-14 --dry-run --Werror

budget:
	@python3 scripts/budget.py

clean:
	rm -rf $(BUILD) $(BUILD)-without-cuda $(BUILD)-asan $(BUILD)-fuzz $(BUILD)-bundle out
