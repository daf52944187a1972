// What the intake pass costs an octet: a 20 KiB message of several kinds, received by DATA and
// BDAT, and the checksum alone for comparison.
#include <benchmark/benchmark.h>

#include <string>

#include "base/crc32c.h"
#include "base/prng.h"
#include "mail/headers.h"
#include "smtp/data_decoder.h"

namespace {

using namespace millrace;

enum Kind { text, base64, dots, long_lines };

std::string message(int kind, size_t size) {
  std::string bytes =
      "From: a@example.com\r\nTo: b@example.org\r\nSubject: a letter\r\nX-Job: spring\r\n\r\n";
  Prng prng(1);
  while (bytes.size() < size) {
    size_t length = kind == long_lines ? 900 : kind == base64 ? 76 : 20 + prng.below(60);
    if (kind == dots) bytes += "..";
    for (size_t i = 0; i < length; ++i) {
      bytes += kind == text && prng.chance(0.02) ? '.' : static_cast<char>('a' + prng.below(26));
    }
    bytes += "\r\n";
  }
  return bytes + ".\r\n";
}

void set_bytes(benchmark::State& state, size_t size) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * size));
}

void data(benchmark::State& state) {
  std::string bytes = message(static_cast<int>(state.range(0)), 20 << 10);
  for (auto _ : state) {
    smtp::DataDecoder decoder(1 << 30);
    benchmark::DoNotOptimize(decoder.consume(bytes.data(), bytes.size()));
  }
  set_bytes(state, bytes.size());
}
BENCHMARK(data)->ArgName("kind")->Arg(text)->Arg(base64)->Arg(dots)->Arg(long_lines);

void data_in_pieces_of_4k(benchmark::State& state) {
  std::string bytes = message(text, 20 << 10);
  for (auto _ : state) {
    smtp::DataDecoder decoder(1 << 30);
    for (size_t at = 0; at < bytes.size(); at += 4096) {
      benchmark::DoNotOptimize(
          decoder.consume(bytes.data() + at, std::min<size_t>(4096, bytes.size() - at)));
    }
  }
  set_bytes(state, bytes.size());
}
BENCHMARK(data_in_pieces_of_4k);

void bdat(benchmark::State& state) {
  std::string bytes = message(text, 20 << 10);
  for (auto _ : state) {
    smtp::BdatDecoder decoder(1 << 30);
    decoder.consume(bytes.data(), bytes.size());
    decoder.finish();
    benchmark::DoNotOptimize(decoder.facts().crc);
  }
  set_bytes(state, bytes.size());
}
BENCHMARK(bdat);

void checksum_alone(benchmark::State& state) {
  std::string bytes = message(text, 20 << 10);
  for (auto _ : state) benchmark::DoNotOptimize(crc32c(0, bytes));
  set_bytes(state, bytes.size());
}
BENCHMARK(checksum_alone);

void masks(benchmark::State& state) {
  std::string bytes = message(text, 20 << 10);
  auto* make = state.range(0) ? smtp::detail::masks_fast : smtp::detail::masks_portable;
  for (auto _ : state) {
    uint64_t sum = 0;
    for (size_t at = 0; at + 64 <= bytes.size(); at += 64) sum += make(bytes.data() + at).lf;
    benchmark::DoNotOptimize(sum);
  }
  set_bytes(state, bytes.size());
}
BENCHMARK(masks)->ArgName("wide")->Arg(0)->Arg(1);

void scan_headers(benchmark::State& state) {
  std::string bytes;
  for (int i = 0; i < 20; ++i)
    bytes += "X-Header-" + std::to_string(i) + ": " + std::string(60, 'v') + "\r\n";
  bytes += "X-Job: j\r\nMessage-ID: <a@b>\r\nDate: d\r\n\r\nbody\r\n";
  mail::HeaderRules rules({"X-Virtual-MTA", "X-Job", "X-EnvID", "X-Expire-After"});
  mail::HeaderScan scan;
  mail::Content content;
  content.append_raw(bytes);
  for (auto _ : state) {
    content.cuts.clear();
    mail::scan_headers(content, rules, scan);
    benchmark::DoNotOptimize(scan);
  }
  set_bytes(state, bytes.size());
}
BENCHMARK(scan_headers);

}  // namespace

BENCHMARK_MAIN();
