// SPDX-License-Identifier: GPL-2.0
/*
 * The benchmark's chart: how many times fewer instructions than the base, one
 * bar a row, on a logarithmic scale.  SVG that needs no font and no style sheet
 * of its own, and is readable on light and dark backgrounds.
 */
#include <math.h>
#include <stdio.h>

#include "chart.h"

#define LEFT	400	/* of the bars: labels are on their left */
#define RIGHT	760
#define TOP	44
#define PITCH	20

struct scale {
	double low, high;	/* powers of ten */
};

static double x_of(const struct scale *s, double ratio)
{
	double at = (log10(ratio) - s->low) / (s->high - s->low);

	return LEFT + at * (RIGHT - LEFT);
}

static void put_text(FILE *f, double x, double y, const char *anchor, const char *text)
{
	fprintf(f, "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"%s\">", x, y, anchor);
	for (; *text; text++) {
		if (*text == '<')
			fputs("&lt;", f);
		else if (*text == '&')
			fputs("&amp;", f);
		else
			fputc(*text, f);
	}
	fputs("</text>\n", f);
}

static struct scale find_scale(const struct bar *bars, int n)
{
	struct scale s = { .low = 0, .high = 1 };
	int i;

	for (i = 0; i < n; i++) {
		s.low = fmin(s.low, floor(log10(bars[i].ratio)));
		s.high = fmax(s.high, ceil(log10(bars[i].ratio)));
	}
	return s;
}

static void put_grid(FILE *f, const struct scale *s, int height)
{
	char text[32];
	double at;

	for (at = s->low; at <= s->high; at++) {
		double x = x_of(s, pow(10, at));

		fprintf(f, "<line x1=\"%.0f\" x2=\"%.0f\" y1=\"%d\" y2=\"%d\" stroke=\"#888\" stroke-width=\"%s\"/>\n",
			x, x, TOP - 6, height - 8, at ? "0.3" : "1");
		snprintf(text, sizeof(text), "%g", pow(10, at));
		put_text(f, x, TOP - 12, "middle", text);
	}
}

/* Write the chart of @n bars, at least one.  Returns 0, or -1 and errno. */
int write_chart(const char *path, const char *title, const struct bar *bars, int n)
{
	const struct scale s = find_scale(bars, n);
	int i, height = TOP + n * PITCH + 16;
	FILE *f = fopen(path, "w");
	char text[32];

	if (!f)
		return -1;

	fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
		"font-family=\"sans-serif\" font-size=\"12\" fill=\"#777\">\n",
		RIGHT + 80, height);
	put_text(f, 8, 16, "start", title);
	put_grid(f, &s, height);
	for (i = 0; i < n; i++) {
		double one = x_of(&s, 1), x = x_of(&s, bars[i].ratio);
		int y = TOP + i * PITCH;

		fprintf(f, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"12\" fill=\"%s\"/>\n",
			fmin(one, x), y, fmax(fabs(x - one), 1),
			bars[i].ratio < 1 ? "#d9534f" : "#3a87c8");
		put_text(f, LEFT - 8, y + 10, "end", bars[i].label);
		snprintf(text, sizeof(text), bars[i].ratio >= 100 ? "%.0f" : "%.2f",
			 bars[i].ratio);
		put_text(f, fmax(x, one) + 5, y + 10, "start", text);
	}
	fputs("</svg>\n", f);
	return fclose(f);
}
