#!/usr/bin/env bash
# Unpacks a stock distribution kernel into build/kernel; it is neither installed nor committed.
#
#   kernel.sh             afterwards: build/kernel/{vmlinuz,release,root/lib/modules/RELEASE}
#
# A second run finds the directory complete and does nothing. Remove it to get a newer kernel.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.."

KERNEL_DIR=build/kernel
METAPACKAGES=(linux-image-cloud-amd64 linux-image-virtual) # Debian's, Ubuntu's

main() {
    [ -e "$KERNEL_DIR/release" ] && return
    local image work
    image=$(image_package)
    if [ -z "$image" ]; then
        testbed/install.sh --refresh
        image=$(image_package)
    fi
    [ -n "$image" ] || fail "apt knows neither ${METAPACKAGES[0]} nor ${METAPACKAGES[1]}"
    echo "Fetching the guest's kernel: $image"
    mkdir -p build
    work=$(mktemp -d build/kernel.XXXXXX)
    # shellcheck disable=SC2064 # the name of now
    trap "rm -rf '$work'" EXIT
    download "$work" "$image"
    unpack "$work" "${image#linux-image-}"
    rm -rf "$KERNEL_DIR"
    mv "$work" "$KERNEL_DIR"
}

fail() {
    echo "kernel.sh: $*" >&2
    exit 1
}

# Prints the newest image package that one of the metapackages stands for.
image_package() {
    local meta version
    for meta in "${METAPACKAGES[@]}"; do
        version=$(apt-cache madison "$meta" | awk '{ print $3 }' | sort -V | tail -n 1)
        [ -n "$version" ] || continue
        apt-cache show "$meta=$version" | grep '^Depends:' | grep -oE 'linux-image-[0-9][^ ,]*'
        return
    done
}

# download DIRECTORY IMAGE: the package files. Ubuntu keeps the modules in a package of their own.
download() {
    local packages=("$2") modules=${2/linux-image-/linux-modules-} options=()
    apt-cache show "$modules" >/dev/null 2>&1 && packages+=("$modules")
    [ "$(id -u)" -ne 0 ] || options=(-o APT::Sandbox::User=root)
    (cd "$1" && apt-get download -q "${options[@]}" "${packages[@]}" >/dev/null)
}

# unpack DIRECTORY RELEASE
unpack() {
    local work=$1 release=$2 package
    for package in "$work"/*.deb; do
        dpkg-deb -x "$package" "$work/root"
        rm "$package"
    done
    # Newer releases ship the modules under usr/lib alone.
    [ -e "$work/root/lib" ] || ln -s usr/lib "$work/root/lib"
    depmod -b "$work/root" "$release"
    cp "$work/root/boot/vmlinuz-$release" "$work/vmlinuz"
    chmod 755 "$work"
    echo "$release" > "$work/release"
}

main "$@"
