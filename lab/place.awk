# SPDX-License-Identifier: GPL-2.0
# place.awk: part of place.sh.  Put each hunk of a diff (-U0, of one file) into
# dir/NUMBER-LINE, as a patch of its own, and print a line for it:
#   PATCH<tab>FILE:LINE<tab>COMMIT	it belongs to COMMIT
#   ?<tab>FILE:LINE<tab>COMMIT...	it could be any of these
# Read: all commits, the last first, each with the own files that it adds (part=0);
# those that touch the file (part=1); those of its lines, "^" for the base (part=2;
# nothing: don't look at lines); the diff (part=3, and before that for what it takes
# away, part=takes).

part == "0" && /^commit / { rank[commit = $2] = --ranks; next }
part == "0" { if ($0 != "") adds[stem($0)] = commit; next }
part == 1 { toucher[++touchers] = $1; next }
part == 2 { step[++lines] = $1 ~ /^\^/ ? "" : $1; next }
part == "takes" && /^@@ / { split($2, old, ","); at = -old[1]; next }
part == "takes" && at && /^-/ { taken[substr($0, 2)] = step[at++] }
part == "takes" { next }

# How a Makefile names a file: without its directory, if only as a part, and suffix.
function stem(path) {
	sub(/.*\//, "", path)
	sub(/\.[^.]*$/, "", path)
	return path
}

# Line @added is of no use before the step that adds the file which it names, and if it
# has only moved, it is that of the step that it was of.
function bound(added,   n, i, word) {
	later(taken[added])
	if (file !~ /(^|\/)(Makefile[^\/]*|Kbuild)$/)
		return
	n = split(added, word, /[^a-zA-Z0-9_.\/-]+/)
	for (i = 1; i <= n; i++)
		if (word[i] != "")
			later(adds[stem(word[i])])
}
function later(commit) {
	if (commit != "" && (floor == "" || rank[commit] > rank[floor]))
		floor = commit
}

function candidate(commit) {
	if (commit != "" && !(commit in known)) {
		known[commit]
		list = list (count++ ? " " : "") commit
	}
}

# The hunk changes @nr lines from @first, or inserts after @first.
function put(   i, n, line, patch) {
	if (text == "")
		return
	split("", known)
	list = count = floor = ""
	n = split(text, line, "\n")
	for (i = 2; lines && i <= n; i++)
		if (line[i] ~ /^\+/)
			bound(substr(line[i], 2))
	for (i = first; i < first + nr; i++)
		candidate(step[i])
	if (!count) {
		candidate(step[nr ? first - 1 : first])
		candidate(step[first + (nr ? nr : 1)])
	}
	if (!count)
		for (i = 1; i <= touchers; i++)
			candidate(toucher[i])
	# The neighbours may be of an earlier step.
	if (count == 1 && floor != "" && rank[list] < rank[floor])
		list = floor
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
