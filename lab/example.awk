# SPDX-License-Identifier: GPL-2.0
# example.awk -v section=TITLE DOCUMENT: the first literal block of that section
# of a reST document, as it is, less the indentation.
$0 == section && !found	{ found = 1; next }
found && $0 == "::"	{ inside = 1; next }
inside && /^[^\t]/	{ exit }
inside			{ sub(/^\t/, ""); print; lines++ }
END			{ exit !lines }
