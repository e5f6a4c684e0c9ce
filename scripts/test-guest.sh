#!/usr/bin/env bash
# Makes the small guest of the VMM's own tests out of a data directory that was set up: its kernel, and an initramfs
# of busybox with the same modules.   usage: test-guest.sh DATA_DIR OUT_DIR
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(readlink -f "$1") out=$2
id=$(sed -n 's/.*"id": *"\([0-9a-f]\{64\}\)".*/\1/p' "$data"/kernel/*.json | head -n 1)
mkdir -p "$out"
out=$(readlink -f "$out")
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
(cd "$tree" && cpio --quiet -id < "$data/kernel/$id/initramfs")
cp "$data/kernel/$id/vmlinuz" "$out/vmlinuz"
crates/vm/tests/guest/build.sh "$tree/modules" "$out/initramfs"
