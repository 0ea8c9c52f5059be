#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# config.sh [-b CONFIG] TREE OUTPUT ARCH FRAGMENT...: make OUTPUT/.config from
# tinyconfig, or from CONFIG, and the fragments (a later one wins), then check that
# every requested line is in it.  Does nothing when neither of them nor any Kconfig
# has changed.
# Lines of a fragment whose file name begins with "own" are requested only if
# the tree knows the option, so that a partly applied series builds as well.
set -eu
from=
[ "$1" != -b ] || { from=$2; shift 2; }
tree=$1 out=$2 arch=$3
shift 3
key=$(cat "$0" ${from:+"$from"} "$@" | sha256sum)
if [ "$(cat "$out/.config.key" 2>/dev/null)" = "$key" ] && [ -s "$out/.config" ] &&
   [ -z "$(find "$tree" -name 'Kconfig*' -newer "$out/.config.key" -print -quit)" ]; then
	exit 0
fi
mkdir -p "$out"
rm -f "$out/.config.key"
tmp=$out/.config.requested
: >"$tmp"
for f in "$@"; do
	case ${f##*/} in
	own*)
		sed -n 's/^CONFIG_\([A-Z0-9_]*\)=.*/\1/p' "$f" | while read -r o; do
			grep -qrsw --include='Kconfig*' "config $o" "$tree/virt" "$tree/arch/x86/kvm" \
				"$tree/arch/arm64/kvm" && grep "^CONFIG_$o=" "$f"
		done >>"$tmp" || : ;;
	*)	cat "$f" >>"$tmp" ;;
	esac
done
# Of lines for the same option the last one counts.
awk '/^CONFIG_/ { split($0, a, "="); o = a[1] }
     /^# CONFIG_.* is not set$/ { o = $2 }
     o { if (!(o in line)) order[++n] = o; line[o] = $0; o = "" }
     END { for (i = 1; i <= n; i++) print line[order[i]] }' "$tmp" >"$tmp.one"
mv "$tmp.one" "$tmp"

log=$out/.config.log
{
	if [ "$from" ]; then
		cat "$from" >"$out/.config"
	else
		make -s -C "$tree" O="$PWD/$out" ARCH="$arch" tinyconfig
	fi &&
	cat "$tmp" >>"$out/.config" &&
	make -s -C "$tree" O="$PWD/$out" ARCH="$arch" olddefconfig
} >"$log" 2>&1 </dev/null || {
	echo "lab: configuring $out failed, log $log" >&2
	exit 1
}
lost=$(awk 'NR == FNR { have[$0]; next } !($0 in have) && /=/ && !/=n$/ || (/is not set$/ && !($0 in have))' \
	"$out/.config" "$tmp")
# An option that does not exist any more is not set either.
lost=$(echo "$lost" | while read -r l; do
	case $l in
	"# CONFIG_"*) o=${l#\# }; ! grep -q "^${o%% *}=" "$out/.config" || echo "$l" ;;
	?*) echo "$l" ;;
	esac
done)
if [ -n "$lost" ]; then
	echo "lab: $out: these requested lines did not survive: $(echo $lost)" >&2
	exit 1
fi
echo "$key" >"$out/.config.key"
