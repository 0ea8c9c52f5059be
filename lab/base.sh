#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# base.sh SOURCE VERSION COMMAND...: unpack the base kernel into build/linux and
# commit it there as refs/lab/base.  SOURCE (KERNEL_SRC=): a tarball or a tree; if
# it is empty, the linux-source .deb whose path COMMAND prints.
set -eu
. lab/git.sh
source=$1 version=$2
shift 2
new=$tree.new
got=
megabytes=2400		# of build/linux

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

if has_base; then
	made_of=$(cat $tree/.git/lab-source 2>/dev/null || echo "another source")
	[ -z "$source" ] || [ "$(realpath -m "$source")" = "$made_of" ] ||
		fail "KERNEL_SRC=$source: build/linux is there, made of $made_of; make clean, or another clone, for this one"
	exit 0
fi
[ ! -e $tree ] || fail "$tree has no base commit; move it away"
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
git -C $new init -q -b lab
git -C $new config gc.auto 0
# Every file straight into one pack: 90,000 loose objects would take minutes.
git -C $new -c core.bigFileThreshold=1 -c core.compression=1 -c core.safecrlf=false add -A -f
git -C $new commit -q -m "Linux $got"
git -C $new update-ref refs/lab/base HEAD
git -C $new update-ref refs/lab/composed HEAD
echo "${from:-$source}" >$new/.git/lab-source
mv $new $tree
