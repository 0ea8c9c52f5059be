#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# series.sh OUT: write the series to OUT, ready for git send-email: of each set a
# folder, with a cover letter and one patch a step, by whoever git says the user is,
# signed off.
#
# bases/cover/SET: the subject, then the text.  "{STEP}" is the number of a step.
# "Patch {STEP}" and "Patches {STEP} to {STEP}" have to tell of all, in their order.
set -eu
name=$(git -c user.useConfigOnly=true var GIT_AUTHOR_IDENT 2>/dev/null) || {
	echo "lab: git does not know who you are, the author of the series: git config --global user.name and user.email" >&2
	exit 1
}
LAB_EMAIL=$(echo "$name" | sed 's/.*<\(.*\)>.*/\1/') LAB_NAME=${name%% <*}
export LAB_NAME LAB_EMAIL
. lab/git.sh
out=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
steps . | cut -d' ' -f1,2 >"$tmp/steps"
[ -s "$tmp/steps" ] || fail "$data/series is empty"
head=$(lab/compose.sh .)
git -C $tree rev-list --reverse "$refs/base..$head" | paste -d' ' "$tmp/steps" - >"$tmp/all"
on=$(git -C $tree log -1 --format=%s "$refs/base")
rm -rf "$out"
mkdir -p "$out"

cover() {	# cover SET TEMPLATE: fill in git's letter
	[ -s "bases/cover/$1" ] || fail "the set $1 has no cover letter, bases/cover/$1"
	awk -v on="$on" -v after="$after" -v text="bases/cover/$1" '
	function fail(why) { print "lab: " text ": " why >"/dev/stderr"; exit 1 }
	function number(step) {
		if (!(step in nr)) fail("there is no step " step " in this set")
		return nr[step]
	}
	FILENAME != text && FILENAME != template { nr[$2] = ++n; next }
	FILENAME == text {
		line = $0
		while (match(line, /\{[^}]*\}( to \{[^}]*\})?/)) {
			m = split(substr(line, RSTART, RLENGTH), s, /[{}]/)
			if (number(s[2]) != told + 1) fail("it does not tell of step " told + 1 " before " s[2])
			told = number(m > 3 ? s[4] : s[2])
			line = substr(line, RSTART + RLENGTH)
		}
		line = $0
		while (match(line, /\{[^}]*\}/))
			line = substr(line, 1, RSTART - 1) number(substr(line, RSTART + 1, RLENGTH - 2)) substr(line, RSTART + RLENGTH)
		if (FNR == 1) subject = line
		if (FNR > 2) body = body line "\n"
		next
	}
	FNR == 1 && told && told != n { fail("it does not tell of the steps after " told) }
	sub(/\*\*\* SUBJECT HERE \*\*\*/, subject) { print; next }
	/^\*\*\* BLURB HERE \*\*\*$/ {
		printf "%s\nMade for %s%s.\n", body, on, after ? ", on top of\n\"" after "\"" : ""
		next
	}
	{ print }' "$tmp/set" "bases/cover/$1" template="$2" "$2"
}

n=0 from=$refs/base after=
for set in $(cut -d' ' -f1 "$tmp/all" | uniq); do
	n=$((n + 1))
	dir=$out/$n-$set
	awk -v s="$set" '$1 == s' "$tmp/all" >"$tmp/set"
	to=$(tail -n 1 "$tmp/set" | cut -d' ' -f3)
	git -C $tree format-patch -q --cover-letter --no-renames --signoff \
		--signature="guest_memfd on $on" -o "$PWD/$dir" "$from..$to"
	cover "$set" "$dir/0000-cover-letter.patch" >"$tmp/letter"
	cp "$tmp/letter" "$dir/0000-cover-letter.patch"
	echo "lab: $(wc -l <"$tmp/set") patches and a cover letter in $dir"
	from=$to after=$(head -n 1 "bases/cover/$set")
done
