// SPDX-License-Identifier: GPL-2.0
/* Loads and unloads KVM's modules, which lab/image.sh puts into /modules. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "modules.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* One comes after those it needs.  Names of the kernel's, "_" for any "-". */
static const char * const modules[] = { "irqbypass", "kvm", "kvm_amd" };

bool have_modules(void)
{
	return !access("/modules", F_OK);
}

/* Of @cmdline, "MODULE.NAME=VALUE" for @module: "NAME=VALUE ..." in @params. */
static void find_params(char *cmdline, const char *module, char *params, size_t size)
{
	size_t len = strlen(module);
	char *word, *save;

	params[0] = '\0';
	for (word = strtok_r(cmdline, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
		if (!strncmp(word, module, len) && word[len] == '.' &&
		    strlen(params) + strlen(word) + 2 < size)
			strcat(strcat(params, word + len + 1), " ");
}

static int load(const char *module)
{
	char path[64], cmdline[4096] = "", params[512];
	int fd, err = 0;

	fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) < 0)
		err = -errno;
	close(fd);
	if (err)
		return err;
	find_params(cmdline, module, params, sizeof(params));

	snprintf(path, sizeof(path), "/modules/%s.ko", module);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_finit_module, fd, params, 0))
		err = -errno;
	close(fd);
	return err;
}

int load_modules(const char **name)
{
	size_t i;
	int err = 0;

	for (i = 0; i < ARRAY_SIZE(modules) && !err; i++) {
		*name = modules[i];
		err = load(modules[i]);
	}
	return err;
}

/* A VM may end in the background, and hold its module until then. */
static int unload(const char *module)
{
	int tries = 10 * 100;

	while (syscall(SYS_delete_module, module, O_NONBLOCK)) {
		if (errno != EWOULDBLOCK || !tries--)
			return -errno;
		usleep(10 * 1000);
	}
	return 0;
}

int unload_modules(const char **name)
{
	size_t i;
	int err = 0;

	for (i = ARRAY_SIZE(modules); i-- > 0 && !err;) {
		*name = modules[i];
		err = unload(modules[i]);
	}
	return err;
}
