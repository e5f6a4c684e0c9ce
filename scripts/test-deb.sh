#!/usr/bin/env bash
# Installs the package of `make deb` on a clean Debian, in a directory, and follows the quickstart there.
#
#   scripts/test-deb.sh [SUITE]      bookworm when not said; needs root, mmdebstrap and a mirror
#
# The directory goes, however it ends. A step that fails leaves the daemon that it had started: end it by its id.
set -euo pipefail

suite=${1:-bookworm}
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo 'test-deb: error: needs root' >&2; exit 1; }
package=$(ls -t target/debian/bhatti_*.deb 2> /dev/null | head -n 1)
[ -n "$package" ] || { echo 'test-deb: error: there is no package; make one with `make deb`' >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/var/tmp}/bhatti-deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Blocks of the quickstart from the second part on: the first one builds and installs, which the package has done.
# Who types it waits for the daemon's word, and so does this.
awk '/^## 2\./ { on = 1 } /^```/ { code = on && $0 == "```sh"; next } code' docs/quickstart.md |
    sed 's|^\(bhatti serve[^&]*\)&.*|\1 > /tmp/served 2>\&1 \& grep -q "ready on" < <(tail -f --pid=$! /tmp/served)|' > "$work/quickstart"
cat > "$work/follow" << 'END'
#!/bin/bash
# In the clean Debian, as its root.
set -euo pipefail
apt-get -o APT::Sandbox::User=root install -y -q /tmp/bhatti.deb
bhatti version
test -e /usr/share/man/man1/bhatti.1 -o -e /usr/share/man/man1/bhatti.1.gz
test -e /usr/lib/systemd/system/bhatti.service -o -e /lib/systemd/system/bhatti.service
: > /tmp/served
. /tmp/quickstart
END
chmod +x "$work/follow"
# mmdebstrap mounts /dev, /proc and /sys for the hook and takes them away again.
mmdebstrap --quiet --variant=apt --include=ca-certificates --skip=check/empty \
    --customize-hook="copy-in $work/follow $work/quickstart /tmp" \
    --customize-hook="upload $package /tmp/bhatti.deb" \
    --customize-hook='chroot "$1" /tmp/follow' \
    "$suite" "$work/root"
echo "test-deb: the package of $(basename "$package") works on a clean $suite"
