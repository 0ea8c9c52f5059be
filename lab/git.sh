# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts that work on the composed tree.  Commits must have the
# same hash everywhere: no configuration of the user's, fixed name and dates.
tree=build/linux
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 LC_ALL=C TZ=UTC
# A checkout may be another user's, e.g. in a container; whoever runs make trusts it.
export GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_KEY_1=safe.directory
export GIT_CONFIG_VALUE_0="$PWD" GIT_CONFIG_VALUE_1="$PWD/$tree"
export GIT_AUTHOR_NAME="guest_memfd project" GIT_COMMITTER_NAME="guest_memfd project"
export GIT_AUTHOR_EMAIL=kvm@vger.kernel.org GIT_COMMITTER_EMAIL=kvm@vger.kernel.org
export GIT_AUTHOR_DATE="2026-01-01T00:00:00Z" GIT_COMMITTER_DATE="2026-01-01T00:00:00Z"

# Is the base there?  Asked of git, as a "git gc" takes the file of a ref away.
has_base() { git --git-dir=$tree/.git rev-parse -q --verify refs/lab/base >/dev/null 2>&1; }

fail() { echo "lab: $*" >&2; exit 1; }

# Files of the project that lie at kernel paths, below directory $1.
own_candidates() {
	(cd "$1" && if [ -e .git ]; then
		git ls-files -co --exclude-standard
	else
		find . -type f | sed 's,^\./,,'
	fi) | grep / | grep -Ev '^(lab|patches|build|\.ci|\.git)/' | sort
}

# The lines of $1/patches/series that count.
series_lines() { sed 's/#.*//; /^[ \t]*$/d' "$1/patches/series" 2>/dev/null || :; }

# All that a composed tree is made of, as one sum (project side only).
project_key() {
	(cd "$1" && { cat patches/series patches/*.patch patches/replaced.sha256 MAINTAINERS || :
	for f in lab/maintainers.awk $(series_lines . | cut -s -d" " -f2-); do
		echo "$f"; [ ! -x "$f" ] || echo x; cat "$f"
	done; } 2>/dev/null | sha256sum | cut -d' ' -f1)
}
