#!/usr/bin/env bash
# Shows a sandbox: created, used, put to sleep, woken by the next command with its memory, processes and files as they
# were. Each command is shown before it runs. What the demo starts it ends; run it as often as you like.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${BHATTI:-$PWD/target/release/bhatti}
name=bhatti-demo
if [ -n "${BHATTI_DATA_DIR:-}" ]; then
    data=$BHATTI_DATA_DIR
elif [ "$(id -u)" = 0 ]; then
    data=/var/lib/bhatti
else
    data=${XDG_DATA_HOME:-$HOME/.local/share}/bhatti
fi
# This host's daemon, whatever the surroundings say.
export BHATTI_DATA_DIR=$data
unset BHATTI_URL BHATTI_TOKEN

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
say() { printf '\n%s# %s%s\n' "$dim" "$*" "$plain"; }
die() { printf 'demo: error: %s\n' "$*" >&2; exit 1; }
[ -x "$bin" ] || die "$bin is not built; run: make demo"

daemon='' log='' created=''
cleanup() {
    local status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$created" ]; then
        "$bin" destroy -y "$name" > /dev/null 2>&1 || true
    fi
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2> /dev/null || true
        local i
        for ((i = 0; i < 150; i++)); do
            kill -0 "$daemon" 2> /dev/null || break
            sleep 0.1
        done
        kill -KILL "$daemon" 2> /dev/null || true
        wait "$daemon" 2> /dev/null || true
    fi
    if [ -n "$log" ]; then
        if [ "$status" != 0 ]; then
            printf '\ndemo: the last lines of the daemon:\n' >&2
            tail -n 15 "$log" >&2
        fi
        rm -f "$log"
    fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# As a person would type it.
shown() {
    local word
    printf '%s$ bhatti' "$bold"
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./:=+-]* | '') printf " '%s'" "${word//\'/\'\\\'\'}" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '%s\n' "$plain"
}
bhatti() { shown "$@"; "$bin" "$@"; }
timed() {
    local from to
    shown "$@"
    from=$(date +%s%N)
    "$bin" "$@"
    to=$(date +%s%N)
    printf '%s(%d ms)%s\n' "$dim" $(((to - from) / 1000000)) "$plain"
}
inside() { "$bin" exec "$name" -- sh -c "$1"; }

# How many VMMs run in this sandbox's directory: a confined one works in a directory below it.
vmms() {
    local link dir count=0
    dir=$(readlink -f "$1")
    for link in /proc/[0-9]*/cwd; do
        case $(readlink "$link" 2> /dev/null) in
            "$dir" | "$dir"/*) count=$((count + 1)) ;;
        esac
    done
    echo "$count"
}

say "The host is made ready: guest kernel, initramfs, a small Debian (skipped where nothing has changed)"
bhatti setup
bhatti doctor

if "$bin" list > /dev/null 2>&1; then
    say "A daemon runs already; the demo uses it"
else
    say "A daemon for the demo, on the unix socket in $data only"
    log=$(mktemp)
    shown serve --listen none
    "$bin" serve --listen none > "$log" 2>&1 < /dev/null &
    daemon=$!
    for ((i = 0; i < 300; i++)); do
        if "$bin" list > /dev/null 2>&1; then break; fi
        kill -0 "$daemon" 2> /dev/null || die "the daemon ended at once"
        sleep 0.1
    done
    "$bin" list > /dev/null || die "the daemon does not answer"
fi
# Of a demo that was killed.
"$bin" destroy -y "$name" > /dev/null 2>&1 || true

say "A sandbox: a clone of a machine that has booted already"
created=yes
timed create --name "$name" --memory 512
timed exec "$name" -- uname -a

say "Something on its disk, something in its memory only, and a process that counts"
bhatti exec "$name" -- sh -c 'echo "on disk" > ~/kept; echo "in memory" > /dev/shm/kept'
bhatti exec "$name" --detach -- sh -c 'echo $$ > /tmp/pid; i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.1; done'
sleep 1
before=$(inside 'cat /proc/sys/kernel/random/boot_id ~/kept /dev/shm/kept /tmp/pid')
count=$(inside 'cat /tmp/count')
echo "the counter is process $(inside 'cat /tmp/pid') and has come to $count"

say "To sleep: the pages that it changed go to disk, and the machine is gone"
timed stop "$name"
id=$("$bin" inspect --json "$name" | sed -n 's/.*"id": *"\([0-9a-f]\{16\}\)".*/\1/p' | head -n 1)
dir=$data/sandboxes/$id
[ "$(vmms "$dir")" = 0 ] || die "the VMM of a stopped sandbox still runs"
echo "no VMM; on disk it takes $(du -sk "$dir" | cut -f 1) KiB:"
ls -lsh "$dir"

say "The next command wakes it"
timed exec "$name" -- sh -c 'cat ~/kept /dev/shm/kept; echo "the counter has come to $(cat /tmp/count)"'
[ "$(vmms "$dir")" -ge 1 ] || die "no VMM runs for the woken sandbox"

say "It is the same machine, not a new boot of it"
after=$(inside 'cat /proc/sys/kernel/random/boot_id ~/kept /dev/shm/kept /tmp/pid')
[ "$before" = "$after" ] || die "it differs: before: $before; after: $after"
sleep 1
now=$(inside 'cat /tmp/count')
inside 'kill -0 "$(cat /tmp/pid)"' || die "the counting process is gone"
[ "$now" -gt "$count" ] || die "the counter stands at $now"
printf 'same boot id, same process, both files, and it counts on: %s -> %s\n' "$count" "$now"

say "And away"
timed destroy -y "$name"
created=''
printf '\nThe daemon of the demo ends now. For one of your own: %s serve\n' "${bin#"$PWD"/}"
