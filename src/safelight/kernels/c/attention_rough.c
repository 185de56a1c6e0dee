/* attention.c with scores of bytes, where a CPU has products of those beside such of pairs of bfloat16; else it is the same. */
#define ATTENTION attention_rough
#if defined(PAIRS) && defined(VNNI)
#define ROUGH
#endif
#include "attention.c"
