// Stand-ins for parts of the C libraries that the server never uses. libjpeg's and libpng's
// decoders name functions of the encoders beside them and of ways to decode that we never ask for,
// and a static link takes each such function's whole file: 260 kB in all. These take their place,
// and end the program if they are ever called. They are weak: where a library has other names, or
// needs a file anyway, its own function is linked and nothing changes but the size.
//
// Compiled where libjpeg is libjpeg-turbo for x86-64 with its SIMD functions. It names all of these
// in one file (jsimd.c), the Huffman encoder's with their table of 98 kB among them.
#include <cstdlib>

extern "C" [[noreturn]] void quern_not_linked() noexcept { std::abort(); }

#define STAND_IN(name) \
  extern "C" [[gnu::weak, gnu::alias("quern_not_linked"), noreturn]] void name() noexcept;
#define STAND_INS_SSE2_AVX2(name) STAND_IN(name##_sse2) STAND_IN(name##_avx2)
// One for each order of colours that libjpeg knows.
#define STAND_INS_COLORS(before, after)       \
  STAND_INS_SSE2_AVX2(before##extrgb##after)  \
  STAND_INS_SSE2_AVX2(before##extrgbx##after) \
  STAND_INS_SSE2_AVX2(before##extbgr##after)  \
  STAND_INS_SSE2_AVX2(before##extbgrx##after) \
  STAND_INS_SSE2_AVX2(before##extxbgr##after) \
  STAND_INS_SSE2_AVX2(before##extxrgb##after)

// libjpeg, encoder: colours, downsampling, transform, quantization, Huffman coding.
STAND_INS_SSE2_AVX2(jconst_rgb_ycc_convert)
STAND_INS_SSE2_AVX2(jsimd_rgb_ycc_convert)
STAND_INS_COLORS(jsimd_, _ycc_convert)
STAND_INS_SSE2_AVX2(jconst_rgb_gray_convert)
STAND_INS_SSE2_AVX2(jsimd_rgb_gray_convert)
STAND_INS_COLORS(jsimd_, _gray_convert)
STAND_INS_SSE2_AVX2(jsimd_h2v1_downsample)
STAND_INS_SSE2_AVX2(jsimd_h2v2_downsample)
STAND_INS_SSE2_AVX2(jsimd_convsamp)
STAND_IN(jsimd_convsamp_float_sse2)
STAND_INS_SSE2_AVX2(jconst_fdct_islow)
STAND_INS_SSE2_AVX2(jsimd_fdct_islow)
STAND_IN(jconst_fdct_ifast_sse2)
STAND_IN(jsimd_fdct_ifast_sse2)
STAND_IN(jconst_fdct_float_sse)
STAND_IN(jsimd_fdct_float_sse)
STAND_INS_SSE2_AVX2(jsimd_quantize)
STAND_IN(jsimd_quantize_float_sse2)
STAND_IN(jconst_huff_encode_one_block)
STAND_IN(jsimd_huff_encode_one_block_sse2)
STAND_IN(jsimd_encode_mcu_AC_first_prepare_sse2)
STAND_IN(jsimd_encode_mcu_AC_refine_prepare_sse2)

// libjpeg, decoder without fancy upsampling.
STAND_IN(jinit_merged_upsampler)
STAND_INS_SSE2_AVX2(jconst_merged_upsample)
STAND_INS_SSE2_AVX2(jsimd_h2v1_merged_upsample)
STAND_INS_COLORS(jsimd_h2v1_, _merged_upsample)
STAND_INS_SSE2_AVX2(jsimd_h2v2_merged_upsample)
STAND_INS_COLORS(jsimd_h2v2_, _merged_upsample)

// libjpeg, decoder to a palette.
STAND_IN(jinit_1pass_quantizer)
STAND_IN(jinit_2pass_quantizer)

// libjpeg, decoder with another transform than the accurate one, or to a smaller size.
STAND_IN(jpeg_idct_ifast)
STAND_IN(jconst_idct_ifast_sse2)
STAND_IN(jsimd_idct_ifast_sse2)
STAND_IN(jpeg_idct_float)
STAND_IN(jconst_idct_float_sse2)
STAND_IN(jsimd_idct_float_sse2)
STAND_IN(jpeg_idct_1x1)
STAND_IN(jpeg_idct_2x2)
STAND_IN(jpeg_idct_4x4)
STAND_IN(jconst_idct_red_sse2)
STAND_IN(jsimd_idct_2x2_sse2)
STAND_IN(jsimd_idct_4x4_sse2)

// libjpeg, transforms to other sizes, in one file with the one without SIMD: every x86-64 has SSE2
// (server_main.cc sees to the variable that would turn it off).
STAND_IN(jpeg_idct_islow)
STAND_IN(jpeg_idct_3x3)
STAND_IN(jpeg_idct_5x5)
STAND_IN(jpeg_idct_6x6)
STAND_IN(jpeg_idct_7x7)
STAND_IN(jpeg_idct_9x9)
STAND_IN(jpeg_idct_10x10)
STAND_IN(jpeg_idct_11x11)
STAND_IN(jpeg_idct_12x12)
STAND_IN(jpeg_idct_13x13)
STAND_IN(jpeg_idct_14x14)
STAND_IN(jpeg_idct_15x15)
STAND_IN(jpeg_idct_16x16)

// libpng, encoder, and behind it zlib's.
STAND_IN(png_destroy_write_struct)
STAND_IN(png_free_buffer_list)
STAND_IN(png_save_uint_32)

// libevent, kinds of bufferevent other than sockets, which only their addresses tell apart.
STAND_IN(bufferevent_ops_filter)
STAND_IN(bufferevent_ops_pair)
