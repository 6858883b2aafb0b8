#include "train/checkpoint_writer.h"

#include <cassert>
#include <chrono>
#include <exception>
#include <utility>

#include "core/activity.h"
#include "core/log.h"

namespace tessera {

bool writes_beside(const TrainConfig& c) {
  return c.async_save && (c.save_strategy == "epoch" || (c.save_strategy == "steps" && c.save_steps > 0));
}

CheckpointWriter::CheckpointWriter(LoadedModel& m, const Optimizer& optimizer, SaveOptions options, bool asynchronous)
    : model_(m), options_(std::move(options)), asynchronous_(asynchronous), live_(live_state(m, optimizer)) {
  if (!asynchronous_) return;
  own_ = m.comm.split(0, m.comm.rank());
  snapshot_.emplace(live_, m.sharded.units(), m.backend);
  committed_ = std::async(std::launch::async, [this] { snapshot_->commit(); });
}

CheckpointWriter::~CheckpointWriter() {
  if (std::uncaught_exceptions() > 0 && in_flight() && own_) own_->interrupt();
  if (in_flight()) result_.wait();
}

CheckpointWriter::Outcome CheckpointWriter::write(Comm& comm, const StateOf& state, CheckpointManifest facts) {
  const auto start = std::chrono::steady_clock::now();
  Outcome out;
  out.step = facts.step;
  try {
    out.folder = write_checkpoint(model_, comm, state, std::move(facts), options_);
  } catch (const SaveError& e) {
    out.error = e.what();
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

void CheckpointWriter::save(CheckpointManifest facts) {
  assert(!in_flight());
  if (!asynchronous_) {
    std::promise<Outcome> done;
    done.set_value(write(model_.comm, live_, std::move(facts)));
    result_ = done.get_future();
    return;
  }
  committed_.wait();
  snapshot_->take();
  result_ = std::async(std::launch::async, [this, facts = std::move(facts)] {
    set_log_rank(own_->rank(), own_->size());
    const Doing saving(Activity::saving);
    return write(
        *own_, [this](size_t state, int unit) { return snapshot_->share(state, unit); }, facts);
  });
}

bool CheckpointWriter::written() const {
  return in_flight() && result_.wait_for(std::chrono::seconds(0)) == std::future_status::ready && result_.get().error.empty();
}

std::optional<CheckpointWriter::Outcome> CheckpointWriter::finish() {
  if (!in_flight()) return std::nullopt;
  return std::exchange(result_, {}).get();
}

}  // namespace tessera
