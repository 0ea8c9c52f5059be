#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# packages.sh [PACKAGE...]: install what lab/packages lists, or of it only these,
# and this machine lacks: one apt-get install, through sudo when not root, nothing
# at all when everything is there.
# Result: 0 when everything is there, else one line on stderr.
set -u
list=$(dirname "$0")/packages
missing=

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	for c in $(awk -v only=" $* " '!/^#/ && $2 != "-" && (only == "  " || index(only, " " $1 " ")) {
				print $2 }' "$list"); do
		command -v "$c" >/dev/null || missing="$missing $c"
	done
	[ -z "$missing" ] && exit 0
	echo "lab: not a Debian machine; please install:$missing" >&2
	exit 1
fi

wanted=${*:-$(awk '!/^#/ && NF { print $1 }' "$list")}
have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
	sed -n 's/^installed //p')
for p in $wanted; do
	printf '%s\n' "$have" | grep -qx "$p" || missing="$missing $p"
done
[ -z "$missing" ] && exit 0

sudo=
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "lab: please install, as root: apt-get install$missing" >&2
		exit 1
	fi
	sudo=sudo
fi
mkdir -p build/logs
log=build/logs/packages.log
echo "lab: installing$missing"
export DEBIAN_FRONTEND=noninteractive
{
	$sudo apt-get update &&
	$sudo apt-get install -y --no-install-recommends $missing
} >$log 2>&1 </dev/null && exit 0
echo "lab: apt-get could not install$missing ($(grep -m1 '^E:' $log); log $log)" >&2
exit 1
