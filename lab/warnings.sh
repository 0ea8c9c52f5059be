#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# warnings.sh OUTPUT DIR KBUILD: compile our own .c files among those of DIR, a
# directory of the kernel, again with W=1 and sparse; no warning may name our
# files.
# OUTPUT: where that kernel is built.  KBUILD: its make, ready to take targets.
set -eu
. lab/git.sh
out=$1 dir=$2 kbuild=$3
objs=
own=$(own_files . | grep -E '^(virt|arch|include)/.*\.[ch]$' || :)
for f in $own; do
	case $f in *.c) o=${f%.c}.o ;; *) continue ;; esac
	# Only what this kernel's configuration builds.
	[ ! -e "$out/$o" ] || objs="$objs $o"
done
[ -n "$objs" ] || { echo "not ok 1 no object of ours in $out"; exit 1; }
for o in $objs; do rm -f "$out/$o"; done
log=$out/warnings.log
bad=0
# Before 0.6.5 sparse knows no __typeof_unqual__ (it crashes), and takes no
# __builtin_strlen() for a constant (in MODULE_*() and module_param()).
sparse='sparse -D__typeof_unqual__=__typeof__'
eval "$kbuild W=1 C=1 CHECK='$sparse' $dir" >"$log" 2>&1 || { tail -n 20 "$log"; bad=1; }
# kbuild goes on without a checker that does not work.
! grep 'C=1 specified, but' "$log" || bad=1
for f in $own; do
	! grep "$f:[0-9]*:[0-9]*: \(warning\|error\)" "$log" |
		grep -v 'error: bad constant expression$' || bad=1
done
for o in $objs; do
	[ -e "$out/$o" ] || { echo "$o was not compiled"; bad=1; }
done
[ $bad -eq 0 ] && echo "ok 1 W=1 and sparse are content with$objs" || echo "not ok 1 warnings in $out"
exit $bad
