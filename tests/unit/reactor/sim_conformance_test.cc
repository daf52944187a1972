// The rules of reactor/io.h over the simulator: several seeds, and both layouts of its buffers.
#include "conformance.h"
#include "reactor/sim.h"

namespace millrace::reactor::conformance {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

class SimBackend final : public Backend {
 public:
  SimBackend(uint64_t seed, BufferLayout layout, uint64_t ingress_bytes)
      : world_(seed, options(layout, ingress_bytes)), host_(world_.add_host({"192.0.2.1"})) {
    io_ = world_.make_io(host_);
    other_ = world_.make_io(host_);
  }
  ~SimBackend() override { EXPECT_EQ(world_.open_handles(host_), 0u) << "handles were left open"; }
  Io& io() override { return *io_; }
  Io& other() override { return *other_; }
  bool run_until(const std::function<bool()>& done) override {
    return world_.run_until(done, world_.now() + 600 * kSecond);
  }
  void settle() override { world_.run_for(kSecond); }
  std::string directory() override {
    EXPECT_TRUE(io_->make_directory("/test").ok());
    return "/test";
  }

 private:
  static SimOptions options(BufferLayout layout, uint64_t ingress_bytes) {
    SimOptions options;
    options.buffer_layout = layout;
    options.buffer_limits[static_cast<size_t>(BufferGroup::ingress)] = ingress_bytes;
    return options;
  }
  SimWorld world_;
  HostId host_;
  std::unique_ptr<Io> io_;
  std::unique_ptr<Io> other_;
};

std::vector<Parameter> parameters() {
  static const char* const names[] = {"incremental1", "small1", "incremental2",
                                      "small2",       "incremental3", "small3"};
  std::vector<Parameter> all;
  for (uint64_t i = 0; i < 6; ++i) {
    auto layout = i % 2 == 0 ? BufferLayout::incremental : BufferLayout::small;
    all.push_back({names[i], [=](uint64_t ingress_bytes) {
                     return std::make_unique<SimBackend>(i / 2 + 1, layout, ingress_bytes);
                   }});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Sim, Conformance, ::testing::ValuesIn(parameters()),
                         [](const auto& used) { return std::string(used.param.name); });

}  // namespace
}  // namespace millrace::reactor::conformance
