#!/usr/bin/env bash
# Installs what the build and the test beds need and is not there yet.
#
#   install.sh            install what is missing; silent when nothing is
#   install.sh --refresh  only fetch apt's package lists anew
#
# As root, or with a password-less sudo, it calls apt-get; anyone else is told the one command to
# run. Rust is never installed, only named: the toolchain is the user's choice.
set -euo pipefail
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

QEMU_MAJOR=10 # the version whose behaviour `qcow` follows

main() {
    if [ "${1:-}" = --refresh ]; then
        may_install || fail "not root, and sudo asks for a password. Run this once, then try again: sudo apt-get update"
        update_lists
        return
    fi
    require_rust
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] && return
    echo "Missing here: ${missing[*]}"
    command -v apt-get >/dev/null || fail "there is no apt-get here: install what these Debian packages hold: ${missing[*]}"
    install_packages "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] || fail "apt-get ended well, yet these are missing: ${missing[*]}"
    warn_old_qemu
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

require_rust() {
    command -v cargo >/dev/null && return
    fail "Rust is missing (no cargo on the PATH): install it with rustup, then run this again"
}

# Prints the package of every command or file that is not there, one per line.
missing_packages() {
    local command package
    while read -r command package; do
        command -v "$command" >/dev/null || echo "$package"
    done <<'COMMANDS' | sort -u
cc gcc
c++ g++
busybox busybox-static
depmod kmod
cpio cpio
xz xz-utils
zstd zstd
mkfs.ext4 e2fsprogs
debugfs e2fsprogs
blkdiscard util-linux
sfdisk fdisk
mmdebstrap mmdebstrap
nc.openbsd netcat-openbsd
COMMANDS
    # The two QEMU packages must be of one version: each release of Debian ties them together, so
    # that installing one alone can remove the other.
    if ! command -v qemu-system-x86_64 >/dev/null || ! command -v qemu-storage-daemon >/dev/null; then
        printf '%s\n' qemu-system-x86 qemu-utils
    elif [ "$(qemu_major)" -lt "$QEMU_MAJOR" ] && [ -n "$(extra_suite)" ]; then
        printf '%s\n' qemu-system-x86 qemu-utils
    fi
}

qemu_major() {
    qemu-img --version | sed -n '1s/^qemu-img version \([0-9]*\).*/\1/p'
}

# Prints the suite that QEMU must come from when the default one is too old and another is not:
# Debian 12's backports. Installing with `-t` also takes the right version of what is there already.
extra_suite() (
    . /etc/os-release
    [ "$ID:${VERSION_ID:-}" != debian:12 ] || echo bookworm-backports
)

install_packages() {
    local suite
    may_install || explain "$@"
    update_lists
    suite=$(extra_suite)
    if [ -n "$suite" ] && ! has_suite "$suite"; then
        echo "Adding Debian's $suite to the package sources (for QEMU $QEMU_MAJOR)"
        source_line "$suite" | as_root tee "$(source_file "$suite")" >/dev/null
        update_lists
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends ${suite:+-t "$suite"} "$@" >/dev/null
}

may_install() {
    [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# A source that cannot be reached is no reason to stop: the installation shows whether it mattered.
update_lists() {
    as_root apt-get update -q >/dev/null 2>&1 ||
        echo "apt-get update: some package sources did not answer; going on with the others"
}

has_suite() {
    apt-cache policy | grep "n=$1," >/dev/null
}

# The suite $1 lies on the same mirror as the release that this machine installs from.
source_line() {
    local mirror
    mirror=$(mirror_of "${1%-*}")
    echo "deb ${mirror:?no package source of ${1%-*} is set up here} $1 main"
}

# Prints where apt gets the release $1 from, out of both forms of source files.
mirror_of() {
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null || true; } | awk -v release="$1" '
        function is_wanted(i) { return $i == release && uri != "" }
        /^[^ ]*:/ && !/^(URIs|Suites):/ { next }
        /^(#|$)/ { if (!NF) uri = ""; next }
        /^URIs:/ { uri = $2; next }
        /^deb / { uri = ""; for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) uri = $i }
        { for (i = 2; i <= NF; i++) if (is_wanted(i)) { print uri; exit } }'
}

source_file() {
    echo "/etc/apt/sources.list.d/$1.list"
}

# Without the right to install: says the one command that does it, and ends.
explain() {
    local suite add=''
    suite=$(extra_suite)
    if [ -n "$suite" ] && ! has_suite "$suite"; then
        add="echo '$(source_line "$suite")' > $(source_file "$suite") && "
    fi
    {
        echo "install.sh: not root, and sudo asks for a password. Run this once, then try again:"
        echo "  sudo sh -c \"${add}apt-get update; apt-get install -y --no-install-recommends ${suite:+-t $suite }$*\""
    } >&2
    exit 1
}

warn_old_qemu() {
    [ "$(qemu_major)" -ge "$QEMU_MAJOR" ] ||
        echo "Note: QEMU $(qemu_major) is older than $QEMU_MAJOR; comparisons of output may differ."
}

main "$@"
