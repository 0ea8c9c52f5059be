// SPDX-License-Identifier: GPL-2.0
/*
 * The benchmark's chart: how many times better than the base, one bar a row, on a
 * logarithmic scale.  SVG that needs no font and no style sheet of its own, in
 * colours that can be read on light and dark backgrounds.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "chart.h"

#define LEFT	410	/* of the bars: labels are on their left */
#define RIGHT	800
#define WIDTH	860
#define TOP	84
#define PITCH	17

#define GREY	"#7c7c7c"
#define BETTER	"#3a87c8"
#define WORSE	"#d9534f"

struct scale {
	double low, high;	/* powers of ten */
};

static double x_of(const struct scale *s, double ratio)
{
	double at = (log10(ratio) - s->low) / (s->high - s->low);

	return LEFT + at * (RIGHT - LEFT);
}

static void put_text(FILE *f, double x, double y, const char *style, const char *text)
{
	fprintf(f, "<text x=\"%.0f\" y=\"%.0f\" %s>", x, y, style);
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

/* A bar that is a little worse than the base has room to be seen. */
static struct scale find_scale(const struct bar *bars, int n)
{
	struct scale s = { .low = 0, .high = 1 };
	int i;

	for (i = 0; i < n; i++) {
		s.low = fmin(s.low, floor(log10(bars[i].ratio) * 4) / 4);
		s.high = fmax(s.high, ceil(log10(bars[i].ratio)));
	}
	return s;
}

static void put_grid(FILE *f, const struct scale *s, int height)
{
	double at, x;
	char text[32];

	for (at = ceil(s->low); at <= s->high; at++) {
		x = x_of(s, pow(10, at));
		fprintf(f, "<path d=\"M%.0f %dV%d\" stroke=\"" GREY "\" stroke-width=\"%s\"/>\n",
			x, TOP - 12, height - 8, at ? "0.4" : "1.5");
		snprintf(text, sizeof(text), at ? "%.*f" : "base = 1", at < 0, pow(10, at));
		put_text(f, x, TOP - 18, "text-anchor=\"middle\"", text);
	}
}

static void put_bar(FILE *f, const struct scale *s, const struct bar *bar, int y)
{
	double one = x_of(s, 1), x = x_of(s, bar->ratio);
	char text[32];

	fprintf(f, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"11\" fill=\"%s\"/>\n",
		fmin(one, x), y, fmax(fabs(x - one), 1), bar->ratio < 1 ? WORSE : BETTER);
	put_text(f, LEFT - 8, y + 9, "text-anchor=\"end\"", bar->label);
	snprintf(text, sizeof(text), bar->ratio >= 100 ? "%.0f" :
		 bar->ratio >= 10 ? "%.1f" : "%.2f", bar->ratio);
	put_text(f, fmax(x, one) + 5, y + 9, "text-anchor=\"start\"", text);
}

static bool begins_group(const struct bar *bars, int i)
{
	return !i || strcmp(bars[i].group, bars[i - 1].group);
}

static void put_header(FILE *f, int height)
{
	fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
		"font-family=\"sans-serif\" font-size=\"12\" fill=\"" GREY "\">\n",
		WIDTH, height);
	put_text(f, 8, 20, "font-size=\"16\" font-weight=\"bold\"",
		 "How many times fewer instructions (or bytes, or exits) than the base");
	put_text(f, 8, 40, "", "Logarithmic. Right of the line: better than the base. "
		 "Instructions that zero pages are left out where both kernels zero.");
}

/* Write the chart of @n bars, at least one.  Returns 0, or -1 and errno. */
int write_chart(const char *path, const struct bar *bars, int n)
{
	const struct scale s = find_scale(bars, n);
	int i, y = TOP, lines = n;
	FILE *f;

	for (i = 0; i < n; i++)
		lines += begins_group(bars, i);
	f = fopen(path, "w");
	if (!f)
		return -1;

	put_header(f, TOP + lines * PITCH + 16);
	put_grid(f, &s, TOP + lines * PITCH + 16);
	for (i = 0; i < n; i++, y += PITCH) {
		if (begins_group(bars, i)) {
			put_text(f, 8, y + 9, "font-weight=\"bold\"", bars[i].group);
			y += PITCH;
		}
		put_bar(f, &s, &bars[i], y);
	}
	fputs("</svg>\n", f);
	return fclose(f);
}
