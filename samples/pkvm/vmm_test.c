// SPDX-License-Identifier: GPL-2.0-only
/*
 * vmm_test [-d DIR] CASE...: runs the VMM of this directory (DIR/vmm, DIR/Image,
 * DIR/guest.cpio) in the ways named, and says in KTAP what came of it.
 *
 * The VMM itself sees to it that what it claims is true; see its exit code.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/random.h>
#include <sys/wait.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define MAX_ARGS	20

#define DISK		"/tmp/vmm_test.disk"
#define DISK_SIZE	300001		/* no whole number of sectors, or of pages */

static const char *dir = ".";

struct run {
	const char *name;
	const char *args[8];
};

/* Ways to boot the guest to its end. */
static const struct run boots[] = {
	{ "normal", { "--type", "normal" } },
	{ "pinned", { "--type", "pinned" } },
	{ "in-place", { "--type", "in-place" } },
	{ "in-place-lazy", { "--type", "in-place", "--lazy" } },
	{ "in-place-cpus", { "--type", "in-place", "--cpus", "3" } },
};

/* Input that must be refused: exit code 2, and one line that says why. */
static const struct run refusals[] = {
	{ "no kernel", { "--kernel", "/nonexistent" } },
	{ "no Image", { "--kernel", DISK } },
	{ "no disk", { "--disk", "/nonexistent" } },
	{ "a directory", { "--disk", "/" } },
	{ "a device for a disk", { "--disk", "/dev/null" } },
	{ "no room", { "--memory", "31" } },
	{ "no number", { "--cpus", "two" } },
	{ "no such type", { "--type", "else" } },
	{ "lazy, not in place", { "--type", "pinned", "--lazy" } },
};

static void write_disk(void)
{
	int fd = open(DISK, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	static char data[DISK_SIZE];
	size_t done = 0;

	while (done < sizeof(data))
		done += getrandom(data + done, sizeof(data) - done, 0);
	if (fd < 0 || write(fd, data, sizeof(data)) != sizeof(data))
		err(1, DISK);
	close(fd);
}

static void exec_vmm(const struct run *run)
{
	const char *argv[MAX_ARGS] = {
		"./vmm", "--kernel", "Image", "--initrd", "guest.cpio", "--disk", DISK,
		"--append", "kunit.autorun=0",
	};
	int n = 9, i;

	for (i = 0; run->args[i]; i++)
		argv[n++] = run->args[i];
	if (chdir(dir))
		err(127, "%s", dir);
	execv(argv[0], (char **)argv);
	err(127, "%s/%s", dir, argv[0]);
}

/* Runs the VMM, its output as remarks. Returns its exit code, or -1. */
static int run_vmm(const struct run *run, int *lines)
{
	char line[1024];
	int fd[2], status;
	pid_t pid;
	FILE *f;

	fflush(NULL);
	if (pipe(fd))
		err(1, "pipe");
	pid = fork();
	if (!pid) {
		dup2(fd[1], 1);
		dup2(fd[1], 2);
		close(fd[0]);
		close(fd[1]);
		exec_vmm(run);
	}
	close(fd[1]);
	f = fdopen(fd[0], "r");
	*lines = 0;
	while (fgets(line, sizeof(line), f)) {
		printf("# %s%s", line, strchr(line, '\n') ? "" : "\n");
		(*lines)++;
	}
	fclose(f);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static bool test_boot(const char *name)
{
	int lines;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(boots); i++)
		if (!strcmp(boots[i].name, name))
			return !run_vmm(&boots[i], &lines);
	errx(1, "no such case: %s", name);
}

static bool test_refusals(void)
{
	bool good = true;
	int code, lines;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(refusals); i++) {
		code = run_vmm(&refusals[i], &lines);
		if (code == 2 && lines == 1)
			continue;
		printf("# %s: exit code %d, %d lines\n", refusals[i].name, code, lines);
		good = false;
	}
	return good;
}

int main(int argc, char **argv)
{
	bool good, all = true;
	int i, opt;

	while ((opt = getopt(argc, argv, "d:")) == 'd')
		dir = optarg;
	if (opt != -1 || optind == argc)
		errx(1, "usage: vmm_test [-d DIR] CASE...");
	setlinebuf(stdout);
	write_disk();
	printf("TAP version 13\n1..%d\n", argc - optind);
	for (i = optind; i < argc; i++) {
		good = strcmp(argv[i], "bad-input") ? test_boot(argv[i]) : test_refusals();
		printf("%sok %d %s\n", good ? "" : "not ", i - optind + 1, argv[i]);
		all &= good;
	}
	unlink(DISK);
	return all ? 0 : 1;
}
