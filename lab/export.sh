#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# export.sh OUT [COMMIT]: write what build/linux holds as seams and own files into
# the project directory OUT (the project itself: ".").
#
# The commits of refs/lab/BASE/base..HEAD become steps, in order, after git has
# squashed "fixup!" commits into those that they are for.  An uncommitted edit of a
# base file goes into the step whose lines it changes (lab/place.sh), of an own
# file, into the own file.  With COMMIT: only what is committed there.
#
# git works on a copy of the history that has only the base files which steps touch,
# and empty files in place of our own: these are exported whole, from the last
# state.  So neither the index nor the working tree of build/linux is touched.
set -eu
. lab/git.sh
out=$1 commit=${2:-}
tmp=$(mktemp -d)
small=refs/lab/small-$$
export GIT_DIR="$PWD/$tree/.git"
cleanup() {
	rm -rf "$tmp"
	git worktree prune
	git update-ref -d "$small"
}
trap cleanup EXIT

if [ -z "$commit" ]; then
	unset GIT_DIR
	no_foreign_driver
	! in_rebase || fail "a git rebase is going on in build/linux; finish it there first (git rebase --continue)"
	on=$(branch)
	[ "$on" = "$base" ] || fail "build/linux is on $on, not on base $base: make export BASE=$on"
	# What build/linux was not made of is overwritten: git must have it.
	if [ "$out" = . ] && [ "$(cat "$state.key" 2>/dev/null)" != "$(project_key .)" ]; then
		mine=$(git status --porcelain -- "$data" $(own_candidates .) | cut -c4-)
		[ -z "$mine" ] || fail "build/linux does not have these changes of yours; 'make tree' brings them there, or commit them first:" $mine
	fi
	new=$(new_files || :)
	[ -z "$new" ] || fail "new files in build/linux; git add and git commit them there, or remove them:" $new
	# HEAD, and the edits of the working tree.
	head=$(git -C $tree rev-parse HEAD)
	final=$(git -C $tree stash create)
	final=${final:-$head}
	export GIT_DIR="$PWD/$tree/.git"
else
	head=$(git rev-parse "$commit") final=$head
fi
git merge-base --is-ancestor "$refs/base" "$head" || fail "what build/linux holds is not on base $base; make rebase TO=$base carries it there"
[ -z "$(git rev-list --merges "$refs/base..$head")" ] || fail "a merge commit in build/linux cannot become a step; rebase it away"

git ls-tree -r --name-only "$refs/base" | sort >"$tmp/base"
git diff --no-renames --name-only "$refs/base" "$final" | sort >"$tmp/touched"
git log --no-renames --format= --name-only "$refs/base..$head" | sort -u >"$tmp/stepped"
lost=$(comm -23 "$tmp/touched" "$tmp/stepped")
[ -z "$lost" ] || fail "no step touches these yet; git commit them in build/linux, with a message they become a step:" $lost
# Own: not in the base, or known to replace a file of it.
awk '{ print $2 }' "$data/replaced.sha256" 2>/dev/null | sort >"$tmp/replaced" || :
{ comm -13 "$tmp/base" "$tmp/stepped"; comm -12 "$tmp/replaced" "$tmp/stepped"; } | sort -u >"$tmp/own"
git ls-tree -r --name-only "$final" | sort | comm -12 - "$tmp/own" >"$tmp/own.live"

# ---- the small history ----

# The entries of commit $1 for the base files that steps touch.
entries() {
	comm -23 "$tmp/stepped" "$tmp/own" | xargs -r git ls-tree "$1" | awk '{ sub(" blob ", " ") } 1'
}
git update-ref "$small" "$head"
git fast-export --no-data --reencode=no --reference-excluded-parents \
	--export-marks="$tmp/marks" "$refs/base..$small" >"$tmp/stream"
