#!/usr/bin/env bash
# Makes sure that the programs bhatti needs are there, and installs what is missing with apt-get.
#
#   scripts/host-deps.sh           to build and to run
#   scripts/host-deps.sh --tests   and to test: other filesystems
#   scripts/host-deps.sh --bench   and to measure: what figures are compared with and drawn by
#
# Does nothing, needs no root and no network when everything is there. Files under /etc/apt are never changed.
set -euo pipefail

say() { printf 'deps: %s\n' "$*"; }
die() { printf 'deps: error: %s\n' "$*" >&2; exit 1; }

# ssh and cron give short PATHs; rustup and sbin are looked at in any case.
PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"

case "$(uname -m)" in
    x86_64) qemu=qemu-system-x86_64 qemu_package=qemu-system-x86 ;;
    aarch64) qemu=qemu-system-aarch64 qemu_package=qemu-system-arm ;;
    *) die "bhatti runs on x86_64 and aarch64, not on $(uname -m)" ;;
esac

# program (or file) and Debian's package that has it
wanted=(
    "$qemu $qemu_package"
    "qemu-img qemu-utils"
    "mmdebstrap mmdebstrap"
    "mke2fs e2fsprogs"
    "passt passt"
    "zstd zstd"
    "xz xz-utils"
    "dpkg-deb dpkg"
    "apt-get apt"
    "/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring"
    "gcc gcc"
    "/usr/include/stdio.h libc6-dev"
    "make make"
    "curl curl"
)
# Without root, mmdebstrap works in a user namespace.
if [ "$(id -u)" != 0 ]; then
    wanted+=("newuidmap uidmap")
fi
if [ "${1:-}" = --tests ]; then
    wanted+=("mkfs.btrfs btrfs-progs" "compsize btrfs-compsize" "mkfs.xfs xfsprogs" "git git" "busybox busybox-static" "cpio cpio" "script bsdutils" "strace strace" "python3 python3" "/usr/share/doc/python3-venv python3-venv")
    # A registry, and those who fill it and unpack images as a reference.
    wanted+=("docker-registry docker-registry" "skopeo skopeo" "umoci umoci" "htpasswd apache2-utils")
fi

if [ "${1:-}" = --bench ]; then
    wanted+=("mkfs.btrfs btrfs-progs" "compsize btrfs-compsize" "mkfs.xfs xfsprogs")
    wanted+=("fincore util-linux-extra" "docker-registry docker-registry" "skopeo skopeo" "rsvg-convert librsvg2-bin")
    # What libvirt's `managedsave` takes; its daemons are not used.
    wanted+=("virsh libvirt-clients" "/etc/libvirt/qemu.conf libvirt-daemon-system")
fi

