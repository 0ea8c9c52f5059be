#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# debian-config.sh FLAVOUR OUTPUT COMMAND...: Debian's own configuration of its kernel
# FLAVOUR, into OUTPUT, which stays as it is if it is the same.  COMMAND prints the path
# of Debian's package of configurations.
set -eu
flavour=$1 out=$2
shift 2
fail() { echo "lab: $*" >&2; exit 1; }

deb=$("$@")
mkdir -p "${out%/*}"
dpkg-deb --fsys-tarfile "$deb" |
	tar -xO --wildcards "./usr/src/linux-config-*/config.*_none_$flavour.xz" 2>/dev/null |
	xz -dc >"$out.new" && [ -s "$out.new" ] || fail "$deb has no configuration of $flavour"
if cmp -s "$out.new" "$out"; then rm "$out.new"; else mv "$out.new" "$out"; fi
