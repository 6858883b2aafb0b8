// Ledger: who holds how much of one device's memory, and the most that was held at once in each phase of a run.
// The memory plan is a ledger that was filled without a run; `used` and `planned` are the same sums of the same calls.
// Thread-safe. Names are literals; equal text is one holder.
#pragma once
#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

namespace tessera {

class Ledger {
 public:
  Ledger();
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;
  // What all ledgers of this process hold now, for the message of memory that could not be had elsewhere. Throws no bad_alloc: says less.
  static std::string text_of_all();

  struct Holder {
    std::string what;
    size_t bytes = 0;
  };
  // The moment of a phase when most was held.
  struct Peak {
    std::string phase;  // load, forward, backward, step, save, evaluate
    size_t bytes = 0;
    std::vector<Holder> holders;  // those with bytes, in the order of their first use
  };

  int account(const char* what);  // number of a holder, made when it is new
  void take(int account, size_t bytes);
  void give(int account, size_t bytes);

  void enter(const char* phase);  // until the next one; what is held now counts for it
  size_t used() const;
  size_t peak() const;                  // of all phases
  std::vector<Holder> holders() const;  // now, largest first
  std::string text() const;             // "frozen weights 4.2 GiB, activations 310 MiB, ...": the five largest
  std::vector<Peak> peaks() const;      // in the order in which the phases were first entered

 private:
  struct Phase {
    std::string name;
    size_t peak = 0;
    std::vector<size_t> bytes;  // by account, at the peak
  };
  void note_peak();

  mutable std::mutex mutex_;
  std::vector<std::string> names_;
  std::vector<size_t> bytes_;
  std::vector<Phase> phases_{Phase{"load", 0, {}}};
  size_t used_ = 0, phase_ = 0;
};

// Bytes on an account for as long as this lives. Move-only.
class Charge {
 public:
  Charge() = default;
  Charge(Ledger&, const char* what, size_t bytes);
  Charge(Charge&& other) noexcept;
  Charge& operator=(Charge&& other) noexcept;
  ~Charge();

 private:
  Ledger* ledger_ = nullptr;
  int account_ = 0;
  size_t bytes_ = 0;
};

}  // namespace tessera
