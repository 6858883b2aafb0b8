#include "core/activity.h"

#include <gtest/gtest.h>

#include <thread>

namespace tessera {
namespace {

TEST(Activity, ScopesNestAndBelongToTheirThread) {
  EXPECT_EQ(Doing::now(), Activity::starting);
  const Doing outer(Activity::forward);
  {
    const Doing inner(Activity::head);
    EXPECT_EQ(Doing::now(), Activity::head);
    std::thread([] { EXPECT_EQ(Doing::now(), Activity::starting); }).join();
  }
  EXPECT_EQ(Doing::now(), Activity::forward);
}

TEST(Activity, OthersMayLookOn) {
  std::atomic<Activity> place = Activity::ending;
  const Doing outer(Activity::saving);
  Doing::show(&place);
  EXPECT_EQ(place.load(), Activity::saving);
  {
    const Doing inner(Activity::backward);
    EXPECT_EQ(place.load(), Activity::backward);
  }
  EXPECT_EQ(place.load(), Activity::saving);
  Doing::show(nullptr);
  const Doing hidden(Activity::loading);
  EXPECT_EQ(place.load(), Activity::saving);
}

TEST(Activity, EachHasAName) {
  for (int a = 0; a <= int(Activity::ending); ++a) EXPECT_STRNE(name_of(Activity(a)), "");
  EXPECT_STREQ(name_of(Activity::reading_data), "reading data");
}

}  // namespace
}  // namespace tessera
