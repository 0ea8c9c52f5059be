#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# rebase.sh: carry the steps of BASE over to base TO, by git's three-way merge, in
# build/linux, on branch TO.  What conflicts is an ordinary conflict of a git rebase.
# In the end, 'make export BASE=TO' writes bases/TO.
#
# Once bases/TO is there, this brings it up to date: a step that BASE has not changed
# since it was carried over (bases/TO/carried) is TO's.  One that BASE has changed is
# TO's plus that change: the project's git history has the step as it was.  A step that TO
# alone has stays, behind the step that it is behind there.
set -eu
. lab/git.sh
from=$base to=$LAB_TO
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
g="git -C $tree"
old=$($g rev-list --max-parents=0 "$refs/composed")
new=$($g rev-parse "refs/lab/$to/base")
theirs=$($g rev-parse -q --verify "refs/heads/$to" || :)
[ "$to" = "$from" ] || [ -z "$theirs" ] || [ "$theirs" = "$($g rev-parse "refs/lab/$to/composed")" ] ||
	! $g merge-base --is-ancestor "$new" "$theirs" ||
	fail "branch $to of build/linux has commits that are not exported: make export BASE=$to, or git branch -D $to there"
[ "$old" != "$new" ] || fail "TO=$to: $($g log -1 --format=%s "$new") is the base already"

# "SUM STEP" of each step of BASE in project $1, the lines of bases/TO/carried.
sums() {
	steps "$1" | while read -r _ step own; do
		echo "$({ cat "$1/$data/seams/$step.patch"; echo "$own"; } | sha256sum | cut -d' ' -f1)  $step"
	done
}

# "COMMIT STEP" of each step of BASE as it was carried over: from the project's newest
# commit in which those that have changed since have the sums of bases/TO/carried.
# Prints nothing if there is none, or if it does not compose any more.
steps_as_carried() {
	awk 'NR == FNR { if (NF > 2) changed[$2]; next } $2 in changed' "$tmp/picks" "bases/$to/carried" >"$tmp/sums"
	for c in $(git log --format=%H -- "$data" 2>/dev/null); do
		rm -rf "$tmp/old" && mkdir "$tmp/old"
		git archive "$c" -- "$data" 2>/dev/null | tar -x -C "$tmp/old" 2>/dev/null || continue
		sums "$tmp/old" >"$tmp/old.sums"
		! grep -vqxFf "$tmp/old.sums" "$tmp/sums" || continue
		git archive "$c" | tar -x -C "$tmp/old"
		composed=$(lab/compose.sh "$tmp/old" 2>/dev/null) || break
		steps "$tmp/old" | cut -d' ' -f2 >"$tmp/old.steps"
		$g rev-list --reverse "$old..$composed" | paste -d' ' - "$tmp/old.steps"
		break
	done
}

# What has changed in a step of BASE, which was commit $1 and is $2, as a line of a git
# rebase.  The old step is put behind the steps that the new one is behind, so that what
# has changed in these is no part of it.  Fails if that conflicts.
changes() {
	there=$($g commit-tree -m there -p "$1^" "$2^^{tree}")
	again=$($g merge-tree --write-tree "$there" "$1" 2>/dev/null) || return 1
	again=$($g commit-tree -m "as carried" "$again")
	keep="-C "
	[ "$($g log -1 --format=%B "$1")" != "$($g log -1 --format=%B "$2")" ] || keep=
	echo "fixup $keep$($g log -1 --format=%B "$2" | $g commit-tree -p "$again" "$2^{tree}")"
}

# BASE's steps, with the versions of own files that TO has.
head=$($g rev-parse "$refs/composed")
if [ -d "bases/$to/own" ]; then
	head=$(LAB_OWN=bases/$to/own lab/compose.sh .)
fi
steps . | cut -d' ' -f2 >"$tmp/steps"
$g rev-list --reverse "$old..$head" | paste -d' ' - "$tmp/steps" >"$tmp/picks"
sums . >"$tmp/carried"
if [ "$to" != "$from" ] && [ -e "bases/$to/carried" ]; then
	LAB_BASE=$to lab/compose.sh . >"$tmp/theirs" || fail "bases/$to does not compose; take it away to carry everything over anew"
	(base=$to data=bases/$to; steps . | cut -d' ' -f2) >"$tmp/their.steps"
	$g rev-list --reverse "$new..$(cat "$tmp/theirs")" | paste -d' ' - "$tmp/their.steps" |
		awk -v now="$tmp/carried" -v then="bases/$to/carried" '
		BEGIN {
			while ((getline l < then) > 0) { split(l, a, " +"); was[l]; had[a[2]] }
			while ((getline l < now) > 0) { split(l, a, " +"); has[a[2]]; if (l in was) same[a[2]] }
		}
		NR == FNR {
			own[$2] = $1
			if ($2 in has) last = $2
			else if (!($2 in had)) behind[last] = behind[last] $0 "\n"
			next
		}
		FNR == 1 { printf "%s", behind[""] }
		$2 in same && $2 in own { $1 = own[$2] }
		{ print $0, ($2 in own && !($2 in same) ? own[$2] : ""); printf "%s", behind[$2] }' - "$tmp/picks" >"$tmp/picks.new"
	mv "$tmp/picks.new" "$tmp/picks"
