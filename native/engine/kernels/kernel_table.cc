// The table of one instruction set.
#include "engine/kernels/kernel_functions.h"

namespace quern::QUERN_INSTRUCTIONS {

const Kernels kKernels = {convolve,       depthwise,      pool,           activate,
                          combine,        accumulate,     winograd_input, winograd_output,
                          strassen_input, strassen_output};

}  // namespace quern::QUERN_INSTRUCTIONS
