#!/usr/bin/env bash
# Makes the machine it runs on warm: installs warmkit, bakes the caches into a BuildKit root,
# verifies it. All templates run this; it also runs by hand, on any Linux machine, as root.
# It never asks anything. Where it failed, it may be run again; a root that is there already is an error.
#
# In the environment (lists: one entry per line):
#
#   WARMKIT_CACHES         caches to bake, as after `buildx build --cache-from`; needed
#   WARMKIT_KEYS           where operation digests come from, as after `warmkit bake --keys-from`
#   WARMKIT_FOR            whose root to make: host (/var/lib/buildkit, the default) or buildx:NAME, or
#   WARMKIT_ROOT           the root to make, as a directory
#   WARMKIT_BINARY         a warmkit binary on this machine, or its Debian package (NAME.deb), or
#   WARMKIT_URL            where to download one, with
#   WARMKIT_SHA256         what it must hash to; with neither, the warmkit that is installed is used
#   WARMKIT_BIN_DIR        where the binary is installed (default /usr/local/bin); a package knows by itself
#   WARMKIT_PLATFORM       OS/ARCH[/VARIANT] of the builds (default: this machine's)
#   WARMKIT_ALLOW_UNKEYED  true: records without a key are no failure
#   WARMKIT_READ_DATA      true: verify compares every file with its layer, too
#   WARMKIT_CONTEXT        a tar of a build's context: the build runs on a throwaway view of the root, and
#                          a step that is not CACHED is a failure
#   WARMKIT_CONTEXT_ARGS   that build's arguments, as after `warmkit verify --build`; one per line
#   WARMKIT_ENABLE         a unit that is enabled at the end: the one that starts BuildKit, where it
#                          must not have started on a root of its own before
#   WARMKIT_HYDRATE        true: machines read the root from their volume when they boot, by the units
#                          warmkit-hydrate.service and .timer that lie beside this script
#   WARMKIT_DOCKER_CONFIG  the text of a docker config.json with credentials; kept in memory only
#
# Exit code: that of the warmkit command that failed (see README.md, "Exit codes"),
#            2 for a missing or contradictory setting, 1 for anything else.
set -euo pipefail

say() { printf 'provision: %s\n' "$*"; }

die() {
    printf 'provision: %s\n' "$1" >&2
    exit "${2:-1}"
}

[ "$(id -u)" -eq 0 ] || die 'needs root: layers hold owners, devices and trusted xattrs'
[ -n "${WARMKIT_CACHES-}" ] || die 'WARMKIT_CACHES names no cache' 2
[ -z "${WARMKIT_FOR-}" ] || [ -z "${WARMKIT_ROOT-}" ] ||
    die 'WARMKIT_FOR and WARMKIT_ROOT are both set: choose one' 2
[ -z "${WARMKIT_BINARY-}" ] || [ -z "${WARMKIT_URL-}" ] ||
    die 'WARMKIT_BINARY and WARMKIT_URL are both set: choose one' 2
[ -z "${WARMKIT_URL-}" ] || [ -n "${WARMKIT_SHA256-}" ] ||
    die 'WARMKIT_URL needs WARMKIT_SHA256: what is downloaded will run as root' 2
[ -n "${WARMKIT_CONTEXT-}" ] || [ -z "${WARMKIT_CONTEXT_ARGS-}" ] ||
    die 'WARMKIT_CONTEXT_ARGS needs WARMKIT_CONTEXT' 2

if [ -n "${WARMKIT_ROOT-}" ]; then
    place=(--root "$WARMKIT_ROOT")
else
    place=(--for "${WARMKIT_FOR:-host}")
fi
bin_dir=${WARMKIT_BIN_DIR:-/usr/local/bin}
stopped=()
scratch=
unpacked=

finish() {
    local code=$?
    [ -z "$scratch" ] || rm -rf -- "$scratch"
    [ -z "$unpacked" ] || rm -rf -- "$unpacked"
    # A bake that failed has put nothing at the root: leave the machine as it was found.
    if [ "$code" -ne 0 ] && [ "${#stopped[@]}" -gt 0 ]; then
        say "failed: starting ${stopped[*]} again"
        systemctl start "${stopped[@]}" || true
    fi
    exit "$code"
}
trap finish EXIT

# Credentials stay in memory (/run is a tmpfs), out of the image.
if [ -d /run ] && [ -w /run ]; then
    scratch=$(mktemp -d /run/warmkit.XXXXXX)
else
    scratch=$(mktemp -d)
fi

