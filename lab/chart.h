/* SPDX-License-Identifier: GPL-2.0 */
#ifndef LAB_CHART_H
#define LAB_CHART_H

/* @ratio is above 0; longer labels than 60 characters don't fit. */
struct bar {
	const char *label;
	double ratio;
};

int write_chart(const char *path, const char *title, const struct bar *bars, int n);

#endif
