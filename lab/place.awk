# SPDX-License-Identifier: GPL-2.0
# place.awk: part of place.sh.  Put each hunk of a diff (-U0, of one file) into
# dir/NUMBER-LINE, as a patch of its own, and print a line for it:
#   PATCH<tab>FILE:LINE<tab>COMMIT	it belongs to COMMIT
#   ?<tab>FILE:LINE<tab>COMMIT...	it could be any of these
# Read: commits that touch the file (part=1); those of its lines, "^" for the base
# (part=2; nothing: don't look at lines); the diff (part=3).

part == 1 { toucher[++touchers] = $1; next }
part == 2 { step[++lines] = $1 ~ /^\^/ ? "" : $1; next }

function candidate(commit) {
	if (commit != "" && !(commit in known)) {
		known[commit]
		list = list (count++ ? " " : "") commit
	}
}

# The hunk changes @nr lines from @first, or inserts after @first.
function put(   i, patch) {
	if (text == "")
		return
	split("", known)
	list = count = ""
	for (i = first; i < first + nr; i++)
		candidate(step[i])
	if (!count) {
		candidate(step[nr ? first - 1 : first])
		candidate(step[first + (nr ? nr : 1)])
	}
	if (!count)
		for (i = 1; i <= touchers; i++)
			candidate(toucher[i])
	if (count == 1) {
		patch = sprintf("%s/%d-%07d", dir, n, first)
		printf "%s%s", head, text >patch
		close(patch)
	}
	printf "%s\t%s:%d\t%s\n", count == 1 ? patch : "?", file, first, list
	text = ""
}

lines && /^@@ / {
	put()
	split($2, old, ",")
	split($3, new, ",")
	first = -old[1]
	nr = old[2] == "" ? 1 : old[2]
	# Where git apply looks for it, without the hunks before it.
	text = sprintf("@@ %s +%d,%d @@\n", $2, nr ? first : first + 1, new[2] == "" ? 1 : new[2])
	next
}
lines && text == "" { head = head $0 "\n"; next }
{ text = text $0 "\n" }
END { put() }
