#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# compose.sh PROJECT: commit the base and every step of PROJECT/patches/series
# into the object store of build/linux, and print the last commit.  No working
# tree is touched.  The same project gives the same hash, on every machine.
#
# A line of the series: "NNNN-topic.patch [own/file ...]".  A step is its own
# files, whole, plus its patch to files of the base (exact, no fuzz).
#
# The index has only what steps touch, as an index of all the kernel's files takes
# longer to write than everything else; git fast-import makes the whole trees.
set -eu
. lab/git.sh
project=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export GIT_DIR=$PWD/$tree/.git GIT_INDEX_FILE=$tmp/index

# Own files that replace a file of the base: is it the one they were made for?
check_replaced() {
	git ls-tree -r --name-only refs/lab/base | sort >"$tmp/base"
	twice=$(uniq -d "$tmp/own")
	[ -z "$twice" ] || fail "patches/series names more than once:" $twice
	for f in $(comm -12 "$tmp/base" "$tmp/own"); do
		sum=$(git cat-file blob "refs/lab/base:$f" | sha256sum | cut -d' ' -f1)
		want=$(awk -v f="$f" '$2 == f { print $1 }' "$project/patches/replaced.sha256" 2>/dev/null || :)
		[ -n "$want" ] || fail "$f replaces a file of the base; add to patches/replaced.sha256: $sum  $f"
		[ "$sum" = "$want" ] || fail "the base's $f has changed ($sum): merge the change into ours, then update patches/replaced.sha256"
	done
}

# The index's entries of all own files, "MODE SUM<tab>FILE".
add_own() {
	while read -r f; do
		[ -f "$project/$f" ] || fail "patches/series names $f, which is not there"
		[ -x "$project/$f" ] && echo 100755 || echo 100644
	done <"$tmp/own" >"$tmp/modes"
	(cd "$project" && git hash-object -w --no-filters --stdin-paths) <"$tmp/own" |
		paste -d' ' "$tmp/modes" - | paste - "$tmp/own" >"$tmp/entries"
}

# What the index has now and had not before, as a commit for git fast-import.
commit() {
	git ls-files -s | awk '{ sub(" 0\t", " ") } 1' >"$tmp/now"
	! cmp -s "$tmp/was" "$tmp/now" || fail "step $1 changes nothing"
	echo "commit $ref"
	echo "author $ident"
	echo "committer $ident"
	echo "data $(wc -c <"$tmp/message")"
	cat "$tmp/message"
	[ -z "$from" ] || echo "from $from"
	from=
	awk 'NR == FNR { was[$0]; next } !($0 in was) { print "M", $0 }' "$tmp/was" "$tmp/now"
	awk 'NR == FNR { now[$3]; next } !($3 in now) { print "D", $3 }' "$tmp/now" "$tmp/was"
	mv "$tmp/now" "$tmp/was"
}

base=$(git rev-parse refs/lab/base)
from=$base ref=refs/lab/composing-$$
ident="$GIT_AUTHOR_NAME <$GIT_AUTHOR_EMAIL> $(date -d "$GIT_AUTHOR_DATE" +%s) +0000"
series_lines "$project" >"$tmp/series"
cut -s -d' ' -f2- "$tmp/series" | tr ' ' '\n' | sed '/^$/d' | sort >"$tmp/own"
check_replaced
add_own
{
	echo MAINTAINERS
	while read -r patch own; do
		sed -n 's,^diff --git a/\(.*\) b/.*,\1,p' "$project/patches/$patch"
	done <"$tmp/series"
} | sort -u | xargs git ls-tree "$base" >"$tmp/touched"
git update-index --add --index-info <"$tmp/touched"
git ls-files -s | awk '{ sub(" 0\t", " ") } 1' >"$tmp/was"

steps() {
while read -r patch own; do
	p=$project/patches/$patch
	[ -f "$p" ] || fail "patches/series names $patch, which is not there"
	# Mail headers, then the message, then "---", then the diff.
	awk '!body && sub(/^Subject: (\[PATCH[^]]*\] )?/, "") { print; next }
	     !body && /^$/ { body = 1 } /^---$/ { exit } body' "$p" >"$tmp/message"
	grep -q . "$tmp/message" || fail "$patch has no Subject"
	[ -z "$own" ] || for f in $own; do
		awk -F'\t' -v f="$f" '$2 == f' "$tmp/entries"
	done | git update-index --add --index-info
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
}
steps >"$tmp/import"
[ -s "$tmp/import" ] || { echo "$base"; exit 0; }
# Loose objects, as most of them are there already.
git -c fastimport.unpackLimit=100000 fast-import --quiet --force --date-format=raw <"$tmp/import"
git rev-parse "$ref"
git update-ref -d "$ref"
