#!/bin/bash
# Runs QEMU's own test suite, tests/qemu-iotests, with our program in the place of qemu-img and qemu-io.
#
#   testbed/iotests.sh QEMU-TREE QCOW [OPTION.. of QEMU's check] [-- TEST..]
#   testbed/iotests.sh ~/qemu-10.0.2 target/release/qcow -qcow2 -o compat=0.10 -- 001 qemu-img-bitmaps
#
# QEMU-TREE is an unpacked source tree; nothing in it is changed. Without TESTs, those run that start neither a machine nor
# a server; with ALL=1 all. What does not pass with ours runs again with the installed qemu-img and qemu-io: only what
# passes with those counts. JOBS (2) run at a time, each for at most LIMIT (100) seconds; logs stay in OUT (a new directory).
set -eu

tree=$(realpath "$1") qcow=$(realpath "$2")
shift 2
options=(-qcow2)
[ $# -gt 0 ] && [ "$1" != -- ] && options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
done
[ $# -gt 0 ] && shift
suite=$tree/tests/qemu-iotests
out=${OUT:-$(mktemp -d /tmp/iotests.XXXXXX)}
starts_others='_launch_qemu|iotests\.VM|VM\(|_qsd_|QSD|qsd|\$QEMU( |$)|QEMU_NBD|qemu_nbd|run_qemu'

tests() {
    cd "$suite"
    for test in [0-9][0-9][0-9] tests/*; do
        case $test in *.out*) continue ;; esac
        [ -n "${ALL:-}" ] || ! grep -qE "$starts_others" "$test" || continue
        basename "$test"
    done
}

# Debian's QEMU is built without qtest, under which no guest runs; a guest without a disk to start from does as well.
machine() {
    local qemu
    qemu=$(command -v qemu-system-x86_64)
    if "$qemu" -accel help | grep -q qtest; then
        echo "$qemu"
        return
    fi
    cat >"$out/qemu-system-x86_64" <<END
#!/bin/bash
arguments=()
for argument; do
    [ "\$argument" != qtest ] || argument=tcg
    arguments+=("\$argument")
done
exec -a "\$0" $qemu "\${arguments[@]}"
END
    chmod +x "$out/qemu-system-x86_64"
    echo "$out/qemu-system-x86_64"
}

# Runs test $2 with the tools in $out/$1; says pass, fail, late, or why it was not run.
run() {
    local side=$1 test=$2 code=0
    local log=$out/$side.log/$test scratch=$out/scratch/$side/$test sockets
    sockets=$(mktemp -d /tmp/io.XXXXXX)
    mkdir -p "$scratch/cwd"
    cd "$scratch/cwd"
    QEMU_PROG=$machine QEMU_NBD_PROG=$(command -v qemu-nbd) QSD_PROG=$(command -v qemu-storage-daemon) \
        QEMU_IMG_PROG=$out/$side/qemu-img QEMU_IO_PROG=$out/$side/qemu-io \
        SOCK_DIR=$sockets TEST_DIR=$scratch PYTHONDONTWRITEBYTECODE=1 \
        timeout -k 5 "${LIMIT:-100}" "$suite/check" "${options[@]}" --source-dir "$suite" --build-dir "$suite" "$test" \
        >"$log" 2>&1 </dev/null || code=$?
    case $code in
    124 | 137) echo late ;;
    *) if grep -q '^Passed all 1 ' "$log"; then
        echo pass
    elif grep -q '^Not run:' "$log"; then
        echo "not run: $(sed -n 's/.*not run .*\.\.\. *//p' "$log" | head -1)"
    else
        echo fail
    fi ;;
    esac
    rm -rf "$scratch" "$sockets"
}

one() {
    local test=$1 ours theirs
    ours=$(run ours "$test")
    case $ours in
    pass) echo "$test pass" ;;
    *)
        theirs=$(run theirs "$test")
        case $theirs in
        pass) echo "$test FAIL ($ours; passes with qemu-img)" ;;
        *) echo "$test - ($theirs with qemu-img)" ;;
        esac
        ;;
    esac
}

mkdir -p "$out"/{ours,theirs,ours.log,theirs.log,scratch}
for tool in qemu-img qemu-io; do
    ln -sf "$qcow" "$out/ours/$tool"
    ln -sf "$(command -v $tool)" "$out/theirs/$tool"
done
machine=$(machine)
export -f one run
export tree suite out machine
options_text=$(declare -p options)
export options_text
echo "$(qemu-img --version | head -1); suite of $(cat "$tree/VERSION"); check ${options[*]}; logs in $out"
if [ $# -gt 0 ]; then printf '%s\n' "$@"; else tests; fi |
    xargs -P "${JOBS:-2}" -I TEST bash -c 'eval "$options_text"; one TEST' | tee "$out/result"
pass=$(grep -c ' pass$' "$out/result" || true)
fail=$(grep -c ' FAIL ' "$out/result" || true)
echo "$pass of the $((pass + fail)) that pass with qemu-img pass with $(basename "$qcow")"