there() { case "$1" in /*) [ -e "$1" ] ;; *) command -v "$1" > /dev/null ;; esac; }

missing_programs=() missing_packages=()
look() {
    missing_programs=() missing_packages=()
    local line
    for line in "${wanted[@]}"; do
        there "${line% *}" || { missing_programs+=("${line% *}"); missing_packages+=("${line#* }"); }
    done
}

# What to install by hand, a line a program: other distributions name their packages differently.
list_by_hand() {
    local i
    for i in "${!missing_programs[@]}"; do
        printf '  %-52s (Debian: %s)\n' "${missing_programs[$i]}" "${missing_packages[$i]}" >&2
    done
}

# The suite that an installed package came from, when it is not the system's own: "bookworm-backports" for a
# version such as 1:10.0.2+ds-2~bpo12+1. A package of the same source must come from there too, or apt refuses.
backports_of() {
    local version
    version=$(dpkg-query -W -f '${Version}' "$1" 2> /dev/null) || return 1
    [[ $version == *~bpo* ]] || return 1
    (. /etc/os-release && [ "${ID:-}" = debian ] && [ -n "${VERSION_CODENAME:-}" ] \
        && printf '%s-backports\n' "$VERSION_CODENAME")
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

log=$(mktemp)
private=
cleanup() { rm -f "$log"; [ -z "$private" ] || as_root rm -rf "$private"; }
trap cleanup EXIT
trap 'exit 130' INT TERM

# apt's own words only when it fails.
quietly() {
    if ! as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@" > "$log" 2>&1; then
        return 1
    fi
}

# With --no-remove: apt would otherwise solve a mixture of releases by removing half of QEMU.
install() {
    say "installing ${missing_packages[*]}"
    quietly apt-get install -y -q --no-remove --no-install-recommends "${missing_packages[@]}" && return
    say "apt-get could not; fetching the package lists"
    quietly apt-get update -q || say "apt-get update failed in part: $(grep -m1 '^E:' "$log" || true)"
    quietly apt-get install -y -q --no-remove --no-install-recommends "${missing_packages[@]}" && return
    cp "$log" "$log.first"; mv "$log.first" "$log"

    local suite release keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    suite=$(backports_of qemu-utils || backports_of qemu-system-common) || return 1
    [ -e "$keyring" ] || return 1
    release=${suite%-backports}
    say "the QEMU packages here come from $suite; trying that, with a sources list of our own"
    private=$(mktemp -d)
    chmod 755 "$private"
    mkdir -p "$private/lists/partial"
    local mirror=${BHATTI_DEBIAN_MIRROR:-http://deb.debian.org}
    {
        printf 'deb [signed-by=%s] %s/debian %s main\n' "$keyring" "$mirror" "$release"
        printf 'deb [signed-by=%s] %s/debian %s main\n' "$keyring" "$mirror" "$suite"
        printf 'deb [signed-by=%s] %s/debian-security %s-security main\n' "$keyring" "$mirror" "$release"
    } > "$private/sources.list"
    local options=(
        -o "Dir::Etc::sourcelist=$private/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$private/lists" -o Acquire::Languages=none -o APT::Sandbox::User=root
    )
    quietly apt-get "${options[@]}" update -q || return 1
    quietly apt-get "${options[@]}" install -y -q --no-remove --no-install-recommends -t "$suite" "${missing_packages[@]}"
}

look
if [ ${#missing_programs[@]} -gt 0 ]; then
    say "missing: ${missing_programs[*]}"
    if ! command -v apt-get > /dev/null; then
        printf 'deps: error: there is no apt-get here; install these with the package manager that you have:\n' >&2
        list_by_hand
        exit 1
    fi
    if [ "$(id -u)" != 0 ] && ! command -v sudo > /dev/null; then
        die "root is needed to install; run as root: apt-get install ${missing_packages[*]}"
    fi
    if ! install; then
        tail -n 15 "$log" >&2
        printf 'deps: error: apt-get could not install these; install them by hand and try again:\n' >&2
        list_by_hand
        exit 1
    fi
    look
    [ ${#missing_programs[@]} -eq 0 ] || die "installed, but still not found: ${missing_programs[*]}"
fi

if ! command -v cargo > /dev/null; then
    die "cargo is not installed, and apt's is too old for this workspace; get it with
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
and run this again"
fi
have=$(cargo --version | sed 's/^cargo \([0-9]*\)\.\([0-9]*\).*/\1 \2/')
need=$(sed -n 's/^rust-version = "\([0-9]*\)\.\([0-9]*\).*/\1 \2/p' "$(dirname "$0")/../Cargo.toml" | head -n 1)
if [ "${have% *}" -lt "${need% *}" ] || { [ "${have% *}" = "${need% *}" ] && [ "${have#* }" -lt "${need#* }" ]; }; then
    die "cargo ${have/ /.} is too old; ${need/ /.} is needed: rustup update stable, or get rustup from https://rustup.rs"
fi
say "everything is there ($("$qemu" --version | head -n 1 | cut -d '(' -f 1 | sed 's/ *$//'), cargo ${have/ /.})"
