#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# export-files.sh OUT COMMIT TMP: the writing half of export.sh.  TMP has the
# new patches, series and list of own files; a file that would not change is
# not written.
set -eu
. lab/git.sh
out=$1 final=$2 tmp=$3

put() {	# put FILE TO
	cmp -s "$1" "$2" && return
	mkdir -p "$(dirname "$2")"
	cp "$1" "$2"
	echo "lab: wrote $2"
}

while read -r f; do
	git -C $tree cat-file blob "$final:$f" >"$tmp/file"
	put "$tmp/file" "$out/$f"
	case $(git -C $tree ls-tree "$final" "$f") in
	100755*) chmod +x "$out/$f" ;;
	esac
done <"$tmp/own.live"

for p in "$out"/patches/*.patch; do
	[ -e "$tmp/patches/$(basename "$p")" ] || rm -f "$p"
done
for p in "$tmp"/patches/*.patch; do
	[ ! -e "$p" ] || put "$p" "$out/patches/$(basename "$p")"
done
{
	echo "# SPDX-License-Identifier: GPL-2.0"
	echo "# One step a line: patch, then the files of this project that it adds."
	cat "$tmp/series"
} >"$tmp/series.new"
put "$tmp/series.new" "$out/patches/series"

comm -12 "$tmp/base" "$tmp/own.live" | while read -r f; do
	echo "$(git -C $tree cat-file blob "refs/lab/base:$f" | sha256sum | cut -d' ' -f1)  $f"
done >"$tmp/replaced.new"
if [ -s "$tmp/replaced.new" ]; then
	put "$tmp/replaced.new" "$out/patches/replaced.sha256"
else
	rm -f "$out/patches/replaced.sha256"
fi

if [ -f MAINTAINERS ] && grep -qx MAINTAINERS "$tmp/touched"; then
	git -C $tree cat-file blob "$final:MAINTAINERS" >"$tmp/theirs"
	awk -v extract=1 -f lab/maintainers.awk MAINTAINERS "$tmp/theirs" >"$tmp/ours"
	put "$tmp/ours" "$out/MAINTAINERS"
fi
