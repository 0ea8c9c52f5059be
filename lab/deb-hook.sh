#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# deb-hook.sh: add to debian/, which scripts/package made, what the kernel doesn't know:
# in changelog, what is not as in Debian's configuration; in control, what the tools in the
# package of headers need.  dpkg-buildpackage starts it where the kernel is built:
# .config.debian is Debian's, .config.requested has the lines that were asked for.
set -eu
changes=$(mktemp)
trap 'rm -f "$changes" "$changes".*' EXIT
# Lines as diffconfig has them: " A n -> y", "+B y", "-C y".  What is new and off, or was
# off and is gone, is no change.
source/scripts/diffconfig .config.debian .config | grep -v '^[+-][^ ]* n$' >"$changes.all"
sed -n 's/^\(# \)\{0,1\}CONFIG_\([A-Za-z0-9_]*\).*/\2/p' .config.requested >"$changes.names"
list() { awk -v want="$1" '
	NR == FNR { asked[$1]; next }
	{ o = $1; sub(/^[+-]/, "", o); if ((o in asked) == want) print "    " $0 }' "$changes.names" "$changes.all"; }
{
	echo "  * guest_memfd series on Linux $(sed -n 's/^# Linux[^ ]* \([^ ]*\) Kernel.*/\1/p' .config.debian)," \
		"$(git -C source log -1 --format='at %h' 2>/dev/null || :)"
	echo "  * Debian's configuration, changed (+: new, -: gone):"
	list 1
	echo "  * What changes with these lines, or by the tools that this was built with:"
	list 0
} >"$changes"
sed -i -e "/^  \* Custom built Linux kernel/{r $changes" -e 'd}' debian/changelog

# objtool, without which no module is built, is linked with libelf.
sed -i -e '/^Package: linux-headers-/a Depends: libelf1' debian/control
