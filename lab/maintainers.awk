# SPDX-License-Identifier: GPL-2.0
# maintainers.awk OURS THEIRS: the kernel's MAINTAINERS with our sections in it:
# in place of the section of the same title, else where the alphabet puts them (as
# far as it goes: the file is not sorted everywhere).
# With -v extract=1: the sections of THEIRS whose titles OURS has.

FNR == 1 { file++ }

# OURS: comments, then sections, one blank line between them.
file == 1 && /^#/ { if (extract) print; next }
file == 1 && /^$/ { cur = ""; next }
file == 1 {
	if (cur == "") {
		cur = $0
		title[++n] = $0
	}
	ours[cur] = ours[cur] $0 "\n"
	next
}

# THEIRS: the list begins after its heading; a section ends at a blank line.
{ line[++nr] = $0 }
/^Maintainers List$/ { list = 1 }
list && line[nr - 1] == "" && /^[A-Z0-9]/ && !/^Maintainers List$/ {
	at[++ns] = nr
	name[ns] = $0
	there[$0] = 1
}

# The section of theirs that the new section titled @t goes before: of the places
# where the alphabet fits, that with the greatest predecessor, else THE REST.
function place(t,   s, best) {
	for (s = 1; s <= ns; s++) {
		if (name[s] == "THE REST")
			return best ? best : s
		if (s > 1 && name[s - 1] < t && t < name[s] &&
		    (!best || name[s - 1] > name[best - 1]))
			best = s
	}
	return best
}

function put(s,   i) {
	for (i = 1; i <= n; i++)
		if (before[title[i]] == s)
			printf "%s\n", ours[title[i]]
}

END {
	for (i = 1; i <= n; i++)
		if (!(title[i] in there))
			before[title[i]] = place(title[i])
	s = 1
	for (i = 1; i <= nr; i++) {
		if (i == at[s]) {
			if (!extract)
				put(s)
			mine = name[s++] in ours
			if (mine && !extract)
				printf "%s", ours[line[i]]
			if (mine && extract && printed++)
				print ""
		}
		if (line[i] == "")
			mine = 0
		if (mine && extract || !mine && !extract)
			print line[i]
	}
}
