// Percentiles of durations in constant memory: 64 buckets an octave, so a percentile is at most 1.6
// % above the true value.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace millrace::tools {

class Histogram {
 public:
  void add(int64_t nanoseconds) {
    uint64_t value = nanoseconds > 0 ? static_cast<uint64_t>(nanoseconds) : 0;
    ++counts_[index(value)];
    ++total_;
    if (value > most_) most_ = value;
  }
  void merge(const Histogram& other) {
    for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    total_ += other.total_;
    if (other.most_ > most_) most_ = other.most_;
  }
  uint64_t total() const { return total_; }
  double max_ms() const { return static_cast<double>(most_) / 1e6; }
  // `percent` in [0, 100]; 0 when nothing was added.
  double percentile_ms(double percent) const {
    uint64_t rank = static_cast<uint64_t>(std::ceil(static_cast<double>(total_) * percent / 100));
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen >= rank && seen > 0) {
        uint64_t bound = upper_bound(i);
        return static_cast<double>(bound < most_ ? bound : most_) / 1e6;
      }
    }
    return 0;
  }

 private:
  static constexpr unsigned kBits = 6;
  static constexpr uint64_t kPerOctave = 1 << kBits;

  static size_t index(uint64_t value) {
    if (value < kPerOctave) return value;
    unsigned octave = static_cast<unsigned>(std::bit_width(value)) - kBits - 1;
    return (octave << kBits) + (value >> octave);
  }
  static uint64_t upper_bound(size_t i) {
    if (i < kPerOctave) return i;
    unsigned octave = static_cast<unsigned>(i >> kBits) - 1;
    return (((i & (kPerOctave - 1)) + kPerOctave + 1) << octave) - 1;
  }

  std::array<uint64_t, (64 - kBits + 1) * kPerOctave> counts_{};
  uint64_t total_ = 0;
  uint64_t most_ = 0;
};

}  // namespace millrace::tools