install_warmkit() {
    local from
    if [ -n "${WARMKIT_URL-}" ]; then
        from=$scratch/warmkit
        case ${WARMKIT_URL%%[?#]*} in *.deb) from=$from.deb ;; esac
        say "downloading $WARMKIT_URL"
        if command -v curl >/dev/null; then
            curl --fail --silent --show-error --location --retry 5 --output "$from" -- "$WARMKIT_URL"
        elif command -v wget >/dev/null; then
            wget --quiet --tries=5 --output-document="$from" -- "$WARMKIT_URL"
        else
            die 'WARMKIT_URL needs curl or wget on this machine' 2
        fi
        printf '%s  %s\n' "$WARMKIT_SHA256" "$from" | sha256sum --check --quiet --strict - ||
            die "$WARMKIT_URL does not hash to $WARMKIT_SHA256"
    elif [ -n "${WARMKIT_BINARY-}" ]; then
        from=$WARMKIT_BINARY
    elif command -v warmkit >/dev/null; then
        warmkit=$(command -v warmkit)
        return
    else
        die 'no warmkit on this machine: set WARMKIT_BINARY, or WARMKIT_URL and WARMKIT_SHA256' 2
    fi
    case $from in
    *.deb)
        dpkg --install "$from"
        warmkit=/usr/bin/warmkit
        ;;
    *)
        install -D -m 0755 -- "$from" "$bin_dir/warmkit"
        warmkit=$bin_dir/warmkit
        ;;
    esac
}

# A daemon holds its root locked, and would write to it while we do. Its unit stays enabled: the
# machines that boot from this image start it on the baked root.
stop_buildkit() {
    [ -d /run/systemd/system ] || return 0
    local unit
    for unit in buildkit.socket buildkitd.socket buildkit.service buildkitd.service; do
        if systemctl is-active --quiet "$unit"; then
            say "stopping $unit"
            systemctl stop "$unit"
            stopped+=("$unit")
        fi
    done
}

# For a volume that is made from a snapshot: the machines that boot from it, not this one.
install_hydrate() {
    local unit here directory
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    directory=$(realpath -- "$root")
    for unit in warmkit-hydrate.service warmkit-hydrate.timer; do
        [ -e "$here/$unit" ] || die "WARMKIT_HYDRATE needs $unit beside this script" 2
        sed "s|/usr/local/bin/warmkit|$warmkit|; s|/var/lib/buildkit|$directory|" "$here/$unit" >"$scratch/$unit"
        install -D -m 0644 -- "$scratch/$unit" "/etc/systemd/system/$unit"
        systemctl enable -- "$unit"
    done
}

# each FLAG LIST: appends to args, for each line of LIST, FLAG (where there is one) and the line.
each() {
    local line
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        [ -z "$1" ] || args+=("$1")
        args+=("$line")
    done <<<"$2"
}

if [ -n "${WARMKIT_DOCKER_CONFIG-}" ]; then
    (umask 077 && mkdir "$scratch/docker" && printf '%s' "$WARMKIT_DOCKER_CONFIG" >"$scratch/docker/config.json")
    # Builders stay those of this machine.
    export BUILDX_CONFIG="${BUILDX_CONFIG:-${DOCKER_CONFIG:-${HOME:-/root}/.docker}/buildx}"
    export DOCKER_CONFIG=$scratch/docker
fi
unset WARMKIT_DOCKER_CONFIG
# CI systems set it, and a verdict is read below.
unset CLICOLOR_FORCE

install_warmkit
"$warmkit" --version || die "$warmkit does not run on this machine ($(uname -m)): was it built for another?"

stop_buildkit

args=(bake)
each '' "$WARMKIT_CACHES"
each --keys-from "${WARMKIT_KEYS-}"
args+=("${place[@]}")
[ -z "${WARMKIT_PLATFORM-}" ] || args+=(--platform "$WARMKIT_PLATFORM")
[ "${WARMKIT_ALLOW_UNKEYED-}" != true ] || args+=(--allow-unkeyed)
"$warmkit" "${args[@]}"

args=(verify "${place[@]}")
[ "${WARMKIT_READ_DATA-}" != true ] || args+=(--read-data)
if [ -n "${WARMKIT_CONTEXT-}" ]; then
    # With the modes that are in the tar: they are in the keys.
    unpacked=$(mktemp -d)
    (umask 022 && mkdir "$unpacked/context" && tar -C "$unpacked/context" -xpf "$WARMKIT_CONTEXT")
    args+=(--build "$unpacked/context")
    each '' "${WARMKIT_CONTEXT_ARGS-}"
fi
"$warmkit" "${args[@]}" | tee "$scratch/verified"
# Where a target's root is, warmkit knows.
root=$(sed -n 's/^\(.*\): healthy$/\1/p' "$scratch/verified")

[ "${WARMKIT_HYDRATE-}" != true ] || install_hydrate
[ -z "${WARMKIT_ENABLE-}" ] || systemctl enable -- "$WARMKIT_ENABLE"

say "$root is warm"
