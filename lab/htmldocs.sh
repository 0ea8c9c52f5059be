#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# htmldocs.sh: the kernel's own build of Documentation/virt/kvm, which reads our
# comments as well, has nothing to say.  Prints KTAP.
set -eu
out=build/htmldocs
log=build/logs/host/htmldocs-sphinx.log
mkdir -p $out build/logs/host
rm -rf $out/Documentation
unset MAKEFLAGS MAKELEVEL ARCH
make -C build/linux O="$PWD/$out" SPHINXDIRS=virt/kvm htmldocs >$log 2>&1 </dev/null || {
	tail -n 5 $log | sed 's/^/# /'
	echo "not ok 1 htmldocs, log $log"
	exit 1
}
bad=0
# Pictures are not of ours.
grep -E 'WARNING|ERROR|Error' $log | grep -v ' not found, for better output' | sed 's/^/# /' >$out/said
cat $out/said
[ ! -s $out/said ] && echo "ok 1 no warnings" || { bad=1; echo "not ok 1 warnings, log $log"; }
pages=$(find $out -name 'guest_memfd.html' -o -name 'guest_memfd-internals.html' | wc -l)
# Words of a DOC: comment; one that isn't there is no warning.
find $out -name guest_memfd-internals.html -exec grep -q 'naturally aligned block' {} + && r=0 || r=1
[ "$pages" -eq 2 ] && [ $r -eq 0 ] && echo "ok 2 our pages are there, with our comments" ||
	{ bad=1; echo "not ok 2 $pages of 2 pages, or no comments in them"; }
exit $bad
