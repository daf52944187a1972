#include "admin/server.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "events/json.h"

namespace millrace::admin {
namespace {

constexpr size_t kMostReportRows = 1000;

nlohmann::json to_json(const Control::TlsReportRow& row) {
  const auto time = [](int64_t ms) {
    char text[events::kTimeSize];
    events::format_time(ms, text);
    return std::string(text, sizeof text);
  };
  nlohmann::json out{{"domain", row.domain}, {"successful", row.successful}, {"failed", row.failed}, {"since", time(row.since_ms)}};
  if (row.due_ms != 0) out["due"] = time(row.due_ms);
  if (!row.why.empty()) out["why"] = row.why;
  return out;
}

}  // namespace

// One connection: lines in, lines out.
class Server::Session final : public net::StreamOwner {
 public:
  Session(Server& server, uint64_t number, reactor::Handle handle)
      : server_(server), number_(number), stream_(server.io_, *this) {
    idle_.bind<&Session::on_idle>(this);
    stream_.start(handle, reactor::BufferGroup::control);
    arm_idle();
  }

  void answer(std::string line) {
    if (!stream_.open()) return;
    working_ = false;
    reply_ = std::move(line);
    iovec part{reply_.data(), reply_.size()};
    stream_.send(std::span(&part, 1));
    arm_idle();
  }
  void close() {
    idle_.cancel();
    stream_.close();
  }

 private:
  void on_data(char* data, size_t size, reactor::BufferRef) override {
    arm_idle();
    input_.append(data, size);
    next();
  }
  void on_sent() override { next(); }
  void on_end(int error) override {
    ended_ = true;
    if (error != 0) return close();
    next();
  }
  void on_closed() override { server_.gone(number_); }
  void on_idle() { close(); }
  void arm_idle() { server_.io_.timers().arm(idle_, server_.io_.now() + kIdleNs); }

  // Begins with the next line, when nothing is under way.
  void next() {
    if (working_ || stream_.sending() || stream_.closing()) return;
    size_t end = input_.find('\n');
    if (end == std::string::npos) {
      if (ended_ || refused_) return close();
      if (input_.size() > kLongestLine) {
        refused_ = true;
        input_.clear();
        stream_.pause();
        answer(error_line("the request is longer than 64 KiB"));
      }
      return;
    }
    std::string line = input_.substr(0, end);
    input_.erase(0, end + 1);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    working_ = true;
    auto request = parse_request(line);
    if (!request) return answer(error_line(request.error().text));
    server_.handle(number_, std::move(*request));
  }