git update-ref -d "$small"
{
	printf 'commit %s\nmark :1000000\ncommitter lab <> 0 +0000\ndata 5\nbase\n' "$small"
	entries "$refs/base" | sed "s/^/M /; s/\t/ /"
	echo
	awk -v own="$tmp/own" -v nothing="$(git hash-object -w --stdin </dev/null)" \
		-v base="$(git rev-parse "$refs/base")" '
		BEGIN { while ((getline f < own) > 0) mine[f] = 1 }
		data > 0 { data -= length($0) + 1; print; next }
		/^data / { data = $2 }
		/^from / && $2 == base { $0 = "from :1000000" }
		/^[MD] / {
			f = $0
			sub(/^(D|M [0-9]+ [^ ]+) /, "", f)
			if (f in mine && ($1 == "D" || seen[f]++))
				next
			if (f in mine)
				$3 = nothing
		}
		{ print }' "$tmp/stream"
} >"$tmp/import"
git -c fastimport.unpackLimit=100000 fast-import --quiet --force --date-format=raw --export-marks="$tmp/small.marks" <"$tmp/import"
root=$(awk '$1 == ":1000000" { print $2 }' "$tmp/small.marks")
# Commits of the small history, and what they are in build/linux.
awk 'NR == FNR { c[$1] = $2; next } $1 in c { print $2, c[$1] }' "$tmp/marks" "$tmp/small.marks" >"$tmp/originals"

export GIT_INDEX_FILE="$tmp/index"
git read-tree "$small"
{ comm -23 "$tmp/stepped" "$tmp/own" | sed 's/^/0 0000000000000000000000000000000000000000\t/'
entries "$final"; } | git update-index --index-info
want=$(git write-tree)
unset GIT_INDEX_FILE
last=$(lab/place.sh "$root" "$(git rev-parse "$small")" "$want" "$tmp")
git update-ref "$small" "$last"

# Let git squash.
if git log --format=%s "$root..$last" | grep -qE '^(fixup|squash|amend)! '; then
	git worktree add -q --detach "$tmp/squash" "$last"
	said=$(unset GIT_DIR; GIT_EDITOR=: GIT_SEQUENCE_EDITOR=: git -C "$tmp/squash" -c rerere.enabled=false \
		rebase -i --autosquash --keep-empty "$root" 2>&1) || {
		files=$(unset GIT_DIR; git -C "$tmp/squash" diff --name-only --diff-filter=U)
		fail "an edit of" ${files:-"$said"} "does not fit into its step, or a later one: $(unset GIT_DIR
			git -C "$tmp/squash" log -1 --format=%s REBASE_HEAD); git rebase -i --autosquash $refs/base in build/linux, and resolve it there"
	}
	last=$(unset GIT_DIR; git -C "$tmp/squash" rev-parse HEAD)
	git update-ref "$small" "$last"
	[ "$(git rev-parse "$last^{tree}")" = "$want" ] || fail "squashing has changed the result; git rebase -i --autosquash $refs/base in build/linux, and look there"
fi

# ---- the project's form ----

# The seam of commit $1: message, and the change of base files.
write_seam() {
	git log -1 --format='Subject: %s%n%n%b' "$1" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
	echo "---"
	[ ! -s "$tmp/paths" ] || xargs git diff-tree -p --full-index --no-renames --no-ext-diff --no-textconv \
		"$1^" "$1" -- <"$tmp/paths"
}

mkdir -p "$tmp/seams"
git rev-list --reverse "$root..$last" >"$tmp/commits"
while read -r c; do
	git diff-tree -r --no-commit-id --no-renames --name-only "$c" | sort >"$tmp/changed"
	comm -12 "$tmp/changed" "$tmp/own.live" >"$tmp/adds"
	comm -23 "$tmp/changed" "$tmp/own" >"$tmp/paths"
	subject=$(git log -1 --format=%s "$c")
	if [ ! -s "$tmp/adds" ] && [ ! -s "$tmp/paths" ]; then
		echo "lab: no step of its own, it only changes files that another step adds: $subject"
		continue
	fi
	# A step keeps its name as long as it keeps its subject, also on another base.
	name=$(grep -lxF "Subject: $subject" "$data"/seams/*.patch bases/*/seams/*.patch 2>/dev/null | head -n 1)
	[ -n "$name" ] && name=$(basename "$name" .patch) || name=$(git log -1 --format=%f "$c" | cut -c1-60)
	[ ! -e "$tmp/seams/$name.patch" ] || fail "two steps have the subject or name $subject"
	write_seam "$c" >"$tmp/seams/$name.patch"
	echo "$name"
	sed 's/^/\t/' "$tmp/adds"
done <"$tmp/commits" >"$tmp/steps"
grep '^lab: ' "$tmp/steps" >&2 || :
sed -i '/^lab: /d' "$tmp/steps"

# Nothing can fail any more: write.
lab/export-files.sh "$out" "$final" "$tmp"
