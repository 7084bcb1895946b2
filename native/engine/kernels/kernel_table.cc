// The table of one instruction set.
#include "engine/kernels/kernel_functions.h"

namespace quern::QUERN_INSTRUCTIONS {

const Kernels kKernels = {convolve,       depthwise,       pool,           activate,
                          combine,        accumulate,      winograd_input, winograd_output,
                          strassen_input, strassen_output, nullptr,        nullptr};
#if defined(__AVX512F__)
const Kernels kKernelsWithPairs = {convolve,       depthwise,       pool,           activate,
                                   combine,        accumulate,      winograd_input, winograd_output,
                                   strassen_input, strassen_output, convolve_pairs, sum_pairs};
#endif

}  // namespace quern::QUERN_INSTRUCTIONS
