// The version of the library and its programs.
#pragma once

namespace millrace {

// "0.1.0"
const char* version();

}  // namespace millrace
