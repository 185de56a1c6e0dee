/* conv3x3.c with tiles of 4x4 in pairs of bfloat16 too: 9 products where tiles of 2x2 take 16, and three times the error
 * (1e-2 of the norm), which is that of linear layers in 8 bits. In other variants it is the same as conv3x3. */
#define TILE_OF_PAIRS 4
#define CONVOLUTION conv3x3_rough
#include "conv3x3.c"
