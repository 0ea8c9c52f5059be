#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# roundtrip.sh: prove, without touching the project or build/linux, that
#  1. what the project composes to exports to the same bytes,
#  2. an edit in the tree (base file, own file, new step) survives
#     export and compose.
# Prints KTAP.
set -eu
. lab/git.sh
dir=build/roundtrip
rm -rf $dir
mkdir -p $dir/one $dir/two $dir/three
n=0 bad=0
result() {	# result STATUS TEXT
	n=$((n + 1))
	[ "$1" -eq 0 ] && echo "ok $n $2" || { bad=1; echo "not ok $n $2"; }
}

# The part of a project that the round trip is about, as a list of sums.
sums() {
	(cd "$1" && { ls MAINTAINERS patches/replaced.sha256 patches/*.patch 2>/dev/null
	series_lines . | cut -s -d' ' -f2- | tr ' ' '\n' | sed '/^$/d'; } | sort -u | xargs -r sha256sum
	series_lines .)
}

# A copy of the project that edits are exported to.
copy() {
	for f in $(ls MAINTAINERS patches/series patches/replaced.sha256 patches/*.patch 2>/dev/null
		   series_lines . | cut -s -d' ' -f2-); do
		mkdir -p "$1/$(dirname "$f")"
		cp -p "$f" "$1/$f"
	done
}

echo "KTAP version 1"
unnamed=$(own_candidates . | while read -r f; do
	series_lines . | tr ' ' '\n' | grep -qxF "$f" || echo "$f"; done)
[ -z "$unnamed" ] || echo "# not named:" $unnamed
[ -z "$unnamed" ] && r=0 || r=1
result $r "every own file is named in patches/series"

head=$(lab/compose.sh .)
result 0 "compose, fuzz 0"
lab/export.sh $dir/one "$head" >/dev/null
sums . >$dir/want
sums $dir/one >$dir/got
diff $dir/want $dir/got && r=0 || r=1
result $r "export gives the same bytes"
for p in $dir/one/patches/*.patch; do
	[ -e "$p" ] && ! cmp -s "$p" "patches/$(basename "$p")" && diff "$p" "patches/$(basename "$p")" | head -n 20
done

# Now edit: a base file and the first own file, committed as a new step.
export GIT_INDEX_FILE=$PWD/$dir/index
git -C $tree read-tree "$head"
edit() {
	blob=$({ git -C $tree cat-file blob "$head:$1"; echo "$2"; } | git -C $tree hash-object -w --stdin)
	git -C $tree update-index --add --cacheinfo "100644,$blob,$1"
}
edit COPYING "An edit of a base file."
first=$(series_lines . | cut -s -d' ' -f2- | tr ' ' '\n' | sed '/^$/d' | head -n 1)
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
result $r "edits survive export and compose"
[ "$(series_lines $dir/two | wc -l)" -eq $(($(series_lines . | wc -l) + 1)) ] && r=0 || r=1
result $r "a new commit becomes one step"
echo "1..$n"
exit $bad
