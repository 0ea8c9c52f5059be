// SPDX-License-Identifier: GPL-2.0
/*
 * Run a build, keep all it says in a log, show how far it is.
 *
 *   progress LABEL LOG EXPECTED COMMAND...
 *
 * LABEL     what is built, for the reader
 * LOG       gets everything; LOG.count keeps the number of steps for next time
 * EXPECTED  steps of a build from scratch, while LOG.count does not know better
 *
 * A step is a line of kbuild, two blanks and a word in capitals ("  CC      x.o"),
 * or a compiler's command line.
 * On a terminal one line is redrawn; else a line comes every 15 seconds.
 * Exit status: the command's.  When it failed: the lines that look like errors.
 */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECONDS		15
#define ERROR_LINES	20

static const char *label;
static bool tty;
static time_t start, shown;

static bool is_step(const char *line)
{
	if (!strncmp(line, "ccache ", 7) || !strncmp(line, "gcc ", 4))
		return true;
	return !strncmp(line, "  ", 2) && isupper(line[2]) && isupper(line[3]);
}

static void show(int steps, int expected, const char *line)
{
	char what[64] = "";

	if (!tty && time(NULL) - shown < SECONDS)
		return;
	if (tty)
		snprintf(what, sizeof(what), " %.50s", line + 2);
	what[strcspn(what, "\n")] = '\0';
	if (steps > expected)
		expected = steps;
	printf(tty ? "\r\033[K%s: %d of about %d, %lds%s" :
	       "%s: %d of about %d, %lds%s\n", label, steps, expected,
	       (long)(time(NULL) - start), what);
	fflush(stdout);
	shown = time(NULL);
}

static int read_count(const char *path, int otherwise)
{
	FILE *f = fopen(path, "r");
	int n;

	if (!f)
		return otherwise;
	if (fscanf(f, "%d", &n) != 1)
		n = otherwise;
	fclose(f);
	return n;
}

static void write_count(const char *path, int n)
{
	FILE *f = fopen(path, "w");

	if (!f)
		return;
	fprintf(f, "%d\n", n);
	fclose(f);
}

static bool is_error(const char *line)
{
	return strstr(line, "rror") || strstr(line, "undefined reference") ||
	       strstr(line, "warning:") || strstr(line, "No rule to make");
}

static void show_errors(const char *path)
{
	FILE *f = fopen(path, "r");
	char line[1024];
	int all = 0, left;

	while (f && fgets(line, sizeof(line), f))
		all += !is_step(line) && is_error(line);
	if (!f)
		return;
	rewind(f);
	left = all > ERROR_LINES ? ERROR_LINES : all;
	while (left && fgets(line, sizeof(line), f)) {
		if (is_step(line) || !is_error(line))
			continue;
		printf("  %s", line);
		left--;
	}
	fclose(f);
}

static pid_t start_command(char **argv, int *out)
{
	int p[2];
	pid_t pid;

	if (pipe(p))
		return -1;
	pid = fork();
	if (!pid) {
		close(p[0]);
		dup2(p[1], 1);
		dup2(p[1], 2);
		close(p[1]);
		execvp(argv[0], argv);
		printf("%s: %s\n", argv[0], strerror(errno));
		fflush(stdout);
		_exit(127);
	}
	close(p[1]);
	*out = p[0];
	return pid;
}

int main(int argc, char **argv)
{
	char count[512], line[4096];
	int out, status, steps = 0, expected;
	FILE *in, *log;
	pid_t pid;

	if (argc < 5)
		return 2;
	label = argv[1];
	tty = isatty(1);
	start = shown = time(NULL);
	snprintf(count, sizeof(count), "%s.count", argv[2]);
	expected = read_count(count, atoi(argv[3]));
	log = fopen(argv[2], "w");
	pid = log ? start_command(argv + 4, &out) : -1;
	if (pid < 0) {
		printf("%s: cannot start, or write %s\n", label, argv[2]);
		return 2;
	}
	in = fdopen(out, "r");
	while (in && fgets(line, sizeof(line), in)) {
		fputs(line, log);
		if (is_step(line))
			show(++steps, expected, line);
	}
	fclose(log);
	waitpid(pid, &status, 0);
	if (tty)
		printf("\r\033[K");
	if (status) {
		printf("%s: failed, log %s\n", label, argv[2]);
		show_errors(argv[2]);
		return 1;
	}
	if (steps >= expected || access(count, F_OK))
		write_count(count, steps > expected ? steps : expected);
	printf("%s: %s (%lds)\n", label, steps ? "built" : "up to date",
	       (long)(time(NULL) - start));
	return 0;
}
