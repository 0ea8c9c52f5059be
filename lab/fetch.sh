#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# fetch.sh DIR PACKAGE VERSION SUITE SHA256 [ARCH]
# Put the pinned kernel source package into DIR (kept between clones) and print
# its path; or, with ARCH, another package of that release.  It comes from the mirror
# that this machine's apt uses for Debian, with an apt state of its own; apt checks the
# signature, we check the sum, if there is one.
# When the mirror has the pinned version no more: the newest of the same
# package, with a warning; replaced.sha256 decides whether it fits.  Without
# VERSION it is the newest of all of SUITE anyway, and its suite is printed, too.
set -eu
dir=$1 package=$2 version=$3 suite=$4 sum=$5 arch=${6:-}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
deb=$dir/${package}_${version}_${arch:-all}.deb
or="; or use KERNEL_SRC= with a tree or tarball of the base kernel"
[ -z "$arch" ] || or=

sum_of() { sha256sum "$1" | cut -d' ' -f1; }
is_there() { [ -s "$deb" ] && { [ -z "$sum" ] || [ "$(sum_of "$deb")" = "$sum" ]; }; }
fail() { echo "lab: $*" >&2; exit 1; }

[ "$package" ] || fail "this base is no Debian package${or:+: say KERNEL_SRC=}"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if is_there; then
	echo "$deb"
	exit 0
fi
# Other clones wait here, and then find the package in the cache.
exec 9>"$dir/lock"
flock 9
if is_there; then
	echo "$deb"
	exit 0
fi

command -v apt-get >/dev/null || fail "no apt-get here$or"
[ -s $keyring ] || fail "no $keyring; install debian-archive-keyring"
mirror=$(lab/mirror.sh)
[ -n "$mirror" ] || fail "apt knows no Debian mirror$or"

apt=$dir/apt
mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial"
cat >"$apt/sources/base.sources" <<EOF
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Signed-By: $keyring
EOF
set -- -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/sources" \
	-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache"
[ -z "$arch" ] || set -- "$@" -o "APT::Architecture=$arch" -o "APT::Architectures=$arch"
[ "$(id -u)" -ne 0 ] || set -- "$@" -o APT::Sandbox::User=root
e_line() { grep -m1 '^E:' "$apt/log" || echo "no error line"; }
echo "lab: fetching $package ${version:+$version }($suite, ${arch:-160 MB})" >&2
# Without the option apt takes an unreachable mirror for an old one.
apt-get "$@" -o APT::Update::Error-Mode=any update >"$apt/log" 2>&1 ||
	fail "cannot reach $suite of this machine's Debian mirror ($(e_line); log $apt/log)$or"
cd "$dir"
newest() { apt-cache "$@" madison "$package" | awk 'NR == 1 { print $3 }'; }
if [ -z "$version" ]; then
	version=$(newest "$@")
	[ "$version" ] || fail "no $package in $suite"
	apt-get "$@" download "$package=$version" >>"$apt/log" 2>&1 ||
		fail "cannot download $package $version ($(e_line); log $apt/log)"
	for f in "$dir/$package"_*.deb; do
		[ "$(dpkg-deb -f "$f" Version)" != "$version" ] || echo "$f"
	done | head -n 1
	apt-cache "$@" madison "$package" | awk 'NR == 1 { sub("/.*", "", $6); print $6 }'
	exit 0
fi
if ! apt-get "$@" download "$package=$version" >>"$apt/log" 2>&1; then
	new=$(newest "$@")
	[ -n "$new" ] && [ "$new" != "$version" ] ||
		fail "cannot download $package $version ($(e_line); log $apt/log)"
	echo "lab: WARNING: $version has left the mirror, taking $new" >&2
	apt-get "$@" download "$package=$new" >>"$apt/log" 2>&1 ||
		fail "cannot download $package $new ($(e_line); log $apt/log)"
	ls -t "$dir/$package"_*"_${arch:-all}.deb" | head -n 1
	exit 0
fi
# apt writes the version's "~" and ":" in an escaped form; find what came.
got=$(ls -t "$dir/$package"_*"_${arch:-all}.deb" | head -n 1)
[ "$got" = "$deb" ] || mv "$got" "$deb"
is_there || fail "$deb is not what the base's pin.mk pins (sha256 $(sum_of "$deb"))"
rm -rf "$apt/lists" "$apt/cache"
echo "$deb"
