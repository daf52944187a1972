// An outcome on its way to the disk: the note, the events it tells of, and what happens to the item once
// it is durable. Used by the scheduler alone.
#pragma once

#include "queue/scheduler.h"

namespace millrace::queue {

struct Scheduler::Outcome : spool::Note {
  Scheduler* scheduler = nullptr;
  Item* item = nullptr;
  // How many of each kind its events are; Note::event holds them.
  uint32_t delivered = 0, deferred = 0, bounced = 0, expired = 0, removed = 0;
  bool item_ends = false;  // no recipient of the item is left
  int64_t due = 0;         // monotonic; of an item that stays
  ReportRequest report;
};

}  // namespace millrace::queue