fi
# The third column is TO's commit of a step that has changed.
! grep -q ' .* [^ ]' "$tmp/picks" || steps_as_carried >"$tmp/was"
while read -r now step own; do
	was=$([ -z "$own" ] || awk -v step="$step" '$2 == step { print $1 }' "$tmp/was")
	if [ "$was" ] && fixup=$(changes "$was" "$now"); then
		printf 'pick %s\n%s\n' "$own" "$fixup"
	else
		[ -z "$own" ] || echo "lab: $step is carried over anew, what was adapted for $to in it is to be done again" >&2
		echo "pick $now"
	fi
done <"$tmp/picks" >"$tmp/todo"

# What the project side of TO is now, so that an export may write it.
mkdir -p "bases/$to"
[ "$to" = "$from" ] || cp "$tmp/carried" "bases/$to/carried"
[ "$to" = "$from" ] || cp "$data/series" "bases/$to/series"
[ -e "bases/$to/replaced.sha256" ] || [ ! -e "$data/replaced.sha256" ] || cp "$data/replaced.sha256" "bases/$to/"
(base=$to data=bases/$to refs=refs/lab/$to; project_key .) >"$tree/.git/lab-$to.key"

# A file of the base that ours replaces: ours, whole.
$g config merge.lab-own.driver 'cp %B %A'
no_own_driver
no_foreign_driver
mkdir -p $tree/.git/info
sed -n 's/^[^ ]*  \(.*\)/\1 merge=lab-own/p' "$data/replaced.sha256" >>$tree/.git/info/attributes 2>/dev/null || :
$g config user.name >/dev/null || $g config user.name "$GIT_COMMITTER_NAME"
$g config user.email >/dev/null || $g config user.email "$GIT_COMMITTER_EMAIL"
# What has been resolved before is not asked for again.
$g config rerere.enabled true
$g config rerere.autoupdate true

echo "lab: carrying $(wc -l <"$tmp/picks") steps of $($g log -1 --format=%s "$old") over to $($g log -1 --format=%s "$new")"
$g update-ref "refs/lab/$to/composed" "$new"
$g checkout -q -B "$to" "$head"
said=$(GIT_EDITOR=: GIT_SEQUENCE_EDITOR="cp $tmp/todo" $g rebase -i --empty=drop --onto "$new" "$old" 2>&1) || :
# The driver isn't asked about a file that the other base lacks.
ours_whole() {
	for f in $(cut -d' ' -f3- "$data/replaced.sha256" 2>/dev/null); do
		[ -z "$($g ls-files -u -- "$f")" ] || { $g checkout -q --theirs -- "$f" && $g add "$f"; }
	done
}
at=
! in_rebase || ours_whole
while in_rebase && [ -z "$($g ls-files -u)" ] && [ "$at" != "$($g rev-parse REBASE_HEAD)" ]; do
	at=$($g rev-parse REBASE_HEAD)
	GIT_EDITOR=: $g rebase --continue >/dev/null 2>&1 || :
	! in_rebase || ours_whole
done
if in_rebase; then
	echo "lab: conflict at \"$($g log -1 --format=%s REBASE_HEAD)\":" $($g diff --name-only --diff-filter=U) >&2
	fail "resolve it in build/linux, git add, git rebase --continue there; when that is through, make export BASE=$to"
fi
[ "$($g merge-base HEAD "$new")" = "$new" ] || fail "git rebase failed: $said"
for f in $(cut -d' ' -f3- "$data/replaced.sha256" 2>/dev/null); do
	$g diff --quiet "$old" "$new" -- "$f" || echo "lab: the base's $f, which ours replaces, differs: git -C build/linux diff refs/lab/$from/base refs/lab/$to/base -- $f"
done
echo "lab: all steps are on branch $to of build/linux; make export BASE=$to writes bases/$to"
