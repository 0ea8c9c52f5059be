#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# deb.sh FLAVOUR ARCH VERSION DEBUG STEPS KBUILD...: packages in build/deb, of the kernel
# that is configured in build/deb/FLAVOUR, by the kernel's own scripts/package.  KBUILD
# is its make.  Left out is what else they could make: linux-libc-dev, and headers whose
# tools would have to run on another kind of machine than this one.
set -eu
flavour=$1 arch=$2 version=$3 debug=$4 steps=$5
shift 5
log=build/logs/build-deb-$flavour.log
targets=binary-image
if [ "$(dpkg --print-architecture)" = "$arch" ]; then
	targets=$targets,binary-headers
else
	echo "lab: no package of headers: only a machine of $arch can make it"
fi
[ -z "$debug" ] || targets=$targets,binary-image-dbg

# Two fifths of a second each is what a step takes, if the compiler's cache has nothing.
cpus=$(echo "$*" | sed -n 's/.* -j\([0-9]*\).*/\1/p')
echo "lab: the first time this takes about $((steps * 2 / 5 / cpus / 60)) minutes; once stopped, it goes on where it was"
# -d: lab/packages.sh has seen to what is needed; the kernel's own list has more.
export KCPPFLAGS=-fmacro-prefix-map=../../linux/=
lab/progress.sh "packages $flavour" "$log" "$steps" "$@" HOSTCC="ccache gcc" \
	LOCALVERSION="-gmem-$flavour" KDEB_SOURCENAME=linux-gmem KDEB_PKGVERSION="$version-1" \
	KDEB_CHANGELOG_DIST=unstable DPKG_FLAGS="-d -T$targets --hook-init=$PWD/lab/deb-hook.sh" \
	bindeb-pkg
for f in build/deb/linux-*"$version-gmem-$flavour"*_"$version-1_$arch.deb"; do
	[ ! -e "$f" ] || du -h "$f"
done
