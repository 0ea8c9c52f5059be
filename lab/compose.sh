#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# compose.sh PROJECT: commit every step of PROJECT/bases/BASE/series on top of the
# base, in the object store of build/linux, and print the last commit.  No working
# tree is touched.  The same project gives the same hash, on every machine.
#
# A step is its own files, whole, plus its seam: seams/STEP.patch, the message and
# the edits of files of the base (exact, no fuzz).  The index has only what steps
# touch, as an index of all the kernel's files takes longer to write than all the
# rest; git fast-import makes the whole trees.
set -eu
. lab/git.sh
project=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export GIT_DIR="$PWD/$tree/.git" GIT_INDEX_FILE="$tmp/index"

# Own files that replace a file of the base: is it the one they were made for?
check_replaced() {
	git ls-tree -r --name-only "$refs/base" | sort >"$tmp/base"
	twice=$(uniq -d "$tmp/own")
	[ -z "$twice" ] || fail "$data/series names more than once:" $twice
	for f in $(comm -12 "$tmp/base" "$tmp/own"); do
		sum=$(git cat-file blob "$refs/base:$f" | sha256sum | cut -d' ' -f1)
		want=$(awk -v f="$f" '$2 == f { print $1 }' "$project/$data/replaced.sha256" 2>/dev/null || :)
		[ -n "$want" ] || fail "$f replaces a file of the base; add to $data/replaced.sha256: $sum  $f"
		[ "$sum" = "$want" ] || fail "the base's $f has changed ($sum): merge the change into ours, then update $data/replaced.sha256"
	done
}

# All own files as entries of an index: "MODE SUM<tab>FILE".
own_entries() {
	while read -r f; do
		p=$(own_path "$project" "$f")
		[ -f "$project/$p" ] || fail "$data/series names $f, which is not there"
		[ -x "$project/$p" ] && echo 100755 "$p" || echo 100644 "$p"
	done <"$tmp/own" >"$tmp/paths"
	cut -d' ' -f2 "$tmp/paths" | (cd "$project" && git hash-object -w --no-filters --stdin-paths) |
		paste -d' ' "$tmp/paths" - | awk '{ print $1, $3 }' | paste - "$tmp/own"
}

entries() { git ls-files -s | awk '{ sub(" 0\t", " ") } 1'; }

# commit STEP: what the index has now and had not before, for git fast-import.
commit() {
	entries >"$tmp/now"
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

from=$(git rev-parse "$refs/base") ref=refs/lab/composing-$$
ident="$GIT_AUTHOR_NAME <$GIT_AUTHOR_EMAIL> $(date -d "$GIT_AUTHOR_DATE" +%s) +0000"
steps "$project" >"$tmp/steps"
[ -s "$tmp/steps" ] || { echo "$from"; exit 0; }
own_files "$project" >"$tmp/own"
check_replaced
own_entries >"$tmp/entries"
while read -r _ step own; do
	[ -f "$project/$data/seams/$step.patch" ] || fail "$data/series names $step, but there is no $data/seams/$step.patch"
	sed -n 's,^diff --git a/\(.*\) b/.*,\1,p' "$project/$data/seams/$step.patch"
done <"$tmp/steps" >"$tmp/touched"
sort -u "$tmp/touched" | xargs git ls-tree "$from" | git update-index --add --index-info
entries >"$tmp/was"

while read -r _ step own; do
	p=$project/$data/seams/$step.patch
	# The subject, then the message, then "---", then the diff.
	awk '!body && sub(/^Subject: (\[PATCH[^]]*\] )?/, "") { print; next }
	     !body && /^$/ { body = 1 } /^---$/ { exit } body' "$p" >"$tmp/message"
	grep -q . "$tmp/message" || fail "$p has no Subject"
	[ -z "$own" ] || echo "$own" | tr ' ' '\n' |
		awk -F'\t' 'NR == FNR { own[$1]; next } $2 in own' - "$tmp/entries" |
		git update-index --add --index-info
	if grep -q '^diff --git' "$p"; then
		git apply --cached --whitespace=nowarn "$p" 2>"$tmp/err" ||
			fail "$p does not apply: $(head -n 1 "$tmp/err")"
	fi
	commit "$step"
done <"$tmp/steps" >"$tmp/import"
# Loose objects, as most of them are there already.
git -c fastimport.unpackLimit=100000 fast-import --quiet --force --date-format=raw <"$tmp/import"
git rev-parse "$ref"
git update-ref -d "$ref"
