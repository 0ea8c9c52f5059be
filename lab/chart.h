/* SPDX-License-Identifier: GPL-2.0 */
#ifndef LAB_CHART_H
#define LAB_CHART_H

/* @ratio is above 0; labels longer than 60 characters don't fit. */
struct bar {
	const char *group;	/* a heading where it changes */
	const char *label;
	double ratio;
};

int write_chart(const char *path, const struct bar *bars, int n);

#endif
