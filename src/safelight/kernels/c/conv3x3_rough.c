/* conv3x3.c with tiles of 4 x 4 in pairs of bfloat16 too: 6 products where tiles of 2 x 4 take 8, and 1.7 times the error
 * (1.1e-2 of the norm), which is that of linear layers in 8 bits. In other variants it is the same as conv3x3. */
#define TALL_OF_PAIRS 4
#define WIDE_OF_PAIRS 4
#define CONVOLUTION conv3x3_rough
#define UP 0
#include "conv3x3.c"
