// The rules of reactor/io.h over io_uring, with every optional feature and with none.
#include <filesystem>

#include "conformance.h"
#include "reactor/uring.h"

namespace millrace::reactor::conformance {
namespace {

class UringBackend final : public Backend {
 public:
  UringBackend(const char* features, uint64_t ingress_bytes) {
    options_.features = parse_features(features).value();
    options_.submission_entries = 64;
    options_.completion_entries = 256;
    options_.ingress_bytes = ingress_bytes;
    char name[] = "/tmp/millrace-conformance-XXXXXX";
    directory_ = mkdtemp(name);
  }
  ~UringBackend() override {
    io_.reset();
    other_.reset();
    std::filesystem::remove_all(directory_);
  }
  Io& io() override { return made(io_); }
  Io& other() override { return made(other_); }
  bool run_until(const std::function<bool()>& done) override {
    for (int round = 0; round < 6000; ++round) {
      if (done()) return true;
      turn();
    }
    return done();
  }
  void settle() override {
    turn();  // now() is of the last turn, which may be long ago
    int64_t until = io().now() + 100'000'000;
    // A busy machine may let few turns into that time, so a number of them is asked for as well.
    for (int turns = 0; turns < 40 || io().now() < until; ++turns) turn();
  }
  std::string directory() override { return directory_; }

 private:
  Io& made(std::unique_ptr<Io>& io) {
    if (!io) io = std::move(make_uring(options_).value());
    return *io;
  }
  void turn() {
    io().turn(other_ ? 1'000'000 : 5'000'000);
    if (other_) other_->turn(1'000'000);
  }
  UringOptions options_;
  std::string directory_;
  std::unique_ptr<Io> io_;
  std::unique_ptr<Io> other_;
};

std::vector<Parameter> parameters() {
  std::vector<Parameter> all;
  for (const char* features : {"all", "none"}) {
    all.push_back({features, [=](uint64_t ingress_bytes) {
                     return std::make_unique<UringBackend>(features, ingress_bytes);
                   }});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Uring, Conformance, ::testing::ValuesIn(parameters()),
                         [](const auto& used) { return std::string(used.param.name); });

}  // namespace
}  // namespace millrace::reactor::conformance
