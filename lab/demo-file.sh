#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# demo-file.sh FILE: is this a file for the demo?  Asked before anything is
# built.  The demo itself takes up to 1 GiB; it is the emulated machine that takes
# minutes for as much as this.
max=$((256 << 20))
file=$1
fail() { echo "lab: FILE=$file: $*" >&2; exit 1; }
[ -e "$file" ] || fail "no such file"
[ ! -d "$file" ] || fail "is a directory"
[ -f "$file" ] || fail "is no regular file"
[ -r "$file" ] || fail "cannot be read"
[ -s "$file" ] || fail "is empty"
size=$(stat -L -c %s "$file")
[ "$size" -le $max ] || fail "has $size bytes, more than $max"
exit 0
