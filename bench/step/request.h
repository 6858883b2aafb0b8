// What bench/step is asked for, on its command line.
#pragma once
#include <cstdint>
#include <string>

#include "cli/arguments.h"
#include "train/config.h"

namespace tessera {

struct StepRequest {
  TrainConfig config;    // model, train_type, precision, ...; adapters of rank 8 on all linear layers, weights from the seed
  int64_t steps = 5;     // timed; one more comes before them
  int64_t generate = 0;  // > 0: so many new tokens from a prompt instead of training steps
  int64_t prompt = 32;   // its tokens
  double limit_tflops = 0, limit_tbs = 0;  // of a rank's device; 0: measured on cpu, else unknown
  bool json = false;                       // one JSON line, else a table

  StepRequest();
};

FieldList step_fields(StepRequest&);

}  // namespace tessera
