// What takes libjpeg's decoder its time is that each step waits for the one before: a code's
// length, then the number behind it, then whether there are bits enough for the next. Here one look
// at the next 10 bits gives code and number (as in stb_image and zune-jpeg), five looks need no new
// bits, and a buffer holds the data without the zeros that are stuffed in, so that bits are added
// eight bytes at a time.
#include "image/huffman.h"

// clang-format off
#include <cstddef>  // jpeglib.h needs size_t and FILE, and doesn't ask for them
#include <cstdio>
#if __has_include(<jpegint.h>)  // Debian's libjpeg-turbo has it
#define JPEG_INTERNALS
#endif
#include <jpeglib.h>
// clang-format on

#if defined(JPEG_INTERNALS) && defined(LIBJPEG_TURBO_VERSION)
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <new>

namespace quern {
namespace {

constexpr int kLookBits = 10;
constexpr int kFilled = 56;  // bits that there are at least after fill()

// A code and the number that follows it, packed to stay in a register.
class Code {
 public:
  Code() = default;  // Code{}: there is none
  // `symbol` is the number's size in bits, and above it the count of zeros before the number; what
  // has no number stands for zeros only.
  Code(int length, unsigned symbol) {
    const unsigned size = symbol & 15;
    packed_ = static_cast<unsigned>(length) + size;
    if (size != 0) {
      packed_ |= (symbol >> 4 << kZerosAt) | (size << kNumberAt);
    } else {
      packed_ |= (symbol == kSixteenZeros ? 15U : 63U) << kZerosAt | kHasNumber;
    }
  }

  bool exists() const { return packed_ != 0; }
  int bits() const { return static_cast<int>(packed_ & 63); }  // with the number
  int zeros() const { return static_cast<int>(packed_ >> kZerosAt & 63); }

  // Either the number itself or its size in bits.
  bool has_number() const { return (packed_ & kHasNumber) != 0; }
  int number() const { return static_cast<std::int32_t>(packed_) >> kNumberAt; }
  int size() const { return static_cast<int>(packed_ >> kNumberAt); }

  Code with(int number) const {
    Code code;
    code.packed_ = (packed_ & ((1U << kNumberAt) - 1)) | kHasNumber |
                   (static_cast<unsigned>(number) << kNumberAt);
    return code;
  }

 private:
  static constexpr unsigned kSixteenZeros = 0xF0;  // any other without a number: the rest is zeros
  static constexpr unsigned kHasNumber = 1U << 7;
  static constexpr int kZerosAt = 8;
  static constexpr int kNumberAt = 16;

  std::uint32_t packed_;
};

// The number in the highest `size` bits, 1 or more; one that begins with 0 is negative (ITU-T T.81,
// figure F.12).
int extend(std::uint64_t bits, int size) {
  const int value = static_cast<int>(bits >> (64 - size));
  const int negative = static_cast<int>(static_cast<std::int64_t>(~bits) >> 63);
  return value + (negative & (1 - (1 << size)));
}

struct Table {
  std::array<Code, 1 << kLookBits> codes;  // by the next bits
  const JHUFF_TBL* huffman;

  // The codes as ITU-T T.81, annex C, numbers them. libjpeg has refused tables that can't be.
  [[gnu::cold]] void build(const JHUFF_TBL& table) {
    huffman = &table;
    codes.fill(Code{});
    std::uint64_t next = 0;
    const UINT8* symbol = table.huffval;
    for (int length = 1; length <= kLookBits; ++length) {
      for (int i = 0; i < table.bits[length]; ++i) {
        const Code code(length, *symbol++);
        for (const std::uint64_t end = next + (1U << (kLookBits - length)); next < end; ++next) {
          const bool whole = !code.has_number() && code.bits() <= kLookBits;
          codes[next] =
              whole ? code.with(extend(next << (64 - kLookBits + length), code.size())) : code;
        }
      }
    }
  }

  // Of any length, bit by bit.
  [[gnu::cold]] Code find(std::uint64_t bits) const {
    std::uint32_t first = 0;  // code of a length
    const UINT8* symbols = huffman->huffval;
    for (int length = 1; length <= 16; ++length) {
      const auto code = static_cast<std::uint32_t>(bits >> (64 - length));
      const std::uint32_t count = huffman->bits[length];
      if (code - first < count) return {length, symbols[code - first]};
      first = (first + count) << 1;
      symbols += count;
    }
    return Code{};
  }
};

// The bits to come, the next one highest.
struct Bits {
  std::uint64_t bits;
  int count;
  const std::uint8_t* next;

