#!/usr/bin/env bash
# What the tests need beyond the programs of host-deps.sh: cargo-nextest, and in target/test-tools/, unpacked there and
# not installed, two QEMUs of different age, and from PyPI an S3 server (moto)
# and a maker of requests (schemathesis). Does nothing when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'test-deps: %s\n' "$*"; }

scripts/host-deps.sh --tests

if ! cargo nextest --version > /dev/null 2>&1; then
    say "installing cargo-nextest (a few minutes)"
    cargo install --locked --quiet cargo-nextest
fi

tools=$PWD/target/test-tools
mkdir -p "$tools"
case "$(uname -m)" in
    x86_64) package=qemu-system-x86 binary=qemu-system-x86_64 triplet=x86_64-linux-gnu loader=ld-linux-x86-64.so.2 ;;
    aarch64) package=qemu-system-arm binary=qemu-system-aarch64 triplet=aarch64-linux-gnu loader=ld-linux-aarch64.so.1 ;;
esac

# unpack VERSION SUITE: the package and all it depends on, as a tree, with a wrapper that runs it from there.
unpack() {
    local version=$1 suite=$2 name="qemu-$1" mode=root
    [ -d "$tools/$name.tree" ] || fetch
    cat > "$tools/$name" <<WRAPPER
#!/bin/sh
# QEMU $version (Debian $suite) from its tree, with its own loader, libraries and modules.
t=\$(dirname "\$(readlink -f "\$0")")/$name.tree
l=\$t/lib64/$loader
[ -e "\$l" ] || l=\$t/usr/lib64/$loader
[ -e "\$l" ] || l=\$t/lib/$triplet/$loader
[ -e "\$l" ] || l=\$t/usr/lib/$triplet/$loader
export QEMU_MODULE_DIR="\$t/usr/lib/$triplet/qemu"
exec "\$l" --library-path "\$t/usr/lib/$triplet:\$t/lib/$triplet" "\$t/usr/bin/$binary" \\
    -L "\$t/usr/share/qemu" -L "\$t/usr/share/seabios" "\$@"
WRAPPER
    chmod 755 "$tools/$name"
    "$tools/$name" --version > /dev/null
}
# For unpack: the tree itself; its variables are unpack's.
fetch() {
    [ "$(id -u)" = 0 ] || mode=unshare
    say "unpacking QEMU $version of Debian $suite into target/test-tools/"
    rm -rf "$tools/$name.new" "$tools/$name.tree" "$tools/$name.tar"
    local mirror=${BHATTI_DEBIAN_MIRROR:-http://deb.debian.org}
    # As a tar archive, unpacked by the caller: the tree is then the caller's own, root or not.
    mmdebstrap --quiet --mode="$mode" --variant=extract --include="$package" --format=tar \
        "$suite" "$tools/$name.tar" \
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror/debian $suite main"
    mkdir "$tools/$name.new"
    tar -C "$tools/$name.new" -x --no-same-owner --exclude './dev/*' -f "$tools/$name.tar"
    rm -f "$tools/$name.tar"
    mv "$tools/$name.new" "$tools/$name.tree"
}
unpack 7.2 bookworm
unpack 10.0 trixie

# python NAME VERSION REQUIREMENT: a package of PyPI with all it needs, in an environment of its own.
python() {
    local name=$1 version=$2 requirement=$3
    if ! "$tools/$name/bin/python" -c "import importlib.metadata as m; assert m.version('$name') == '$version'" 2> /dev/null; then
        say "installing $name $version into target/test-tools/"
        rm -rf "${tools:?}/$name"
        python3 -m venv "$tools/$name"
        "$tools/$name/bin/pip" install --quiet --disable-pip-version-check "$requirement==$version"
    fi
}
moto_version=5.1.6 schemathesis_version=4.32.5
python moto "$moto_version" 'moto[server]'
python schemathesis "$schemathesis_version" schemathesis

say "everything is there ($(cargo nextest --version | head -n 1 | cut -d ' ' -f 1,2), qemu-7.2, qemu-10.0, moto $moto_version, schemathesis $schemathesis_version)"
