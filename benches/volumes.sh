#!/usr/bin/env bash
# Many volumes on a cluster of three nodes on this machine: how fast they are created and started, how long `volume set`
# takes to reach a mounted client, what the daemons need of memory and processor while idle, and how long a restart of all
# three takes until every set serves. VOLUMES (1,000 by default) volumes of three bricks of the smallest size. A started
# brick has some 30 MiB promised by its host, most of which is never written: the bricks lie on an XFS in a sparse file in
# DIR, which takes about 1 MiB for each. Needs root and xfsprogs; builds nothing: `cargo build --release --bins` first.
#
#   VOLUMES=1000 benches/volumes.sh DIR
set -u
dir=${1:?usage: benches/volumes.sh DIR}
volumes=${VOLUMES:-1000} parallel=${PARALLEL:-4}
bin=${BIN:-$(cd "$(dirname "$0")/.." && pwd)/target/release}
port=${PORT:-26007}
mkdir -p "$dir" && dir=$(cd "$dir" && pwd) || exit 1
image=$dir/image
[ -e "$image" ] && { echo "$dir is used already"; exit 1; }
dir=$dir/host
mkdir -p "$dir" && truncate -s $((volumes * 150 + 2000))M "$image" && mkfs.xfs -q "$image" &&
    mount -o loop "$image" "$dir" || { rm -f "$image"; exit 1; }
declare -a pids
up() { # NODE
    mkdir -p "$dir/n$1"
    "$bin/mortard" --data-dir "$dir/n$1/data" --secret-file "$dir/secret" --listen "127.0.0.$1:$port" \
        --api "127.0.0.$1:$((port + 1000))" --log-level warn >>"$dir/n$1/log" 2>&1 </dev/null &
    pids[$1]=$!
}
down() {
    mountpoint -q "$dir/mnt" && { umount "$dir/mnt" || umount -l "$dir/mnt"; }
    kill "${pids[@]}" 2>/dev/null; wait 2>/dev/null
    umount "$dir" && rm -f "$image"
}
trap down EXIT
trap 'exit 1' INT TERM
now() { date +%s.%N; }
since() { echo "$(now) $1" | awk '{ printf "%.2f", $1 - $2 }'; }
mortar() { "$bin/mortar" --server "127.0.0.$1:$port" --mode=script "${@:2}"; }
wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || { echo "gave up on: $*"; return 1; }; sleep 0.1; done
}
whole() { mortar "$1" cluster status --json | tr -d ' \n' | grep -q '"partial":\[\]'; }
ticks() { for n in 1 2 3; do awk '{ print $14 + $15 }' "/proc/${pids[$n]}/stat"; done | awk '{ s += $1 } END { print s }'; }

for n in 1 2 3; do up $n; done
wait_for 10 mortar 1 volume list
for n in 2 3; do mortar 1 peer probe "127.0.0.$n:$port" || exit 1; done
sleep 2

make() { # NUMBER
    mortar $(($1 % 3 + 1)) volume create "v$1" replica 3 "127.0.0.1:$dir/n1/b$1" "127.0.0.2:$dir/n2/b$1" \
        "127.0.0.3:$dir/n3/b$1" --brick-size 256M force >/dev/null && mortar $(($1 % 3 + 1)) volume start "v$1" >/dev/null ||
        echo "v$1 failed"
}
export -f make mortar; export bin port dir
begun=$(now)
seq 1 "$volumes" | xargs -P "$parallel" -I{} bash -c 'make {}'
took=$(since "$begun")
echo "created and started: $volumes volumes in $took s, $(echo "$volumes $took" | awk '{ printf "%.1f", $1 / $2 }') per second"

mkdir -p "$dir/mnt"
"$bin/mortar" mount 127.0.0.2:/v1 "$dir/mnt" -o "server-port=$port" || exit 1
echo text >"$dir/mnt/file"
begun=$(now)
mortar 3 volume set v1 features.read-only on >/dev/null
set_took=$(since "$begun")
wait_for 5 bash -c "! touch '$dir/mnt/other' 2>/dev/null"
echo "volume set: answered after $set_took s, in effect on the mount after $(since "$begun") s"
mortar 3 volume set v1 features.read-only off >/dev/null

# Checkpoints follow after 30 s, and members tell of each other's space for 60 s after a change.
sleep 75
before=$(ticks); client=$(pgrep -f -- "$dir/mnt" | head -1)
client_before=$(awk '{ print $14 + $15 }' "/proc/$client/stat"); sleep 20
hz=$(getconf CLK_TCK)
echo "idle: the daemons together $(echo "$before $(ticks) $hz" | awk '{ printf "%.2f", ($2 - $1) / $3 / 20 * 100 }') % of a core," \
    "the mount $(awk -v b="$client_before" -v hz="$hz" '{ printf "%.2f", ($14 + $15 - b) / hz / 20 * 100 }' "/proc/$client/stat") %"
for n in 1 2 3; do awk '/VmRSS/ { print $2 }' "/proc/${pids[$n]}/status"; done |
    awk '{ s += $1 } END { printf "memory: the daemons together %.2f GiB\n", s / 1048576 }'

umount "$dir/mnt"
kill "${pids[@]}"; wait 2>/dev/null
begun=$(now)
for n in 1 2 3; do up $n; done
wait_for 300 whole 1
echo "restart of all three: every set serves after $(since "$begun") s"
for n in 1 2 3; do awk '/VmHWM/ { print $2 }' "/proc/${pids[$n]}/status"; done |
    awk '{ s += $1 } END { printf "memory: at most %.2f GiB together during the restart\n", s / 1048576 }'
