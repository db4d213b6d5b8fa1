#!/bin/sh
# images/root.sh PROGRAM ROOT: a root file system with a program, the libraries it loads, and what those look for.
set -eu
program=$1 root=$2

install -D -m 755 "$program" "$root/usr/bin/$(basename "$program")"
# Three quarters of its size. The names of functions stay, for backtraces.
strip --strip-debug "$root/usr/bin/$(basename "$program")"
ldd "$program" | grep -o '/[^ )]*' | sort -u | while read -r library; do
  install -D -m 755 "$library" "$root$library"
done

mkdir -p "$root/etc/ssl/certs"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# Names of the machine before those of the network.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'nonroot:x:65532:65532:nonroot:/:/nonexistent' >"$root/etc/passwd"
echo 'nonroot:x:65532:' >"$root/etc/group"