  // Reads 8 bytes.
  void fill() {
    std::uint64_t bytes = 0;
    std::memcpy(&bytes, next, sizeof(bytes));
    if constexpr (std::endian::native == std::endian::little) bytes = __builtin_bswap64(bytes);
    bits |= bytes >> count;
    next += (63 - count) / 8;
    count |= kFilled;
  }

  Code look(const Table& table) const { return table.codes[bits >> (64 - kLookBits)]; }

  int number(Code code) const {
    if (code.has_number()) return code.number();
    return extend(bits << (code.bits() - code.size()), code.size());
  }

  void skip(Code code) {
    bits <<= code.bits();
    count -= code.bits();
  }

  // The first byte of which no bit was skipped.
  const std::uint8_t* position() const { return next - count / 8; }
};

// The damage that libjpeg would warn of. The reader's function for that doesn't return.
[[noreturn, gnu::cold]] void refuse(jpeg_decompress_struct& jpeg, J_MESSAGE_CODE code) {
  WARNMS(&jpeg, code);
  ERREXIT(&jpeg, code);
  __builtin_unreachable();
}

// In libjpeg's memory, as its modules are.
class HuffmanDecoder : private jpeg_entropy_decoder {
 public:
  [[gnu::cold]] explicit HuffmanDecoder(jpeg_decompress_struct& jpeg)
      : jpeg_entropy_decoder(*jpeg.entropy) {
    decode_mcu = [](j_decompress_ptr jpeg, JBLOCKROW* blocks) -> boolean {
      static_cast<HuffmanDecoder*>(jpeg->entropy)->decode_blocks(*jpeg, blocks);
      return TRUE;
    };
    for (int i = 0; i < jpeg.comps_in_scan; ++i) {
      const jpeg_component_info& component = *jpeg.cur_comp_info[i];
      components_[i] = {&dc_[component.dc_tbl_no], &ac_[component.ac_tbl_no], 0};
      dc_[component.dc_tbl_no].build(*jpeg.dc_huff_tbl_ptrs[component.dc_tbl_no]);
      ac_[component.ac_tbl_no].build(*jpeg.ac_huff_tbl_ptrs[component.ac_tbl_no]);
    }
    for (int i = 0; i < jpeg.blocks_in_MCU; ++i) {
      block_components_[i] = &components_[jpeg.MCU_membership[i]];
    }
    for (int k = 0; k < kOrders; ++k) {
      order_[k] = static_cast<std::uint8_t>(jpeg_natural_order[std::min(k, DCTSIZE2)]);
    }
    groups_left_ = jpeg.MCUs_per_row * jpeg.MCU_rows_in_scan;
    bits_ = {0, 0, buffer_};
    end_ = buffer_;
    jpeg.entropy = this;
  }

 private:
  static constexpr std::ptrdiff_t kBufferBytes = 4096;
  static constexpr std::ptrdiff_t kBlockBytes = 64 * (16 + 15) / 8;  // that a block can have
  static constexpr std::ptrdiff_t kAhead = 8;                        // bytes that fill() reads

  static constexpr int kOrders = 63 + 63 + 1;  // as far as zeros can lead

  struct Component {
    const Table *dc, *ac;
    int last_dc;  // coefficient
  };

  // The blocks of one MCU; nullptr: they are skipped. They are zero.
  void decode_blocks(jpeg_decompress_struct& jpeg, JBLOCKROW* blocks) {
    JBLOCK skipped;
    Bits bits = bits_;  // in registers
    for (int i = 0; i < jpeg.blocks_in_MCU; ++i) {
      if (!ended_ && end_ - bits.next < kBlockBytes + kAhead)
        bits.next = load(*jpeg.src, bits.next);
      decode_block(jpeg, bits, *block_components_[i], blocks == nullptr ? skipped : *blocks[i]);
      if (bits.position() > end_) refuse(jpeg, JWRN_HIT_MARKER);
    }
    bits_ = bits;
    if (--groups_left_ == 0) finish(jpeg);
  }

