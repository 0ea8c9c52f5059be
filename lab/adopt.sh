#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# adopt.sh: after an export, make build/linux's history what the project now
# composes to.  The working tree is not touched: that it is equal already is
# the proof that the export was exact.
set -eu
. lab/git.sh
new=$(lab/compose.sh .)
stash=$(git -C $tree stash create)
[ "$(git -C $tree rev-parse "${stash:-HEAD}^{tree}")" = "$(git -C $tree rev-parse "$new^{tree}")" ] ||
	fail "the export is not exact; see: git -C build/linux diff $new"
git -C $tree reset -q --soft "$new"
git -C $tree read-tree "$new"
git -C $tree update-index -q --refresh || :
git -C $tree update-ref "$refs/composed" "$new"
no_own_driver
project_key . >"$state.key"
echo "lab: exported, $(steps . | wc -l) steps; build/linux is at $(git -C $tree log -1 --format=%h)"
