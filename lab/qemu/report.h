/* SPDX-License-Identifier: GPL-2.0 */
/* What preload.c tells client.c of a VM. */

#define FAILED		"preload: failed: "

#define REPORT_FORMAT							\
	"preload: %u slots bound, %u for SMM, %u at another gpa; %u SMIs; %u requests; " \
	"%u pages in the file, %u mapped here; guest has %u large"

struct report {
	unsigned int bound, bound_smm, bound_twice, smis, requests, in_file, mapped, large;
};
