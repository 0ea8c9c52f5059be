#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# content-table.sh: the rows of guest_memfd.rst's table of content flags, and
# the rows that the tests compare with the code (kvm_gmem_kunit_content_row() and
# the selftests), are the same ones.  Prints KTAP.
set -eu
doc=Documentation/virt/kvm/guest_memfd.rst
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
row='[A-Z_a-z0-9][A-Za-z0-9_, -]* (private|shared) +(undefined|ZERO|PRESERVE|DISCARD) +[A-Z, ]+'

grep -Ex "$row" $doc | sed 's/ *$//' | sort >"$tmp/doc"
grep -rhoE "\"$row\"" virt arch tools | tr -d '"' | sort -u >"$tmp/tests"
echo "KTAP version 1"
echo "1..1"
if [ -s "$tmp/doc" ] && diff "$tmp/doc" "$tmp/tests"; then
	echo "ok 1 $(wc -l <"$tmp/doc") rows"
else
	echo "not ok 1 the rows differ (< $doc, > tests)"
	exit 1
fi
