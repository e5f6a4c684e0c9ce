#!/bin/sh
# Makes the initramfs of the test guest: busybox (static) and the virtio modules of one kernel.
# usage: build.sh MODULES_DIR OUT      MODULES_DIR e.g. .../lib/modules/6.1.0-18-cloud-amd64, or of an initramfs of bhatti
set -eu
modules=$1
out=$2
here=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/bin" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/modules"
cp "$(command -v busybox)" "$tree/bin/busybox"
cp "$here/init" "$tree/init"
chmod 755 "$tree/init"
for name in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console; do
  file=$(find "$modules" -name "$name.ko*" -o -name "*-$name.ko" | head -n 1)
  case $file in
  *.ko) cp "$file" "$tree/modules/$name.ko" ;;
  *.ko.xz) xz -dc "$file" >"$tree/modules/$name.ko" ;;
  *.ko.zst) zstd -qdc "$file" >"$tree/modules/$name.ko" ;;
  esac
done
(cd "$tree" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) >"$out"
