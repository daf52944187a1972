// How millracectl shows an answer to a person: tables of plain text. Pure, from the JSON of
// protocol.h. Texts that came from peers are escaped, so that no reply can move a terminal's
// cursor.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace millrace::admin {

struct ViewOptions {
  int64_t now_ms = 0;  // UTC
  size_t width = 100;  // columns
};

std::string show_forgotten(const nlohmann::json& result);
std::string show_tls_reports(const nlohmann::json& result, const ViewOptions& options);  // the list, or what was done
std::string show_accounts(const nlohmann::json& result);  // the list, or what was done
std::string show_status(const nlohmann::json& result, const ViewOptions& options);
std::string show_queue(const nlohmann::json& result, const ViewOptions& options);
std::string show_explain(const nlohmann::json& result, const ViewOptions& options);
std::string show_message(const nlohmann::json& result, const ViewOptions& options);
// "42 recipients deleted", "42 recipients would be paused"
std::string show_command(const nlohmann::json& result, std::string_view command);

// "3d4h", "12m5s", "<1s": the two largest units.
std::string short_duration(int64_t milliseconds);
// RFC 3339 as protocol.h writes it; 0 if it is none.
int64_t parse_time(std::string_view text);

}  // namespace millrace::admin
