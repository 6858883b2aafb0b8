#!/bin/sh
# Unpacks the bundle of a build into an empty root, where there is glibc and busybox and nothing else, and trains there as an ordinary user.
# Needs root here (chroot, mounts in a namespace of its own).
#   scripts/bundle_test.sh [BUILD]
set -eu
build=${1:-build}
fail() { echo "bundle-test FAILED: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "it makes an empty root with chroot and mounts, so it needs root; the bundle itself needs none"
set -- "$build"/tessera-*-linux-*.tar.gz
[ -f "$1" ] && [ $# = 1 ] || fail "one bundle is wanted in $build: make bundle"
bundle=$(readlink -f "$1")

root=$(mktemp -d /tmp/bundle_test.XXXXXX)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev/shm" "$root/etc" "$root/tmp" "$root/home/user"
chmod 755 "$root"; chmod 1777 "$root/tmp"

# glibc where it lies here: its loader's name is fixed, the others are found beside it.
for library in ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libmvec.so.1 libpthread.so.0 libdl.so.2 librt.so.1 libresolv.so.2 libutil.so.1; do
  file=$(ldconfig -p | sed -n "s/.*$library (.*x86-64.*) => //p" | head -n 1)
  [ -n "$file" ] || continue
  mkdir -p "$root$(dirname "$file")"
  cp -L "$file" "$root$file"
done
mkdir -p "$root/lib64"
[ -e "$root/lib64/ld-linux-x86-64.so.2" ] || cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
cp /bin/busybox "$root/bin/busybox"
for tool in $(/bin/busybox --list); do [ "$tool" = busybox ] || ln -s busybox "$root/bin/$tool"; done
echo "user:x:1000:1000::/home/user:/bin/sh" >"$root/etc/passwd"
echo "127.0.0.1 localhost $(hostname)" >"$root/etc/hosts"
tar -C "$root/home/user" --no-same-owner -xzf "$bundle"

cat >"$root/home/user/check.sh" <<'END'
set -eu
cd /home/user/tessera-*
step() { printf '\n=== %s\n' "$*"; }
[ "$(id -u)" != 0 ] || { echo "this is still root"; exit 1; }

step bin/tessera env
bin/tessera env

step bin/tessera launch --num_processes 2 train
timeout 60 bin/tessera launch --num_processes 2 train --model examples/tiny --dataset examples/tiny/tasks.json --output_dir out \
  --batch_size 4 --lr 1e-3 --max_steps 60 --logging_steps 10 --threads 1
[ -s out/adapter_model.safetensors ]
awk '{ match($0, "\"loss\":[^,}]*"); loss[NR] = substr($0, RSTART + 7, RLENGTH - 7) }
  END { printf "loss %s at the first step, %s at step %d\n", loss[1], loss[NR], NR; exit !(NR == 60 && loss[NR] < 0.7 * loss[1]) }' out/train.jsonl

step bin/tessera generate with the adapter
bin/tessera generate --model examples/tiny --adapter out --template alpaca --prompt "Where does the cat live?" --max_new_tokens 24

step tests/quant_test
tests/quant_test --gtest_brief=1

step tests/comm_test on two ranks of the bundled mpiexec
timeout 60 bin/mpiexec.hydra -n 2 tests/comm_test --gtest_brief=1 '--gtest_filter=Mpi.*'

step bin/gpu-check without a GPU
code=0
bin/gpu-check --output /tmp || code=$?
[ "$code" = 2 ]
grep -q '"gpu": null' /tmp/gpu-check.json
END
chown -R 1000:1000 "$root/home/user"

# Mounts vanish with the namespace.
code=0
unshare --mount --pid --fork sh -eu -c '
  mount -t proc proc "$0/proc"
  mount -t sysfs -o ro sysfs "$0/sys"
  mount -t tmpfs -o mode=1777 tmpfs "$0/dev/shm"
  for device in null zero urandom random; do touch "$0/dev/$device"; mount --bind "/dev/$device" "$0/dev/$device"; done
  exec env -i PATH=/bin HOME=/home/user /usr/sbin/chroot --userspec=1000:1000 "$0" /bin/sh /home/user/check.sh
' "$root" || code=$?
[ "$code" = 0 ] || fail "exit code $code in the empty root, see above"
echo "bundle-test passed: $(basename "$bundle") in a root of $(find "$root" -path "$root/home" -prune -o -type f -print | wc -l) files without it"
