#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# series.sh: write build/series, ready for git send-email: a cover letter
# (patches/cover-letter: first line the subject, then the text) and one patch a
# step.
set -eu
. lab/git.sh
out=build/series
rm -rf $out
n=$(git -C $tree rev-list --count refs/lab/base..refs/lab/composed)
[ "$n" -gt 0 ] || fail "patches/series is empty"
git -C $tree format-patch -q --cover-letter --base=refs/lab/base --no-renames \
	--signature="guest_memfd on $(git -C $tree log -1 --format=%s refs/lab/base)" \
	-o "$PWD/$out" refs/lab/base..refs/lab/composed
if [ -s patches/cover-letter ]; then
	head -n 1 patches/cover-letter >$out/subject
	sed 1,2d patches/cover-letter >$out/text
	awk -v out=$out '/\*\*\* SUBJECT HERE \*\*\*/ { getline s < (out "/subject"); sub(/\*\*\* SUBJECT HERE \*\*\*/, s) }
		/\*\*\* BLURB HERE \*\*\*/ { while ((getline l < (out "/text")) > 0) print l; next }
		{ print }' $out/0000-cover-letter.patch >$out/new
	mv $out/new $out/0000-cover-letter.patch
	rm $out/subject $out/text
fi
echo "lab: $n patches and a cover letter in $out"
