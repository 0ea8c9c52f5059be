# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts that work on the composed tree.  Commits must have the
# same hash everywhere: no configuration of the user's, fixed name and dates.
#
# build/linux keeps every base, as a git history of its own: its first commit is
# refs/lab/BASE/base, what the project composed to is refs/lab/BASE/composed, and
# one works on branch BASE.
tree=build/linux
base=${LAB_BASE:-$(sed -n 's/^BASE[ \t]*?=[ \t]*//p' Makefile)}
data=bases/$base refs=refs/lab/$base state=$tree/.git/lab-$base
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 LC_ALL=C TZ=UTC
# A checkout may be another user's, e.g. in a container; whoever runs make trusts it.
export GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_KEY_1=safe.directory
export GIT_CONFIG_VALUE_0="$PWD" GIT_CONFIG_VALUE_1="$PWD/$tree"
export GIT_AUTHOR_NAME="${LAB_NAME:-guest_memfd project}" GIT_COMMITTER_NAME="${LAB_NAME:-guest_memfd project}"
export GIT_AUTHOR_EMAIL="${LAB_EMAIL:-kvm@vger.kernel.org}" GIT_COMMITTER_EMAIL="${LAB_EMAIL:-kvm@vger.kernel.org}"
export GIT_AUTHOR_DATE="2026-01-01T00:00:00Z" GIT_COMMITTER_DATE="2026-01-01T00:00:00Z"

fail() { echo "lab: $*" >&2; exit 1; }

# Is the base there?  Asked of git, as a "git gc" takes the file of a ref away.
has_base() { git --git-dir=$tree/.git rev-parse -q --verify "$refs/base" >/dev/null 2>&1; }

# Does a git rebase wait in build/linux for someone to go on with it?
in_rebase() { [ -d $tree/.git/rebase-merge ] || [ -d $tree/.git/rebase-apply ]; }

# What is checked out in build/linux: the name of a base, as a rule.
branch() { git -C $tree symbolic-ref -q --short HEAD || echo "no branch"; }

# With a driver of someone's, e.g. "union", git merges lines of two steps without a word.
no_foreign_driver() {
	line=$(grep -v ' merge=lab-own$' $tree/.git/info/attributes 2>/dev/null | grep 'merge' || :)
	[ -z "$line" ] || fail "build/linux/.git/info/attributes has git merge steps that conflict, remove this there: $line"
}

# Of make rebase; nothing that git should go by in the rebases of others.
no_own_driver() { sed -i '/ merge=lab-own$/d' $tree/.git/info/attributes 2>/dev/null || :; }

# Has build/linux something that the project has not?
has_edits() {
	[ "$(git -C $tree rev-parse HEAD)" != "$(git -C $tree rev-parse "$refs/composed")" ] ||
		[ -n "$(git -C $tree status --porcelain -uno)$(new_files)" ]
}
new_files() { git -C $tree ls-files -o --exclude-standard | grep -v '\.orig$\|\.rej$'; }

# Files of the project that lie at kernel paths, below directory $1.
own_candidates() {
	(cd "$1" && if [ -e .git ]; then
		git ls-files -co --exclude-standard
	else
		find . -type f | sed 's,^\./,,'
	fi) | grep / | grep -Ev '^(lab|bases|build|\.ci|\.git)/' | sort
}

# The steps of $1/bases/BASE/series, "SET STEP [own/file ...]" a line.
steps() {
	[ ! -e "$1/$data/series" ] || awk '
		function put() { if (step != "") print set, step own; step = own = "" }
		/^[ \t]*(#|$)/ { next }
		/^\[.*\]$/ { put(); set = substr($1, 2, length($1) - 2); next }
		/^[ \t]/ { own = own " " $1; next }
		{ put(); step = $1 }
		END { put() }' "$1/$data/series"
}

# The files of the project that they add, and where project $1 has file $2 of them:
# a base may have a version of its own.
own_files() { steps "$1" | cut -s -d' ' -f3- | tr ' ' '\n' | sed '/^$/d' | sort; }
own_path() { [ -e "$1/${LAB_OWN:-$data/own}/$2" ] && echo "${LAB_OWN:-$data/own}/$2" || echo "$2"; }

# All that a composed tree is made of, as one sum.
project_key() {
	(cd "$1" && { git --git-dir="$OLDPWD/$tree/.git" rev-parse "$refs/base"
	cat "$data/series" "$data"/seams/*.patch "$data/replaced.sha256" || :
	own_files . | while read -r f; do
		f=$(own_path . "$f")
		echo "$f"; [ ! -x "$f" ] || echo x; cat "$f"
	done; } 2>/dev/null | sha256sum | cut -d' ' -f1)
}
