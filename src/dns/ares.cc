// The production transport: c-ares (1.18) driven by the reactor.
//
// c-ares owns its sockets and says which of them it wants to read or write (sock_state_cb); each
// gets a Watch, a single-shot poll armed again for as long as c-ares wants it. When c-ares closes a
// socket the Watch may still be polled by the kernel, and the descriptor's number may come back at
// once as another socket: so a Watch, once dead, is cancelled, kept apart, and deleted by its final
// completion.
//
// Time-outs are c-ares' own, looked at every kTickNs while queries are in flight.
#include <ares.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <unordered_map>

#include "dns/resolver.h"

namespace millrace::dns {
namespace {

constexpr int64_t kTickNs = 100'000'000;
constexpr int kUdpPayload = 1232;  // fits every path's MTU (DNS flag day 2020)
constexpr int kTries = 2;          // per server; c-ares doubles the time-out with each round

class AresTransport final : public Transport {
 public:
  explicit AresTransport(reactor::Io& io) : io_(io) {
    tick_.bind<&AresTransport::on_tick>(this);
    deliver_.bind<&AresTransport::on_deliver>(this);
  }
  ~AresTransport() override {
    deliver_.cancel();
    tick_.cancel();
    if (channel_) {
      stopping_ = true;  // destroying calls every query back
      ares_destroy(channel_);
    }
    ASSERT(dying_.empty() && watches_.empty());
  }

  Status open(const AresOptions& options) {
    static std::once_flag once;
    static int library_status = ARES_SUCCESS;
    std::call_once(once, [] { library_status = ares_library_init(ARES_LIB_INIT_ALL); });
    if (library_status != ARES_SUCCESS) return fail(Error{ares_strerror(library_status)});

    const int servers = std::clamp<int>(static_cast<int>(options.servers.size()), 1, 8);
    ares_options settings{};
    settings.flags = ARES_FLAG_EDNS;
    // One round takes t a server, the next 2t: together the whole time.
    settings.timeout = static_cast<int>(std::max<int64_t>(options.timeout_ms / (3 * servers), 50));
    settings.tries = kTries;
    settings.ednspsz = kUdpPayload;
    settings.sock_state_cb = [](void* self, ares_socket_t socket, int readable, int writable) {
      static_cast<AresTransport*>(self)->on_socket(socket, readable != 0, writable != 0);
    };
    settings.sock_state_cb_data = this;
    const int mask = ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_EDNSPSZ |
                     ARES_OPT_SOCK_STATE_CB;
    int status = ares_init_options(&channel_, &settings, mask);
    if (status != ARES_SUCCESS) {
      channel_ = nullptr;
      return fail(std::string("c-ares: ") + ares_strerror(status));
    }
    if (!options.servers.empty()) {
      std::string list;
      for (const reactor::Address& server : options.servers) {
        if (!list.empty()) list += ',';
        list += server.to_string();
      }
      status = ares_set_servers_ports_csv(channel_, list.c_str());
      if (status != ARES_SUCCESS) {
        return fail("DNS servers " + list + ": " + ares_strerror(status));
      }
    }
    return find_trust(options);
  }

  void query(const std::string& name, Type type, Callback done) override {
    ASSERT(!stopping_);
    auto* asked = new Asked{*this, name, type, std::move(done)};
    ++in_flight_;
    const ares_callback on_end = [](void* at, int status, int, unsigned char* bytes, int size) {
      std::unique_ptr<Asked> ended(static_cast<Asked*>(at));
      ended->transport.on_reply(*ended, status, bytes, size);
    };
    // c-ares' ares_query() cannot ask whether the answer is signed: AD in the question does (RFC 6840 5.7), without the
    // signatures themselves, which DO would bring.
    unsigned char* packet = nullptr;
    int size = 0;
    const int status = ares_create_query(name.c_str(), 1 /* IN */, static_cast<int>(type), draw_id(), 1 /* RD */, &packet,
                                         &size, kUdpPayload);
    if (status == ARES_SUCCESS) {
      packet[3] |= 0x20;
      ares_send(channel_, packet, size, on_end, asked);
      ares_free_string(packet);
    } else {
      on_end(asked, status, 0, nullptr, 0);
    }
    if (in_flight_ > 0 && !tick_.armed()) io_.timers().arm(tick_, io_.now() + kTickNs);
  }

  void stop(std::function<void()> done) override {
    stopping_ = true;
    stopped_ = std::move(done);
    tick_.cancel();
    ready_.clear();
    ares_destroy(channel_);  // closes every socket, so on_socket kills every Watch
    channel_ = nullptr;
    io_.defer(deliver_);
  }

 private:
  // Whether every server's AD counts.
  Status find_trust(const AresOptions& options) {
    ares_addr_port_node* servers = nullptr;
    if (int status = ares_get_servers_ports(channel_, &servers); status != ARES_SUCCESS) {
      return fail(std::string("c-ares: ") + ares_strerror(status));
    }
    trusted_ = servers != nullptr;
    for (const ares_addr_port_node* at = servers; at != nullptr; at = at->next) {
      reactor::Address address;
      if (at->family == AF_INET) {
        address = reactor::Address::ipv4(ntohl(at->addr.addr4.s_addr), 0);
      } else {
        uint8_t octets[16];
        std::memcpy(octets, &at->addr.addr6, sizeof octets);
        address = reactor::Address::ipv6(octets, 0);
      }
      trusted_ = trusted_ && (is_loopback(address) ||
                              std::any_of(options.trusted.begin(), options.trusted.end(), [&](const reactor::Address& one) {
                                return one.octets() == address.octets();
                              }));
    }
    ares_free_data(servers);
    return success();
  }

