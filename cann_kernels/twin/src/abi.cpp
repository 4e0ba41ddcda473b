// SPDX-License-Identifier: Apache-2.0
#include "twin/abi.h"

namespace twin {

namespace {

Settings settings;
std::string lastError;

}  // namespace

Settings CurrentSettings() { return settings; }

int Guarded(const std::function<void()>& launch) {
    lastError.clear();
    try {
        launch();
    } catch (const TwinError& error) {
        lastError = error.message;
        return 1;
    }
    return 0;
}

}  // namespace twin

const char* twin_last_error() { return twin::lastError.c_str(); }

void twin_configure(uint64_t seed, uint32_t yieldOneIn) { twin::settings = {seed, yieldOneIn}; }
