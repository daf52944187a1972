// An outcome on its way to the disk: the note, the events it tells of, and what happens to the item once
// it is durable. Used by the scheduler alone.
#pragma once

#include <vector>

#include "queue/scheduler.h"

namespace millrace::queue {

struct Scheduler::Outcome : spool::Note {
  Scheduler* scheduler = nullptr;
  Item* item = nullptr;
  std::vector<events::Event> events;  // the first `event_count` are in use; kept for their strings' room
  size_t event_count = 0;
  bool item_ends = false;             // no recipient of the item is left
  int64_t due = 0;                    // monotonic; of an item that stays
  ReportRequest report;
};

}  // namespace millrace::queue
