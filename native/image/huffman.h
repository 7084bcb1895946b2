// Huffman decoding of JPEG files in less time than libjpeg takes.
#pragma once

struct jpeg_decompress_struct;

namespace quern {

// Takes the place of libjpeg's own decoder in `jpeg`, whose decompression has just been started
// from a file in memory, where the file is baseline JPEG in one scan without restart markers;
// nothing is done for another one, or where libjpeg's modules can't be replaced. The pixels are the
// same.
//
// Damaged data end in libjpeg's warning, where libjpeg itself sometimes goes on: at a code that
// there isn't, and at 0xFF twice with a 0 behind. Up to 7 bytes too many before the last marker, of
// which it warns or not, are ignored.
void replace_huffman_decoder(jpeg_decompress_struct& jpeg);

}  // namespace quern
