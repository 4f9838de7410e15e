/* Probe point for nexent-observer: see docs/hooks.md.
 *
 * In one source file of the program:   #define NEXENT_OBSERVER_IMPLEMENTATION
 * and in all:                          #include "nexent_observer.h"
 *
 * The function must be visible in the symbol table of the file it is linked into: do not strip it, or link with -rdynamic.
 */
#ifndef NEXENT_OBSERVER_H
#define NEXENT_OBSERVER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Tells the observer `len` bytes of JSON. Does nothing itself. */
void nexent_observer_announce(const char *text, size_t len);

/* Whether a probe is on the function now: prepare nothing while there is none. */
static inline int nexent_observer_listening(void)
{
    const volatile unsigned char *first = (const volatile unsigned char *)(void *)nexent_observer_announce;
#if defined(__x86_64__)
    return *first != 0x90; /* nop */
#elif defined(__aarch64__)
    return *first != 0x1f; /* nop is d503201f */
#else
    return 0;
#endif
}

#ifdef NEXENT_OBSERVER_IMPLEMENTATION
/* In assembly, so that it begins with a one-byte nop whatever the compiler's flags are: the kernel emulates that. */
__asm__(".text\n"
        ".globl nexent_observer_announce\n"
        ".type nexent_observer_announce, %function\n"
        "nexent_observer_announce:\n"
        "    nop\n"
        "    ret\n"
        ".size nexent_observer_announce, .-nexent_observer_announce\n");
#endif

#ifdef __cplusplus
}
#endif
#endif