  Server& server_;
  const uint64_t number_;
  net::Stream stream_;
  reactor::Timer idle_;
  std::string input_;
  std::string reply_;     // being sent
  bool working_ = false;  // a request is being answered
  bool ended_ = false;    // the client sends nothing more
  bool refused_ = false;
};

Server::Server(reactor::Io& io, Control& control, std::string hostname)
    : io_(io),
      control_(control),
      hostname_(std::move(hostname)),
      started_ms_(io.wall_ms()),
      listener_(io, *this) {}

Server::~Server() { *alive_ = false; }

Status Server::open(const std::string& path) {
  reactor::ListenOptions options;
  options.address = reactor::Address::unix_path(path);
  options.backlog = 16;
  options.unix_mode = 0600;
  if (options.address.empty())
    return fail(fmt::format(
        "admin socket {}: the path is too long for a Unix socket (107 octets); choose another "
        "with --admin-socket",
        path));
  if (Status status = listener_.open(options); !status) {
    return fail(fmt::format("admin socket {}: {}", path, status.error().text),
                status.error().number);
  }
  alive_ = std::make_shared<bool>(true);
  return success();
}

void Server::close(std::function<void()> closed) {
  closed_ = std::move(closed);
  *alive_ = false;
  listener_.close();
}

void Server::on_listener_closed() {
  for (auto& [number, session] : sessions_) session->close();
  finish_close();
}

void Server::finish_close() {
  if (!closed_ || listener_.is_open() || !sessions_.empty()) return;
  std::exchange(closed_, nullptr)();
}

void Server::on_accepted(reactor::Handle handle) {
  if (sessions_.size() >= kMostSessions || !*alive_) {
    io_.close(handle);
    return;
  }
  uint64_t number = next_session_++;
  sessions_.emplace(number, std::make_unique<Session>(*this, number, handle));
}

void Server::on_accept_error(int error) {
  log::warning("admin socket: accept: {}", strerror(error));
}

void Server::gone(uint64_t session) {
  sessions_.erase(session);
  finish_close();
}

void Server::answer(uint64_t session, std::string line) {
  auto at = sessions_.find(session);
  if (at != sessions_.end()) at->second->answer(std::move(line));
}

void Server::handle(uint64_t session, Request request) {
  auto reply = [this, session, alive = alive_](nlohmann::json result) {
    if (*alive) answer(session, reply_line(std::move(result)));
  };
  auto refuse = [this, session, alive = alive_](std::string_view why) {
    if (*alive) answer(session, error_line(why));
  };
  if (std::get_if<StatusRequest>(&request)) {
    control_.status([this, reply, alive = alive_](RelayStatus status) {
      if (!*alive) return;
      nlohmann::json result = to_json(status);
      result["node"] = hostname_;
      result["version"] = MILLRACE_VERSION;
      result["uptime_s"] = std::max<int64_t>(0, (io_.wall_ms() - started_ms_) / 1000);
      result["pauses"] = nlohmann::json::array();
      for (const queue::Filter& filter : control_.pauses())
        result["pauses"].push_back(to_json(filter));
      reply(std::move(result));
    });
  } else if (auto* queue_request = std::get_if<QueueRequest>(&request)) {
    control_.queue_rows(
        [reply, wanted = std::move(*queue_request)](std::vector<queue::QueueRow> rows) {
          nlohmann::json result{{"destinations", nlohmann::json::array()}};
          uint64_t total = 0;
          for (const queue::QueueRow& row : rows) {
            if (!wanted.domain.empty() && row.domain != wanted.domain) continue;
            if (++total <= wanted.limit) result["destinations"].push_back(to_json(row));
          }
          result["total"] = total;
          reply(std::move(result));
        });
  } else if (auto* show = std::get_if<ShowRequest>(&request)) {
    control_.show(show->id, [reply, refuse](Result<queue::MessageRow> row) {
      if (row) {
        reply(to_json(*row));
      } else {
        refuse(row.error().text);
      }
    });
  } else if (auto* explain = std::get_if<ExplainRequest>(&request)) {
    control_.explain(explain->domain, explain->id,
                     [this, reply, refuse, alive = alive_](Result<std::vector<queue::ExplainRow>> rows) {
                       if (!rows) return refuse(rows.error().text);
                       if (!*alive) return;
                       nlohmann::json result{{"rows", nlohmann::json::array()}};
                       for (const queue::ExplainRow& row : *rows) {
                         result["rows"].push_back(to_json(row, io_.now(), io_.wall_ms()));
                       }
                       reply(std::move(result));
                     });
  } else if (std::get_if<AccountsRequest>(&request)) {
    nlohmann::json result{{"frozen", nlohmann::json::array()}};
    for (const auto& [account, why] : control_.frozen_accounts()) {
      result["frozen"].push_back({{"account", account}, {"why", why}});
    }
    reply(std::move(result));
  } else if (auto* freeze = std::get_if<FreezeRequest>(&request)) {
    log::info("operator: {} {}", freeze->frozen ? "freeze" : "unfreeze", freeze->account);
    control_.freeze(freeze->account, freeze->frozen, [reply, refuse, account = freeze->account, frozen = freeze->frozen](Status status) {
      if (status.ok()) {
        reply(nlohmann::json{{"account", account}, {"frozen", frozen}});
      } else {
        refuse(status.error().text);
      }
    });
  } else if (auto* forget = std::get_if<ForgetTlsRequest>(&request)) {
    log::info("operator: forget-tls {}", forget->domain);
    control_.forget_tls(forget->domain, [reply, refuse](Result<std::vector<std::string>> sites) {
      if (sites) {
        reply(nlohmann::json{{"sites", *sites}});
      } else {
        refuse(sites.error().text);
      }
    });
  } else if (auto* reports = std::get_if<TlsReportsRequest>(&request)) {
    if (reports->send) {
      log::info("operator: send-tls-reports");
      control_.send_tls_reports([reply, refuse](Result<uint64_t> count) {
        if (count) {
          reply(nlohmann::json{{"reports", *count}});
        } else {
          refuse(count.error().text);
        }
      });
      return;
    }
    nlohmann::json result{{"rows", nlohmann::json::array()}};
    const std::vector<Control::TlsReportRow> rows = control_.tls_reports();
    const size_t shown = std::min(rows.size(), kMostReportRows);
    for (size_t i = 0; i < shown; ++i) result["rows"].push_back(to_json(rows[i]));
    if (shown < rows.size()) result["truncated"] = rows.size() - shown;
    reply(std::move(result));
  } else if (auto* command = std::get_if<CommandRequest>(&request)) {
    if (!command->dry_run) {
      log::info(
          "operator: {} {}", queue::to_string(command->command),
          to_json(command->filter).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
    }
    bool dry_run = command->dry_run;
    control_.command(command->command, std::move(command->filter), dry_run,
                     [reply, refuse, dry_run](Result<uint64_t> count) {
                       if (count) {
                         reply(nlohmann::json{{"recipients", *count}, {"dry_run", dry_run}});
                       } else {
                         refuse(count.error().text);
                       }
                     });
  }
}

}  // namespace millrace::admin
