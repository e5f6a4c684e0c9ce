#!/usr/bin/env bash
# Installs the package of `make deb` on a clean Debian, in a directory, and follows the quickstart there.
#
#   scripts/test-deb.sh [SUITE]      bookworm when not said; needs root, mmdebstrap and a mirror
#
# The directory goes, however it ends, and so do the processes.
set -euo pipefail

suite=${1:-bookworm}
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo 'test-deb: error: needs root' >&2; exit 1; }
package=$(ls -t target/debian/bhatti_*.deb 2> /dev/null | head -n 1)
[ -n "$package" ] || { echo 'test-deb: error: there is no package; make one with `make deb`' >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/var/tmp}/bhatti-deb.XXXXXX") child=''
cleanup() {
    if [ -n "$child" ]; then
        # The first process of the namespace takes all others of it along, and `unshare` waits for it.
        # shellcheck disable=SC2046
        kill -KILL $(cat "/proc/$child/task/$child/children") 2> /dev/null || kill -KILL "$child" || true
        wait "$child" 2> /dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# Blocks of the quickstart from the second part on: the first one builds and installs, which the package has done.
# Who types it waits for the daemon's word, and so does this.
awk '/^## 2\./ { on = 1 } /^```/ { code = on && $0 == "```sh"; next } code' docs/quickstart.md |
    sed 's|^\(bhatti serve[^&]*\)&.*|\1 > /tmp/served 2>\&1 \& grep -q "ready on" < <(tail -f --pid=$! /tmp/served)|' > "$work/quickstart"
cat > "$work/follow" << 'END'
#!/bin/bash
# In the clean Debian, as its root.
set -euo pipefail
apt() { apt-get -q -y -o APT::Sandbox::User=root "$@" > /tmp/apt.log 2>&1 || { cat /tmp/apt.log >&2; return 1; }; }
apt update
apt install /tmp/bhatti.deb
bhatti version
test -e /usr/share/man/man1/bhatti.1 -o -e /usr/share/man/man1/bhatti.1.gz
test -e /usr/lib/systemd/system/bhatti.service -o -e /lib/systemd/system/bhatti.service
: > /tmp/served
. /tmp/quickstart
END
chmod +x "$work/follow"
mmdebstrap --quiet --variant=apt --include=ca-certificates --skip=check/empty "$suite" "$work/root"
cp "$work/follow" "$work/quickstart" "$work/root/tmp/"
cp "$package" "$work/root/tmp/bhatti.deb"
cp --dereference /etc/resolv.conf "$work/root/etc/resolv.conf"
# Mounts and processes of its own: what a step leaves that fails goes with them. Its root is a mount, as everywhere.
# shellcheck disable=SC2016
unshare --mount --pid --fork --kill-child --propagation private bash -c '
    set -e
    mount --bind "$1" "$1"
    mount --rbind /dev "$1/dev"
    mount --rbind /sys "$1/sys"
    mount -t proc proc "$1/proc"
    exec chroot "$1" /tmp/follow' enter "$work/root" &
child=$! status=0
wait "$child" || status=$?
child=''
[ "$status" = 0 ] || exit "$status"
echo "test-deb: the package $(basename "$package") works on a clean $suite"
