#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# series-check.sh JOBS: every step builds on both architectures (virt/kvm and
# KVM with warnings as errors, then the image).
# Prints KTAP; logs in build/logs/series.
set -eu
. lab/git.sh
jobs=$1
wt=$PWD/build/series-tree
logs=$PWD/build/logs/series
mkdir -p "$logs"
# A worktree of a build/linux that is gone is of no use.
if ! [ -e "$wt/.git" ] || ! git -C "$wt" rev-parse -q --verify HEAD >/dev/null 2>&1; then
	rm -rf "$wt"
	git -C $tree worktree add -q -f --detach "$wt" "$refs/base"
fi
unset MAKEFLAGS MAKELEVEL
export KCPPFLAGS=-fmacro-prefix-map=../series-tree/=
n=0 bad=0
result() {
	n=$((n + 1))
	[ "$1" -eq 0 ] && echo "ok $n $2" || { bad=1; echo "not ok $n $2, log $3"; }
}
step() {	# step ARCH CROSS TARGET FRAGMENTS...
	out=build/series-$1 arch=$1 cross=$2 target=$3
	shift 3
	lab/config.sh "$wt" $out $arch "$@" &&
		make -C "$wt" O="$PWD/$out" ARCH=$arch CROSS_COMPILE=$cross CC="ccache ${cross}gcc" -j"$jobs" $target
}

echo "KTAP version 1"
for c in $(git -C $tree rev-list --reverse "$refs/base..$refs/composed"); do
	name=$(git -C $tree log -1 --format=%f "$c")
	# Only what differs is written, so a step rebuilds what it touches.
	git -C "$wt" checkout -q --detach "$c"
	log=$logs/$name
	step x86_64 "" "bzImage modules" lab/config/common.config lab/config/x86.config lab/config/own.config \
		>"$log.x86.log" 2>&1 && r=0 || r=1
	result $r "$name x86" "$log.x86.log"
	step arm64 aarch64-linux-gnu- Image lab/config/common.config lab/config/arm64.config lab/config/own.config \
		>"$log.arm64.log" 2>&1 && r=0 || r=1
	result $r "$name arm64" "$log.arm64.log"
done
echo "1..$n"
exit $bad
