// SPDX-License-Identifier: Apache-2.0
// What a shared library of kernels offers to Python beside its launchers.
#pragma once

#include <functional>

#include "twin/launch.h"

namespace twin {

Settings CurrentSettings();
/// 0 when `launch` ends well; else 1, with the message kept for twin_last_error.
int Guarded(const std::function<void()>& launch);

}  // namespace twin

extern "C" {
const char* twin_last_error();
void twin_configure(uint64_t seed, uint32_t yieldOneIn);
}
