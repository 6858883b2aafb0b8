#include "core/activity.h"

namespace tessera {
namespace {
thread_local Activity current = Activity::starting;
thread_local std::atomic<Activity>* shown = nullptr;

void change(Activity a) {
  current = a;
  if (shown) shown->store(a, std::memory_order_relaxed);
}
}  // namespace

const char* name_of(Activity a) {
  switch (a) {
    case Activity::starting:
      return "starting";
    case Activity::reading_data:
      return "reading data";
    case Activity::loading:
      return "loading";
    case Activity::training:
      return "training";
    case Activity::forward:
      return "forward";
    case Activity::recompute:
      return "recompute";
    case Activity::head:
      return "head";
    case Activity::backward:
      return "backward";
    case Activity::optimizer:
      return "optimizer";
    case Activity::evaluating:
      return "evaluating";
    case Activity::saving:
      return "saving";
    case Activity::gathering:
      return "gathering";
    case Activity::ending:
      return "ending";
  }
  return "";
}

Doing::Doing(Activity a) : before_(current) { change(a); }
Doing::~Doing() { change(before_); }
Activity Doing::now() { return current; }
void Doing::show(std::atomic<Activity>* place) {
  shown = place;
  if (place) place->store(current, std::memory_order_relaxed);
}

}  // namespace tessera
