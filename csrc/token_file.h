// A view of mapped token files: document lengths and offsets out of `.idx`, token ids out of `.bin`.
//
// The arrays of `.idx` start at byte 34 and are therefore unaligned: they are read by memcpy, never through a typed pointer.
// Every access is checked against the size of the file, so that a damaged index is an error and not a crash.

#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace cptron {

class TokenFile {
 public:
  TokenFile(const uint8_t* lengths, const uint8_t* pointers, int64_t num_documents, const uint8_t* tokens,
            int64_t num_bytes, int token_bytes, const uint8_t* learned, bool mask_beginnings)
      : lengths_(lengths),
        pointers_(pointers),
        num_documents_(num_documents),
        tokens_(tokens),
        num_bytes_(num_bytes),
        token_bytes_(token_bytes),
        learned_(learned),
        mask_beginnings_(mask_beginnings) {}

  int64_t num_documents() const { return num_documents_; }

  // Tokens of a document.
  int64_t length(uint64_t document) const {
    int32_t value;
    std::memcpy(&value, lengths_ + 4 * document, 4);
    return value;
  }

  // Writes `count` ids of `document`, from its token `offset` on, to `out`; returns the largest one, as unsigned.
  uint64_t read(uint64_t document, int64_t offset, int64_t count, int64_t* out) const {
    const int64_t first = first_byte(document);
    const int64_t available = first < 0 || first > num_bytes_ ? -1 : (num_bytes_ - first) / token_bytes_;
    if (offset < 0 || count < 0 || count > available || offset > available - count) {
      throw std::out_of_range("document " + std::to_string(document) + " lies outside the .bin file");
    }
    const uint8_t* start = tokens_ + first + offset * token_bytes_;
    switch (token_bytes_) {
      case 1: return convert<uint8_t>(start, count, out);
      case 2: return convert<uint16_t>(start, count, out);
      case 4: return convert<int32_t>(start, count, out);
      default: return convert<int64_t>(start, count, out);
    }
  }

  // Writes 1 to `out` where a token is to be learned, else 0; call it after `read` of the same tokens, which checks them.
  // With `mask_beginnings` the first token of a document is never learned: only another document's end could predict it.
  void read_learned(uint64_t document, int64_t offset, int64_t count, float* out) const {
    if (learned_ == nullptr) {
      for (int64_t i = 0; i < count; ++i) out[i] = 1.0F;
    } else {
      const uint8_t* start = learned_ + first_byte(document) / token_bytes_ + offset;
      for (int64_t i = 0; i < count; ++i) out[i] = start[i] != 0 ? 1.0F : 0.0F;
    }
    if (mask_beginnings_ && offset == 0 && count > 0) out[0] = 0.0F;
  }

 private:
  int64_t first_byte(uint64_t document) const {
    int64_t first;
    std::memcpy(&first, pointers_ + 8 * document, 8);
    return first;
  }

  template <typename T>
  static uint64_t convert(const uint8_t* start, int64_t count, int64_t* out) {
    uint64_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      T value;
      std::memcpy(&value, start + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
      out[i] = static_cast<int64_t>(value);
      const uint64_t id = static_cast<uint64_t>(out[i]);  // a negative id becomes a huge one
      largest = id > largest ? id : largest;
    }
    return largest;
  }

  const uint8_t* lengths_;
  const uint8_t* pointers_;
  int64_t num_documents_;
  const uint8_t* tokens_;
  int64_t num_bytes_;
  int token_bytes_;
  const uint8_t* learned_;
  bool mask_beginnings_;
};

}  // namespace cptron
