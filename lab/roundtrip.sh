#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# roundtrip.sh: prove for every base, without touching the project or build/linux, that
#  1. what the project composes to exports to the same bytes,
#  2. an edit in the tree (base file, own file, new step) survives
#     export and compose.
# Prints KTAP.
set -eu
. lab/git.sh
dir=build/roundtrip
n=0 bad=0
result() {	# result STATUS TEXT
	n=$((n + 1))
	[ "$1" -eq 0 ] && echo "ok $n $2" || { bad=1; echo "not ok $n $2"; }
}

# The part of a project that the round trip is about, as a list of sums.
sums() {
	(cd "$1" && { ls $data/series $data/replaced.sha256 $data/seams/*.patch 2>/dev/null
	own_files . | while read -r f; do own_path . "$f"; done; } | sort -u | xargs -r sha256sum)
}

# A copy of the project that edits are exported to.
copy() {
	for f in $(find bases -type f; cat bases/*/series | grep '^	' | sort -u); do
		mkdir -p "$1/$(dirname "$f")"
		cp -p "$f" "$1/$f"
	done
}

echo "KTAP version 1"
unnamed=$(own_candidates . | while read -r f; do
	grep -qxF "	$f" bases/*/series || echo "$f"; done)
[ -z "$unnamed" ] || echo "# not named:" $unnamed
[ -z "$unnamed" ] && r=0 || r=1
result $r "every own file is named in a series"

for pin in bases/*/pin.mk; do
LAB_BASE=$(basename "$(dirname "$pin")")
export LAB_BASE
. lab/git.sh
rm -rf $dir
# "make base" has said why.
has_base || {
	n=$((n + 1))
	echo "ok $n $base: compose # SKIP its source isn't to be had"
	continue
}
mkdir -p $dir/one $dir/two
head=$(lab/compose.sh .)
result 0 "$base: compose, fuzz 0, $(find $data/own -type f 2>/dev/null | wc -l) own files of its own"
# To name the steps, and to know which own files are the base's.
cp -R bases $dir/one
rm -rf $dir/one/$data/seams $dir/one/$data/replaced.sha256
lab/export.sh $dir/one "$head" >/dev/null
sums . >$dir/want
sums $dir/one >$dir/got
diff $dir/want $dir/got && r=0 || r=1
result $r "$base: export gives the same bytes"
for p in $dir/one/$data/seams/*.patch; do
	[ -e "$p" ] && ! cmp -s "$p" "$data/seams/$(basename "$p")" && diff "$p" "$data/seams/$(basename "$p")" | head -n 20
done

# Now edit: a base file and the first own file, committed as a new step.
export GIT_INDEX_FILE="$PWD/$dir/index"
git -C $tree read-tree "$head"
edit() {
	blob=$({ git -C $tree cat-file blob "$head:$1"; echo "$2"; } | git -C $tree hash-object -w --stdin)
	git -C $tree update-index --add --cacheinfo "100644,$blob,$1"
}
edit COPYING "An edit of a base file."
first=$(own_files . | head -n 1)
[ -z "$first" ] || edit "$first" "/* An edit of an own file. */"
blob=$(echo "new" | git -C $tree hash-object -w --stdin)
git -C $tree update-index --add --cacheinfo "100644,$blob,virt/kvm/roundtrip.c"
edited=$(echo "KVM: guest_memfd: Edit" | git -C $tree commit-tree "$(git -C $tree write-tree)" -p "$head")
unset GIT_INDEX_FILE
copy $dir/two
lab/export.sh $dir/two "$edited" >/dev/null
again=$(lab/compose.sh $dir/two)
want=$(git -C $tree rev-parse "$edited^{tree}")
[ "$(git -C $tree rev-parse "$again^{tree}")" = "$want" ] && r=0 || r=1
result $r "$base: edits survive export and compose"
[ "$(steps $dir/two | wc -l)" -eq $(($(steps . | wc -l) + 1)) ] && r=0 || r=1
result $r "$base: a new commit becomes one step"
done
echo "1..$n"
exit $bad
