#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# export.sh OUT [COMMIT]: write what build/linux holds as patches and own files
# into the project directory OUT (the project itself: ".").
#
# Commits of refs/lab/base..HEAD become steps, in order.  An uncommitted edit of
# a base file goes into the last step that touches this file; of an own file,
# into the own file.  With COMMIT: only what is committed there.
set -eu
. lab/git.sh
out=$1 commit=${2:-}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
g="git -C $tree"

# What build/linux was not made of is overwritten: git must have it.
if [ "$out" = . ] && [ "$(cat $tree/.git/lab-key 2>/dev/null)" != "$(project_key .)" ]; then
	mine=$(git status --porcelain -- MAINTAINERS patches $(own_candidates .) | cut -c4-)
	[ -z "$mine" ] || fail "build/linux does not have these changes of yours; 'make tree' brings them there, or commit them first:" $mine
fi

# The state to export: a commit, or HEAD plus the edits of the working tree.
head=$($g rev-parse "${commit:-HEAD}")
final=$head
if [ -z "$commit" ]; then
	new=$($g ls-files -o --exclude-standard | grep -v '\.orig$\|\.rej$' || :)
	[ -z "$new" ] || fail "new files in build/linux; git add and git commit them there, or remove them:" $new
	stash=$($g stash create)
	[ -z "$stash" ] || final=$stash
fi

$g ls-tree -r --name-only refs/lab/base | sort >"$tmp/base"
$g diff --no-renames --name-only refs/lab/base "$final" | sort >"$tmp/touched"
# Own: not in the base, or known to replace a file of it.
awk '{ print $2 }' patches/replaced.sha256 2>/dev/null | sort >"$tmp/replaced" || :
{ comm -13 "$tmp/base" "$tmp/touched"; comm -12 "$tmp/replaced" "$tmp/touched"; } | sort -u >"$tmp/own"
$g diff --no-renames --diff-filter=D --name-only refs/lab/base "$final" | sort >"$tmp/gone"
comm -23 "$tmp/own" "$tmp/gone" >"$tmp/own.live"

# Every edit needs a step: the last commit that touches the file.
$g rev-list --reverse "refs/lab/base..$head" >"$tmp/commits"
while read -r c; do
	$g diff-tree -r --no-commit-id --no-renames --name-only "$c" | sed "s/^/$c /"
done <"$tmp/commits" >"$tmp/touches"
awk '{ last[$2] = $1 } END { for (f in last) print last[f], f }' "$tmp/touches" >"$tmp/last"
$g diff --no-renames --name-only "$head" "$final" | sort >"$tmp/edited"
lost=$(awk '{ print $2 }' "$tmp/last" | sort | comm -13 - "$tmp/edited")
[ -z "$lost" ] || fail "no step touches these yet; git commit them in build/linux with a message, and they become a step:" $lost

# The patch of commit $1: its own change to base files, edits folded in.
write_patch() {
	GIT_INDEX_FILE=$tmp/index
	export GIT_INDEX_FILE
	$g read-tree "$1"
	awk -v c="$1" '$1 == c { print $2 }' "$tmp/last" | sort | comm -12 - "$tmp/edited" >"$tmp/fold" 2>/dev/null || :
	while read -r f; do
		$g rm -q --cached --ignore-unmatch "$f"
		$g ls-tree "$final" "$f" | $g update-index --add --index-info
	done <"$tmp/fold"
	$g diff-tree -r --no-renames --name-only "$1^" "$($g write-tree)" | grep -v '^MAINTAINERS$' |
		grep -vxFf "$tmp/own" >"$tmp/paths" || :
	unset GIT_INDEX_FILE
	new=$(GIT_INDEX_FILE=$tmp/index $g write-tree)
	echo "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001"
	echo "From: $GIT_AUTHOR_NAME <$GIT_AUTHOR_EMAIL>"
	$g log -1 --format='Subject: [PATCH] %s%n%n%b' "$1" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
	echo "---"
	[ ! -s "$tmp/paths" ] || $g diff-tree -p --full-index --no-renames --no-ext-diff --no-textconv \
		"$1^" "$new" -- $(cat "$tmp/paths")
}

mkdir -p "$tmp/patches" "$out/patches"
: >"$tmp/series"
n=0
while read -r c; do
	own=$(awk -v c="$c" 'NR == FNR { live[$1]; next } !seen[$2]++ && $1 == c && $2 in live { print $2 }' \
		"$tmp/own.live" "$tmp/touches" | tr '\n' ' ')
	write_patch "$c" >"$tmp/patch"
	if [ -z "$own" ] && ! grep -q '^diff --git' "$tmp/patch"; then
		continue	# MAINTAINERS, or an own file that an earlier step names
	fi
	n=$((n + 1))
	# A step keeps its topic as long as it keeps its subject.
	topic=$($g log -1 --format="Subject: [PATCH] %s" "$c" | grep -lxFf - patches/*.patch 2>/dev/null | head -n 1)
	[ -n "$topic" ] && topic=${topic#*/*-} || topic=$($g log -1 --format=%f "$c" | cut -c1-60).patch
	name=$(printf "%04d-%s" $n "$topic")
	mv "$tmp/patch" "$tmp/patches/$name"
	echo "$name${own:+ ${own% }}" >>"$tmp/series"
done <"$tmp/commits"

# Nothing can fail any more: write.
series_lines "$out" | cut -s -d' ' -f2- | tr ' ' '\n' | sed '/^$/d' | sort >"$tmp/before"
for f in $(comm -23 "$tmp/before" "$tmp/own.live"); do rm -f "$out/$f"; done
lab/export-files.sh "$out" "$final" "$tmp"
