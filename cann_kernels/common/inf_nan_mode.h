// SPDX-License-Identifier: Apache-2.0
// Half and bfloat16 results as IEEE arithmetic has them, whatever the core was set to before.
#pragma once

#include "kernel_operator.h"

/// For the lifetime of a kernel. Saturation would turn NaN into 0 and infinity into the largest number.
class InfNanMode {
public:
    __aicore__ inline InfNanMode() : before_(AscendC::GetCtrlSpr<48, 48>()) { AscendC::SetCtrlSpr<48, 48>(1); }
    __aicore__ inline ~InfNanMode() { AscendC::SetCtrlSpr<48, 48>(before_); }

private:
    int64_t before_;
};
