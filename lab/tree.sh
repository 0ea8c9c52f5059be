#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# tree.sh [discard]: bring build/linux to what the project says: base + series.
# Only files that differ are written, so a rebuild stays small.  Edits in
# build/linux are left alone while the project's side has not changed; when both
# have, it refuses ("discard": throws the edits in build/linux away).  So it does
# if the edits are of another base.
set -eu
. lab/git.sh
discard=${1:-}

if in_rebase; then
	[ "$discard" ] || fail "a git rebase is going on in build/linux; finish it there (git rebase --continue), or 'make tree DISCARD=1'"
	git -C $tree rebase --abort >/dev/null 2>&1 || git -C $tree rebase --quit
fi
no_own_driver
on=$(branch)
key=$(project_key .)
if [ "$on" = "$base" ] && [ -z "$discard" ] && [ "$(cat "$state.key" 2>/dev/null)" = "$key" ]; then
	[ "${MAKELEVEL:-0}" -gt 1 ] || ! has_edits || echo "lab: build/linux has edits that are not exported"
	exit 0
fi
unnamed=$(own_candidates . | while read -r f; do
	grep -qxF "	$f" bases/*/series || echo "$f"
done)
[ -z "$unnamed" ] || echo "lab: WARNING: no bases/*/series names" $unnamed >&2
dirty=$(git -C $tree status --porcelain -uno)
[ "$on" = "$base" ] || [ -z "$dirty" ] ||
	fail "build/linux has edits of base $on; 'make export BASE=$on' keeps them, 'make tree DISCARD=1 BASE=$on' drops them"
new=$(lab/compose.sh .)
if [ "$on" != "$base" ]; then
	# Commits stay, on the branch that they were made on.
	git -C $tree rev-parse -q --verify "refs/heads/$base" >/dev/null ||
		git -C $tree update-ref "refs/heads/$base" "$new"
	git -C $tree checkout -q "$base" --
fi
old=$(git -C $tree rev-parse "$refs/composed")
head=$(git -C $tree rev-parse HEAD)
if [ "$discard" ]; then
	git -C $tree reset -q --hard "$new"
elif { [ "$head" != "$old" ] && [ "$head" != "$new" ]; } || [ -n "$dirty" ]; then
	# Edits that equal the project's side are no edits.
	if [ "$(git -C $tree rev-parse "$(git -C $tree stash create | grep . || echo HEAD)^{tree}")" = \
	     "$(git -C $tree rev-parse "$new^{tree}")" ]; then
		git -C $tree reset -q "$new"
	else
		fail "build/linux has edits, and the project has changed too: 'make export' keeps the edits (look at git diff then), 'make tree DISCARD=1' drops them"
	fi
else
	git -C $tree reset -q --keep "$new"
fi
git -C $tree update-ref "$refs/composed" "$new"
echo "$key" >"$state.key"
echo "lab: build/linux is at $(git -C $tree log -1 --format='%h (%s)') on $(git -C $tree log -1 --format=%s "$refs/base")"
