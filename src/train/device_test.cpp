// The laws of a run on every device, also where the host cannot touch its memory.
#include <algorithm>
#include <limits>
#include <string_view>

#include "backend/profiling_backend.h"
#include "train/generate.h"
#include "train/nonfinite.h"
#include "train/tiny_runs.h"

namespace tessera {
namespace {

class DeviceLaws : public TinyRuns, public testing::WithParamInterface<const char*> {
 protected:
  // Short: kernels of cuda_host take their time.
  TrainConfig short_run(const std::string& train_type, const std::string& output) const {
    TrainConfig c = config(train_type, output);
    c.device = GetParam();
    c.max_steps = 2;
    c.gradient_accumulation_steps = 2;
    return c;
  }
  ModelRequest request(const std::string& train_type) const { return model_request(config(train_type, "")); }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceLaws, testing::ValuesIn(f32_devices()), [](const auto& info) { return std::string(info.param); });

Batch tiny_batch() {
  const Example rows[] = {{{1, 5, 9, 30, 2, 7}, {1, 5, 9, 30, 2, 7}}, {{1, 8, 63, 4}, {-100, -100, 63, 4}}};
  return collate({&rows[0], &rows[1]});
}

std::vector<std::byte> on_host(Backend& b, const void* data, size_t bytes) {
  std::vector<std::byte> out(bytes);
  if (bytes) b.copy(out.data(), data, bytes);
  return out;
}

std::vector<std::vector<std::byte>> frozen_bytes(LoadedModel& m) {
  std::vector<std::vector<std::byte>> out;
  for (int u = 0; u < m.sharded.units(); ++u)
    out.push_back(on_host(m.backend, m.sharded.frozen_shard(u), m.sharded.frozen_range(u).size()));
  return out;
}

// What is loaded is the same bytes on every device, and a step changes what trains and nothing else.
TEST_P(DeviceLaws, FrozenBytesAreThoseOfTheHostAndStay) {
  TestModel here(request("qlora")), there(request("qlora"), GetParam());
  const auto frozen = frozen_bytes(here.model);
  EXPECT_EQ(frozen_bytes(there.model), frozen);
  Optimizer optimizer(there.model.model, there.model.sharded, *there.backend, {});
  const auto values = to_doubles(there.model.sharded.values(0));
  EXPECT_EQ(values, to_doubles(here.model.sharded.values(0)));
  there.model.sharded.zero_gradients();
  there.model.pass.train(tiny_batch(), 1);
  optimizer.step(1, 1e-2, optimizer.gradient_norm());
  EXPECT_EQ(frozen_bytes(there.model), frozen);
  EXPECT_NE(to_doubles(there.model.sharded.values(0)), values);
}

// Loss, norm of the gradient, logits and generated ids are those of the host.
TEST_P(DeviceLaws, PassesAgreeWithTheHost) {
  TestModel here(request("qlora")), there(request("qlora"), GetParam());
  const Batch batch = tiny_batch();
  EXPECT_NEAR(there.model.pass.evaluate(batch), here.model.pass.evaluate(batch), 1e-4);
  EXPECT_LT(relative_error(doubles(there.model.pass.logits(batch)), doubles(here.model.pass.logits(batch))), 1e-5);
  const auto norm = [&](TestModel& m) {
    Optimizer optimizer(m.model.model, m.model.sharded, *m.backend, {});
    m.model.sharded.zero_gradients();
    m.model.pass.train(batch, 0.1f);
    return double(optimizer.gradient_norm());
  };
  const double wanted = norm(here);
  EXPECT_NEAR(norm(there), wanted, 1e-4 * wanted);
  const auto ids = [&](TestModel& m) { return generate(m.model.pass, {1, 5, 9}, 4, {}, {}, [](int32_t) { return true; }); };
  EXPECT_EQ(ids(there), ids(here));
}

class DeviceResume : public DeviceLaws {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceResume, testing::ValuesIn(f32_devices()), [](const auto& info) { return std::string(info.param); });

// Every kind of checkpoint, written beside the training or not; resumed after step 1 of 2.
TEST_P(DeviceResume, ResumedEqualsUninterrupted) {
  for (const char* type : {"lora", "full"}) {
    run_on(1, short_run(type, std::string("whole") + type));
    for (const bool sharded : {false, true}) {
      const std::string output = std::string(type) + (sharded ? "sharded" : "full");
      TrainConfig c = short_run(type, output);
      c.save_steps = 1;
      c.async_save = sharded;
      c.fsdp_state_dict_type = state_dict_kind(sharded);
      run_on(1, c);
      remove_all(folder_.path(output) + "/checkpoint-2");
      c.resume_from_checkpoint = "true";
      run_on(1, c);
      EXPECT_EQ(outcome(output, file_of(type)), outcome(std::string("whole") + type, file_of(type))) << output;
    }
  }
}

// Those that two ranks can have: NCCL wants a GPU for each.
std::vector<const char*> devices_of_two() {
  std::vector<const char*> out = f32_devices();
  if (cuda_devices() < 2) out.erase(std::remove(out.begin(), out.end(), std::string_view("cuda")), out.end());
  return out;
}

class DeviceRanks : public DeviceLaws {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceRanks, testing::ValuesIn(devices_of_two()),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(DeviceRanks, TwoGiveTheBitsOfOne) {
  for (const std::string type : {"qlora", "full"}) {
    TrainConfig c = short_run(type, type);
    c.precision = type == "full" ? "bf16" : "fp32";
    run_on(1, c);
    for (const char* strategy : {"full_shard", "shard_grad_op", "ddp"}) {
      const std::string output = type + strategy;
      c.output_dir = folder_.path(output);
      c.sharding_strategy = strategy;
      run_on(2, c);
      EXPECT_EQ(outcome(output, file_of(type)), outcome(type, file_of(type))) << output;
    }
  }
}

// Lanes run in another order each time: what one of them needs from another it must have waited for.
TEST_P(DeviceRanks, TheOrderOfLanesDoesNotChangeBits) {
  run_on(1, short_run("qlora", "one"));
  for (const uint64_t seed : {2, 3, 4}) {
    const std::string output = "seed" + std::to_string(seed);
    TrainConfig c = short_run("qlora", output);
    c.save_steps = 1;
    run_on(2, c, seed);
    EXPECT_EQ(outcome(output, file_of("qlora")), outcome("one", file_of("qlora"))) << output;
  }
}

// The loss of the second step is not finite: the same tensor is named as on the host, after a look at the device's memory.
TEST_P(DeviceLaws, AStepThatIsNotFiniteIsNamed) {
  const auto said = [&](const char* device) {
    TrainConfig c = short_run("full", "explodes");
    c.device = device;
    c.lr = 1e25, c.lr_scheduler = "constant", c.warmup_ratio = 0;
    const std::string error = error_of([&] { run_on(1, c); });
    remove_all(folder_.path("explodes"));
    return error;
  };
  EXPECT_NE(said(GetParam()).find("step 2, "), std::string::npos) << said(GetParam());
  EXPECT_EQ(said(GetParam()), said("cpu"));
}

TEST_P(DeviceLaws, NotFiniteIsFoundInItsMemory) {
  const auto backend = make_test_backend(GetParam(), 1);
  TestMemory memory(*backend);
  std::vector<double> values(1000, 1);
  EXPECT_EQ(first_nonfinite(memory.of(Dtype::bf16, {1000}, values)), -1);
  values[777] = std::numeric_limits<double>::infinity();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) EXPECT_EQ(first_nonfinite(memory.of(dtype, {1000}, values)), 777);
}

// A micro-batch goes to the device in one copy, and its losses come back in one.
TEST_P(DeviceLaws, OneCopyEachWay) {
  Profile profile(0);
  const auto comm = make_single_comm();
  const auto backend = std::make_unique<ProfilingBackend>(make_test_backend(GetParam(), 1), profile);
  LoadedModel m(TestModel::with_arena(request("qlora")), *comm, *backend);
  const Batch batch = tiny_batch();
  m.pass.train(batch, 1);  // the rope tables are made
  m.pass.take_losses();
  {
    const ProfileStep step(1);
    m.pass.train(batch, 1);
    m.pass.take_losses();
  }
  double copies = 0;
  for (const auto& row : profile.average().operations)
    if (row.operation.name == std::string("copy")) copies += row.calls;
  EXPECT_EQ(copies, 2);
}

}  // namespace
}  // namespace tessera
