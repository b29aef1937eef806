#!/bin/sh
# Makes a disk image with Debian 12 and systemd: examples/linux/rootfs.sh [IMAGE]
# Needs the packages mmdebstrap and e2fsprogs; as root, or as a user who may have a user namespace (package uidmap).
# root has no password: the image is for a guest that nobody else can reach.
set -eu
image=${1:-$(dirname "$0")/build/debian.img}
mkdir -p "$(dirname "$image")"
image=$(realpath "$image")
rm -f "$image"
truncate -s 640M "$image.new"
trap 'rm -f "$image.new"' EXIT
mmdebstrap --variant=minbase --format=null \
    --include=systemd,systemd-sysv,udev,dbus,kmod,login,util-linux,mount,procps,iproute2,iputils-ping,e2fsprogs \
    --customize-hook='chroot "$1" passwd -d root >/dev/null' \
    --customize-hook='echo paravirt > "$1/etc/hostname"' \
    --customize-hook='echo "/dev/xvda / ext4 defaults 0 1" > "$1/etc/fstab"' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
    --customize-hook='cp -ax "$1" "$1.copy"  # without what is mounted in it: /proc, /sys' \
    --customize-hook="mkfs.ext4 -q -F -L debian -d \"\$1.copy\" '$image.new'" \
    --customize-hook='rm -rf "$1.copy"' \
    bookworm /dev/null
mv "$image.new" "$image"
echo "$image"
