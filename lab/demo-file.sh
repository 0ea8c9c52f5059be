#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# demo-file.sh FILE: is this a file for the demo?  Asked before anything is
# built.  The limit is the demo's own (samples/guest_memfd), if it names one.
file=$1
fail() { echo "lab: FILE=$file: $*" >&2; exit 1; }
[ -e "$file" ] || fail "no such file"
[ ! -d "$file" ] || fail "is a directory"
[ -f "$file" ] || fail "is no regular file"
[ -r "$file" ] || fail "cannot be read"
[ -s "$file" ] || fail "is empty"
max=$(sed -n 's/^#define[ \t]*GMEM_DEMO_MAX_FILE[ \t]*\([0-9]*\).*/\1/p' samples/guest_memfd/*.[ch] 2>/dev/null | head -n 1)
size=$(stat -L -c %s "$file")
[ "$size" -le "${max:-1073741824}" ] || fail "has $size bytes, more than ${max:-1073741824}"
exit 0
