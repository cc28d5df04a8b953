/* gcc calls __sanitizer_cov_trace_pc() in every basic block; libFuzzer wants counters that it can read. This keeps one
 * counter per block and registers them. Where a block's counter is follows from its address: two blocks may share one.
 * (clang needs no such thing, but the build's compiler is gcc.) */
#include <stdint.h>

#define COUNTERS 16384

extern void __sanitizer_cov_8bit_counters_init(uint8_t *start, uint8_t *stop);
extern void __sanitizer_cov_pcs_init(const uintptr_t *start, const uintptr_t *stop);

static uint8_t counters[COUNTERS];
static uintptr_t blocks[COUNTERS][2]; /* a number and no flags: libFuzzer asks for as many as there are counters */

/* Hidden: libFuzzer has a function of this name that only says that it is no longer supported. */
__attribute__((no_sanitize_coverage, visibility("hidden"))) void __sanitizer_cov_trace_pc(void)
{
    uintptr_t offset = (uintptr_t)__builtin_return_address(0) - (uintptr_t)counters;
    uint8_t *counter = &counters[((uint64_t)offset * 0x9E3779B97F4A7C15u) >> 50];
    if (*counter != UINT8_MAX)
        ++*counter;
}

__attribute__((constructor, no_sanitize_coverage)) static void register_counters(void)
{
    for (uintptr_t i = 0; i < COUNTERS; i++)
        blocks[i][0] = i + 1;
    __sanitizer_cov_8bit_counters_init(counters, counters + COUNTERS);
    __sanitizer_cov_pcs_init(blocks[0], blocks[COUNTERS]);
}
