#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# series-check.sh JOBS [STEPS]: every step builds on both architectures, with warnings
# of KVM as errors; or only those that patterns STEPS name, or only on LAB_ARCH.
# Prints KTAP; logs in build/logs/series.
set -eu
. lab/git.sh
jobs=$1 only=$(echo "${2:-*}" | tr , ' ')
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
step() {	# step NAME ARCH CROSS TARGET FAMILY
	name=$1 out=build/series-$2 arch=$2 cross=$3 target=$4 log=$logs/$1.$5.log
	# shellcheck disable=SC2254
	case $5 in ${LAB_ARCH:-*}) ;; *) return ;; esac
	{ lab/config.sh "$wt" $out $arch lab/config/common.config lab/config/$5.config lab/config/own.config &&
		make -C "$wt" O="$PWD/$out" ARCH=$arch CROSS_COMPILE=$cross CC="ccache ${cross}gcc" -j"$jobs" $target
	} >"$log" 2>&1 && r=0 || r=1
	result $r "$name $5" "$log"
}
wanted() {
	set -f
	for p in $only; do
		# shellcheck disable=SC2254
		case $1 in $p) return 0 ;; esac
	done
	return 1
}

echo "KTAP version 1"
steps . | cut -d' ' -f2 >"$logs/steps"
git -C $tree rev-list --reverse "$refs/base..$refs/composed" | paste - "$logs/steps" >"$logs/commits"
while read -r c name; do
	wanted "$name" || continue
	# Only what differs is written, so a step rebuilds what it touches.
	git -C "$wt" checkout -q --detach "$c"
	step "$name" x86_64 "" "bzImage modules" x86
	step "$name" arm64 aarch64-linux-gnu- Image arm64
done <"$logs/commits"
[ $n -gt 0 ] || { bad=1; echo "# no step matches $only"; }
echo "1..$n"
exit $bad
