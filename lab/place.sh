#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# place.sh ROOT HEAD TREE TMP: part of export.sh.  Make the edits that lead from HEAD
# to TREE into commits on top of HEAD, one a hunk, "fixup!" for the step that it
# belongs to, and print the last one.  TMP/originals: what commits are in build/linux.
#
# A hunk belongs to the step that last touched the lines which it changes, else the
# lines next to it, else to the only step that touches the file.  If these are
# several steps, or none, all such edits are listed, and nothing is done.  A line that
# has moved stays in its step, and one of a Makefile is in none before the step that adds
# the file which it names.
set -eu
. lab/git.sh
root=$1 head=$2 want=$3 tmp=$4
export GIT_INDEX_FILE="$tmp/index"
mkdir "$tmp/hunks"
git read-tree "$head"
git log --format='commit %H' --no-renames --diff-filter=A --name-only "$root..$head" >"$tmp/added"
git diff-tree -r --no-renames --name-only "$head" "$want" >"$tmp/edited"
while read -r f; do
	n=$((${n:-0} + 1))
	git rev-list "$root..$head" -- "$f" >"$tmp/touchers"
	git diff-tree -r --no-renames "$head" "$want" -- "$f" >"$tmp/raw"
	if grep -q '^:\(100...\) \1 .* M' "$tmp/raw"; then
		git blame -l -s "$root..$head" -- "$f" | cut -d' ' -f1 >"$tmp/blame"
		git diff-tree -p -U0 --no-renames --no-ext-diff --no-textconv "$head" "$want" -- "$f" >"$tmp/diff"
	else
		# The file as a whole: it comes, goes or changes its mode.
		: >"$tmp/blame"
		git diff-tree -p --full-index --binary --no-renames "$head" "$want" -- "$f" >"$tmp/diff"
	fi
	awk -v file="$f" -v dir="$tmp/hunks" -v n="$n" -f lab/place.awk \
		part=0 "$tmp/added" part=1 "$tmp/touchers" part=2 "$tmp/blame" \
		part=takes "$tmp/diff" part=3 "$tmp/diff"
done <"$tmp/edited" >"$tmp/places"

if grep -q '^?' "$tmp/places"; then
	echo "lab: these edits belong to no step in particular; in build/linux, git commit them (a step of their own), or git commit --fixup=COMMIT:" >&2
	awk -F'\t' '/^\?/ { print "  " $2; n = split($3, c, " "); for (i = 1; i <= n; i++) print c[i] }' "$tmp/places" |
		while read -r what; do
			case $what in
			*[!0-9a-f]*) echo "  $what" ;;
			*)	echo "    $(git log -1 --format='%h %s' "$(awk -v c="$what" '$1 == c { print $2 }' "$tmp/originals")")" ;;
			esac
		done >&2
	exit 1
fi
# From the end of a file to its beginning, so that line numbers stay true.
sort -r "$tmp/places" | while IFS='	' read -r hunk f step; do
	git apply --cached --unidiff-zero --whitespace=nowarn "$hunk"
	head=$(git commit-tree -p "$head" -m "fixup! $step" "$(git write-tree)")
	echo "lab: $f goes to: $(git log -1 --format=%s "$step")" >&2
	echo "$head"
done >"$tmp/placed"
tail -n 1 "$tmp/placed" | grep . || echo "$head"
