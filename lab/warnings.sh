#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# warnings.sh OUTPUT DIR KBUILD: compile our own .c files among those of DIR, a
# directory of the kernel, again with W=1; no warning may name them.
# OUTPUT: where that kernel is built.  KBUILD: its make, ready to take targets.
set -eu
. lab/git.sh
out=$1 dir=$2 kbuild=$3
objs=
own=$(series_lines . | cut -s -d' ' -f2- | tr ' ' '\n' | grep -E '^(virt|arch)/.*\.c$' || :)
for f in $own; do
	o=${f%.c}.o
	# Only what this kernel's configuration builds.
	[ ! -e "$out/$o" ] || objs="$objs $o"
done
[ -n "$objs" ] || { echo "not ok 1 no object of ours in $out"; exit 1; }
for o in $objs; do rm -f "$out/$o"; done
log=$out/warnings.log
bad=0
eval "$kbuild W=1 $dir" >"$log" 2>&1 || { tail -n 20 "$log"; bad=1; }
for f in $own; do
	grep "$f:[0-9]*:[0-9]*: \(warning\|error\)" "$log" && bad=1
done
for o in $objs; do
	[ -e "$out/$o" ] || { echo "$o was not compiled"; bad=1; }
done
[ $bad -eq 0 ] && echo "ok 1 W=1 is content with$objs" || echo "not ok 1 warnings in $out"
exit $bad
