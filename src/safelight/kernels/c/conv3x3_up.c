/* conv3x3.c of a doubled map. In pairs of bfloat16 its tiles are 2 x 2: of their 16 taps 7 are zero, so that they take as
 * few products as larger tiles, and are nearer. */
#define TALL_OF_PAIRS 2
#define WIDE_OF_PAIRS 2
#define CONVOLUTION conv3x3_up
#define UP 1
#include "conv3x3.c"
