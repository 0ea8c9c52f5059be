#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# compose.sh PROJECT: commit the base and every step of PROJECT/patches/series
# into the object store of build/linux, and print the last commit.  No working
# tree is touched.  The same project gives the same hash, on every machine.
#
# A line of the series: "NNNN-topic.patch [own/file ...]".  A step is its own
# files, whole, plus its patch to files of the base (exact, no fuzz).
set -eu
. lab/git.sh
project=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export GIT_DIR=$PWD/$tree/.git GIT_INDEX_FILE=$tmp/index

# Own files that replace a file of the base: is it the one they were made for?
check_replaced() {
	git ls-tree -r --name-only refs/lab/base | sort >"$tmp/base"
	series_lines "$project" | cut -s -d' ' -f2- | tr ' ' '\n' | sed '/^$/d' | sort >"$tmp/own"
	twice=$(uniq -d "$tmp/own")
	[ -z "$twice" ] || fail "patches/series names more than once:" $twice
	for f in $(comm -12 "$tmp/base" "$tmp/own"); do
		sum=$(git cat-file blob "refs/lab/base:$f" | sha256sum | cut -d' ' -f1)
		want=$(awk -v f="$f" '$2 == f { print $1 }' "$project/patches/replaced.sha256" 2>/dev/null || :)
		[ -n "$want" ] || fail "$f replaces a file of the base; add to patches/replaced.sha256: $sum  $f"
		[ "$sum" = "$want" ] || fail "the base's $f has changed ($sum): merge the change into ours, then update patches/replaced.sha256"
	done
}

add_own() {
	for f in "$@"; do
		[ -f "$project/$f" ] || fail "patches/series names $f, which is not there"
		mode=100644
		[ ! -x "$project/$f" ] || mode=100755
		printf '%s %s\t%s\n' $mode "$(git hash-object -w --no-filters "$project/$f")" "$f"
	done >"$tmp/info"
	git update-index --add --index-info <"$tmp/info"
}

commit() {
	git write-tree >"$tmp/tree"
	[ "$(cat "$tmp/tree")" != "$(git rev-parse "$head^{tree}")" ] || fail "step $1 changes nothing"
	head=$(git commit-tree "$(cat "$tmp/tree")" -p "$head" -F "$tmp/message")
}

head=$(git rev-parse refs/lab/base)
git read-tree "$head"
check_replaced
series_lines "$project" >"$tmp/series"
while read -r patch own; do
	p=$project/patches/$patch
	[ -f "$p" ] || fail "patches/series names $patch, which is not there"
	# Mail headers, then the message, then "---", then the diff.
	awk '!body && sub(/^Subject: (\[PATCH[^]]*\] )?/, "") { print; next }
	     !body && /^$/ { body = 1 } /^---$/ { exit } body' "$p" >"$tmp/message"
	grep -q . "$tmp/message" || fail "$patch has no Subject"
	add_own $own
	if grep -q '^diff --git' "$p"; then
		git apply --cached --whitespace=nowarn "$p" 2>"$tmp/err" ||
			fail "$patch does not apply: $(head -n 1 "$tmp/err")"
	fi
	commit "$patch"
done <"$tmp/series"

if [ -f "$project/MAINTAINERS" ]; then
	git cat-file blob refs/lab/base:MAINTAINERS >"$tmp/theirs"
	awk -f lab/maintainers.awk "$project/MAINTAINERS" "$tmp/theirs" >"$tmp/merged"
	printf '100644 %s\tMAINTAINERS\n' "$(git hash-object -w --no-filters "$tmp/merged")" |
		git update-index --index-info
	printf '%s\n' "MAINTAINERS: Add the guest_memfd project's files" "" \
		"The store, what VM types do with it, tests, documents, sample." >"$tmp/message"
	commit MAINTAINERS
fi
echo "$head"
