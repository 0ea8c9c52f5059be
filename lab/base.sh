#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# base.sh SOURCE VERSION: unpack the base kernel into build/linux and commit it
# there as refs/lab/base.  SOURCE: a linux-source .deb, a tarball, or a tree.
set -eu
. lab/git.sh
source=$1 version=$2

! has_base || exit 0
[ ! -e $tree ] || fail "$tree has no base commit; move it away"
[ -e "$source" ] || fail "KERNEL_SRC=$source: no such file or directory"
new=$tree.new
rm -rf $new
mkdir -p $new
echo "lab: unpacking the base kernel"
case $source in
*.deb)
	# The package holds one tarball.
	dpkg-deb --fsys-tarfile "$source" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		tar -xJ -C $new --strip-components=1 ;;
*)
	if [ -d "$source" ]; then
		[ ! -e "$source/.config" ] || fail "KERNEL_SRC=$source has been built in; run make mrproper there"
		rsync -a --exclude=.git "$source/" $new/
	else
		tar -xf "$source" -C $new --strip-components=1
	fi ;;
esac
got=$(make -s -C $new kernelversion 2>/dev/null || :)
[ "$got" = "$version" ] || {
	case $got in
	"${version%.*}".*) echo "lab: WARNING: the base is Linux $got, not $version" >&2 ;;
	*) fail "this is no Linux $version source: ${got:-nothing of the kind} in $source" ;;
	esac
}
# Debian ignores everything at the top level; new files must be seen here.
sed -i '/^# Debian packaging: ignore everything/,$d' $new/.gitignore
git -C $new init -q -b lab
git -C $new config gc.auto 0
# Every file straight into one pack: 90,000 loose objects would take minutes.
git -C $new -c core.bigFileThreshold=1 -c core.compression=1 -c core.safecrlf=false add -A -f
git -C $new commit -q -m "Linux $got"
git -C $new update-ref refs/lab/base HEAD
git -C $new update-ref refs/lab/composed HEAD
mv $new $tree
