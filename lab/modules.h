/* SPDX-License-Identifier: GPL-2.0 */
/* KVM as modules: what PID 1 of a lab boot does instead of modprobe. */
#ifndef LAB_MODULES_H
#define LAB_MODULES_H

#include <stdbool.h>

/* Are there modules in this boot image?  If not, KVM is built in. */
bool have_modules(void);

/*
 * Load them, with the parameters that the kernel command line has for them, or
 * unload them, waiting for ten seconds if they are in use.  Return 0, or -errno with
 * the name of the module in *@name.
 */
int load_modules(const char **name);
int unload_modules(const char **name);

#endif