  [[gnu::always_inline]] void decode_block(jpeg_decompress_struct& jpeg, Bits& bits,
                                           Component& component, JCOEF* block) {
    bits.fill();
    const Code first = found(jpeg, *component.dc, bits);
    int& last = component.last_dc;
    if (__builtin_add_overflow(last, bits.number(first), &last)) refuse(jpeg, JERR_BAD_DCT_COEF);
    block[0] = static_cast<JCOEF>(last);
    bits.skip(first);

    const Table& ac = *component.ac;
    int k = 1;
    Code code{};
    // A number that the table has; whether there may be another one behind it.
    const auto step = [&]() __attribute__((always_inline)) {
      code = bits.look(ac);
      if (!code.has_number()) return false;
      k += code.zeros();
      block[order_[k++]] = static_cast<JCOEF>(code.number());
      bits.skip(code);
      return k < DCTSIZE2;
    };
    while (k < DCTSIZE2) {
      bits.fill();
      static_assert(5 * kLookBits <= kFilled);
      if (step() && step() && step() && step() && step()) continue;
      if (code.has_number()) continue;
      bits.fill();
      code = found(jpeg, ac, bits);
      k += code.zeros();
      block[order_[k++]] = static_cast<JCOEF>(bits.number(code));
      bits.skip(code);
    }
  }

  static Code found(jpeg_decompress_struct& jpeg, const Table& table, const Bits& bits) {
    Code code = bits.look(table);
    if (!code.exists()) code = table.find(bits.bits);
    if (!code.exists()) refuse(jpeg, JWRN_HUFF_BAD_CODE);
    return code;
  }

  // Moves what is left to the buffer's beginning, which it returns. Takes as much of the file as
  // there is room for, up to the next marker, without the zero behind each 0xFF. Zeros follow, of
  // which a block may take too many before that is noticed.
  [[gnu::cold]] const std::uint8_t* load(jpeg_source_mgr& source, const std::uint8_t* next) {
    const std::ptrdiff_t left = end_ - next;
    std::memmove(buffer_, next, static_cast<std::size_t>(left));
    end_ = buffer_ + left;
    const std::uint8_t* in = source.next_input_byte;
    const std::uint8_t* const in_end = in + source.bytes_in_buffer;
    const std::uint8_t* const room_end = buffer_ + kBufferBytes;
    while (!ended_ && end_ < room_end) {
      const auto most = static_cast<std::size_t>(std::min(in_end - in, room_end - end_));
      const void* const found = std::memchr(in, 0xFF, most);
      const std::uint8_t* const plain_end =
          found == nullptr ? in + most : static_cast<const std::uint8_t*>(found);
      end_ = std::copy(in, plain_end, end_);
      in = plain_end;
      if (found == nullptr) {
        ended_ = in == in_end;
        continue;
      }
      ended_ = in_end - in < 2 || in[1] != 0;
      if (ended_) break;
      *end_++ = 0xFF;
      in += 2;
    }
    std::memset(end_, 0, kBlockBytes + 2 * kAhead);
    source.next_input_byte = in;
    source.bytes_in_buffer = static_cast<std::size_t>(in_end - in);
    return buffer_;
  }

  // libjpeg goes on reading the file where the marker should be.
  [[gnu::cold]] void finish(jpeg_decompress_struct& jpeg) {
    if (!ended_) bits_.next = load(*jpeg.src, bits_.next);
    if (!ended_ || end_ - bits_.position() > 7) refuse(jpeg, JWRN_EXTRANEOUS_DATA);
  }

  std::uint8_t order_[kOrders];  // of a block's coefficients; behind the last one as libjpeg's
  Table dc_[NUM_HUFF_TBLS], ac_[NUM_HUFF_TBLS];
  Component components_[MAX_COMPS_IN_SCAN];
  Component* block_components_[D_MAX_BLOCKS_IN_MCU];
  JDIMENSION groups_left_;  // MCUs

  Bits bits_;
  std::uint8_t* end_;   // of the data in the buffer
  bool ended_ = false;  // these are the last
  std::uint8_t buffer_[kBufferBytes + kBlockBytes + 2 * kAhead];
};

}  // namespace

[[gnu::cold]] void replace_huffman_decoder(jpeg_decompress_struct& jpeg) {
  if (jpeg_has_multiple_scans(&jpeg) || jpeg.progressive_mode || jpeg.arith_code ||
      jpeg.restart_interval != 0 || jpeg.Ss != 0 || jpeg.Se != DCTSIZE2 - 1) {
    return;
  }
  void* const memory = (*jpeg.mem->alloc_small)(reinterpret_cast<j_common_ptr>(&jpeg), JPOOL_IMAGE,
                                                sizeof(HuffmanDecoder));
  new (memory) HuffmanDecoder(jpeg);
}

}  // namespace quern

#else

void quern::replace_huffman_decoder(jpeg_decompress_struct&) {}

#endif
