#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# pin.sh CACHE SUITE: write bases/TO/pin.mk (TO, KERNEL_SRC: in the environment),
# unless it is there, and is not of the base that is carried over: that one gets the
# newest release.  With KERNEL_SRC: what this is; else Debian's newest package, of
# SUITE, or of the base's own suite, unstable and experimental.
set -eu
. lab/git.sh
cache=$1 suite=$2 to=$LAB_TO source=$LAB_KERNEL_SRC
pin=bases/$to/pin.mk
if has_edits; then
	fail "build/linux has edits of base $base that are not exported: 'make export' first, or 'make tree DISCARD=1'"
fi
[ ! -e "$pin" ] || [ "$to" = "$base" ] || exit 0

if [ -d "$source" ]; then
	makefile=$(cat "$source/Makefile")
elif [ "$source" ]; then
	makefile=$(tar -xOf "$source" --occurrence=1 --wildcards --no-wildcards-match-slash '*/Makefile' 2>/dev/null) ||
		fail "KERNEL_SRC=$source: neither a kernel tree nor a tarball"
else
	package=linux-source-$(echo "$to" | cut -d. -f1,2 | sed 's/-rc.*//')
	[ "$suite" ] || suite="$(sed -n 's/^BASE_SUITE[ \t:]*=[ \t]*//p' "$data/pin.mk") unstable experimental"
	found=$(lab/fetch.sh "$cache" "$package" "" "$suite" "") ||
		fail "TO=$to: say where it is, SUITE= or KERNEL_SRC="
	deb=$(echo "$found" | sed -n 1p) suite=$(echo "$found" | sed -n 2p) makefile=
fi
mkdir -p "bases/$to"
{
	echo "# SPDX-License-Identifier: GPL-2.0"
	if [ "$source" ]; then
		echo "# The base kernel: KERNEL_SRC= has to say where it is."
		printf 'BASE_VERSION	:= '
		echo "$makefile" | awk '{ v[$1] = $3 } $1 == "NAME" { exit }
			END { print v["VERSION"] "." v["PATCHLEVEL"] "." v["SUBLEVEL"] v["EXTRAVERSION"] }'
	else
		deb_version=$(dpkg-deb -f "$deb" Version)
		echo "# The base kernel: a Debian source package, pinned."
		printf 'BASE_VERSION	:= '
		echo "$deb_version" | sed 's/-.*//; s/~rc\(.*\)/.0-rc\1/'
		printf 'BASE_PACKAGE	:= %s\n' "$package"
		printf 'BASE_DEB	:= %s\n' "$deb_version"
		printf 'BASE_SUITE	:= %s\n' "$suite"
		printf 'BASE_SHA256	:= %s\n' "$(sha256sum "$deb" | cut -d' ' -f1)"
	fi
} >"$pin.new"
mv "$pin.new" "$pin"
echo "lab: base $to is Linux $(sed -n 's/^BASE_VERSION[ \t:]*=[ \t]*//p' "$pin") ($pin)"
