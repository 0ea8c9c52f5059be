#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# tree.sh [discard]: bring build/linux to what the project says: base + series.
# Only files that differ are written, so a rebuild stays small.  Edits in
# build/linux are left alone while the project's side has not changed; when both
# have, it refuses ("discard": throws the edits in build/linux away).
set -eu
. lab/git.sh
state=$tree/.git/lab-key

key=$(project_key .)
if [ "${1:-}" != discard ] && [ "$(cat $state 2>/dev/null)" = "$key" ]; then
	exit 0
fi
unnamed=$(own_candidates . | while read -r f; do
	series_lines . | tr ' ' '\n' | grep -qxF "$f" || echo "$f"
done)
[ -z "$unnamed" ] || echo "lab: WARNING: no line of patches/series names" $unnamed >&2
new=$(lab/compose.sh .)
old=$(git -C $tree rev-parse refs/lab/composed)
head=$(git -C $tree rev-parse HEAD)
dirty=$(git -C $tree status --porcelain -uno)
if [ "${1:-}" = discard ]; then
	git -C $tree reset -q --hard "$new"
elif [ "$head" != "$old" ] || [ -n "$dirty" ]; then
	# Edits that equal the project's side are no edits.
	if [ "$(git -C $tree stash create 2>/dev/null | xargs -r -I{} git -C $tree rev-parse '{}^{tree}')" = \
	     "$(git -C $tree rev-parse "$new^{tree}")" ]; then
		git -C $tree reset -q "$new"
	else
		fail "build/linux has edits, and the project has changed too: 'make export' keeps the edits (look at git diff then), 'make tree DISCARD=1' drops them"
	fi
else
	git -C $tree reset -q --keep "$new"
fi
git -C $tree update-ref refs/lab/composed "$new"
echo "$key" >$state
echo "lab: build/linux is at $(git -C $tree log -1 --format='%h (%s)') on $(git -C $tree log -1 --format=%s refs/lab/base)"