  static bool is_loopback(const reactor::Address& address) {
    static const reactor::Network networks[] = {*reactor::Network::parse("127.0.0.0/8"), *reactor::Network::parse("::1/128")};
    return std::any_of(std::begin(networks), std::end(networks),
                       [&](const reactor::Network& network) { return network.contains(address); });
  }

  // Not to be guessed: who knows the id and the port can answer in the server's place.
  static uint16_t draw_id() {
    static thread_local struct Pool {
      uint16_t ids[64];
      size_t left = 0;
    } pool;
    if (pool.left == 0) {
      ASSERT(getrandom(pool.ids, sizeof pool.ids, 0) == sizeof pool.ids);
      pool.left = std::size(pool.ids);
    }
    return pool.ids[--pool.left];
  }

  struct Asked {
    AresTransport& transport;
    std::string name;
    Type type;
    Callback done;
  };

  struct Watch {
    Watch(AresTransport& owner, int socket) : transport(owner), descriptor(socket) {
      poll.bind<&Watch::on_ready>(this);
    }
    void on_ready(reactor::Completion& completion) {
      transport.on_ready(*this, completion.result);  // may delete *this
    }
    AresTransport& transport;
    int descriptor;
    short wanted = 0;
    short armed = 0;
    bool dead = false;
    bool processing = false;
    reactor::Op poll;
  };

  void on_socket(int descriptor, bool readable, bool writable) {
    const short wanted = static_cast<short>((readable ? POLLIN : 0) | (writable ? POLLOUT : 0));
    auto found = watches_.find(descriptor);
    if (wanted == 0) {
      if (found == watches_.end()) return;
      std::unique_ptr<Watch> watch = std::move(found->second);
      watches_.erase(found);
      watch->dead = true;
      if (watch->poll.pending()) {
        io_.cancel(watch->poll);
        dying_.push_back(std::move(watch));
      } else if (watch->processing) {
        dying_.push_back(std::move(watch));  // on_ready, further up the stack, deletes it
      }
      return;
    }
    if (found == watches_.end()) {
      found = watches_.emplace(descriptor, std::make_unique<Watch>(*this, descriptor)).first;
    }
    Watch& watch = *found->second;
    watch.wanted = wanted;
    if (!watch.poll.pending()) {
      if (!watch.processing) arm(watch);
    } else if (watch.armed != wanted) {
      io_.cancel(watch.poll);  // its completion arms it anew
    }
  }

  void arm(Watch& watch) {
    watch.armed = watch.wanted;
    io_.poll(watch.poll, watch.descriptor, watch.wanted);
  }

  void on_ready(Watch& watch, int32_t result) {
    if (!watch.dead && result > 0) {
      const bool readable = (result & (POLLIN | POLLERR | POLLHUP)) != 0;
      const bool writable = (result & (POLLOUT | POLLERR)) != 0;
      watch.processing = true;
      ares_process_fd(channel_, readable ? watch.descriptor : ARES_SOCKET_BAD,
                      writable ? watch.descriptor : ARES_SOCKET_BAD);
      watch.processing = false;
    }
    if (watch.dead) {
      bury(watch);
      if (stopping_) io_.defer(deliver_);
      return;
    }
    if (result < 0 && result != -ECANCELED) {
      // Polling this socket fails for good: leave its queries to their time-outs.
      return;
    }
    arm(watch);
  }

  void bury(Watch& watch) {
    auto at = std::find_if(dying_.begin(), dying_.end(),
                           [&](const auto& other) { return other.get() == &watch; });
    ASSERT(at != dying_.end());
    dying_.erase(at);
  }

  void on_tick() {
    ares_process_fd(channel_, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
    if (in_flight_ > 0) io_.timers().arm(tick_, io_.now() + kTickNs);
  }

  void on_reply(Asked& asked, int status, const unsigned char* bytes, int size) {
    --in_flight_;
    if (stopping_) return;
    Answer answer;
    // Anything that is a reply is read by ourselves: c-ares' own readers drop TTLs.
    if (bytes != nullptr && size > 0) {
      answer = parse_reply({reinterpret_cast<const char*>(bytes), static_cast<size_t>(size)},
                           asked.name, asked.type, trusted_);
    } else if (status == ARES_EBADNAME) {
      answer.outcome = Outcome::malformed;
      answer.reason = "not a domain name";
    } else {
      answer.outcome = Outcome::failure;
      answer.reason = ares_strerror(status);
    }
    // Not called from here: c-ares may be inside of query(), and may not be stopped from a
    // callback.
    ready_.push_back({std::move(asked.done), std::move(answer)});
    io_.defer(deliver_);
  }

  void on_deliver() {
    if (stopping_) {
      if (dying_.empty() && stopped_) std::exchange(stopped_, nullptr)();
      return;
    }
    std::vector<Ready> ready = std::move(ready_);
    ready_.clear();
    for (Ready& one : ready) {
      if (!stopping_) one.done(std::move(one.answer));
    }
  }

  struct Ready {
    Callback done;
    Answer answer;
  };

  reactor::Io& io_;
  ares_channel channel_ = nullptr;
  std::unordered_map<int, std::unique_ptr<Watch>> watches_;  // by descriptor
  std::vector<std::unique_ptr<Watch>> dying_;                // sockets closed, polls not yet back
  std::vector<Ready> ready_;
  reactor::Timer tick_;
  reactor::Deferred deliver_;
  std::function<void()> stopped_;
  size_t in_flight_ = 0;
  bool trusted_ = false;
  bool stopping_ = false;
};

}  // namespace

Result<std::unique_ptr<Transport>> make_ares_transport(reactor::Io& io,
                                                       const AresOptions& options) {
  auto transport = std::make_unique<AresTransport>(io);
  if (Status opened = transport->open(options); !opened) return fail(opened.error());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace millrace::dns
