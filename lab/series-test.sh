#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# series-test.sh: is the series that 'make series' writes what a maintainer can take?
# checkpatch has nothing to say on any patch, all sets go onto the pristine base by
# git am, and give what the project composes to; every file has someone to look after
# it, and each of ours an owner of ours.  Prints KTAP.
set -eu
. lab/git.sh
out=build/series-test
am=$out/am
n=0 bad=0
result() {	# result STATUS TEXT
	n=$((n + 1))
	[ "$1" -eq 0 ] && echo "ok $n $2" || { bad=1; echo "not ok $n $2"; }
}
# A user, as git.sh has hidden the one there is.
unset GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL
said=$(HOME=/nonexistent lab/series.sh $out 2>&1) && r=1 || r=0
[ "$(echo "$said" | grep -c '^lab: git does not know who you are')" -eq 1 ] || r=1

echo "KTAP version 1"
result $r "without a name and an address it is refused"
export GIT_AUTHOR_NAME="A User" GIT_AUTHOR_EMAIL=user@example.org
lab/series.sh $out >/dev/null && r=0 || r=1
result $r "it is written"
find $out -name '0*.patch' ! -name '0000-*' | sort >$out/patches
! xargs grep -L "^Signed-off-by: A User <user@example.org>" <$out/patches | grep . && r=0 || r=1
result $r "each patch is signed off by its author"
! awk 'FNR == 1 { body = 0 } /^$/ { body = 1 } body && length > 75 && /^[^ ]/ { print FILENAME ": " $0 }' $out/*/0000-*.patch |
	grep . && r=0 || r=1
result $r "no line of a cover letter is wider than 75"
git -C $tree log --check --format= "$refs/base..$refs/composed" |
	grep 'leftover conflict marker' | sed 's/^/# /' >$out/leftovers
cat $out/leftovers
[ ! -s $out/leftovers ] && r=0 || r=1
result $r "no patch has a leftover of a merge"

# What it says of a patch, without what lab/checkpatch expects.
checkpatch() {
	(cd $tree && perl scripts/checkpatch.pl --strict --terse --showfile --show-types --no-summary - 2>/dev/null) |
		while IFS=' ' read -r where type what; do
			type=${type#*:} known=
			while read -r t f _; do
				case "${type%:} ${where%%:*}" in $t\ $f) known=1 ;; esac
			done <lab/checkpatch
			[ "$known" ] || echo "$where $type $what"
		done
}
while read -r p; do
	said=$(checkpatch <"$p")
	[ -z "$said" ] && r=0 || { r=1; echo "$said" | sed 's/^/# /'; }
	result $r "checkpatch: ${p#"$out/"}"
done <$out/patches

# The base, but only the files that steps touch: git am reads no other.
mkdir -p $am
git -C $tree diff --no-renames --name-only "$refs/base" "$refs/composed" | sort >$out/touched
git -C $tree ls-tree -r --name-only "$refs/base" | sort | comm -12 - $out/touched |
	xargs git -C $tree archive "$refs/base" -- | tar -x -C $am
git -C $am init -q
git -C $am add -A -f
git -C $am -c user.name=lab -c user.email=lab commit -q -m base
sed "s,^,$PWD/," $out/patches | xargs git -C $am am -q >$out/am.log 2>&1 && r=0 || { r=1; sed 's/^/# /' $out/am.log; }
result $r "git am takes all of it"
xargs git -C $tree ls-tree "$refs/composed" <$out/touched | sort >$out/want
git -C $am ls-tree -r HEAD | sort >$out/got
diff $out/want $out/got && r=0 || r=1
result $r "and the result is what the project composes to"

git -C $tree diff "$refs/base" "$refs/composed" -- MAINTAINERS | sed -n 's/^+\([A-Z][A-Z0-9 _-]*\)$/\1/p' >$out/sections
[ -s $out/sections ] && r=0 || r=1
result $r "MAINTAINERS has a section of ours"
own_files . >$out/own
grep -vx MAINTAINERS $out/touched >$out/looked
while read -r f; do
	(cd $tree && perl scripts/get_maintainer.pl --no-git --no-git-fallback --sections -f "$f") >$out/who 2>&1
	if grep -qxF "$f" $out/own; then
		awk 'NR == FNR { ours[$0]; next } /^$/ { here = 0 } $0 in ours { here = 1 } here && /^M:/ { found = 1 } END { exit !found }' \
			$out/sections $out/who || echo "$f: no section of ours with an M:"
	else
		sed '/^THE REST$/,$d' $out/who | grep -q '^[MRL]:' || echo "$f: no one"
	fi
done <$out/looked >$out/orphans
sed 's/^/# /' $out/orphans
[ ! -s $out/orphans ] && r=0 || r=1
result $r "get_maintainer knows an owner of $(wc -l <$out/touched) files"
echo "1..$n"
exit $bad
