#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# base.sh SOURCE VERSION COMMAND...: commit the base kernel in build/linux as
# refs/lab/BASE/base; the first one is its working tree, too.  SOURCE (KERNEL_SRC=):
# a tarball or a tree; if it is empty, the linux-source .deb whose path COMMAND
# prints.
set -eu
. lab/git.sh
source=$1 version=$2
shift 2
new=$tree.new
got=
megabytes=2400		# of build/linux, or of another base as long as it is unpacked

# The version of the kernel tree $1, by its Makefile.  (Not by kbuild: that wants
# an ARCH it knows, and would take the one which is set here.)
version_of() {
	awk '{ v[$1] = $3 } $1 == "NAME" { exit }
	     END { if (v["VERSION"] != "") print v["VERSION"] "." v["PATCHLEVEL"] "." v["SUBLEVEL"] v["EXTRAVERSION"] }' \
		"$1/Makefile" 2>/dev/null
}

# Is the tree $1 what we want, or near enough?
look_at() {
	got=$(version_of "$1" || :)
	case $got in
	"$version") ;;
	"${version%.*}".*) echo "lab: WARNING: the base is Linux $got, not $version" >&2 ;;
	*) fail "this is no Linux $version source: ${got:-nothing of the kind} in $source" ;;
	esac
}

# A base is there until its pin changes.
pin=$(grep ^BASE_ "$data/pin.mk")
if has_base && [ "$(cat "$state.pin" 2>/dev/null)" = "$pin" ]; then
	made_of=$(cat "$state.source" 2>/dev/null || echo "another source")
	[ -z "$source" ] || [ "$(realpath -m "$source")" = "$made_of" ] ||
		fail "KERNEL_SRC=$source: base $base is there, made of $made_of; make clean, or another clone, for this one"
	exit 0
fi
[ ! -e $tree ] || [ -d $tree/.git ] || fail "$tree is no git tree; move it away"
if [ -n "$source" ]; then
	[ -e "$source" ] || fail "KERNEL_SRC=$source: no such file or directory"
	if [ -d "$source" ]; then
		look_at "$source"
		[ ! -e "$source/.config" ] || fail "KERNEL_SRC=$source has been built in; run make mrproper there"
	elif [ "${source%.deb}" = "$source" ] && ! tar -tf "$source" 2>/dev/null | head -n 1 | grep -q .; then
		fail "KERNEL_SRC=$source: neither a kernel tree nor a tarball"
	fi
fi
room=$(df -Pk build | awk 'NR == 2 { print int($4 / 1024) }')
[ "$room" -ge $megabytes ] || fail "$PWD/build has $room MB to spare; the kernel's source alone takes $megabytes"
from=${source:+$(realpath "$source")}
[ -n "$source" ] || source=$("$@")

rm -rf $new
# What is half done only takes room.
trap 'rm -rf $new' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p $new
echo "lab: unpacking the base kernel"
# Of a full disk tar has a line a file to say: the first one will do.
said=$(exec 2>&1
if [ -d "$source" ]; then
	rsync -a --exclude=.git "$source/" $new/
elif [ "${source%.deb}" != "$source" ]; then
	# The package holds one tarball.
	dpkg-deb --fsys-tarfile "$source" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		tar -xJ -C $new --strip-components=1
else
	tar -xf "$source" -C $new --strip-components=1
fi) || fail "cannot unpack $source ($(printf '%s\n' "$said" | head -n 1))"
[ -n "$got" ] || look_at $new
# Debian ignores everything at the top level; new files must be seen here.
[ ! -e $new/.gitignore ] || sed -i '/^# Debian packaging: ignore everything/,$d' $new/.gitignore
if [ -d $tree ]; then
	GIT_DIR=$PWD/$tree/.git
else
	git -C $new init -q -b "$base"
	git -C $new config gc.auto 0
	GIT_DIR=$PWD/$new/.git
fi
export GIT_DIR GIT_WORK_TREE="$PWD/$new" GIT_INDEX_FILE="$PWD/$new.index"
trap 'rm -rf $new $new.index' EXIT
# Every file straight into one pack: 90,000 loose objects would take minutes.
git -c core.bigFileThreshold=1 -c core.compression=1 -c core.safecrlf=false add -A -f
commit=$(git commit-tree -m "Linux $got" "$(git write-tree)")
git update-ref "$refs/base" "$commit"
git rev-parse -q --verify "$refs/composed" >/dev/null || git update-ref "$refs/composed" "$commit"
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
if [ ! -d $tree ]; then
	git -C $new update-ref "refs/heads/$base" "$commit"
	mv $new.index $new/.git/index
	mv $new $tree
fi
echo "$pin" >"$state.pin"
echo "${from:-$source}" >"$state.source"
