#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# fetch.sh DIR PACKAGE VERSION SUITE SHA256
# Put the pinned kernel source package into DIR (kept between clones) and print
# its path.  It comes from the mirror that this machine's apt uses for Debian,
# with an apt state of its own; apt checks the signature, we check the sum.
# When the mirror has the pinned version no more: the newest of the same
# package, with a warning; replaced.sha256 decides whether it fits.  Without
# VERSION it is the newest of all of SUITE anyway, and its suite is printed, too.
set -eu
dir=$1 package=$2 version=$3 suite=$4 sum=$5
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
deb=$dir/${package}_${version}_all.deb

sum_of() { sha256sum "$1" | cut -d' ' -f1; }
fail() { echo "lab: $*" >&2; exit 1; }

[ "$package" ] || fail "this base is no Debian package: say KERNEL_SRC="
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
if [ -s "$deb" ] && [ "$(sum_of "$deb")" = "$sum" ]; then
	echo "$deb"
	exit 0
fi
# Other clones wait here, and then find the package in the cache.
exec 9>"$dir/lock"
flock 9
if [ -s "$deb" ] && [ "$(sum_of "$deb")" = "$sum" ]; then
	echo "$deb"
	exit 0
fi

command -v apt-get >/dev/null || fail "no apt-get here; use KERNEL_SRC= with a tree or tarball of the base kernel"
[ -s $keyring ] || fail "no $keyring; install debian-archive-keyring"
. /etc/os-release
mirror=$(apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI)' 2>/dev/null |
	awk -v c="${VERSION_CODENAME:-}" '$1 == "Packages" && $2 == c && $3 == "main" { print $4; exit }')
[ -n "$mirror" ] || fail "apt knows no Debian mirror; use KERNEL_SRC="

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
[ "$(id -u)" -ne 0 ] || set -- "$@" -o APT::Sandbox::User=root
e_line() { grep -m1 '^E:' "$apt/log" || echo "no error line"; }
echo "lab: fetching $package ${version:+$version }($suite, 160 MB)" >&2
# Without the option apt takes an unreachable mirror for an old one.
apt-get "$@" -o APT::Update::Error-Mode=any update >"$apt/log" 2>&1 ||
	fail "cannot reach $suite of this machine's Debian mirror ($(e_line); log $apt/log); or use KERNEL_SRC="
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
	ls -t "$dir/$package"_*.deb | head -n 1
	exit 0
fi
# apt writes the version's "~" and ":" in an escaped form; find what came.
got=$(ls -t "$dir/$package"_*.deb | head -n 1)
[ "$got" = "$deb" ] || mv "$got" "$deb"
[ "$(sum_of "$deb")" = "$sum" ] || fail "$deb is not what the base's pin.mk pins (sha256 $(sum_of "$deb"))"
rm -rf "$apt/lists" "$apt/cache"
echo "$deb"
