#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# base-tree.sh: build/base/linux, a working tree of the base alone.  Its kernel
# goes to build/base/ARCH: seen from there the source lies as it does for ours, so
# that the compiler cache knows all that the two kernels have in common.
set -eu
. lab/git.sh
dir=$PWD/build/base/linux
want=$(git -C $tree rev-parse "$refs/base")
[ "$(git -C "$dir" rev-parse HEAD 2>/dev/null || :)" != "$want" ] || exit 0
echo "lab: checking the base kernel out"
rm -rf "$dir"
git -C $tree worktree prune
git -C $tree worktree add -q --detach "$dir" "$refs/base"
