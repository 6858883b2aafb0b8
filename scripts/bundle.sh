#!/bin/sh
# Makes tessera-VERSION-linux-ARCH.tar.gz of a build: program, tests, benchmarks, and the shared libraries that a bare machine lacks, found
# beside them by RPATH $ORIGIN. glibc, the GPU's driver, CUDA's libraries and NCCL are the system's.
#   scripts/bundle.sh BUILD [OUTPUT]
set -eu
build=${1:-build}
output=${2:-$build}
here=$(cd "$(dirname "$0")/.." && pwd)
most_bytes=$((60 * 1024 * 1024))

version=$(sed -n 's/^project(tessera VERSION \([0-9.]*\).*/\1/p' "$here/CMakeLists.txt")
name=tessera-$version-linux-$(uname -m)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/$name
mkdir -p "$root/bin" "$root/tests" "$root/lib" "$root/licenses" "$root/examples"

cp "$build/tessera" "$root/bin/tessera"
cp "$build/bench/step" "$root/bin/bench_step"
cp "$build/bench/ops" "$root/bin/bench_ops"
cp -L "$(command -v mpiexec.hydra)" "$(command -v hydra_pmi_proxy)" "$root/bin/"
cp "$build"/*_test "$build"/tests/*_test "$build"/bench/*_test "$root/tests/"
strip "$root"/bin/* "$root"/tests/*
cp "$here/scripts/gpu_check.sh" "$root/bin/gpu-check"
mkdir "$root/examples/tiny" && cp "$here"/examples/tiny/*.json "$here"/examples/tiny/*.safetensors "$root/examples/tiny/"
cp -r "$here/bench/shapes" "$root/shapes"
cp "$here/LICENSE" "$root/"

# What every Linux with glibc has, and what belongs to the GPU.
of_the_system() {
  case $1 in
    linux-vdso.* | ld-linux* | libc.so.* | libm.so.* | libmvec.so.* | libpthread.so.* | libdl.so.* | librt.so.* | libresolv.so.* | libutil.so.*) return 0 ;;
    libcuda* | libcublas* | libcudnn* | libnccl* | libnvidia*) return 0 ;;
  esac
  return 1
}

needed() { ldd "$@" | sed -n 's/^\t\(.*\) => \(\/.*\) (0x.*)$/\1 \2/p' | sort -u; }
missing=$(ldd "$root"/bin/[!g]* "$root"/tests/* | grep 'not found' || true)
[ -z "$missing" ] || { echo "bundle: $missing" >&2; exit 1; }
needed "$root"/bin/[!g]* "$root"/tests/* >"$work/libraries"
while read -r library file; do
  of_the_system "$library" && continue
  cp -L "$file" "$root/lib/$library"
  package=$(dpkg -S "$(readlink -f "$file")" 2>/dev/null | sed 's/:.*//' | head -n 1)
  [ -z "$package" ] || cp "/usr/share/doc/$package/copyright" "$root/licenses/$package"
done <"$work/libraries"
cp /usr/share/doc/mpich/copyright "$root/licenses/mpich"
chmod 644 "$root"/lib/*
strip --strip-unneeded "$root"/lib/*

# RPATH, not RUNPATH: a cluster's LD_LIBRARY_PATH must not put another MPI in place of this one.
patchelf --force-rpath --set-rpath '$ORIGIN' "$root"/lib/*
for program in "$root"/bin/[!g]* "$root"/tests/*; do patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "$program"; done

newest() { version_of=$1; shift; objdump -T "$@" | grep -o "${version_of}_[0-9.]*" | sort -uV | tail -n 1 | sed "s/.*_//"; }
libraries=$(ls "$root"/lib/* | grep -v -e libstdc++ -e libgcc_s)
glibc=$(newest GLIBC "$root"/bin/[!g]* "$root"/tests/* "$root"/lib/*)
glibc_without=$(newest GLIBC "$root"/bin/[!g]* "$root"/tests/* $libraries)
glibcxx=$(newest GLIBCXX "$root"/bin/[!g]* "$root"/tests/* $libraries)
sed "s/@VERSION@/$version/; s/@GLIBC@/$glibc/; s/@GLIBC_WITHOUT@/$glibc_without/; s/@GLIBCXX@/$glibcxx/; s/@COMMIT@/$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)/" \
  "$here/scripts/bundle_readme.md" >"$root/README.md"

mkdir -p "$output"
tarball=$output/$name.tar.gz
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -cf - "$name" | gzip -9n >"$tarball"
bytes=$(stat -c %s "$tarball")
echo "$tarball: $((bytes / 1024)) KiB, $(ls "$root/lib" | wc -l) libraries, $(ls "$root/tests" | wc -l) test programs, needs glibc $glibc"
[ "$bytes" -le "$most_bytes" ] || { echo "bundle: $bytes bytes are more than the $most_bytes that are allowed" >&2; exit 1; }
