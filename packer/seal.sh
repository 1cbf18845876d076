#!/usr/bin/env bash
# Takes out of a machine what must not be in an image of it: what makes it this one machine (its id, its
# host keys, its random seed), who may log in, and what is secret. The last thing before the machine is
# shut down: nobody logs in to it again before it has booted anew.
#
# What it takes out, the machines that boot from the image make anew: the id by systemd, host keys by
# cloud-init or by a unit of the image's own.
#
# Last, warmkit looks for what it knows that must not be in an image, and what it finds is a failure. In the
# environment, as for provision.sh: WARMKIT_FOR or WARMKIT_ROOT.
set -euo pipefail

[ "$(id -u)" -eq 0 ] || {
    echo 'seal: needs root' >&2
    exit 1
}

if command -v cloud-init >/dev/null; then
    cloud-init clean --logs
fi

# Empty, not absent: systemd then makes one in the first boot, on a read-only file system, too.
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub

# Removes a file of registry credentials; one that only names helpers, or has settings, is no secret and stays.
forget() {
    if grep -qsE '"(auth|password|identitytoken|registrytoken)"[[:space:]]*:' "$1"; then rm -f -- "$1"; fi
}

# The user that Packer logged in as, and root.
for home in /root "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)"; do
    rm -f "$home"/.ssh/authorized_keys "$home"/.ssh/known_hosts "$home"/.*_history
    forget "$home/.docker/config.json"
    forget "$home/.config/containers/auth.json"
done

# Logs name the machine.
rm -rf /var/log/journal/* /tmp/warmkit
find /var/log -type f -exec truncate --size=0 -- {} +

place=(--for "${WARMKIT_FOR:-host}")
[ -z "${WARMKIT_ROOT-}" ] || place=(--root "$WARMKIT_ROOT")
warmkit verify --image "${place[@]}"

# What was deleted, here and by the bake, is deleted on the disk, too.
sync
fstrim --all --verbose || echo 'seal: this disk cannot discard: deleted blocks may stay in the image' >&2
