// SPDX-License-Identifier: GPL-2.0
/* What the runner and the benchmark have in common; see port.h. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "port.h"

/* Say why, and end with status 2: not a test has failed but the lab. */
void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("lab: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(2);
}

/* Of the clock that nobody sets. */
long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/*
 * The next line from the machine, in @line, without its newline.  NULL: end of
 * file or @deadline (of now_ms()); *died tells which.
 */
char *port_line(struct port *port, char *line, size_t size, long long deadline,
		bool *died)
{
	struct pollfd fd = { port->fd, POLLIN, 0 };
	ssize_t n;
	char *nl;

	*died = false;
	while (!(nl = memchr(port->buf, '\n', port->len))) {
		long long left = deadline - now_ms();

		if (left <= 0)
			return NULL;
		if (port->len == sizeof(port->buf))
			port->len = 0;
		if (poll(&fd, 1, left) <= 0)
			continue;
		n = read(port->fd, port->buf + port->len, sizeof(port->buf) - port->len);
		if (n <= 0) {
			*died = true;
			return NULL;
		}
		port->len += n;
	}
	*nl++ = '\0';
	snprintf(line, size, "%s", port->buf);
	port->len -= nl - port->buf;
	memmove(port->buf, nl, port->len);
	return line;
}
