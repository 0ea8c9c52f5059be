#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# front-door.sh: what a user may get wrong is refused at once, in one line, and
# leaves nothing behind.  In a copy of the project that has built nothing yet, with
# small sources instead of a kernel.  Prints KTAP.
set -eu
top=$PWD/build/front-door
rm -rf "$top"
mkdir -p "$top/copy" "$top/bin" "$top/tree" "$top/full" "$top/a b/copy"
cp -R Makefile lab bases "$top/copy"
cp -R Makefile lab bases "$top/a b/copy"
n=0 bad=0 in=$top/copy room=99999999

# Room, a mirror and a home, whatever this machine has.
printf '#!/bin/sh\necho\necho "disk 9 9 $ROOM 9 /"\n' >"$top/bin/df"
printf '#!/bin/sh\n' >"$top/bin/apt-get"
chmod +x "$top/bin/df" "$top/bin/apt-get"

# Sources: an old tree; one of the right version whose make, as the kernel's, knows
# a few ARCH; its tarball; half of that.
base=$(sed -n 's/^BASE[ \t?=]*//p' Makefile)
version=$(sed -n 's/^BASE_VERSION[ \t:=]*//p' "bases/$base/pin.mk")
printf 'VERSION = 3\nPATCHLEVEL = 2\nSUBLEVEL = 1\nEXTRAVERSION =\nNAME = Old\n' >"$top/tree/Makefile"
mkdir -p "$top/linux/arch/x86"
echo "$version" | awk -F. '{ printf "VERSION = %s\nPATCHLEVEL = %s\nSUBLEVEL = %s\nEXTRAVERSION =\nNAME = It\n", $1, $2, $3 }' \
	>"$top/linux/Makefile"
printf 'ARCH ?= x86\ninclude arch/$(ARCH)/Makefile\nkernelversion:\n\t@echo %s\n' "$version" >>"$top/linux/Makefile"
: >"$top/linux/arch/x86/Makefile"
head -c 300000 /dev/urandom >"$top/linux/noise"
tar -C "$top" -cf "$top/linux.tar" linux
head -c 200000 "$top/linux.tar" >"$top/half.tar"
echo "no tarball" >"$top/text"
truncate -s 257M "$top/large"
echo "a file" >"$top/do\$lar"
echo "a file" >"$top/quo\"te"

result() {	# result STATUS TEXT
	n=$((n + 1))
	[ "$1" -eq 0 ] && echo "ok $n $2" || { bad=1; echo "not ok $n $2"; sed 's/^/# /' "$top/out"; }
}

# run ARGUMENT...: make as a user calls it, whoever calls us.
run() {
	env -i PATH="$top/bin:$PATH" HOME="$top/home" ROOM=$room make -C "$in" "$@" >"$top/out" 2>&1 </dev/null
}

# refused TEXT ARGUMENT...: make fails, and its one line, our own, has TEXT.
refused() {
	text=$1 status=0
	shift
	rm -rf "$top/copy/build"
	! run "$@" || status=1
	[ "$(grep -cv '^make' "$top/out")" -eq 1 ] || status=1
	grep '^lab: ' "$top/out" | grep -qF "$text" || status=1
	[ ! -e "$top/copy/build/linux" ] && [ ! -e "$top/copy/build/linux.new" ] || status=1
	result $status "$(echo "$*" | sed "s,$top/,,g") is refused: $text"
}

echo "KTAP version 1"
refused "BASE=foo: there are" tree BASE=foo
refused "BASE=../lab: there are" tree BASE=../lab
refused "BASE=cover: there are" export BASE=cover
refused "TO=: which base?" rebase
refused "TO=foo: which base?" rebase TO=foo
refused "TO=9.9: only make rebase" tree TO=9.9
refused "no such file" rebase TO=9.9 KERNEL_SRC="$top/nowhere"
refused "ARCH=foo: there are" check ARCH=foo
refused "ARCH=x86,foo: there are" tree ARCH=x86,foo
refused "shell boots one of" shell ARCH=host
refused "gdb boots one of" gdb ARCH=x86,arm64
refused "demo is for one of" demo ARCH=x86-debug
refused "bench is for one of" bench ARCH=host
refused "LEVEL=slow: there are" check LEVEL=slow
refused "FLAVOUR=rt: there are" deb FLAVOUR=rt
refused "JOBS=0:" tree JOBS=0
refused "JOBS=abc:" kernels JOBS=abc
refused "FACTOR=abc:" list FACTOR=abc
refused "FACTOR=0.0:" check FACTOR=0.0
in="$top/a b/copy"
refused "a blank or a colon" tree
in=$top/copy

refused "no such file" tree KERNEL_SRC="$top/nowhere"
refused "no Linux $version source: nothing of the kind" tree KERNEL_SRC="$top/full"
refused "no Linux $version source: 3.2.1" tree KERNEL_SRC="$top/tree"
refused "neither a kernel tree nor a tarball" tree KERNEL_SRC="$top/text"
room=1000000
refused "976 MB to spare" tree KERNEL_SRC="$top/linux.tar"
room=99999999

# These say that they unpack, and then why they could not.
rm -rf "$top/copy/build"
! run tree KERNEL_SRC="$top/half.tar" && grep -q '^lab: cannot unpack' "$top/out" &&
	[ "$(grep -cv '^make' "$top/out")" -eq 2 ] && [ ! -e "$top/copy/build/linux.new" ] && r=0 || r=1
result $r "half a tarball is refused, and removed"

refused "SECRET=1 is a demo of ARCH=x86" demo ARCH=arm64 SECRET=1
refused "no such file" demo FILE="$top/nowhere"
refused "is a directory" demo FILE="$top/full"
refused "has 269484032 bytes, more than 268435456" demo FILE="$top/large"
refused "KERNEL_SRC=/nowhere" demo FILE="$top/do\$lar" KERNEL_SRC=/nowhere
refused "KERNEL_SRC=/nowhere" demo FILE="$top/quo\"te" KERNEL_SRC=/nowhere

# Without a mirror the cache is where it was asked for, with its blank.
refused "apt knows no Debian mirror" tree
refused "apt knows no Debian mirror" tree XDG_CACHE_HOME="$top/a b"
[ -e "$top/home/.cache/guest_memfd-lab/lock" ] && [ -e "$top/a b/guest_memfd-lab/lock" ] && r=0 || r=1
result $r "the cache is in HOME or XDG_CACHE_HOME"

# ARCH= is the lab's, and none that the kernel's make knows.
run base ARCH=host KERNEL_SRC="$top/linux.tar" &&
	git --git-dir="$top/copy/build/linux/.git" rev-parse -q --verify "refs/lab/$base/base" >/dev/null && r=0 || r=1
result $r "a tarball of Linux $version becomes the base, with ARCH=host"
run base KERNEL_SRC="$top/linux.tar" && run base && r=0 || r=1
result $r "once more is no work"
! run base KERNEL_SRC="$top/tree" && grep -q "^lab: KERNEL_SRC=.*made of $top/linux.tar" "$top/out" && r=0 || r=1
result $r "another KERNEL_SRC is refused then"
echo "1..$n"
rm -rf "$top"
exit $bad
